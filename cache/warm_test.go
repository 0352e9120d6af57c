package cache

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// warm warms targets, which must come to an end.
func warm(t *testing.T, c *Cache, o WarmOptions, targets ...oci.Target) *Warmed {
	t.Helper()
	var images []WarmImage
	for _, target := range targets {
		images = append(images, WarmImage{Target: target})
	}
	done, err := c.Warm(t.Context(), images, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(done.Images) != len(targets) {
		t.Fatalf("%d images were warmed, want %d", len(done.Images), len(targets))
	}
	return done
}

// wantError checks the error of an image.
func (i WarmedImage) wantError(t *testing.T, parts ...string) {
	t.Helper()
	if len(parts) == 0 && i.Error != "" {
		t.Errorf("%s: %s", i.Reference, i.Error)
	}
	for _, part := range parts {
		if !strings.Contains(i.Error, part) {
			t.Errorf("%s: want an error with %q, got %q", i.Reference, part, i.Error)
		}
	}
}

func TestWarmFetchesWhatIsMissingAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		idx, amd64, arm64, attestation, signature := hub.addIndex("app", "1")
		hub.tag("app", digestTag(idx, ".sig"), signature)
		sbom := hub.addImage("app", []byte("sbom of amd64"))
		hub.tag("app", digestTag(amd64, ".sbom"), sbom)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})

		done := warm(t, c, WarmOptions{}, tagged("app", "1"))
		img := done.Images[0]
		img.wantError(t)
		if img.Digest != idx.Digest || !slices.Equal(img.Platforms, []string{"linux/amd64"}) || img.Layers != 2 || img.Referrers != 0 || img.BytesHere != 0 || img.Pulls != 2 {
			t.Errorf("got %+v", img)
		}
		if got := hub.count(); got["manifest"] != 2 || got["blob"] != 3 || got["referrers"] != 0 || got["stat"] != 0 {
			t.Errorf("the upstream was asked %v", got)
		}
		before := img.BytesFetched

		// More of it: what is here is not fetched again, but for what the platforms share.
		done = warm(t, c, WarmOptions{Platforms: []string{"linux/arm64/v8", "linux/amd64"}, Referrers: true}, tagged("app", "1"))
		img = done.Images[0]
		img.wantError(t)
		if !slices.Equal(img.Platforms, []string{"linux/amd64", "linux/arm64"}) || img.Layers != 3 || img.Referrers != 2 || img.BytesHere < before {
			t.Errorf("got %+v, after %d bytes before", img, before)
		}
		synctest.Wait()
		hub.set(errDown, 0)
		for _, d := range []v1.Descriptor{idx, amd64, arm64, attestation, signature, sbom} {
			wantManifest(t, c, digested("app", d.Digest), d, Hit)
			if d.Digest == idx.Digest {
				continue
			}
			pullTree(t, c, hub, "app", d)
		}
		wantManifest(t, c, tagged("app", "1"), idx, Hit)
		wantManifest(t, c, tagged("app", digestTag(idx, ".sig")), signature, Hit)
		if list, _, err := c.Referrers(t.Context(), digested("app", idx.Digest)); err != nil || len(list) != 1 {
			t.Errorf("want the signature listed, got %v, %v", list, err)
		}
		if list, _, err := c.Referrers(t.Context(), digested("app", attestation.Digest)); err != nil || len(list) != 0 {
			t.Errorf("want it known that nothing refers to the attestation, got %v, %v", list, err)
		}

		// And all of it is here by now.
		asked := hub.count()
		done = warm(t, c, WarmOptions{Platforms: []string{AllPlatforms}}, tagged("app", "1"))
		done.Images[0].wantError(t)
		if got := hub.count(); done.BytesFetched != 0 || len(done.Pulls) != 0 || !maps.Equal(got, asked) {
			t.Errorf("what is here costs %+v, asked %v, before %v", done, got, asked)
		}
	})
}

// digestTag is the tag under which cosign keeps something of d.
func digestTag(d v1.Descriptor, suffix string) string {
	return "sha256-" + d.Digest.Encoded() + suffix
}

func TestContentThatImagesShareIsCountedOnce(t *testing.T) {
	hub := newRegistry()
	layer := content(1, 100_000)
	hub.tag("a", "1", hub.addImage("a", layer, []byte("a")))
	hub.tag("b", "1", hub.addImage("b", layer, []byte("b")))
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	done := warm(t, c, WarmOptions{}, tagged("a", "1"), tagged("b", "1"), tagged("a", "1"))
	for _, i := range done.Images {
		i.wantError(t)
		if !slices.Equal(i.Platforms, []string{"linux/amd64"}) {
			t.Errorf("want its platform known, got %+v", i)
		}
	}
	if got := hub.count()["blob"]; got != 4 || done.BytesHere != 0 || done.BytesFetched < 100_000 || done.BytesFetched > 110_000 {
		t.Errorf("%d blobs were asked for, want 4; got %+v", got, done)
	}
	for repo, d := range map[string]string{"a": "a", "b": "b"} {
		wantBlob(t, c, digested(repo, digest.FromBytes(layer)), layer, Hit)
		wantBlob(t, c, digested(repo, digest.FromBytes([]byte(d))), []byte(d), Hit)
	}
}

func TestADryRunFetchesManifestsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		idx, amd64, _, _, _ := hub.addIndex("app", "1")
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		done := warm(t, c, WarmOptions{DryRun: true, Referrers: true, Platforms: []string{"linux/amd64"}}, tagged("app", "1"))
		img := done.Images[0]
		img.wantError(t)
		// The index, a platform, its attestation, and a signature.
		if img.Pulls != 4 || img.BytesToFetch < 3000 || img.Digest != idx.Digest || hub.count()["blob"] != 0 {
			t.Errorf("got %+v, asked %v", img, hub.count())
		}
		if _, known := c.records.Tag(tagged("app", "1")); known {
			t.Error("a dry run has kept the tag")
		}
		wantManifest(t, c, digested("app", amd64.Digest), amd64, Hit)

		real := warm(t, c, WarmOptions{Platforms: []string{"linux/amd64"}}, tagged("app", "1"))
		real.Images[0].wantError(t)
		if len(real.Pulls) != 0 || real.BytesFetched == 0 || real.BytesFetched > done.BytesToFetch {
			t.Errorf("the run after it costs %+v, and it said %+v", real, done)
		}
		if again := warm(t, c, WarmOptions{DryRun: true}, tagged("app", "1")); again.BytesToFetch != 0 || len(again.Pulls) != 0 {
			t.Errorf("of what is here it says %+v", again)
		}
	})
}

func TestWarmTellsWhatCanNotBeHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		idx, _, _, _, _ := hub.addIndex("app", "1")
		hub.tag("single", "1", hub.addImage("single", []byte("x")))
		broken := hub.addImage("broken", []byte("gone"), []byte("there"))
		hub.tag("broken", "1", broken)
		hub.mu.Lock()
		delete(hub.blobs["broken"], digest.FromBytes([]byte("gone")))
		hub.mu.Unlock()
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})

		elsewhere := tagged("app", "1")
		elsewhere.Upstream = "quay.example.test"
		done := warm(t, c, WarmOptions{Platforms: []string{"linux/amd64", "windows/amd64"}},
			tagged("app", "1"), tagged("single", "1"), tagged("app", "none"), digested("app", digest.FromBytes([]byte("no"))), elsewhere, tagged("broken", "1"))
		for i, want := range []string{
			"", "",
			"app has no none", "app has no sha256:", "quay.example.test is not configured", "broken has no sha256:",
		} {
			done.Images[i].wantError(t, want)
		}
		if done.Failed != 4 {
			t.Errorf("%d have failed, want 4", done.Failed)
		}
		for _, i := range done.Images[:2] {
			if i.Error != "" || i.Note != "there is no manifest for windows/amd64" {
				t.Errorf("got %+v", i)
			}
		}
		none := warm(t, c, WarmOptions{Platforms: []string{"windows/amd64", "linux/s390x"}}, tagged("app", "1"), tagged("single", "1"))
		none.Images[0].wantError(t, "there is no manifest for windows/amd64 and linux/s390x")
		none.Images[1].wantError(t, "there is no manifest for windows/amd64 and linux/s390x; it is for linux/amd64")
		// What it has of the platforms is here, and its tag stands for it.
		wantManifest(t, c, tagged("app", "1"), idx, Hit)
		// The tag of what is not all here is not kept, and what came of it is.
		if _, known := c.records.Tag(tagged("broken", "1")); known {
			t.Error("the tag of an image that is not all here was kept")
		}
		wantBlob(t, c, digested("broken", digest.FromBytes([]byte("there"))), []byte("there"), Hit)

		_, err := c.Warm(t.Context(), nil, WarmOptions{Platforms: []string{"amd64"}})
		if err == nil {
			t.Error("want an error for what is no platform")
		}
		done, err = c.Warm(t.Context(), []WarmImage{
			{Name: "No Name", Err: errors.New("it is no reference")}, {Target: tagged("app", "1"), Platforms: []string{"linux"}},
		}, WarmOptions{})
		if err != nil || len(done.Images) != 2 {
			t.Fatalf("got %+v, %v", done, err)
		}
		done.Images[0].wantError(t, "it is no reference")
		done.Images[1].wantError(t, `platform "linux" is not of the form`)
	})
}

func TestATagThatMovesWhileItIsWarmedIsFetchedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		was, is := hub.addImage("app", []byte("was")), hub.addImage("app", []byte("is"))
		hub.tag("app", "1", was)
		hub.delay = time.Second
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		go func() {
			time.Sleep(1500 * time.Millisecond)
			hub.tag("app", "1", is)
		}()
		done := warm(t, c, WarmOptions{}, tagged("app", "1"))
		done.Images[0].wantError(t)
		if done.Images[0].Digest != is.Digest {
			t.Errorf("want what it has moved to, got %+v", done.Images[0])
		}
		hub.set(errDown, 0)
		wantManifest(t, c, tagged("app", "1"), is, Hit)
		pullTree(t, c, hub, "app", is)
	})
}

func TestWarmKeepsTheOldTagUntilTheNewIsHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		was, is := hub.addImage("app", []byte("was")), hub.addImage("app", []byte("is"))
		hub.tag("app", "1", was)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		warm(t, c, WarmOptions{}, tagged("app", "1")).Images[0].wantError(t)
		hub.tag("app", "1", is)
		hub.mu.Lock()
		delete(hub.blobs["app"], digest.FromBytes([]byte("is")))
		hub.mu.Unlock()
		time.Sleep(time.Hour)
		warm(t, c, WarmOptions{}, tagged("app", "1")).Images[0].wantError(t, "app has no")
		hub.set(errDown, 0)
		wantManifest(t, c, tagged("app", "1"), was, Stale)

		done := warm(t, c, WarmOptions{}, tagged("app", "1"))
		done.Images[0].wantError(t)
		if !done.Images[0].Stale {
			t.Errorf("%+v is not stale", done.Images[0])
		}
		if note := done.Images[0].Note; !strings.Contains(note, "it is as it was 1h0m0s ago: the upstream fails") {
			t.Errorf("want said that it is as it was, got %q", note)
		}
	})
}

// granting is a registry that grants so many pulls, and more at a time.
type granting struct {
	*registry
	left  atomic.Int64
	again time.Time
}

func (g *granting) SparePull(ctx context.Context) error {
	_, err := g.SparePulls(ctx, 1)
	return err
}

func (g *granting) SparePulls(_ context.Context, n int) (time.Duration, error) {
	wait := time.Until(g.again)
	if g.left.Load() >= int64(n) || wait <= 0 {
		return 0, nil
	}
	return wait, &oci.Error{Code: oci.CodeTooManyRequests, Message: "no more pulls"}
}

func (g *granting) Manifest(ctx context.Context, repo, ref string) (*oci.Manifest, error) {
	g.left.Add(-1)
	return g.registry.Manifest(ctx, repo, ref)
}

func TestWarmSpendsNoPullThatIsKeptForClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := &granting{registry: newRegistry(), again: time.Now().Add(2 * time.Hour)}
		hub.left.Store(5)
		hub.delay = time.Second
		var targets []oci.Target
		for _, tag := range []string{"0", "1", "2", "3", "4", "5", "6", "7"} {
			hub.tag("app", tag, hub.addImage("app", []byte(tag)))
			targets = append(targets, tagged("app", tag))
		}
		c, err := Open(Options{Dir: t.TempDir(), Settings: Settings{Upstreams: map[string]Upstream{"docker.io": {Origin: hub}}}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(context.Background())

		done := warm(t, c, WarmOptions{}, targets...)
		if got := hub.count()["manifest"]; done.Failed != 3 || got != 5 || hub.left.Load() != 0 {
			t.Errorf("%d have failed, and %d pulls were spent; want 3, and 5", done.Failed, got)
		}
		for _, i := range done.Images {
			if i.Error != "" {
				i.wantError(t, "no more pulls; it grants more at 2000-01-01T02:00:0")
			}
		}
		// What is here costs none, and who waits has the rest when there are more.
		var waiting atomic.Bool
		begun := time.Now()
		done = warm(t, c, WarmOptions{WaitForQuota: true, Tell: func(s WarmState) error {
			waiting.Store(waiting.Load() || strings.Contains(s.Waiting, "no more pulls"))
			return nil
		}}, targets...)
		if took := time.Since(begun); done.Failed != 0 || took < time.Hour || took > 3*time.Hour || !waiting.Load() {
			t.Errorf("%d have failed, after %s, told %v", done.Failed, took, waiting.Load())
		}
	})
}

func TestWarmThatIsEndedGoesOnWithTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		hub.tag("app", "1", hub.addImage("app", content(1, 100_000), content(2, 200_000)))
		hub.delay = time.Minute
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		var last WarmState
		enough := errors.New("enough")
		_, err := c.Warm(t.Context(), []WarmImage{{Target: tagged("app", "1")}}, WarmOptions{Tell: func(s WarmState) error {
			last = s
			if s.TotalBytes > 300_000 {
				return enough
			}
			return nil
		}})
		if !errors.Is(err, enough) || last.Total != 1 || len(last.Current) != 1 || last.Current[0].Name != "docker.io/app:1" {
			t.Errorf("want %v, got %v after %+v", enough, err, last)
		}
		time.Sleep(time.Hour) // what was under way goes on
		done := warm(t, c, WarmOptions{}, tagged("app", "1"))
		done.Images[0].wantError(t)
		if done.BytesFetched != 0 || hub.count()["blob"] != 3 {
			t.Errorf("got %+v, asked %v", done, hub.count())
		}
	})
}

func TestAnIndexOfIndexesWithoutAnEndIsRefused(t *testing.T) {
	hub := newRegistry()
	d := hub.addImage("app", []byte("x"))
	for range maxWarmDepth + 2 {
		d = hub.addDocument("app", v1.MediaTypeImageIndex, v1.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{d},
		})
	}
	hub.tag("app", "1", d)
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	warm(t, c, WarmOptions{Platforms: []string{AllPlatforms}}, tagged("app", "1")).Images[0].wantError(t, "nested more than 4 deep")
}

func TestWhatGoesWhileTheRestIsFetchedIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		layer := content(1, 100_000)
		hub.tag("a", "1", hub.addImage("a", layer))
		hub.tag("b", "1", hub.addImage("b", []byte("b")))
		hub.delay = time.Second
		dir := t.TempDir()
		c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": hub})
		d := digest.FromBytes(layer)
		done := warm(t, c, WarmOptions{Jobs: 1, Tell: func(s WarmState) error {
			if s.Done == 1 { // as the evictor would
				_ = os.Remove(filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded()))
			}
			return nil
		}}, tagged("a", "1"), tagged("b", "1"))
		done.Images[0].wantError(t, d.String()+" was here and is not any more", "cache.max_size")
		done.Images[1].wantError(t)
	})
}

// limiting limits the requests for manifests until a time, and tells nothing of pulls.
type limiting struct {
	*registry
	until   time.Time
	refused atomic.Int64
}

func (l *limiting) Manifest(ctx context.Context, repo, ref string) (*oci.Manifest, error) {
	if time.Now().Before(l.until) {
		if l.refused.Add(1) > 1000 {
			return nil, errors.New("asked a thousand times")
		}
		return nil, &oci.Error{Code: oci.CodeTooManyRequests, Message: "slowly", RetryAfter: 10 * time.Second}
	}
	return l.registry.Manifest(ctx, repo, ref)
}

// TestWarmWaitsBetweenRequestsThatALimitRefuses, also where that is none of pulls.
func TestWarmWaitsBetweenRequestsThatALimitRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := &limiting{registry: newRegistry(), until: time.Now().Add(time.Minute)}
		hub.tag("app", "1", hub.addImage("app", []byte("1")))
		c, err := Open(Options{Dir: t.TempDir(), Settings: Settings{Upstreams: map[string]Upstream{"docker.io": {Origin: hub}}}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(context.Background())
		var waiting atomic.Bool
		done := warm(t, c, WarmOptions{WaitForQuota: true, Tell: func(s WarmState) error {
			waiting.Store(waiting.Load() || strings.Contains(s.Waiting, "slowly"))
			return nil
		}}, tagged("app", "1"))
		done.Images[0].wantError(t)
		if n := hub.refused.Load(); n < 1 || n > 10 || !waiting.Load() {
			t.Errorf("it was refused %d times, and told that it waits: %v", n, waiting.Load())
		}
	})
}
