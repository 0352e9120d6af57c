package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// carried is an image that was carried from hub.
func carried(hub *registry, repo string) map[digest.Digest][]byte {
	hub.mu.Lock()
	defer hub.mu.Unlock()
	all := maps.Clone(hub.blobs[repo])
	for d, m := range hub.manifests[repo] {
		all[d] = m.Bytes
	}
	return all
}

// takeIn takes content in.
func takeIn(t *testing.T, i *Import, all map[digest.Digest][]byte) error {
	t.Helper()
	for _, d := range slices.Sorted(maps.Keys(all)) {
		if _, err := i.Take(t.Context(), d, int64(len(all[d])), bytes.NewReader(all[d])); err != nil {
			return err
		}
	}
	return nil
}

// newImport begins an import, which ends with the test at the latest.
func newImport(t *testing.T, c *Cache) *Import {
	t.Helper()
	i, err := c.NewImport()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.mu.Lock()
		runs := c.importing == i
		c.mu.Unlock()
		if runs {
			_ = i.Close(false) // the test has failed
		}
	})
	return i
}

// importImage imports what hub has of a repository, and has its tag stand for d as of
// at.
func importImage(t *testing.T, c *Cache, hub *registry, target oci.Target, d v1.Descriptor, at time.Time) (done *Imported, err error) {
	t.Helper()
	i, err := c.NewImport()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, i.Close(false)) }()
	if err := takeIn(t, i, carried(hub, target.Repository)); err != nil {
		return nil, err
	}
	if err := i.Add(target, d, at); err != nil {
		return nil, err
	}
	return i.Finish()
}

func TestAnImportedImageIsServedWithoutAskingAnyone(t *testing.T) {
	hub := newRegistry()
	layer := content(1, 200_000)
	image := hub.addImage("library/app", layer)
	c := open(t, Options{MemoryBytes: 1 << 20, Settings: Settings{Offline: true}}, map[string]*registry{"docker.io": newRegistry()})
	// What is not there is remembered for a while.
	if _, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err == nil {
		t.Fatal("it is there before it was imported")
	}
	done, err := importImage(t, c, hub, tagged("library/app", "1"), image, time.Now().Add(-time.Hour))
	if err != nil || done.Blobs != 3 || done.Images[0].Platforms[0] != "linux/amd64" {
		t.Fatalf("%+v, %v", done, err)
	}
	wantManifest(t, c, tagged("library/app", "1"), image, Stale)
	wantBlob(t, c, digested("library/app", digest.FromBytes(layer)), layer, Hit)
	wantTotals(t, c)
	if b, ok := c.index.Blob(digest.FromBytes(layer)); !ok || b.Verified.IsZero() {
		t.Errorf("its record is %+v", b)
	}
}

// TestATagIsNotMadeOlderByAnImport and where what it stands for now is not here, offline,
// what was imported is better than nothing.
func TestATagIsNotMadeOlderByAnImport(t *testing.T) {
	hub := newRegistry()
	old, now := hub.addImage("library/app", content(1, 1000)), hub.addImage("library/app", content(2, 1000))
	hub.tag("library/app", "1", now)
	c := open(t, Options{}, map[string]*registry{"docker.io": hub}, TagRule{Match: "*", TTL: time.Hour, StaleIfError: 24 * time.Hour})
	// Only asked for, and not pulled.
	if _, _, err := c.Describe(t.Context(), tagged("library/app", "1"), rewrite.ParseAccept([]byte("*/*"))); err != nil {
		t.Fatal(err)
	}
	seen := time.Now()
	importOld := func() *Imported {
		t.Helper()
		i := newImport(t, c)
		defer i.Close(false)
		all := carried(hub, "library/app")
		delete(all, now.Digest)
		delete(all, digest.FromBytes(content(2, 1000)))
		if err := errors.Join(takeIn(t, i, all), i.Add(tagged("library/app", "1"), old, seen.Add(-time.Hour))); err != nil {
			t.Fatal(err)
		}
		done, err := i.Finish()
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	done := importOld()
	if !strings.Contains(done.Images[0].Note, "is not made older: it was seen to stand for "+now.Digest.String()) {
		t.Errorf("it says %q", done.Images[0].Note)
	}
	wantManifest(t, c, digested("library/app", old.Digest), old, Hit)
	hub.set(errDown, 0)
	if m, out, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err != nil || m.Digest != old.Digest || out.Status != Stale {
		t.Errorf("what can not be fetched: %+v, %+v, %v", m, out, err)
	}
	hub.set(nil, 0)
	c.negative.clear()
	c.paused.clear()
	wantManifest(t, c, tagged("library/app", "1"), now, Miss)
	if done := importOld(); done.Images[0].Note == "" || done.Blobs != 0 {
		t.Errorf("again: %+v", done)
	}
	wantManifest(t, c, tagged("library/app", "1"), now, Hit)
	if h := c.index.History("docker.io", "library/app", "1"); len(h) != 1 || h[0].Digest != now.Digest {
		t.Errorf("the ledger says %+v", h)
	}
	// What was seen later counts.
	if done, err := importImage(t, c, hub, tagged("library/app", "1"), old, time.Now().Add(time.Hour)); err != nil && done.Images[0].Note != "" {
		t.Errorf("%+v, %v", done, err)
	}
}

// TestNothingEvictsWhatIsBeingImported neither what was there before, nor what has been
// written, while other content takes all the room.
func TestNothingEvictsWhatIsBeingImported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, other := newRegistry(), newRegistry()
		layers := several(3, 100_000)
		image := hub.addImage("library/app", layers...)
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 1 << 20}}}, map[string]*registry{"docker.io": other})
		// The first layer is here, and the oldest of all.
		other.addImage("library/app", layers[0])
		pullLayers(t, c, other, layers[:1])
		settle()
		i := newImport(t, c)
		all := carried(hub, "library/app")
		if err := takeIn(t, i, all); err != nil {
			t.Fatal(err)
		}
		more := several(20, 100_000)
		for n := range more {
			more[n] = content(uint64(1000+n), 100_000)
			other.addBlob("library/app", more[n])
		}
		pullLayers(t, c, other, more)
		settle()
		list, err := c.store.Unfinished()
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != len(all)-1 {
			t.Errorf("%d of %d are left of what was written", len(list), len(all)-1)
		}
		wantHeld(t, c, layers, map[int]bool{0: true})
		if err := i.Add(tagged("library/app", "1"), image, time.Now()); err != nil {
			t.Fatal(err)
		}
		if done, err := i.Finish(); err != nil || done.BlobsThere != 1 {
			t.Fatalf("%+v, %v", done, err)
		}
		if err := i.Close(false); err != nil {
			t.Fatal(err)
		}
		for _, l := range layers {
			wantBlob(t, c, digested("library/app", digest.FromBytes(l)), l, Hit)
		}
		settle()
		wantTotals(t, c)
		if _, bytes := c.index.Totals(); bytes > 1<<20 {
			t.Errorf("the cache has %d bytes", bytes)
		}
	})
}

// TestAnImportMakesRoomOrIsRefused by what is stored already.
func TestAnImportMakesRoomOrIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		pinned  bool
		size    int
		refused string
	}{
		"it fits after eviction": {false, 300_000, ""},
		"it is too large":        {false, 400_000, "the cache may have"},
		"the rest is pinned":     {true, 300_000, "nothing more may be evicted"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub, other := newRegistry(), newRegistry()
				layers := several(3, c.size)
				image := hub.addImage("library/app", layers...)
				// The index counts as well, and has some 100 KiB.
				cache := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 1_150_000}}}, map[string]*registry{"docker.io": other})
				old := content(99, 500_000)
				other.tag("library/old", "1", other.addImage("library/old", old))
				if _, _, err := cache.Manifest(t.Context(), tagged("library/old", "1"), rewrite.Accept{}); err != nil {
					t.Fatal(err)
				}
				for d, b := range other.blobs["library/old"] {
					wantBlob(t, cache, digested("library/old", d), b, Miss)
				}
				time.Sleep(2 * promiseFor)
				settle()
				if c.pinned {
					if _, err := cache.Pin(t.Context(), tagged("library/old", "1")); err != nil {
						t.Fatal(err)
					}
				}
				i := newImport(t, cache)
				all := carried(hub, "library/app")
				err := i.Expect(t.Context(), func(yield func(digest.Digest, int64) bool) {
					for d, b := range all {
						if !yield(d, int64(len(b))) {
							return
						}
					}
				})
				if c.refused != "" {
					if !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), c.refused) {
						t.Errorf("want %q, got %v", c.refused, err)
					}
					if err := i.Close(false); err != nil {
						t.Error(err)
					}
					return
				}
				if err := errors.Join(err, takeIn(t, i, all), i.Add(tagged("library/app", "1"), image, time.Now())); err != nil {
					t.Fatal(err)
				}
				if _, err := i.Finish(); err != nil {
					t.Fatal(err)
				}
				if err := i.Close(false); err != nil {
					t.Error(err)
				}
				settle()
				wantHeld(t, cache, layers, map[int]bool{0: true, 1: true, 2: true})
				wantHeld(t, cache, [][]byte{old}, map[int]bool{0: false})
				wantTotals(t, cache)
			})
		})
	}
}

// TestAnImportGoesOnWithWhatIsLeftWhereRoomIsScarce: what an interrupted import has
// written counts once, as a part of what the next one expects, and is not evicted to make
// room for just that.
func TestAnImportGoesOnWithWhatIsLeftWhereRoomIsScarce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		hub.addImage("library/app", several(3, 300_000)...)
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 1 << 20}}}, map[string]*registry{"docker.io": newRegistry()})
		all := carried(hub, "library/app")
		i := newImport(t, c)
		if err := errors.Join(takeIn(t, i, all), i.Close(true)); err != nil {
			t.Fatal(err)
		}
		settle()
		i = newImport(t, c)
		err := i.Expect(t.Context(), func(yield func(digest.Digest, int64) bool) {
			for d, b := range all {
				if !yield(d, int64(len(b))) {
					return
				}
			}
		})
		if err != nil {
			t.Error(err)
		}
		settle()
		if list, err := c.store.Unfinished(); err != nil || len(list) != len(all) {
			t.Errorf("%d of %d are left of what was written, %v", len(list), len(all), err)
		}
		if err := i.Close(false); err != nil {
			t.Error(err)
		}
		if list, err := c.store.Unfinished(); err != nil || len(list) != 0 {
			t.Errorf("%d are left of what is not wanted, %v", len(list), err)
		}
	})
}

// TestAnImportAndAFillOfOneDigestAgree: a client fetches what is being imported.
func TestAnImportAndAFillOfOneDigestAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		layer := content(1, 300_000)
		image := hub.addImage("library/app", layer)
		hub.tag("library/app", "1", image)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		i := newImport(t, c)
		if err := takeIn(t, i, carried(hub, "library/app")); err != nil {
			t.Fatal(err)
		}
		wantManifest(t, c, tagged("library/app", "1"), image, Miss)
		wantBlob(t, c, digested("library/app", digest.FromBytes(layer)), layer, Miss)
		if err := i.Add(tagged("library/app", "1"), image, time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := i.Finish(); err != nil {
			t.Fatal(err)
		}
		if err := i.Close(false); err != nil {
			t.Fatal(err)
		}
		wantBlob(t, c, digested("library/app", digest.FromBytes(layer)), layer, Hit)
		settle()
		wantTotals(t, c)
		if list, err := c.store.Unfinished(); err != nil || len(list) > 0 {
			t.Errorf("%+v is left, %v", list, err)
		}
	})
}

func TestThereIsOneImportAtATimeAndCloseWaitsForIt(t *testing.T) {
	c := open(t, Options{}, nil)
	var err error
	i := newImport(t, c)
	if _, err := c.NewImport(); !errors.Is(err, ErrImporting) {
		t.Errorf("want %v, got %v", ErrImporting, err)
	}
	closed := make(chan error)
	go func() { closed <- c.Close(context.Background()) }()
	// It ends by itself once the cache wants to be closed.
	for err == nil {
		b := []byte("content")
		_, err = i.Take(t.Context(), digest.FromBytes(b), int64(len(b)), bytes.NewReader(b))
	}
	if !errors.Is(err, errClosing) {
		t.Errorf("want %v, got %v", errClosing, err)
	}
	if err := i.Close(true); err != nil {
		t.Error(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// dying is a file system that fails from some operation on.
type dying struct {
	store.OS
	left atomic.Int64
}

var errDead = errors.New("the disk is dead")

func (d *dying) step() error {
	if d.left.Add(-1) < 0 {
		return errDead
	}
	return nil
}

func (d *dying) OpenFile(name string, flag int, mode fs.FileMode) (store.File, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	f, err := d.OS.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err
	}
	return &dyingFile{f, d}, nil
}

func (d *dying) Mkdir(name string, mode fs.FileMode) error {
	return errors.Join(d.step(), d.OS.Mkdir(name, mode))
}

func (d *dying) Rename(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.OS.Rename(from, to)
}

func (d *dying) Remove(name string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.OS.Remove(name)
}

func (d *dying) SyncDir(name string) error { return errors.Join(d.step(), d.OS.SyncDir(name)) }
func (d *dying) SyncAll(name string) error { return errors.Join(d.step(), d.OS.SyncAll(name)) }

type dyingFile struct {
	store.File
	d *dying
}

func (f *dyingFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.d.step(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

func (f *dyingFile) Sync() error { return errors.Join(f.d.step(), f.File.Sync()) }

// TestADiskThatDiesDuringAnImportShowsNothingOfIt lets it die before each of its
// operations. The next import, on a disk that works, brings all.
func TestADiskThatDiesDuringAnImportShowsNothingOfIt(t *testing.T) {
	hub := newRegistry()
	layer := content(1, 100_000)
	image := hub.addImage("library/app", layer)
	target := tagged("library/app", "1")
	for n := int64(0); ; n++ {
		files := &dying{}
		files.left.Store(1 << 30)
		dir := t.TempDir()
		c, err := Open(Options{Dir: dir, files: files, Settings: Settings{Upstreams: map[string]Upstream{"docker.io": {Origin: hub}}}})
		if err != nil {
			t.Fatal(err)
		}
		files.left.Store(n)
		_, err = importImage(t, c, hub, target, image, time.Now())
		done := err == nil
		if !done && !errors.Is(err, errDead) {
			t.Fatalf("after %d operations: %v", n, err)
		}
		files.left.Store(1 << 30)
		if _, ok := c.records.Tag(target); ok != done {
			t.Errorf("after %d operations the tag is there: %v", n, ok)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		again, err := Open(Options{Dir: dir, Settings: Settings{Offline: true, Upstreams: map[string]Upstream{"docker.io": {Origin: hub}}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := again.Manifest(t.Context(), target, rewrite.Accept{}); (err == nil) != done {
			t.Errorf("after %d operations and a restart: %v", n, err)
		}
		if _, err := importImage(t, again, hub, target, image, time.Now()); err != nil {
			t.Errorf("after %d operations, once more: %v", n, err)
		}
		if b, _, err := again.Blob(t.Context(), digested("library/app", digest.FromBytes(layer)), oci.Whole); err != nil {
			t.Errorf("after %d operations: %v", n, err)
		} else {
			_, err := b.Send(io.Discard, oci.Whole)
			if err := errors.Join(err, b.Close()); err != nil {
				t.Error(err)
			}
		}
		if err := again.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if done {
			if n < 10 {
				t.Errorf("an import is %d operations of the disk: too few to be true", n)
			}
			return
		}
	}
}

// TestImportedReferrersJoinThoseThatAreKnown from the upstream.
func TestImportedReferrersJoinThoseThatAreKnown(t *testing.T) {
	hub, home := newRegistry(), newRegistry()
	image := hub.addImage("library/app", content(1, 1000))
	known := home.addDocument("library/app", v1.MediaTypeImageManifest, v1.Manifest{MediaType: v1.MediaTypeImageManifest, Subject: &image, ArtifactType: "application/known"})
	home.referrers[image.Digest] = []v1.Descriptor{known}
	added := hub.addDocument("library/app", v1.MediaTypeImageManifest, v1.Manifest{MediaType: v1.MediaTypeImageManifest, Subject: &image, ArtifactType: "application/added"})
	dir := t.TempDir()
	c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": home}, TagRule{Match: "*", TTL: time.Hour, StaleIfError: time.Hour})
	if list, _, err := c.Referrers(t.Context(), digested("library/app", image.Digest)); err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	i := newImport(t, c)
	if err := errors.Join(takeIn(t, i, carried(hub, "library/app")), i.Add(tagged("library/app", "1"), image, time.Now()),
		i.Add(digested("library/app", added.Digest), added, time.Now())); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := i.Close(false); err != nil {
		t.Fatal(err)
	}
	list, out, err := c.Referrers(t.Context(), digested("library/app", image.Digest))
	if err != nil || len(list) != 2 || list[1].Digest != added.Digest || list[1].ArtifactType != "application/added" || out.Status != Hit {
		t.Errorf("%+v, %+v, %v", list, out, err)
	}
	if h := c.index.History("docker.io", "library/app", "1"); len(h) != 1 || h[0].How != index.SeenImport {
		t.Errorf("the ledger says %+v", h)
	}
}

// TestWhatIsPurgedDuringAnImportIsThereAfterIt though nothing of it was new.
func TestWhatIsPurgedDuringAnImportIsThereAfterIt(t *testing.T) {
	hub := newRegistry()
	layer := content(1, 100_000)
	image := hub.addImage("library/app", layer)
	at := time.Now().Add(-time.Hour)
	c := open(t, Options{MemoryBytes: 1 << 20, Settings: Settings{Offline: true}}, map[string]*registry{"docker.io": newRegistry()})
	if _, err := importImage(t, c, hub, tagged("library/app", "1"), image, at); err != nil {
		t.Fatal(err)
	}
	wantManifest(t, c, tagged("library/app", "1"), image, Stale)
	i := newImport(t, c)
	if err := errors.Join(takeIn(t, i, carried(hub, "library/app")), i.Add(tagged("library/app", "1"), image, at)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Purge(t.Context(), PurgeOptions{Target: tagged("library/app", "1")}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err == nil {
		t.Error("it is there after it was purged")
	}
	if done, err := i.Finish(); err != nil || done.Blobs != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	if err := i.Close(false); err != nil {
		t.Fatal(err)
	}
	wantManifest(t, c, tagged("library/app", "1"), image, Stale)
	wantBlob(t, c, digested("library/app", digest.FromBytes(layer)), layer, Hit)
}

// TestATagThatMovesByAnImportFollowsItsRules as one that the upstream has moved does.
func TestATagThatMovesByAnImportFollowsItsRules(t *testing.T) {
	hub := newRegistry()
	old, now := hub.addImage("library/app", content(1, 1000)), hub.addImage("library/app", content(2, 1000))
	c := open(t, Options{Settings: Settings{Offline: true}}, map[string]*registry{"docker.io": newRegistry()}, TagRule{Match: "*", OnMove: HoldOnMove, TTL: time.Hour})
	importOne := func(d v1.Descriptor, at time.Time) {
		t.Helper()
		i := newImport(t, c)
		if err := errors.Join(takeIn(t, i, carried(hub, "library/app")), i.Add(tagged("library/app", "1"), d, at)); err != nil {
			t.Fatal(err)
		}
		if _, err := i.Finish(); err != nil {
			t.Fatal(err)
		}
		if err := i.Close(false); err != nil {
			t.Fatal(err)
		}
	}
	importOne(old, time.Now().Add(-2*time.Hour))
	importOne(now, time.Now().Add(-time.Hour))
	// Served, as it was.
	if m, out, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err != nil || m.Digest != old.Digest || !strings.Contains(out.Reason, "held as it was") {
		t.Errorf("%+v, %+v, %v", m, out, err)
	}
	if a, err := c.Accept(t.Context(), tagged("library/app", "1")); err != nil || a.To != now.Digest {
		t.Errorf("%+v, %v", a, err)
	}
	if m, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err != nil || m.Digest != now.Digest {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestSoManyManifestsReferToOne at most: each is looked for among the others.
func TestSoManyManifestsReferToOne(t *testing.T) {
	c := open(t, Options{}, nil)
	subject := digest.FromString("subject")
	w := &importWalk{
		Import: newImport(t, c), target: tagged("library/app", "1"),
		change: &index.Change{Referrers: map[digest.Digest]index.List{}},
	}
	p := &oci.Parsed{MediaType: v1.MediaTypeImageManifest, Subject: &v1.Descriptor{Digest: subject}}
	for n := range maxImportReferrers {
		if err := w.refer(digest.FromString(fmt.Sprint(n)), p, 1); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
	}
	if err := w.refer(digest.FromString("0"), p, 1); err != nil {
		t.Errorf("one that is known: %v", err)
	}
	var refused *oci.Error
	if err := w.refer(digest.FromString("one more"), p, 1); !errors.As(err, &refused) || !strings.Contains(refused.Message, "refer to") {
		t.Errorf("one more: %v", err)
	}
}

// TestAnImportRecordsWhatIsStoredWithoutARecord: an earlier one could not write the index.
func TestAnImportRecordsWhatIsStoredWithoutARecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		layer := content(1, 100_000)
		image := hub.addImage("library/app", layer)
		c := open(t, Options{}, map[string]*registry{"docker.io": newRegistry()})
		settle()
		if err := c.store.Put(digest.FromBytes(layer), layer); err != nil {
			t.Fatal(err)
		}
		if _, err := importImage(t, c, hub, tagged("library/app", "1"), image, time.Now()); err != nil {
			t.Fatal(err)
		}
		wantTotals(t, c)
	})
}

// TestWhatIsTakenInWithoutADigestCountsOnce while it is written.
func TestWhatIsTakenInWithoutADigestCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := newRegistry()
		old, layer := content(1, 400_000), content(2, 400_000)
		other.addImage("library/app", old)
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 1 << 20}}}, map[string]*registry{"docker.io": other})
		pullLayers(t, c, other, [][]byte{old})
		settle()
		i := newImport(t, c)
		r := &pausing{Reader: bytes.NewReader(layer), pause: func() {
			c.evictor.soon()
			time.Sleep(time.Minute)
		}}
		if d, err := i.Take(t.Context(), "", int64(len(layer)), r); err != nil || d != digest.FromBytes(layer) {
			t.Fatalf("%s, %v", d, err)
		}
		wantHeld(t, c, [][]byte{old}, map[int]bool{0: true})
		if err := i.Close(false); err != nil {
			t.Error(err)
		}
	})
}

// pausing calls pause before each Read.
type pausing struct {
	io.Reader
	pause func()
}

func (p *pausing) Read(b []byte) (int, error) {
	p.pause()
	return p.Reader.Read(b)
}
