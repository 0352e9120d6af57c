package cache

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// pushed is how pinned content is put under pressure: the layers that come after it, more
// than the cache may hold.
func pushed(t *testing.T, c *Cache, hub *registry, seed int) {
	t.Helper()
	time.Sleep(2 * promiseFor) // nothing is promised any more
	var more [][]byte
	for i := range 20 {
		more = append(more, content(uint64(seed+i), mib))
	}
	pullLayers(t, c, hub, more)
}

func TestWhatIsPinnedIsNeverEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		o := Options{Dir: t.TempDir(), MemoryBytes: mib, Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}
		c := open(t, o, map[string]*registry{"docker.io": hub})
		one := tagged("library/app", "1")
		if _, err := c.Pin(t.Context(), one); !oci.IsAbsent(err) || !strings.Contains(err.Error(), "entrepot warm docker.io/library/app:1") {
			t.Errorf("of what is not here: %v", err)
		}
		layers := several(4, mib)
		image := hub.addImage("library/app", layers[:2]...)
		pulled := func(target oci.Target, layers ...[]byte) {
			t.Helper()
			if _, _, err := c.Manifest(t.Context(), target, rewrite.Accept{}); err != nil {
				t.Fatal(err)
			}
			for _, l := range layers {
				if _, _, err := readBlob(t, c, digested("library/app", digest.FromBytes(l))); err != nil {
					t.Fatal(err)
				}
			}
		}
		hub.tag("library/app", "1", image)
		other := hub.addImage("library/app", layers[2])
		pulled(one, layers[0])
		pulled(digested("library/app", other.Digest), layers[2])
		synctest.Wait() // a client may be answered before the file has its name
		p, err := c.Pin(t.Context(), one)
		if err != nil || !p.Changed || p.Digest != image.Digest || p.Blobs != 2 || p.Size != image.Size+mib {
			t.Errorf("pinned %+v, %v", p, err)
		}
		if p, err := c.Pin(t.Context(), one); err != nil || p.Changed {
			t.Errorf("pinned again %+v, %v", p, err)
		}
		// What comes after it was pinned is a part of it as well.
		pulled(one, layers[1])
		settle()
		pushed(t, c, hub, 100)
		wantHeld(t, c, layers, map[int]bool{0: true, 1: true, 2: false})

		// So it is after a restart, and with an index that was lost.
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(o.Dir, "index.db")); err != nil {
			t.Fatal(err)
		}
		c = open(t, o, map[string]*registry{"docker.io": hub})
		<-c.reconciled
		pushed(t, c, hub, 200)
		wantHeld(t, c, layers, map[int]bool{0: true, 1: true})

		// And once it was damaged and fetched again: a layer, and the manifest.
		for _, d := range []digest.Digest{digest.FromBytes(layers[1]), image.Digest} {
			path := filepath.Join(o.Dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[0] ^= 1
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if s, err := c.Scrub(t.Context(), 0, nil); err != nil || s.Damaged != 2 || s.Healed != 2 {
			t.Errorf("scrub %+v, %v", s, err)
		}
		pushed(t, c, hub, 300)
		wantHeld(t, c, layers, map[int]bool{0: true, 1: true})

		// A tag that moves is pinned as what it stands for then, and stays so when
		// the upstream has it no more.
		moved := hub.addImage("library/app", layers[3])
		hub.tag("library/app", "1", moved)
		time.Sleep(DefaultTTL)
		pulled(one, layers[3])
		settle()
		pushed(t, c, hub, 400)
		// (Of layer 0 the index that was made again says what the file's mtime says.)
		wantHeld(t, c, layers, map[int]bool{1: false, 3: true})
		hub.mu.Lock()
		delete(hub.tags["library/app"], "1")
		hub.mu.Unlock()
		if _, _, err := c.Manifest(t.Context(), one, rewrite.Accept{}); !oci.IsAbsent(err) {
			t.Errorf("a deleted tag: %v", err)
		}
		pushed(t, c, hub, 500)
		wantHeld(t, c, layers, map[int]bool{3: true})
		list, err := c.Images(t.Context(), ImagesFilter{Pinned: true})
		if err != nil || len(list.Images) != 1 || !list.Images[0].Pinned {
			t.Errorf("listed as pinned: %+v, %v", list, err)
		}

		// Unpinned it goes like all else.
		if p, err := c.Unpin(t.Context(), one); err != nil || !p.Changed {
			t.Errorf("unpinned %+v, %v", p, err)
		}
		if p, err := c.Unpin(t.Context(), one); err != nil || p.Changed {
			t.Errorf("unpinned again %+v, %v", p, err)
		}
		pushed(t, c, hub, 600)
		wantHeld(t, c, layers, map[int]bool{3: false})
		wantTotals(t, c)
	})
}

func TestADigestIsPinnedByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}, map[string]*registry{"docker.io": hub})
		_, amd64, arm64, _, _ := hub.addIndex("library/app", "1")
		if _, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		big := content(9, mib)
		image := hub.addImage("library/app", big)
		pullTree(t, c, hub, "library/app", amd64)
		pullTree(t, c, hub, "library/app", arm64)
		pullTree(t, c, hub, "library/app", image)
		if _, err := c.Pin(t.Context(), digested("library/app", image.Digest)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Pin(t.Context(), digested("library/app", amd64.Digest)); err != nil {
			t.Fatal(err)
		}
		settle()
		pushed(t, c, hub, 100)
		if !c.holds(digest.FromBytes(big)) {
			t.Error("what is pinned by its digest is not here")
		}
		list, err := c.Images(t.Context(), ImagesFilter{Pinned: true})
		if err != nil || len(list.Images) != 2 {
			t.Fatalf("%+v, %v", list, err)
		}
		for _, i := range list.Images {
			if !i.Pinned || i.Size == 0 || i.Digest != image.Digest && i.Digest != amd64.Digest {
				t.Errorf("%+v", i)
			}
		}
		// Another repository has no such thing to pin.
		if _, err := c.Pin(t.Context(), digested("library/other", image.Digest)); !oci.IsAbsent(err) {
			t.Errorf("by another repository: %v", err)
		}
	})
}
