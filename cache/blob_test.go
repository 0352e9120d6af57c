package cache

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// Between a client's look at what is here and its fetch, another repository may
// begin to fetch the same digest, or have it.
func TestFetchOfAnotherRepositoryIsJoinedOnlyOnceTheUpstreamHasConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		secret := content(51, 1<<20)
		d := hub.addBlob("alice/private", secret).Digest
		hub.delay = time.Second
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		up, err := c.upstream("docker.io")
		if err != nil {
			t.Fatal(err)
		}
		alice := make(chan struct{})
		go func() {
			defer close(alice)
			wantBlob(t, c, digested("alice/private", d), secret, Miss)
		}()
		synctest.Wait()
		for _, when := range []string{"is fetched", "is here"} {
			if b, st, err := c.fetchBlob(t.Context(), up, digested("mallory/app", d), wanted{size: -1}); !oci.IsAbsent(err) {
				t.Errorf("while it %s for another repository: got %v, %s, %v; want that it is absent", when, b, st, err)
			}
			<-alice
			synctest.Wait()
		}
	})
}

// A fill that has failed is found for a moment more: until it has given up its part.
func TestWhoComesAfterAFailureIsNotToldOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		layer := content(53, 1000)
		d := hub.addBlob("app", layer).Digest
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		up, err := c.upstream("docker.io")
		if err != nil {
			t.Fatal(err)
		}
		target, named := digested("app", d), wanted{proved: true, joins: true, size: 1000}
		failed := &blobFill{Fill: fill.New(c.fillTask(up, target, named, false)), upstream: "docker.io", repo: "app", gone: make(chan struct{})}
		failed.End(fill.ErrMismatch)
		c.mu.Lock()
		c.fills[fillKey{d, "docker.io"}] = failed
		c.mu.Unlock()
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			b, st, err := c.fetchBlob(t.Context(), up, target, named)
			if err != nil || st != Miss {
				t.Errorf("got %s, %v, want a fetch of its own", st, err)
				return
			}
			b.Close()
		}()
		synctest.Wait()
		c.mu.Lock()
		delete(c.fills, fillKey{d, "docker.io"})
		c.mu.Unlock()
		close(failed.gone)
		<-asked
	})
}

// A part that has all its bytes needs no upstream to become a blob. That must not
// make it one for whoever asks first.
func TestCompletePartIsNoKeyToItsContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		secret := content(52, 1<<20)
		d := hub.addBlob("alice/private", secret).Digest
		dir := t.TempDir()
		s, err := store.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		p, have, _, err := s.Part(d, "")
		if err != nil {
			t.Fatal(err)
		}
		have.Add(0, int64(len(secret)))
		_, err = p.WriteAt(secret, 0)
		if err := errors.Join(err, p.Save(have, int64(len(secret))), p.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}

		c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": hub})
		if _, _, err := readBlob(t, c, digested("mallory/app", d)); !oci.IsAbsent(err) {
			t.Errorf("a repository that has it not: %v; want that it is absent", err)
		}
		synctest.Wait()
		wantBlob(t, c, digested("alice/private", d), secret, Miss)
	})
}

// blind is a registry that sends every blob's HEAD to its store, which says
// neither that the blob is there nor that it is not.
type blind struct{ *registry }

func (b blind) Stat(_ context.Context, _ string, d digest.Digest) (v1.Descriptor, error) {
	return v1.Descriptor{Digest: d, Size: -1, MediaType: oci.MediaTypeOctetStream}, nil
}

func TestHeadWithoutASizeConfirmsNothingByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, public := newRegistry(), newRegistry()
		secret := content(53, 1<<20)
		d := hub.addBlob("alice/private", secret).Digest
		c := open(t, Options{}, map[string]*registry{"docker.io": hub, "public.test": public})
		c.settings().upstreams["public.test"].origin = blind{public}
		wantBlob(t, c, digested("alice/private", d), secret, Miss)

		target := digested("any/thing", d)
		target.Upstream = "public.test"
		if _, _, err := readBlob(t, c, target); !oci.IsAbsent(err) {
			t.Errorf("GET: %v; want that it is absent", err)
		}
		if _, _, err := c.Stat(t.Context(), target); !oci.IsAbsent(err) {
			t.Errorf("HEAD: %v; want that it is absent", err)
		}
		time.Sleep(time.Minute) // the absence is remembered
		public.addBlob("any/thing", secret)
		if size, _, err := c.Stat(t.Context(), target); size != int64(len(secret)) || err != nil {
			t.Errorf("HEAD, once it is there: %d, %v; want %d", size, err, len(secret))
		}
		wantBlob(t, c, target, secret, Hit)
	})
}

// Registries take a manifest with a foreign layer that they do not have: that it
// is named says nothing about who may have it.
func TestForeignLayerIsNoKeyToItsContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		secret := content(54, 1<<20)
		layer := hub.addBlob("alice/private", secret)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		wantBlob(t, c, digested("alice/private", layer.Digest), secret, Miss)

		layer.URLs = []string{"https://example.test/layer"}
		m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{layer}}
		m.Config = hub.addBlob("mallory/app", []byte("{}"))
		image := hub.addDocument("mallory/app", v1.MediaTypeImageManifest, m)
		wantManifest(t, c, digested("mallory/app", image.Digest), image, Miss)
		if _, _, err := readBlob(t, c, digested("mallory/app", layer.Digest)); !oci.IsAbsent(err) {
			t.Errorf("got %v; want that it is absent", err)
		}
		wantBlob(t, c, digested("mallory/app", m.Config.Digest), []byte("{}"), Miss)
	})
}
