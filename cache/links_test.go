package cache

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

func TestLinksToEvictedContentGoAndThoseToStoredContentStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: mib, Settings: Settings{MaxSize: Room{Bytes: 8 * mib}}}, map[string]*registry{"docker.io": hub})
		for i := range 300 {
			layer := content(uint64(i+1), 100<<10)
			img := hub.addImage("library/app", layer)
			hub.tag("library/app", fmt.Sprint(i), img)
			pull := oci.Target{Upstream: "docker.io", Repository: "library/app", Tag: fmt.Sprint(i)}
			if _, _, err := c.Manifest(t.Context(), pull, rewrite.Accept{}); err != nil {
				t.Fatal(err)
			}
			wantBlob(t, c, digested("library/app", digest.FromBytes(layer)), layer, Miss)
			settle()
			time.Sleep(time.Minute)
		}
		links, dead := 0, 0
		err := c.index.Links("", "", func(_, _ string, d digest.Digest, _ index.Link) bool {
			links++
			if !c.holds(d) {
				dead++
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		stored, _ := c.index.Totals()
		if dead > 3*trimLinksAfter+promisedIn(c) || links < int(stored) {
			t.Errorf("%d links, %d of them lead nowhere, with %d blobs stored", links, dead, stored)
		}
		// What is stored is served without a question.
		var all []digest.Digest
		err = c.index.Blobs(func(d digest.Digest, _ index.Blob) bool {
			all = append(all, d)
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range all {
			if _, ok := c.index.Link("docker.io", "library/app", d); !ok {
				t.Errorf("%s is stored and has no link", d)
			}
		}
	})
}

// promisedIn returns how many digests are promised to those who were served a manifest.
func promisedIn(c *Cache) int { return len(c.evictor.served) * 3 }
