package bundle

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// registry is an upstream made of maps.
type registry struct {
	mu        sync.Mutex
	tags      map[string]digest.Digest // "repo:tag"
	manifests map[digest.Digest]image.Manifest
	blobs     map[digest.Digest][]byte
	referrers map[digest.Digest][]v1.Descriptor
}

func (r *registry) find(repo, ref string) (*oci.Manifest, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.tags[repo+":"+ref]
	if !ok {
		d = digest.Digest(ref)
	}
	m, ok := r.manifests[d]
	if !ok {
		return nil, oci.Errorf(oci.CodeManifestUnknown, "%s has no %s", repo, ref)
	}
	return &oci.Manifest{Digest: d, MediaType: m.MediaType, Bytes: m.Bytes}, nil
}

func (r *registry) Resolve(_ context.Context, repo, ref string) (v1.Descriptor, error) {
	m, err := r.find(repo, ref)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return m.Descriptor(), nil
}

func (r *registry) Manifest(_ context.Context, repo, ref string) (*oci.Manifest, error) {
	return r.find(repo, ref)
}

func (r *registry) Stat(_ context.Context, repo string, d digest.Digest) (v1.Descriptor, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.blobs[d]
	if !ok {
		return v1.Descriptor{}, oci.Errorf(oci.CodeBlobUnknown, "%s has no %s", repo, d)
	}
	return v1.Descriptor{Digest: d, Size: int64(len(b))}, nil
}

func (r *registry) Blob(_ context.Context, repo string, d digest.Digest, span oci.Span) (*oci.Body, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.blobs[d]
	if !ok {
		return nil, oci.Errorf(oci.CodeBlobUnknown, "%s has no %s", repo, d)
	}
	to := span.To
	if to == oci.Open {
		to = int64(len(b))
	}
	return &oci.Body{ReadCloser: io.NopCloser(bytes.NewReader(b[span.From:to])), Span: oci.Span{From: span.From, To: to}, Size: int64(len(b))}, nil
}

func (r *registry) Tags(context.Context, string) ([]string, error) { return nil, nil }

func (r *registry) Referrers(_ context.Context, _ string, d digest.Digest) ([]v1.Descriptor, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.referrers[d], nil
}

// world is a cache in front of a registry, as docker.io and as ghcr.io.
type world struct {
	*cache.Cache
	t        *testing.T
	dir      string
	registry *registry
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), registry: &registry{
		tags: map[string]digest.Digest{}, manifests: map[digest.Digest]image.Manifest{}, blobs: map[digest.Digest][]byte{}, referrers: map[digest.Digest][]v1.Descriptor{},
	}}
	up := cache.Upstream{Origin: w.registry, Tags: []cache.TagRule{{Match: "*", TTL: time.Hour}}}
	var err error
	w.Cache, err = cache.Open(cache.Options{
		Dir: w.dir, MemoryBytes: 8 << 20, Settings: cache.Settings{Upstreams: map[string]cache.Upstream{"docker.io": up, "ghcr.io": up}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := w.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return w
}

// target gives the image of a repository of docker.io under a tag, or a digest.
func target(repo, tag string, d digest.Digest) oci.Target {
	return oci.Target{Upstream: "docker.io", Repository: repo, Tag: tag, Digest: d}
}

// push gives the registry an image.
func (w *world) push(repo, tag string, i *image.Image) {
	w.registry.mu.Lock()
	defer w.registry.mu.Unlock()
	if tag != "" {
		w.registry.tags[repo+":"+tag] = i.Digest
	}
	for d, m := range i.Manifests {
		w.registry.manifests[d] = m
	}
	for d, b := range i.Blobs {
		w.registry.blobs[d] = b
	}
}

// pull has the cache fetch the root of an image, and these platforms of it; of an image
// that is none of several, all.
func (w *world) pull(t oci.Target, i *image.Image, platforms ...string) {
	w.t.Helper()
	w.manifest(t)
	roots := []digest.Digest{i.Digest}
	if len(i.Platforms) > 1 {
		roots = nil
	}
	for _, p := range platforms {
		t.Tag, t.Digest = "", i.Platforms[p]
		w.manifest(t)
		roots = append(roots, t.Digest)
	}
	for _, root := range roots {
		m := i.Parsed(root)
		for _, l := range append(m.Layers, m.Config) {
			t.Tag, t.Digest = "", l.Digest
			b, _, err := w.Blob(w.t.Context(), t, oci.Whole)
			if err != nil {
				w.t.Fatal(err)
			}
			_, err = b.Send(io.Discard, oci.Whole)
			if err != nil || b.Close() != nil {
				w.t.Fatal(err)
			}
		}
		w.stored(oci.Target{Upstream: t.Upstream, Repository: t.Repository, Digest: root})
	}
}

// stored waits until all that a manifest names is: a large blob reaches its reader
// before it is synced.
func (w *world) stored(t oci.Target) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		e, err := w.Explain(w.t.Context(), t)
		if err != nil {
			w.t.Fatal(err)
		}
		if !slices.ContainsFunc(e.Manifests, func(m cache.ExplainedManifest) bool {
			return !m.Stored || slices.ContainsFunc(m.Blobs, func(b cache.ExplainedBlob) bool { return !b.Stored })
		}) {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("it is not stored: %+v", e)
		}
	}
}

func (w *world) manifest(t oci.Target) {
	w.t.Helper()
	if _, _, err := w.Manifest(w.t.Context(), t, rewrite.ParseAccept([]byte("*/*"))); err != nil {
		w.t.Fatal(err)
	}
}

// file gives the name of the file in which the cache has a blob.
func (w *world) file(d digest.Digest) string {
	return filepath.Join(w.dir, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// plan plans a bundle that must be possible.
func (w *world) plan(c Choice) *Plan {
	w.t.Helper()
	p, err := Make(w.t.Context(), w, c)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// tar gives the bytes of a bundle.
func (w *world) tar(p *Plan) []byte {
	w.t.Helper()
	f, err := Lay(p.Contents, p.Docker)
	if err != nil {
		w.t.Fatal(err)
	}
	var b bytes.Buffer
	if err := f.WriteTar(w.t.Context(), &b, 0, w); err != nil {
		w.t.Fatal(err)
	}
	if int64(b.Len()) != f.Size {
		w.t.Fatalf("want %d bytes, got %d", f.Size, b.Len())
	}
	return b.Bytes()
}

// saving gives a Save into path.
func (w *world) saving(path string, p *Plan) Save {
	return Save{Path: path, Fetch: func(ctx context.Context, c *Contents, from int64) (io.ReadCloser, error) {
		f, err := Lay(c, p.Docker)
		if err != nil {
			return nil, err
		}
		r, out := io.Pipe()
		go func() { _ = out.CloseWithError(f.WriteTar(ctx, out, from, w)) }() // it ends when r is closed
		return r, nil
	}}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pullLarge has the cache fetch an image of some MiB.
func (w *world) pullLarge() {
	w.t.Helper()
	i := image.New(image.Options{Seed: 9, Layers: []image.Layer{{Size: 900_000}, {Size: 1_500_000}, {Size: 10}}})
	w.push("library/large", "1", i)
	w.pull(target("library/large", "1", ""), i)
}
