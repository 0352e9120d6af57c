package cache

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// registry is an Origin made of maps, which counts what it is asked and fails
// where a test says so.
type registry struct {
	mu        sync.Mutex
	manifests map[string]map[digest.Digest]*oci.Manifest // by repository
	tags      map[string]map[string]digest.Digest
	blobs     map[string]map[digest.Digest][]byte
	referrers map[digest.Digest][]v1.Descriptor
	asked     map[string]int // by operation
	fail      error
	delay     time.Duration
	silent    bool          // HEAD says neither digest nor size
	lie       digest.Digest // what HEAD says, where set; a GET by tag then fails
}

func newRegistry() *registry {
	return &registry{
		manifests: map[string]map[digest.Digest]*oci.Manifest{},
		tags:      map[string]map[string]digest.Digest{},
		blobs:     map[string]map[digest.Digest][]byte{},
		referrers: map[digest.Digest][]v1.Descriptor{},
		asked:     map[string]int{},
	}
}

func (r *registry) ask(ctx context.Context, what string) error {
	r.mu.Lock()
	r.asked[what]++
	delay, fail := r.delay, r.fail
	r.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return fail
}

func (r *registry) set(fail error, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail, r.delay = fail, delay
}

func (r *registry) count() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.asked)
}

func (r *registry) find(repo, ref string) (*oci.Manifest, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.Digest(ref)
	if d.Validate() != nil {
		d = r.tags[repo][ref]
	}
	m, ok := r.manifests[repo][d]
	if !ok {
		return nil, oci.Errorf(oci.CodeManifestUnknown, "%s has no %s", repo, ref)
	}
	return m, nil
}

func (r *registry) Resolve(ctx context.Context, repo, ref string) (v1.Descriptor, error) {
	if err := r.ask(ctx, "resolve"); err != nil {
		return v1.Descriptor{}, err
	}
	m, err := r.find(repo, ref)
	if err != nil || r.silent {
		return v1.Descriptor{}, err
	}
	desc := m.Descriptor()
	if r.lie != "" {
		desc.Digest = r.lie
	}
	return desc, nil
}

func (r *registry) Manifest(ctx context.Context, repo, ref string) (*oci.Manifest, error) {
	if err := r.ask(ctx, "manifest"); err != nil {
		return nil, err
	}
	if r.lie != "" && !strings.Contains(ref, ":") {
		return nil, errDown // its bytes are not what it says that they are
	}
	return r.find(repo, ref)
}

func (r *registry) Stat(ctx context.Context, repo string, d digest.Digest) (v1.Descriptor, error) {
	if err := r.ask(ctx, "stat"); err != nil {
		return v1.Descriptor{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.blobs[repo][d]
	if !ok {
		return v1.Descriptor{}, oci.Errorf(oci.CodeBlobUnknown, "%s has no %s", repo, d)
	}
	return v1.Descriptor{Digest: d, Size: int64(len(b)), MediaType: oci.MediaTypeOctetStream}, nil
}

func (r *registry) Blob(ctx context.Context, repo string, d digest.Digest, span oci.Span) (*oci.Body, error) {
	if err := r.ask(ctx, "blob"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.blobs[repo][d]
	if !ok {
		return nil, oci.Errorf(oci.CodeBlobUnknown, "%s has no %s", repo, d)
	}
	got := oci.Span{From: span.From, To: fill.End(span, int64(len(b)))}
	return &oci.Body{ReadCloser: io.NopCloser(bytes.NewReader(b[got.From:got.To])), Span: got, Size: int64(len(b))}, nil
}

func (r *registry) Tags(ctx context.Context, repo string) ([]string, error) {
	if err := r.ask(ctx, "tags"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.tags[repo])), nil
}

func (r *registry) Referrers(ctx context.Context, _ string, d digest.Digest) ([]v1.Descriptor, error) {
	if err := r.ask(ctx, "referrers"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.referrers[d], nil
}

func put[K comparable, L comparable, V any](m map[K]map[L]V, k K, l L, v V) {
	if m[k] == nil {
		m[k] = map[L]V{}
	}
	m[k][l] = v
}

// addBlob gives repo a blob and its descriptor.
func (r *registry) addBlob(repo string, b []byte) v1.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(b)
	put(r.blobs, repo, d, b)
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(b))}
}

// addDocument gives repo a manifest or index.
func (r *registry) addDocument(repo, mediaType string, doc any) v1.Descriptor {
	b, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &oci.Manifest{Digest: digest.FromBytes(b), MediaType: mediaType, Bytes: b}
	put(r.manifests, repo, m.Digest, m)
	return m.Descriptor()
}

// addImage gives repo an image of some layers.
func (r *registry) addImage(repo string, layers ...[]byte) v1.Descriptor {
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	m.Config = r.addBlob(repo, []byte(`{"architecture":"amd64","os":"linux"}`))
	m.Config.MediaType = v1.MediaTypeImageConfig
	for _, l := range layers {
		m.Layers = append(m.Layers, r.addBlob(repo, l))
	}
	return r.addDocument(repo, v1.MediaTypeImageManifest, m)
}

func (r *registry) tag(repo, tag string, d v1.Descriptor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	put(r.tags, repo, tag, d.Digest)
}

// open opens a cache in dir in front of upstreams, and closes it with the test.
func open(t *testing.T, o Options, upstreams map[string]*registry, rules ...TagRule) *Cache {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	o.Upstreams = map[string]Upstream{}
	for name, r := range upstreams {
		o.Upstreams[name] = Upstream{Origin: r, Tags: rules, Uniform: true}
	}
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

// until waits for what is done behind a request.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting for %s", what)
		}
	}
}

func tagged(repo, tag string) oci.Target {
	return oci.Target{Upstream: "docker.io", Repository: repo, Tag: tag}
}

func digested(repo string, d digest.Digest) oci.Target {
	return oci.Target{Upstream: "docker.io", Repository: repo, Digest: d}
}

// wantManifest asks for t and checks what comes.
func wantManifest(t *testing.T, c *Cache, target oci.Target, want v1.Descriptor, wantStatus Status) *Manifest {
	t.Helper()
	m, out, err := c.Manifest(t.Context(), target, rewrite.Accept{})
	if err != nil {
		t.Fatalf("%v: %v (%+v)", target, err, out)
	}
	if m.Digest != want.Digest || m.MediaType != want.MediaType || m.Size != want.Size || digest.FromBytes(m.Bytes) != want.Digest {
		t.Errorf("%v: got %s %s of %d bytes, want %s %s of %d", target, m.MediaType, m.Digest, m.Size, want.MediaType, want.Digest, want.Size)
	}
	if out.Status != wantStatus {
		t.Errorf("%v: status %s (%s), want %s", target, out.Status, out.Reason, wantStatus)
	}
	return m
}

func readBlob(t *testing.T, c *Cache, target oci.Target) ([]byte, Status, error) {
	t.Helper()
	b, out, err := c.Blob(t.Context(), target, oci.Whole)
	if err != nil {
		return nil, out.Status, err
	}
	defer b.Close()
	var buf bytes.Buffer
	_, err = b.Send(&buf, oci.Whole)
	return buf.Bytes(), out.Status, err
}

func wantBlob(t *testing.T, c *Cache, target oci.Target, want []byte, wantStatus Status) {
	t.Helper()
	got, st, err := readBlob(t, c, target)
	if err != nil || !bytes.Equal(got, want) || st != wantStatus {
		t.Errorf("%v: got %d bytes, %s, %v; want %d bytes, %s", target, len(got), st, err, len(want), wantStatus)
	}
}

var errDown = &oci.Error{Code: oci.CodeUnavailable, Status: 502, Message: "connection refused"}

func TestSecondPullAsksTheUpstreamNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		layer := content(1, 1<<20)
		image := hub.addImage("library/nginx", layer)
		index := hub.addDocument("library/nginx", v1.MediaTypeImageIndex, v1.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
			Manifests: []v1.Descriptor{withPlatform(image, "linux", "amd64", "")},
		})
		hub.tag("library/nginx", "1.27", index)
		dir := t.TempDir()
		c := open(t, Options{Dir: dir, MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		pull := func(tagStatus, status Status) {
			t.Helper()
			wantManifest(t, c, tagged("library/nginx", "1.27"), index, tagStatus)
			m := wantManifest(t, c, digested("library/nginx", image.Digest), image, status)
			p, err := oci.ParseManifest(m.Bytes, m.MediaType)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range p.Children {
				wantBlob(t, c, digested("library/nginx", d.Digest), hub.blobs["library/nginx"][d.Digest], status)
			}
		}
		pull(Miss, Miss)
		want := map[string]int{"manifest": 2, "blob": 2}
		if got := hub.count(); !maps.Equal(got, want) {
			t.Errorf("the first pull asks %v, want %v", got, want)
		}
		synctest.Wait()
		hub.set(errDown, 0)
		pull(Hit, Hit)

		// And it outlives the process, which has no memory tier then.
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c = open(t, Options{Dir: dir}, map[string]*registry{"docker.io": hub})
		pull(Hit, Hit)
		if got := hub.count(); !maps.Equal(got, want) {
			t.Errorf("after further pulls the upstream was asked %v, want %v", got, want)
		}
	})
}

func withPlatform(d v1.Descriptor, os, arch, variant string) v1.Descriptor {
	d.Platform = &v1.Platform{OS: os, Architecture: arch, Variant: variant}
	return d
}

func TestClientsThatAskAtOnceShareOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		layer := content(2, 3<<20)
		image := hub.addImage("library/nginx", layer)
		hub.tag("library/nginx", "latest", image)
		hub.delay = time.Second
		c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		var clients sync.WaitGroup
		var mu sync.Mutex
		seen := map[Status]int{}
		for range 50 {
			clients.Go(func() {
				_, out, err := c.Manifest(t.Context(), tagged("library/nginx", "latest"), rewrite.Accept{})
				if err != nil {
					t.Error(err)
				}
				_, st, err := readBlob(t, c, digested("library/nginx", digest.FromBytes(layer)))
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				seen[out.Status]++
				seen[st]++
				mu.Unlock()
			})
		}
		clients.Wait()
		if want := map[string]int{"manifest": 1, "blob": 1}; !maps.Equal(hub.count(), want) {
			t.Errorf("asked %v, want %v", hub.count(), want)
		}
		if want := map[Status]int{Miss: 2, Collapsed: 98}; !maps.Equal(seen, want) {
			t.Errorf("outcomes %v, want %v", seen, want)
		}
	})
}

func TestFetchGoesOnWhenItsClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		layer := content(3, 1<<20)
		image := hub.addImage("library/nginx", layer)
		hub.delay = time.Second
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		leave, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, _, err := c.Manifest(leave, digested("library/nginx", image.Digest), rewrite.Accept{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who leaves gets %v", err)
		}
		if _, _, err := c.Blob(leave, digested("library/nginx", digest.FromBytes(layer)), oci.Whole); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who leaves gets %v", err)
		}
		time.Sleep(10 * time.Second)
		hub.set(errDown, 0)
		wantManifest(t, c, digested("library/nginx", image.Digest), image, Hit)
		time.Sleep(10 * time.Second)
	})
}

func TestTagIsRevalidatedByHeadPastItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		one, two := hub.addImage("library/nginx", []byte("one")), hub.addImage("library/nginx", []byte("two"))
		hub.tag("library/nginx", "latest", one)
		c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		latest := tagged("library/nginx", "latest")
		wantManifest(t, c, latest, one, Miss)
		time.Sleep(DefaultTTL - time.Second)
		wantManifest(t, c, latest, one, Hit)
		time.Sleep(2 * time.Second)
		wantManifest(t, c, latest, one, Revalidated)
		wantManifest(t, c, latest, one, Hit)
		if want := map[string]int{"manifest": 1, "resolve": 1}; !maps.Equal(hub.count(), want) {
			t.Errorf("asked %v, want %v", hub.count(), want)
		}
		hub.tag("library/nginx", "latest", two)
		time.Sleep(DefaultTTL + time.Second)
		wantManifest(t, c, latest, two, Miss)
		if want := map[string]int{"manifest": 2, "resolve": 2}; !maps.Equal(hub.count(), want) {
			t.Errorf("asked %v, want %v", hub.count(), want)
		}
	})
}

func TestTagIsServedStaleWhileTheUpstreamFails(t *testing.T) {
	failures := map[string]error{
		"refused connection": errDown,
		"rate limit":         &oci.Error{Code: oci.CodeTooManyRequests, RetryAfter: time.Hour},
		"refused access":     oci.Errorf(oci.CodeDenied, "no"),
		"no oci.Error":       errors.New("something else"),
	}
	for name, failure := range failures {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := newRegistry()
				image := hub.addImage("library/nginx", []byte("layer"))
				hub.tag("library/nginx", "latest", image)
				c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
				latest := tagged("library/nginx", "latest")
				wantManifest(t, c, latest, image, Miss)
				time.Sleep(2 * DefaultTTL)
				hub.set(failure, 0)
				for range 100 {
					wantManifest(t, c, latest, image, Stale)
				}
				if n := hub.count()["resolve"]; n != 1 {
					t.Errorf("a failing upstream was asked %d times in a row", n)
				}
				m, out, err := c.Describe(t.Context(), latest, rewrite.Accept{})
				if err != nil || out.Status != Stale || out.Reason == "" || out.TTL >= 0 || out.Age < 2*DefaultTTL || m.Digest != image.Digest {
					t.Errorf("HEAD: %+v, %+v, %v", m, out, err)
				}
				hub.set(nil, 0)
				time.Sleep(2 * maxPause)
				wantManifest(t, c, latest, image, Revalidated)

				hub.set(failure, 0)
				time.Sleep(DefaultStaleIfError + 2*DefaultTTL)
				if _, _, err := c.Manifest(t.Context(), latest, rewrite.Accept{}); !errors.Is(err, failure) {
					t.Errorf("past stale_if_error: %v, want %v", err, failure)
				}
			})
		})
	}
}

func TestSlowRevalidationCostsAClientItsDeadlineOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("library/nginx", []byte("layer"))
		hub.tag("library/nginx", "latest", image)
		c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		latest := tagged("library/nginx", "latest")
		wantManifest(t, c, latest, image, Miss)
		time.Sleep(2 * DefaultTTL)
		hub.set(nil, 5*time.Second)
		begun := time.Now()
		wantManifest(t, c, latest, image, Stale)
		if d := time.Since(begun); d != DefaultRevalidateTimeout {
			t.Errorf("the first client waited %v, want %v", d, DefaultRevalidateTimeout)
		}
		begun = time.Now()
		wantManifest(t, c, latest, image, Stale)
		if d := time.Since(begun); d != 0 {
			t.Errorf("the second client waited %v", d)
		}
		time.Sleep(5 * time.Second) // the check has gone on behind
		wantManifest(t, c, latest, image, Hit)
		if n := hub.count()["resolve"]; n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
	})
}

func TestDeletedTagIsBelievedAndRememberedBriefly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("library/nginx", []byte("layer"))
		hub.tag("library/nginx", "latest", image)
		c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		latest := tagged("library/nginx", "latest")
		wantManifest(t, c, latest, image, Miss)
		delete(hub.tags["library/nginx"], "latest")
		time.Sleep(2 * DefaultTTL)
		for i, want := range []Status{Miss, Negative, Negative} {
			_, out, err := c.Manifest(t.Context(), latest, rewrite.Accept{})
			if !oci.IsAbsent(err) || out.Status != want {
				t.Errorf("request %d: %v, %v; want absent, %v", i, err, out.Status, want)
			}
		}
		hub.tag("library/nginx", "latest", image)
		time.Sleep(2 * DefaultNegativeTTL)
		wantManifest(t, c, latest, image, Miss)
		wantManifest(t, c, digested("library/nginx", image.Digest), image, Hit)
	})
}

func TestTagIsServedAtOnceWhileItIsRevalidatedBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		one, two := hub.addImage("app", []byte("one")), hub.addImage("app", []byte("two"))
		hub.tag("app", "latest", one)
		c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub},
			TagRule{Match: "*", TTL: time.Minute, StaleWhileRevalidate: time.Hour, StaleIfError: time.Hour})
		wantManifest(t, c, tagged("app", "latest"), one, Miss)
		hub.tag("app", "latest", two)
		hub.set(nil, time.Second)
		time.Sleep(30 * time.Minute)
		begun := time.Now()
		wantManifest(t, c, tagged("app", "latest"), one, Stale)
		if d := time.Since(begun); d != 0 {
			t.Errorf("the client waited %v", d)
		}
		time.Sleep(2 * time.Second)
		wantManifest(t, c, tagged("app", "latest"), two, Miss)
		time.Sleep(2 * time.Hour)
		wantManifest(t, c, tagged("app", "latest"), two, Revalidated)
	})
}

func TestDeletedTagIsKeptWhereTheRuleSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("app", []byte("layer"))
		hub.tag("app", "latest", image)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub},
			TagRule{Match: "*", TTL: time.Minute, StaleIfError: time.Minute, KeepDeleted: true})
		wantManifest(t, c, tagged("app", "latest"), image, Miss)
		delete(hub.tags["app"], "latest")
		time.Sleep(24 * time.Hour)
		for range 10 {
			wantManifest(t, c, tagged("app", "latest"), image, Stale)
		}
		if n := hub.count()["resolve"]; n != 1 {
			t.Errorf("the upstream was asked %d times in a row", n)
		}
		// One that was never here is not invented.
		if _, _, err := c.Manifest(t.Context(), tagged("app", "other"), rewrite.Accept{}); !oci.IsAbsent(err) {
			t.Errorf("a tag that was never there: %v", err)
		}
		hub.tag("app", "latest", image)
		time.Sleep(time.Hour)
		wantManifest(t, c, tagged("app", "latest"), image, Revalidated)
	})
}

func TestImmutableTagsAreAskedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("library/nginx", []byte("layer"))
		hub.tag("library/nginx", "1.27.3", image)
		hub.tag("library/nginx", "latest", image)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub},
			TagRule{Match: "library/*:*.*.*", Immutable: true}, TagRule{Match: "*", TTL: time.Second, StaleIfError: time.Hour})
		wantManifest(t, c, tagged("library/nginx", "1.27.3"), image, Miss)
		wantManifest(t, c, tagged("library/nginx", "latest"), image, Miss)
		time.Sleep(365 * 24 * time.Hour)
		wantManifest(t, c, tagged("library/nginx", "1.27.3"), image, Hit)
		wantManifest(t, c, tagged("library/nginx", "latest"), image, Revalidated)
	})
}

func TestHeadOfAMissIsNoPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("library/nginx", []byte("layer"))
		hub.tag("library/nginx", "latest", image)
		c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		for _, target := range []oci.Target{tagged("library/nginx", "latest"), digested("library/nginx", image.Digest)} {
			m, out, err := c.Describe(t.Context(), target, rewrite.Accept{})
			if err != nil || m.Digest != image.Digest || m.Size != image.Size || m.MediaType != image.MediaType || m.Bytes != nil || out.Status != Miss {
				t.Errorf("HEAD %v: %+v, %+v, %v", target, m, out, err)
			}
		}
		if n := hub.count()["manifest"]; n != 0 {
			t.Errorf("%d GETs for two HEADs", n)
		}
		wantManifest(t, c, tagged("library/nginx", "latest"), image, Miss)
		if n := hub.count()["manifest"]; n != 1 {
			t.Errorf("%d GETs, want 1", n)
		}
	})
}

func TestUpstreamThatSaysNothingOnHeadIsFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		hub.silent = true
		one, two := hub.addImage("app", []byte("one")), hub.addImage("app", []byte("two"))
		hub.tag("app", "latest", one)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		m, _, err := c.Describe(t.Context(), tagged("app", "latest"), rewrite.Accept{})
		if err != nil || m.Digest != one.Digest || m.Size != one.Size {
			t.Errorf("HEAD: %+v, %v", m, err)
		}
		hub.tag("app", "latest", two)
		time.Sleep(2 * DefaultTTL)
		wantManifest(t, c, tagged("app", "latest"), two, Miss)
	})
}

func TestTagWhoseNewManifestCanNotBeFetchedIsServedAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		one, two := hub.addImage("app", []byte("one")), hub.addImage("app", []byte("two"))
		hub.tag("app", "latest", one)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		wantManifest(t, c, tagged("app", "latest"), one, Miss)
		hub.tag("app", "latest", two)
		time.Sleep(2 * DefaultTTL)
		m, _, err := c.Describe(t.Context(), tagged("app", "latest"), rewrite.Accept{})
		if err != nil || m.Digest != two.Digest {
			t.Fatalf("HEAD: %+v, %v", m, err)
		}
		hub.set(errDown, 0)
		wantManifest(t, c, tagged("app", "latest"), one, Stale)
	})
}

func TestTagWhoseUpstreamNamesAWrongDigestIsServedAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		one := hub.addImage("app", []byte("one"))
		hub.tag("app", "latest", one)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		wantManifest(t, c, tagged("app", "latest"), one, Miss)
		hub.lie = digest.FromString("what is nowhere")
		for range 2 {
			time.Sleep(2 * DefaultTTL)
			wantManifest(t, c, tagged("app", "latest"), one, Stale)
		}
		hub.lie = ""
		time.Sleep(2 * DefaultTTL)
		if m, _, err := c.Manifest(t.Context(), tagged("app", "latest"), rewrite.Accept{}); err != nil || m.Digest != one.Digest {
			t.Errorf("once it tells the truth: %+v, %v", m, err)
		}
	})
}

func TestClientThatTakesNoIndexGetsTheDefaultPlatform(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		amd, arm := hub.addImage("app", []byte("amd64")), hub.addImage("app", []byte("arm"))
		index := hub.addDocument("app", v1.MediaTypeImageIndex, v1.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
			Manifests: []v1.Descriptor{withPlatform(amd, "linux", "amd64", ""), withPlatform(arm, "linux", "arm", "v7")},
		})
		hub.tag("app", "latest", index)
		only := rewrite.AcceptOf(v1.MediaTypeImageManifest, oci.MediaTypeDockerManifest)
		for platform, want := range map[string]v1.Descriptor{"": amd, "linux/amd64": amd, "linux/arm/v7": arm, "linux/arm64": {}} {
			o := Options{}
			if platform != "" {
				o.Platforms = []string{platform}
			}
			c := open(t, o, map[string]*registry{"docker.io": hub})
			m, _, err := c.Manifest(t.Context(), tagged("app", "latest"), only)
			if want.Digest == "" {
				if !oci.IsAbsent(err) {
					t.Errorf("%s: %v", platform, err)
				}
				continue
			}
			if err != nil || m.Digest != want.Digest || !m.Negotiated || digest.FromBytes(m.Bytes) != want.Digest {
				t.Errorf("%s: %+v, %v", platform, m, err)
			}
			h, _, err := c.Describe(t.Context(), tagged("app", "latest"), only)
			if err != nil || h.Digest != want.Digest || h.Size != m.Size || h.MediaType != m.MediaType || !h.Negotiated || h.Bytes != nil {
				t.Errorf("HEAD %s: %+v, %v", platform, h, err)
			}
			if m, _, err := c.Manifest(t.Context(), digested("app", index.Digest), only); err != nil || m.Digest != index.Digest {
				t.Errorf("an index by digest: %+v, %v", m, err)
			}
		}
	})
}

func TestOneRepositorysDigestsAreNoKeyToAnothersContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, ghcr := newRegistry(), newRegistry()
		secret := content(4, 1<<20)
		image := hub.addImage("alice/private", secret)
		c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub, "ghcr.io": ghcr})
		wantManifest(t, c, digested("alice/private", image.Digest), image, Miss)
		wantBlob(t, c, digested("alice/private", digest.FromBytes(secret)), secret, Miss)
		synctest.Wait()

		for _, target := range []oci.Target{
			digested("mallory/app", image.Digest),
			{Upstream: "ghcr.io", Repository: "alice/private", Digest: image.Digest},
		} {
			if _, _, err := c.Manifest(t.Context(), target, rewrite.Accept{}); !oci.IsAbsent(err) {
				t.Errorf("manifest of %v: %v", target, err)
			}
			target.Digest = digest.FromBytes(secret)
			if _, _, err := readBlob(t, c, target); !oci.IsAbsent(err) {
				t.Errorf("blob of %v: %v", target, err)
			}
			if _, _, err := c.Stat(t.Context(), target); !oci.IsAbsent(err) {
				t.Errorf("HEAD of blob of %v: %v", target, err)
			}
		}

		// What the upstream confirms is served from here.
		hub.addImage("bob/app", secret)
		wantBlob(t, c, digested("bob/app", digest.FromBytes(secret)), secret, Revalidated)
		wantBlob(t, c, digested("bob/app", digest.FromBytes(secret)), secret, Hit)
		if n := hub.count()["blob"]; n != 1 {
			t.Errorf("the blob was fetched %d times", n)
		}
	})
}

// A manifest may be a layer of another: what bundles images does that. It stays a
// manifest.
func TestManifestThatAnotherHasAsItsLayerStaysAManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		image := hub.addImage("app", content(70, 100))
		bundle := hub.addDocument("app", v1.MediaTypeImageManifest, v1.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
			Config: hub.addBlob("app", []byte("{}")), Layers: []v1.Descriptor{image},
		})
		wantManifest(t, c, digested("app", image.Digest), image, Miss)
		wantManifest(t, c, digested("app", bundle.Digest), bundle, Miss)
		hub.set(errDown, 0)
		wantManifest(t, c, digested("app", image.Digest), image, Hit)
	})
}

func TestFetchOfAnotherRepositoryThatFailsIsNotOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, ghcr := newRegistry(), newRegistry()
		layer := content(5, 1<<20)
		hub.addBlob("app", layer)
		d := digest.FromBytes(layer)
		// Another upstream's manifest names the blob, and it has it not.
		ghcr.addImage("app", layer)
		image := ghcr.addImage("app", layer)
		delete(ghcr.blobs["app"], d)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub, "ghcr.io": ghcr})
		if _, _, err := c.Manifest(t.Context(), oci.Target{Upstream: "ghcr.io", Repository: "app", Digest: image.Digest}, rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		ghcr.set(nil, time.Second)
		var clients sync.WaitGroup
		clients.Go(func() {
			if _, _, err := readBlob(t, c, oci.Target{Upstream: "ghcr.io", Repository: "app", Digest: d}); !oci.IsAbsent(err) {
				t.Errorf("who asks where it is not: %v", err)
			}
		})
		synctest.Wait()
		got, _, err := readBlob(t, c, digested("app", d))
		if err != nil || !bytes.Equal(got, layer) {
			t.Errorf("who asks where it is: %d bytes, %v", len(got), err)
		}
		clients.Wait()
	})
}

func TestUpstreamFailureOnAMissIsNeverNotFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("app", []byte("layer"))
		hub.set(errDown, 0)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		ask := map[string]func() error{
			"manifest by tag": func() error {
				_, _, err := c.Manifest(t.Context(), tagged("app", "latest"), rewrite.Accept{})
				return err
			},
			"manifest by digest": func() error {
				_, _, err := c.Manifest(t.Context(), digested("app", image.Digest), rewrite.Accept{})
				return err
			},
			"HEAD by tag": func() error {
				_, _, err := c.Describe(t.Context(), tagged("app", "latest"), rewrite.Accept{})
				return err
			},
			"HEAD by digest": func() error {
				_, _, err := c.Describe(t.Context(), digested("app", image.Digest), rewrite.Accept{})
				return err
			},
			"blob":           func() error { _, _, err := readBlob(t, c, digested("app", image.Digest)); return err },
			"HEAD of a blob": func() error { _, _, err := c.Stat(t.Context(), digested("app", image.Digest)); return err },
			"tags":           func() error { _, _, err := c.Tags(t.Context(), tagged("app", "")); return err },
			"referrers":      func() error { _, _, err := c.Referrers(t.Context(), digested("app", image.Digest)); return err },
		}
		for name, ask := range ask {
			if err := ask(); !errors.Is(err, errDown) {
				t.Errorf("%s: %v, want %v", name, err, errDown)
			}
		}
	})
}

func TestListsAreKeptBrieflyAndServedStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("app", []byte("layer"))
		hub.tag("app", "b", image)
		hub.tag("app", "a", image)
		hub.referrers[image.Digest] = []v1.Descriptor{{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("sbom"), Size: 4}}
		dir := t.TempDir()
		c := open(t, Options{Dir: dir, MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		want := func(st Status) {
			t.Helper()
			tags, out, err := c.Tags(t.Context(), tagged("app", ""))
			if err != nil || !slices.Equal(tags, []string{"a", "b"}) || out.Status != st {
				t.Errorf("tags %v, %v, %v; want %v", tags, out.Status, err, st)
			}
			found, out, err := c.Referrers(t.Context(), digested("app", image.Digest))
			if err != nil || len(found) != 1 || out.Status != st {
				t.Errorf("referrers %v, %v, %v; want %v", found, out.Status, err, st)
			}
		}
		want(Miss)
		want(Hit)
		time.Sleep(2 * DefaultTTL)
		hub.set(errDown, 0)
		want(Stale)
		want(Stale)
		if n := hub.count()["tags"]; n != 2 {
			t.Errorf("tags were asked for %d times, want 2", n)
		}
		time.Sleep(2 * failurePause)
		hub.set(nil, 10*time.Second)
		want(Stale) // slow
		time.Sleep(10 * time.Second)
		want(Hit)
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c = open(t, Options{Dir: dir, Settings: Settings{Offline: true}}, map[string]*registry{"docker.io": hub})
		time.Sleep(2 * DefaultStaleIfError)
		want(Stale)
	})
}

func TestOfflineServesWhatIsThereAndSaysWhatIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("app", []byte("layer"))
		hub.tag("app", "latest", image)
		dir := t.TempDir()
		c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": hub})
		wantManifest(t, c, tagged("app", "latest"), image, Miss)
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		asked := hub.count()
		time.Sleep(2 * DefaultStaleIfError)
		c = open(t, Options{Dir: dir, Settings: Settings{Offline: true}}, map[string]*registry{"docker.io": hub})
		wantManifest(t, c, tagged("app", "latest"), image, Stale)
		wantManifest(t, c, digested("app", image.Digest), image, Hit)
		_, _, err := c.Manifest(t.Context(), tagged("app", "other"), rewrite.Accept{})
		if !errors.Is(err, errOffline) || oci.IsAbsent(err) {
			t.Errorf("what is not there: %v", err)
		}
		if tags, _, err := c.Tags(t.Context(), tagged("app", "")); err != nil || !slices.Equal(tags, []string{"latest"}) {
			t.Errorf("tags of a list that was never fetched: %v, %v", tags, err)
		}
		if tags, _, err := c.Tags(t.Context(), tagged("ap", "")); !errors.Is(err, errOffline) {
			t.Errorf("tags of a repository that was never seen: %v, %v", tags, err)
		}
		if !maps.Equal(hub.count(), asked) {
			t.Errorf("asked %v while offline", hub.count())
		}
	})
}

func TestDamagedContentOnDiskIsFetchedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("app", []byte("a small layer"))
		dir := t.TempDir()
		c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": hub})
		small := digest.FromString("a small layer")
		wantManifest(t, c, digested("app", image.Digest), image, Miss)
		wantBlob(t, c, digested("app", small), []byte("a small layer"), Miss)
		synctest.Wait()
		for _, d := range []digest.Digest{image.Digest, small} {
			path := filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[3] ^= 1
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		wantManifest(t, c, digested("app", image.Digest), image, Miss)
		wantBlob(t, c, digested("app", small), []byte("a small layer"), Miss)
	})
}

func TestStatIsAnsweredFromTheCacheOrByHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		layer := content(6, 100_000)
		hub.addBlob("app", layer)
		target := digested("app", digest.FromBytes(layer))
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		for _, want := range []Status{Miss, Hit} {
			size, out, err := c.Stat(t.Context(), target)
			if err != nil || size != int64(len(layer)) || out.Status != want {
				t.Errorf("%d, %v, %v; want %d, %v", size, out.Status, err, len(layer), want)
			}
			if want == Miss {
				wantBlob(t, c, target, layer, Miss)
				synctest.Wait()
			}
		}
		// No manifest names it: it could be one.
		if want := map[string]int{"stat": 1, "resolve": 1, "blob": 1}; !maps.Equal(hub.count(), want) {
			t.Errorf("asked %v, want %v", hub.count(), want)
		}
	})
}

func TestRepositoriesListsWhatIsCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, ghcr := newRegistry(), newRegistry()
		c := open(t, Options{}, map[string]*registry{"docker.io": hub, "ghcr.io": ghcr})
		var want []string
		for _, r := range []struct {
			upstream string
			registry *registry
			repo     string
		}{{"ghcr.io", ghcr, "org/app"}, {"docker.io", hub, "library/nginx"}, {"docker.io", hub, "library/nginx-extra"}} {
			image := r.registry.addImage(r.repo, []byte(r.repo))
			r.registry.tag(r.repo, "latest", image)
			if _, _, err := c.Manifest(t.Context(), oci.Target{Upstream: r.upstream, Repository: r.repo, Tag: "latest"}, rewrite.Accept{}); err != nil {
				t.Fatal(err)
			}
			want = append(want, r.upstream+"/"+r.repo)
		}
		slices.Sort(want)
		got, err := c.Repositories(t.Context(), "", "", 10)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	})
}

func TestCloseKeepsWhatAFetchHasGot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := &slowBlob{registry: newRegistry(), s: &source{content: content(7, 4<<20), chunk: 1 << 16, pace: time.Millisecond}}
		d := digest.FromBytes(hub.s.content)
		hub.addBlob("app", hub.s.content)
		dir := t.TempDir()
		for i := range 2 {
			c, err := Open(Options{Dir: dir, Settings: Settings{Upstreams: map[string]Upstream{"docker.io": {Origin: hub}}}})
			if err != nil {
				t.Fatal(err)
			}
			b, _, err := c.Blob(t.Context(), digested("app", d), oci.Whole)
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				time.Sleep(30 * time.Millisecond)
				b.Close()
			} else {
				var buf bytes.Buffer
				if _, err := b.Send(&buf, oci.Whole); err != nil || !bytes.Equal(buf.Bytes(), hub.s.content) {
					t.Errorf("%d bytes, %v", buf.Len(), err)
				}
				b.Close()
			}
			if err := c.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if want := int64(len(hub.s.content) + 1<<16); hub.s.sent > want {
			t.Errorf("sent %d for both, want at most %d", hub.s.sent, want)
		}
	})
}

type slowBlob struct {
	*registry
	s *source
}

func (r *slowBlob) Blob(ctx context.Context, _ string, _ digest.Digest, span oci.Span) (*oci.Body, error) {
	return r.s.Blob(ctx, span)
}

func TestSecondProcessIsToldWhoHoldsTheDirectory(t *testing.T) {
	dir := t.TempDir()
	open(t, Options{Dir: dir}, nil)
	c, err := Open(Options{Dir: dir})
	if err == nil {
		c.Close(t.Context())
		t.Fatal("two caches hold one directory")
	}
	if want := fmt.Sprint(os.Getpid()); !bytes.Contains([]byte(err.Error()), []byte(want)) {
		t.Errorf("%q does not name process %s", err, want)
	}
}

func TestTagRulesMatchInOrder(t *testing.T) {
	f, err := compileRules([]TagRule{
		{Match: "library/*:*.*.*", TTL: 1},
		{Match: "org/app", TTL: 2},
		{Match: "*:v?", TTL: 3},
		{Match: "ghcr(.io/x:*", TTL: 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		repo, tag string
		want      time.Duration
	}{
		{"library/nginx", "1.27.3", 1},
		{"library/nginx", "1.27", DefaultTTL},
		{"org/app", "any", 2},
		{"org/app2", "any", DefaultTTL},
		{"a/b/c", "v1", 3},
		{"a/b/c", "v12", DefaultTTL},
		{"xlibrary/nginx", "1.2.3", DefaultTTL},
	} {
		if got := f.rule(c.repo, c.tag).TTL; cmp.Compare(got, c.want) != 0 {
			t.Errorf("%s:%s: ttl %v, want %v", c.repo, c.tag, got, c.want)
		}
	}
	if _, err := compileRules([]TagRule{{TTL: 1}}); err == nil {
		t.Error("an empty pattern is taken")
	}
}
