package cache

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/oci"
)

// blobPath is the file of stored content.
func blobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// damages are what may become of a file behind the cache's back. Each leaves it
// with content that is not the digest's, but for the last.
var damages = map[string]func(t *testing.T, path string){
	"removed": func(t *testing.T, path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	},
	"truncated": func(t *testing.T, path string) {
		if err := os.Truncate(path, 70_000); err != nil {
			t.Fatal(err)
		}
	},
	"emptied": func(t *testing.T, path string) {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	},
	"longer": func(t *testing.T, path string) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString("more"); err != nil {
			t.Fatal(err)
		}
	},
	"flipped, its mtime restored": func(t *testing.T, path string) {
		flip(t, path, 50_000)
	},
	"replaced by another file": func(t *testing.T, path string) {
		if err := os.WriteFile(path+"~", content(77, 200_000), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+"~", path); err != nil {
			t.Fatal(err)
		}
	},
}

// flip changes a bit of a file and restores its mtime.
func flip(t *testing.T, path string, at int) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{b[at] ^ 1}, int64(at)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// filled gives a cache that holds one layer, and waits until its record is kept.
func filled(t *testing.T, o Options, layer []byte) (*Cache, *registry) {
	t.Helper()
	hub := newRegistry()
	hub.addBlob("app", layer)
	c := open(t, o, map[string]*registry{"docker.io": hub})
	d := digest.FromBytes(layer)
	wantBlob(t, c, digested("app", d), layer, Miss)
	fillsEnd(t, c) // in another goroutine
	return c, hub
}

func TestDamageAtRestIsFoundOnOpenAndMendedInTheSameRequest(t *testing.T) {
	layer := content(7, 200_000)
	d := digest.FromBytes(layer)
	for name, damage := range damages {
		for _, memory := range []int64{0, 1 << 20} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				c, hub := filled(t, Options{Dir: dir, MemoryBytes: memory}, layer)
				damage(t, blobPath(dir, d))
				before := hub.count()["blob"]
				if size, _, err := c.Stat(t.Context(), digested("app", d)); err != nil || size != int64(len(layer)) {
					t.Errorf("HEAD: %d, %v, want %d", size, err, len(layer))
				}
				wantBlob(t, c, digested("app", d), layer, Miss)
				if got := hub.count()["blob"] - before; got != 1 {
					t.Errorf("fetched %d times, want once", got)
				}
				fillsEnd(t, c)
				wantBlob(t, c, digested("app", d), layer, Hit)
			})
		}
	}
}

func TestDamageAtRestIsNeverServedOffline(t *testing.T) {
	layer := content(7, 200_000)
	d := digest.FromBytes(layer)
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c, _ := filled(t, Options{Dir: dir}, layer)
			if err := c.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			damage(t, blobPath(dir, d))
			c = open(t, Options{Dir: dir, Settings: Settings{Offline: true}}, map[string]*registry{"docker.io": newRegistry()})
			for range 2 {
				_, _, err := readBlob(t, c, digested("app", d))
				if !errors.Is(err, errOffline) {
					t.Fatalf("got %v, want %v", err, errOffline)
				}
				if name != "removed" && !strings.Contains(err.Error(), "damaged") {
					t.Errorf("the error does not tell of the damage: %v", err)
				}
			}
		})
	}
}

// A hit of it allocates nothing then, be it a HEAD or a GET.
func TestAHeadBringsASmallBlobIntoMemory(t *testing.T) {
	layer := content(9, 1000)
	d := digest.FromBytes(layer)
	dir := t.TempDir()
	c, hub := filled(t, Options{Dir: dir}, layer)
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c = open(t, Options{Dir: dir, MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
	if _, known := c.index.Blob(d); !known {
		t.Fatal("the index knows nothing of the blob")
	}
	if size, out, err := c.Stat(t.Context(), digested("app", d)); err != nil || size != int64(len(layer)) || out.Status != Hit {
		t.Fatalf("HEAD: %d, %s, %v, want %d, %s", size, out.Status, err, len(layer), Hit)
	}
	c.memory.Wait()
	if got, small, _ := c.memory.blob(d); !small || !bytes.Equal(got, layer) {
		t.Errorf("in memory: %d bytes, small is %t; want all %d", len(got), small, len(layer))
	}
}

func TestTouchedContentIsVerifiedOnceAndServed(t *testing.T) {
	layer := content(8, 200_000)
	d := digest.FromBytes(layer)
	dir := t.TempDir()
	c, hub := filled(t, Options{Dir: dir, MemoryBytes: 1 << 20}, layer)
	before, _ := c.index.Blob(d)
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(blobPath(dir, d), later, later); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, c, digested("app", d), layer, Hit)
	if got := hub.count()["blob"]; got != 1 {
		t.Errorf("fetched %d times, want once", got)
	}
	stamp, err := c.store.Stamp(d)
	if err != nil {
		t.Fatal(err)
	}
	if stamp == before.Stamp {
		t.Fatal("the touch did not change the stamp")
	}
	c.memory.Wait()
	if _, _, known := c.memory.blob(d); known == nil || known.stamp != stamp {
		t.Errorf("in memory: %+v, want the stamp %+v", known, stamp)
	}
	until(t, "the index to know the stamp, behind the request", func() bool {
		rec, _ := c.index.Blob(d)
		return rec.Stamp == stamp
	})
}

// age makes the index say that d was last verified so long ago.
func age(t *testing.T, c *Cache, d digest.Digest, by time.Duration) {
	t.Helper()
	rec, ok := c.index.Blob(d)
	if !ok {
		t.Fatalf("%s is not in the index", d)
	}
	if err := c.index.Verified(d, rec.Stamp, time.Now().Add(-by)); err != nil {
		t.Fatal(err)
	}
	c.memory.dropBlob(d)
}

// rot changes stored content as a failing disk does: nothing of its file looks
// touched.
func rot(t *testing.T, c *Cache, dir string, d digest.Digest, verified time.Duration) {
	t.Helper()
	flip(t, blobPath(dir, d), 50_000)
	stamp, err := c.store.Stamp(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.index.Verified(d, stamp, time.Now().Add(-verified)); err != nil {
		t.Fatal(err)
	}
	c.memory.dropBlob(d)
}

const week = 168 * time.Hour

func TestContentNotVerifiedForLongIsHashedWhileItIsServed(t *testing.T) {
	layer := content(9, 300_000)
	d := digest.FromBytes(layer)
	dir := t.TempDir()
	c, hub := filled(t, Options{Dir: dir, Settings: Settings{ReverifyAfter: week}}, layer)
	age(t, c, d, 2*week)
	wantBlob(t, c, digested("app", d), layer, Hit)
	until(t, "the index to know that it was verified", func() bool {
		rec, _ := c.index.Blob(d)
		return time.Since(rec.Verified) <= week
	})
	if got := hub.count()["blob"]; got != 1 {
		t.Errorf("fetched %d times, want once", got)
	}
}

func TestRotIsCutBeforeItsEndAndMendedForTheNext(t *testing.T) {
	layer := content(10, 300_000)
	d := digest.FromBytes(layer)
	dir := t.TempDir()
	c, _ := filled(t, Options{Dir: dir, Settings: Settings{ReverifyAfter: week}}, layer)

	rot(t, c, dir, d, time.Hour)
	if got, st, err := readBlob(t, c, digested("app", d)); err != nil || st != Hit || bytes.Equal(got, layer) {
		t.Fatalf("before it is due nobody looks: got %v, %v", st, err)
	}

	rot(t, c, dir, d, 2*week) // twice flipped is right again
	flip(t, blobPath(dir, d), 50_000)
	rot(t, c, dir, d, 2*week)
	flip(t, blobPath(dir, d), 60_000)
	rot(t, c, dir, d, 2*week)
	got, _, err := readBlob(t, c, digested("app", d))
	if !errors.Is(err, errDamaged) {
		t.Fatalf("got %v, want %v", err, errDamaged)
	}
	if want := len(layer) - fill.Withheld; len(got) > want {
		t.Errorf("%d bytes of wrong content were given out, want at most %d", len(got), want)
	}
	wantBlob(t, c, digested("app", d), layer, Miss)
}

func TestRotIsFoundBehindARangeThatIsServed(t *testing.T) {
	layer := content(11, 300_000)
	d := digest.FromBytes(layer)
	dir := t.TempDir()
	c, _ := filled(t, Options{Dir: dir, Settings: Settings{ReverifyAfter: week}}, layer)
	rot(t, c, dir, d, 2*week)
	b, _, err := c.Blob(t.Context(), digested("app", d), oci.Whole)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := b.Send(&got, oci.Span{From: 100_000, To: 300_000}); err != nil || !bytes.Equal(got.Bytes(), layer[100_000:]) {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
	b.Close()
	until(t, "the damage to be found, behind the request", func() bool { return !c.holds(d) })
	wantBlob(t, c, digested("app", d), layer, Miss)
}

func TestContentThatTheIndexDoesNotKnowIsVerifiedWhileItIsServed(t *testing.T) {
	layer := content(12, 300_000)
	d := digest.FromBytes(layer)
	dir := t.TempDir()
	c, _ := filled(t, Options{Dir: dir}, layer)
	flip(t, blobPath(dir, d), 10)
	if err := c.index.DropBlobs(d); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readBlob(t, c, digested("app", d)); !errors.Is(err, errDamaged) {
		t.Fatalf("got %v, want %v", err, errDamaged)
	}
	wantBlob(t, c, digested("app", d), layer, Miss)
}

func TestManyReadersOfWhatIsDueShareOneVerification(t *testing.T) {
	layer := content(13, 300_000)
	d := digest.FromBytes(layer)
	c, _ := filled(t, Options{Settings: Settings{ReverifyAfter: week}}, layer)
	age(t, c, d, 2*week)
	// Nobody may hash before all are there.
	for range cap(c.verifier.slots) {
		c.verifier.slots <- struct{}{}
	}
	results := make(chan error)
	for range 20 {
		b, _, err := c.Blob(t.Context(), digested("app", d), oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer b.Close()
			n, err := b.Send(io.Discard, oci.Whole)
			if err == nil && n != int64(len(layer)) {
				err = io.ErrUnexpectedEOF
			}
			results <- err
		}()
	}
	first := c.verifying(d, foundOnServing)
	for range cap(c.verifier.slots) {
		<-c.verifier.slots
	}
	for range 20 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if err := first.wait(t.Context()); err != nil {
		t.Error(err)
	}
}
