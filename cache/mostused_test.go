package cache

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

func TestMostUsedImagesAreFoundByTagAndByDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		idx, amd64, _, _, _ := hub.addIndex("library/multi", "1")
		alone := hub.addImage("library/alone", []byte("alone"))
		rare := hub.addImage("library/rare", []byte("rare"))
		hub.tag("library/rare", "1", rare)
		pull := func(times int, targets ...oci.Target) {
			t.Helper()
			for range times {
				for _, target := range targets {
					if _, _, err := c.Manifest(t.Context(), target, rewrite.Accept{}); err != nil {
						t.Fatal(err)
					}
				}
				settle()
				time.Sleep(2 * time.Hour)
			}
		}
		pull(1, tagged("library/rare", "1"))
		pull(5, tagged("library/multi", "1"), digested("library/multi", amd64.Digest))
		pull(3, digested("library/alone", alone.Digest))
		for n, want := range map[int][]string{
			1: {"docker.io/library/multi:1"},
			2: {"docker.io/library/multi:1", "docker.io/library/alone@" + alone.Digest.String()},
			9: {"docker.io/library/multi:1", "docker.io/library/alone@" + alone.Digest.String(), "docker.io/library/rare:1"},
		} {
			list, err := c.MostUsed(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, i := range list {
				got = append(got, i.Reference)
			}
			if !slices.Equal(got, want) {
				t.Errorf("the %d that are used most are %q, want %q", n, got, want)
			}
		}
		use, err := c.DiskUse(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if hub := use.Upstreams["docker.io"]; hub.Blobs != use.Blobs || hub.Size != use.Size || use.Blobs < 4 || idx.Size == 0 {
			t.Errorf("all has come from docker.io: %+v", use)
		}
	})
}

func TestWhatStatsCostsDependsOnNoTree(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	app := hub.addImage("team/app", []byte("layer"))
	hub.tag("team/app", "1", app)
	wantManifest(t, c, tagged("team/app", "1"), app, Miss)
	cost := func() float64 {
		return testing.AllocsPerRun(3, func() {
			if _, err := c.DiskUse(t.Context()); err != nil {
				t.Error(err)
			}
			if list, err := c.MostUsed(t.Context(), 3); err != nil || len(list) != 1 {
				t.Errorf("%+v, %v", list, err)
			}
			if _, err := c.Purge(t.Context(), PurgeOptions{Target: tagged("team/app", "1"), Dry: true}); err != nil {
				t.Error(err)
			}
		})
	}
	before := cost()
	const others = 2000
	addRecords(t, c, others)
	// The names of a tag and of its repository, its digest and that's key, twice; and of the
	// links the seeks to their repositories: no record is decoded, which costs ten and more.
	if now := cost(); now > before+21*others {
		t.Errorf("%.0f allocations beside %d other images, and %.0f without", now, others, before)
	}
}
