package cache

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/evict"
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// blocks gives the bytes that all files below dir have on disk.
func blocks(t *testing.T, dir string) int64 {
	t.Helper()
	var total int64
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		total += st.Sys().(*syscall.Stat_t).Blocks * 512
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}

// settle waits until what was begun has been done, the uses that are written
// behind included.
func settle() {
	synctest.Wait()
	time.Sleep(2 * usesEvery)
	synctest.Wait()
}

// wantHeld checks which layers are stored, by their number.
func wantHeld(t *testing.T, c *Cache, layers [][]byte, held map[int]bool) {
	t.Helper()
	for i, l := range layers {
		want, ok := held[i]
		if !ok {
			continue
		}
		d := digest.FromBytes(l)
		got := c.holds(d)
		if got != want {
			t.Errorf("layer %d of %d bytes: stored %v, want %v", i, len(l), got, want)
		}
		if _, recorded := c.index.Blob(d); recorded != got {
			t.Errorf("layer %d: stored %v, and a record of it %v", i, got, recorded)
		}
	}
}

// wantTotals checks that the index counts what the tree holds.
func wantTotals(t *testing.T, c *Cache) {
	t.Helper()
	var blobs, size int64
	err := c.store.Walk(func(_ digest.Digest, n int64) error {
		blobs++
		size += n
		return nil
	})
	if b, n := c.index.Totals(); err != nil || b != blobs || n != size {
		t.Errorf("the index counts %d blobs of %d bytes; want %d of %d, %v", b, n, blobs, size, err)
	}
}

// layersOf gives repo one layer after the other, and the cache each once.
func pullLayers(t *testing.T, c *Cache, hub *registry, layers [][]byte) {
	t.Helper()
	for _, l := range layers {
		hub.addBlob("library/app", l)
		wantBlob(t, c, digested("library/app", digest.FromBytes(l)), l, Miss)
		settle()
		time.Sleep(time.Minute)
	}
}

func several(n, size int) (list [][]byte) {
	for i := range n {
		list = append(list, content(uint64(i+1), size))
	}
	return list
}

const mib = 1 << 20

func TestEvictionFreesTheDiskDownToTheLowWatermark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 21 * mib}}}, map[string]*registry{"docker.io": hub})
		layers := several(19, mib)
		pullLayers(t, c, hub, layers)
		before := blocks(t, c.store.Dir())
		if before < 19*mib {
			t.Fatalf("19 MiB take %d bytes", before)
		}
		wantTotals(t, c)
		more := content(100, mib)
		pullLayers(t, c, hub, [][]byte{more})
		// With the index 20 MiB are more than 95% of 21 MiB, so the oldest went down to 85%.
		wantHeld(t, c, append(layers, more), map[int]bool{0: false, 1: false, 2: false, 3: true, 4: true, 18: true, 19: true})
		if after := blocks(t, c.store.Dir()); before-after < 2*mib-64<<10 {
			t.Errorf("%d bytes on disk before and %d after; want 2 MiB less", before, after)
		}
		wantTotals(t, c)
		// What went is fetched again.
		wantBlob(t, c, digested("library/app", digest.FromBytes(layers[0])), layers[0], Miss)
	})
}

func TestWhatWasUsedLastStaysAlsoAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		o := Options{Dir: t.TempDir(), MemoryBytes: mib, Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}
		c := open(t, o, map[string]*registry{"docker.io": hub})
		layers := several(18, mib)
		pullLayers(t, c, hub, layers)
		// The oldest but one is used again, and nothing has the time to write
		// that down but Close.
		wantBlob(t, c, digested("library/app", digest.FromBytes(layers[1])), layers[1], Hit)
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c = open(t, o, map[string]*registry{"docker.io": hub})
		synctest.Wait()
		pullLayers(t, c, hub, [][]byte{content(100, mib), content(101, mib)})
		wantHeld(t, c, layers, map[int]bool{0: false, 1: true, 2: false, 3: false, 5: true})
	})
}

func TestWhatAServedManifestNamesStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: mib, Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}, map[string]*registry{"docker.io": hub})
		layers := several(18, mib)
		pullLayers(t, c, hub, layers)
		hub.tag("library/app", "1", hub.addImage("library/app", layers[0], layers[1]))
		ask := func() {
			t.Helper()
			if _, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err != nil {
				t.Fatal(err)
			}
			settle()
		}
		ask()
		pullLayers(t, c, hub, [][]byte{content(100, mib), content(101, mib)})
		wantHeld(t, c, layers, map[int]bool{0: true, 1: true, 2: false, 3: false})
		// An hour later that promise has been kept.
		time.Sleep(2 * promiseFor)
		pullLayers(t, c, hub, several(20, mib)[18:])
		pullLayers(t, c, hub, [][]byte{content(102, mib)})
		wantHeld(t, c, layers, map[int]bool{0: false, 1: false})
		// The manifest is left without its layers, and they are fetched again.
		ask()
		for _, l := range layers[:2] {
			wantBlob(t, c, digested("library/app", digest.FromBytes(l)), l, Miss)
		}
	})
}

// TestWhatWasJustStoredOutlivesWhatWasServedBefore evicts while a manifest is stored whose
// first reader isn't counted yet. All older ones were served lately.
func TestWhatWasJustStoredOutlivesWhatWasServedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 1 << 40}}}, map[string]*registry{"docker.io": hub})
		var served []digest.Digest
		for i := range 10 {
			image := hub.addImage("library/app", content(uint64(i), 100))
			tag := fmt.Sprint(i)
			hub.tag("library/app", tag, image)
			wantManifest(t, c, tagged("library/app", tag), image, Miss)
			served = append(served, image.Digest)
		}
		settle()
		newest := hub.addImage("library/app", content(99, 100))
		m, err := hub.find("library/app", newest.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.keepManifest(digested("library/app", newest.Digest), m, nil); err != nil {
			t.Fatal(err)
		}
		e := newEvictor(c) // the one that runs has its own goroutine
		for _, d := range served {
			e.served[d] = time.Now()
		}
		var done evicted
		e.dropPlanned(&done, evict.Need{Limit: 20, Must: 3, Want: 6}, held{}, time.Now(), func(int64) int64 { return 1 })
		if done.blobs != 3 {
			t.Errorf("%d manifests were evicted, want 3", done.blobs)
		}
		if !c.holds(newest.Digest) {
			t.Error("the manifest that was just stored was evicted before those that were served earlier")
		}
	})
}

func TestEvictedContentIsReadToItsEndByWhoHasItOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}, map[string]*registry{"docker.io": hub})
		layers := several(19, mib)
		pullLayers(t, c, hub, layers[:1])
		first := digested("library/app", digest.FromBytes(layers[0]))
		b, _, err := c.Blob(t.Context(), first, oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		pullLayers(t, c, hub, layers[1:])
		// It was used twice by then, so the others go first.
		for i := range 18 {
			pullLayers(t, c, hub, [][]byte{content(uint64(100+i), mib)})
			for range 2 {
				time.Sleep(2 * time.Minute)
				d := digest.FromBytes(content(uint64(100+i), mib))
				if got, _, err := readBlob(t, c, digested("library/app", d)); err != nil || len(got) != mib {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
			}
		}
		wantHeld(t, c, layers, map[int]bool{0: false})
		var got bytes.Buffer
		if _, err := b.Send(&got, oci.Whole); err != nil || !bytes.Equal(got.Bytes(), layers[0]) {
			t.Errorf("%d bytes, %v; want all %d", got.Len(), err, mib)
		}
	})
}

func TestALayerLargerThanTheLimitIsServedAndFlushesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}, map[string]*registry{"docker.io": hub})
		layers := several(10, mib)
		pullLayers(t, c, hub, layers)
		giant := content(99, 30*mib)
		hub.tag("library/app", "1", hub.addImage("library/app", giant))
		hub.set(nil, time.Hour) // it is on its way for long
		if _, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		if got, _, err := readBlob(t, c, digested("library/app", digest.FromBytes(giant))); err != nil || !bytes.Equal(got, giant) {
			t.Errorf("%d bytes, %v; want all %d", len(got), err, len(giant))
		}
		settle()
		wantHeld(t, c, append(layers, giant), map[int]bool{0: true, 1: true, 9: true, 10: false})
		wantTotals(t, c)
	})
}

func TestRoomIsMadeWhileAFillIsStillComing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}, map[string]*registry{"docker.io": hub})
		layers := several(18, mib)
		pullLayers(t, c, hub, layers)
		hub.set(nil, time.Hour) // it does not even begin to send for an hour
		large := content(99, 5*mib)
		hub.tag("library/app", "1", hub.addImage("library/app", large))
		if _, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, _, err := readBlob(t, c, digested("library/app", digest.FromBytes(large)))
			done <- err
		}()
		settle()
		wantHeld(t, c, layers, map[int]bool{0: false, 4: false, 7: true})
		if err := <-done; err != nil {
			t.Error(err)
		}
		settle()
		wantTotals(t, c)
	})
}

func TestAbandonedPartsGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		dir := t.TempDir()
		c := open(t, Options{Dir: dir, Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}, map[string]*registry{"docker.io": hub})
		ingest := filepath.Join(dir, "ingest")
		part := func(name string, size int, age time.Duration) string {
			path := filepath.Join(ingest, name)
			if err := os.WriteFile(path, content(7, size), 0o600); err != nil {
				t.Fatal(err)
			}
			at := time.Now().Add(-age)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
			return path
		}
		d, e := digest.FromString("d").Encoded(), digest.FromString("e").Encoded()
		old := []string{part("sha256-"+d+".part", 3*mib, 25*time.Hour), part("sha256-"+d+".json", 10, 25*time.Hour), part("put-123", mib, 25*time.Hour)}
		young := []string{part("sha256-"+e+".part", 3*mib, time.Hour), part("sha256-"+e+".json", 10, time.Hour)}
		layers := several(13, mib)
		pullLayers(t, c, hub, layers)
		for _, path := range old {
			if _, err := os.Stat(path); err == nil {
				t.Errorf("%s is there", path)
			}
		}
		for _, path := range young {
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		}
		wantHeld(t, c, layers, map[int]bool{0: true, 1: true})
		// The others go by age, as content that was used once.
		pullLayers(t, c, hub, several(18, mib)[13:])
		if got := blocks(t, ingest); got != 0 {
			t.Errorf("parts have %d bytes", got)
		}
		wantHeld(t, c, layers, map[int]bool{0: true, 12: true})
	})
}

// A file that is not a part is one that somebody is writing just now.
func TestWhatIsBeingWrittenIsNotEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		dir := t.TempDir()
		c := open(t, Options{Dir: dir, Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}, map[string]*registry{"docker.io": hub})
		layers := several(16, mib)
		pullLayers(t, c, hub, layers)
		path := filepath.Join(dir, "ingest", "put-123")
		if err := os.WriteFile(path, content(7, 4*mib), 0o600); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		if err := os.Chtimes(path, now, now); err != nil {
			t.Fatal(err)
		}
		pullLayers(t, c, hub, several(18, mib)[16:])
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
		wantHeld(t, c, layers, map[int]bool{0: false})
	})
}

// More than the limit is on its way, and nothing can be evicted for it. Once that is
// there, it can.
func TestRoomIsMadeAsSoonAsTheFillsThatStoodInTheWayHaveEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 20 * mib}}}, map[string]*registry{"docker.io": hub})
		layers := several(3, 8*mib)
		hub.tag("library/app", "1", hub.addImage("library/app", layers...))
		if _, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		hub.set(nil, 5*time.Second)
		done := make(chan error, len(layers))
		for _, l := range layers {
			go func() {
				_, _, err := readBlob(t, c, digested("library/app", digest.FromBytes(l)))
				done <- err
			}()
		}
		for range layers {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if _, size := c.index.Totals(); size > 20*mib {
			t.Errorf("a second later %d bytes are stored; the limit is %d", size, 20*mib)
		}
		wantTotals(t, c)
	})
}

func TestTheFileSystemKeepsItsFreeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		dir := t.TempDir()
		c := open(t, Options{Dir: dir, Settings: Settings{MaxSize: Room{Percent: 100}}}, map[string]*registry{"docker.io": hub})
		pullLayers(t, c, hub, several(4, mib))
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		// More than there is of it: all has to go.
		c = open(t, Options{Dir: dir, Settings: Settings{MaxSize: Room{Percent: 100}, MinFree: Room{Bytes: 1 << 60}}}, map[string]*registry{"docker.io": hub})
		time.Sleep(lookEvery + time.Second)
		settle()
		if blobs, size := c.index.Totals(); blobs != 0 || size != 0 {
			t.Errorf("%d blobs of %d bytes are stored", blobs, size)
		}
		wantTotals(t, c)
	})
}

func TestWhatIsBeingFilledIsNotEvicted(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	layer := content(1, 80<<10)
	d := digest.FromBytes(layer)
	if err := c.store.Put(d, layer); err != nil {
		t.Fatal(err)
	}
	// It has its name, and its record not yet.
	c.mu.Lock()
	c.fills[fillKey{digest: d}] = &blobFill{}
	c.mu.Unlock()
	c.dropBatch(&evicted{}, []digest.Digest{d}, nil)
	if !c.holds(d) {
		t.Error("it is gone")
	}
	c.mu.Lock()
	delete(c.fills, fillKey{digest: d})
	c.mu.Unlock()
	c.dropBatch(&evicted{}, []digest.Digest{d}, nil)
	if c.holds(d) {
		t.Error("it is there though nothing fills it")
	}
}

func TestFillBeginsOnlyOnceTheEvictionOfItsDigestHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		layer := content(1, 80<<10)
		hub.addBlob("library/app", layer)
		d := digest.FromBytes(layer)
		if !c.tryClaim(d) {
			t.Fatal("a claim on what nobody has")
		}
		done := make(chan error, 1)
		go func() {
			got, _, err := readBlob(t, c, digested("library/app", d))
			if err == nil && !bytes.Equal(got, layer) {
				err = fmt.Errorf("%d bytes", len(got))
			}
			done <- err
		}()
		synctest.Wait()
		if c.anyFillOf(d) != nil || hub.count()["blob"] > 0 {
			t.Error("it is fetched while it is evicted")
		}
		c.unclaim(d)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestEvictionAndFillsOfOneDigestAgree lets clients ask for content that is
// evicted at once, again and again: each gets it whole, and in the end the
// index and the store hold the same.
func TestEvictionAndFillsOfOneDigestAgree(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{MemoryBytes: mib, Settings: Settings{MaxSize: Room{Bytes: 1 << 40}}}, map[string]*registry{"docker.io": hub})
	layers := several(4, 80<<10)
	var documents []v1.Descriptor
	for _, l := range layers {
		hub.addBlob("library/app", l)
		documents = append(documents, hub.addImage("library/app", l))
	}
	stop := make(chan struct{})
	var clients, evictor sync.WaitGroup
	evictor.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			var all []digest.Digest
			c.index.Blobs(func(d digest.Digest, _ index.Blob) bool { all = append(all, d); return true })
			c.dropBatch(&evicted{}, all, nil)
		}
	})
	for k := range 4 {
		clients.Go(func() {
			for i := range 60 {
				n := (i + k) % len(layers)
				b, _, err := c.Blob(t.Context(), digested("library/app", digest.FromBytes(layers[n])), oci.Whole)
				if err != nil {
					t.Errorf("layer %d: %v", n, err)
					continue
				}
				var got bytes.Buffer
				if _, err := b.Send(&got, oci.Whole); err != nil || !bytes.Equal(got.Bytes(), layers[n]) {
					t.Errorf("layer %d: %d bytes, %v", n, got.Len(), err)
				}
				b.Close()
				c.memory.Drop(manifestName(documents[n].Digest))
				if m, _, err := c.Manifest(t.Context(), digested("library/app", documents[n].Digest), rewrite.Accept{}); err != nil || digest.FromBytes(m.Bytes) != documents[n].Digest {
					t.Errorf("manifest %d: %v", n, err)
				}
			}
		})
	}
	clients.Wait()
	close(stop)
	evictor.Wait()
	fillsEnd(t, c)
	wantTotals(t, c)
	tree := map[digest.Digest]bool{}
	c.store.Walk(func(d digest.Digest, _ int64) error { tree[d] = true; return nil })
	c.index.Blobs(func(d digest.Digest, _ index.Blob) bool {
		if !tree[d] {
			t.Errorf("%s has a record and is not stored", d)
		}
		delete(tree, d)
		return true
	})
	if len(tree) > 0 {
		t.Errorf("stored without a record: %v", tree)
	}
}

func TestNotingAUseAllocatesNothing(t *testing.T) {
	u := newUses()
	var all []digest.Digest
	for i := range 1000 {
		all = append(all, digest.FromString(fmt.Sprint(i)))
	}
	noteAll := func() {
		for _, d := range all {
			u.note(d, true)
		}
		u.drain(func(digest.Digest, time.Time, bool) {})
	}
	for range 4 { // both maps of each shard grow to what they need
		noteAll()
	}
	if n := testing.AllocsPerRun(10, noteAll); n > 1 {
		t.Errorf("1000 uses make %g allocations", n)
	}
}

func BenchmarkNoteUse(b *testing.B) {
	u := newUses()
	d := digest.FromString("a layer")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			u.note(d, false)
		}
	})
}
