package cache

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
)

// rotted gives a cache of three blobs and a manifest, of which two are damaged.
func rotted(t *testing.T, o Options) (*Cache, *registry, []digest.Digest) {
	t.Helper()
	hub := newRegistry()
	layers := [][]byte{content(40, 200_000), content(41, 100_000), content(42, 1000)}
	image := hub.addImage("app", layers...)
	c := open(t, o, map[string]*registry{"docker.io": hub})
	wantManifest(t, c, digested("app", image.Digest), image, Miss)
	list := []digest.Digest{image.Digest}
	for _, l := range layers {
		d := digest.FromBytes(l)
		wantBlob(t, c, digested("app", d), l, Miss)
		fillsEnd(t, c)
		list = append(list, d)
	}
	flip(t, blobPath(o.Dir, image.Digest), 20)
	flip(t, blobPath(o.Dir, list[1]), 100_000)
	return c, hub, list
}

func TestScrubFindsAndHealsDamage(t *testing.T) {
	dir := t.TempDir()
	c, hub, list := rotted(t, Options{Dir: dir})
	s, err := c.Scrub(t.Context(), 0, nil)
	if err != nil || s.Damaged != 2 || s.Healed != 2 || s.Blobs != 4 || s.Finished.IsZero() {
		t.Errorf("first pass: %+v, %v", s, err)
	}
	asked := hub.count()
	s, err = c.Scrub(t.Context(), 0, nil)
	if err != nil || s.Damaged != 0 || s.Blobs != 4 {
		t.Errorf("second pass: %+v, %v", s, err)
	}
	for _, d := range list {
		if !c.holds(d) {
			t.Errorf("%s is lost", d)
		}
	}
	if got := hub.count(); got["blob"] != asked["blob"] || asked["blob"] != 4 || asked["manifest"] != 2 {
		t.Errorf("asked for %v, then %v", asked, got)
	}
	if got := c.index.Scrub(); got.Blobs != 4 || got.Finished.IsZero() {
		t.Errorf("remembered: %+v", got)
	}
}

func TestScrubTellsWhatItCanNotHeal(t *testing.T) {
	dir := t.TempDir()
	c, hub, list := rotted(t, Options{Dir: dir})
	hub.set(errDown, 0)
	s, err := c.Scrub(t.Context(), 0, nil)
	if err != nil || s.Damaged != 2 || s.Healed != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if c.holds(list[0]) || c.holds(list[1]) {
		t.Error("damaged content is still there")
	}
}

func TestOneScrubRunsAtATime(t *testing.T) {
	c, _, _ := rotted(t, Options{Dir: t.TempDir()})
	c.scrubbing <- struct{}{}
	if _, err := c.Scrub(t.Context(), 0, nil); !errors.Is(err, errScrubbing) {
		t.Errorf("got %v, want %v", err, errScrubbing)
	}
	<-c.scrubbing
}

func TestScrubBehindGoesOnAfterARestartAndKeepsToItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		const rate = 1000
		c, hub, _ := rotted(t, Options{Dir: dir})
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		o := Options{Dir: dir, Settings: Settings{ScrubRate: rate, ReverifyAfter: week}}
		c = open(t, o, map[string]*registry{"docker.io": hub})
		// In the middle: after at least one blob, with one that takes its time.
		for c.index.Scrub().After == "" {
			time.Sleep(time.Second)
			if time.Since(begun) > time.Hour {
				t.Fatal("no progress is noted")
			}
		}
		before := c.index.Scrub()
		if !before.Finished.IsZero() {
			t.Fatalf("it was too quick: %+v", before)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c = open(t, o, map[string]*registry{"docker.io": hub})
		var s index.Scrub
		for s = c.index.Scrub(); s.Finished.IsZero(); s = c.index.Scrub() {
			time.Sleep(time.Second)
			if time.Since(begun) > time.Hour {
				t.Fatalf("it does not end: %+v", s)
			}
		}
		if !s.Started.Equal(before.Started) || s.Blobs != 4 || s.Damaged != 2 || s.Healed != 2 {
			t.Errorf("%+v after %+v", s, before)
		}
		if took, least := time.Since(begun), 300_000/rate*time.Second; took < least {
			t.Errorf("%d bytes took %v, want at least %v", s.Bytes, took, least)
		}
		// And no other pass before a week is over.
		time.Sleep(week / 2)
		if got := c.index.Scrub(); !got.Started.Equal(s.Started) {
			t.Errorf("another pass: %+v", got)
		}
		time.Sleep(week)
		if got := c.index.Scrub(); got.Started.Equal(s.Started) {
			t.Errorf("no other pass: %+v", got)
		}
	})
}
