package cache

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/entrepot-dev/entrepot/rewrite"
)

// pulled pulls an image of one layer by a tag, and its layer.
func pulled(t *testing.T, c *Cache, hub *registry, tag string, layer []byte) {
	t.Helper()
	image := hub.addImage("app", layer)
	hub.tag("app", tag, image)
	if _, _, err := c.Manifest(t.Context(), tagged("app", tag), rewrite.Accept{}); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, c, digested("app", digest.FromBytes(layer)), layer, Miss)
	settle()
	time.Sleep(time.Minute)
}

func TestHistoryIsNotEvicted(t *testing.T) {
	for name, rule := range map[string]TagRule{
		"kept for its time": {Match: "*", TTL: time.Second, KeepHistory: 90 * 24 * time.Hour},
		"what is held":      {Match: "*", TTL: time.Second, Hold: 90 * 24 * time.Hour},
		"not kept":          {Match: "*", TTL: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := newRegistry()
				c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}, map[string]*registry{"docker.io": hub}, rule)
				old := content(200, mib)
				pulled(t, c, hub, "1", old)
				next := hub.addImage("app", content(201, 100))
				hub.tag("app", "1", next)
				if _, _, err := c.Manifest(t.Context(), tagged("app", "1"), rewrite.Accept{}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(24 * time.Hour)
				pullLayers(t, c, hub, several(30, mib))
				kept := name != "not kept"
				wantHeld(t, c, [][]byte{old}, map[int]bool{0: kept})
				wantTotals(t, c)
				if !kept {
					return
				}
				// When its time is over it goes as other content does.
				time.Sleep(100 * 24 * time.Hour)
				if _, _, err := c.Manifest(t.Context(), tagged("app", "1"), rewrite.Accept{}); err != nil {
					t.Fatal(err)
				}
				more := several(60, mib)[40:]
				pullLayers(t, c, hub, more)
				wantHeld(t, c, [][]byte{old}, map[int]bool{0: false})
			})
		})
	}
}

func TestHistoryTakesHalfOfTheRoomAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		core, logs := observer.New(zap.WarnLevel)
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}, Log: zap.New(core)}, map[string]*registry{"docker.io": hub},
			TagRule{Match: "*", TTL: time.Second, KeepHistory: 90 * 24 * time.Hour})
		layers := several(16, mib)
		for _, l := range layers {
			pulled(t, c, hub, "1", l)
		}
		time.Sleep(24 * time.Hour) // nothing is promised any more
		pullLayers(t, c, hub, several(40, mib)[20:])
		held := 0
		for _, l := range layers {
			if c.holds(digest.FromBytes(l)) {
				held++
			}
		}
		if held < 8 || held > 10 {
			t.Errorf("%d of 16 layers are held; want about half of the limit of 20 MiB", held)
		}
		// The latest of them.
		wantHeld(t, c, layers, map[int]bool{0: false, 1: false, 13: true, 14: true})
		if blocks := blocks(t, c.store.Dir()); blocks > 20*mib {
			t.Errorf("%d bytes on disk, more than the limit", blocks)
		}
		if logs.FilterMessageSnippet("more room than it may have").Len() == 0 {
			t.Errorf("the log does not say it: %v", logs.All())
		}
	})
}
