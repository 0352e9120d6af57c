package index

import (
	"path/filepath"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/store"
)

var stored = Blob{
	Stamp:    store.Stamp{Size: 1 << 40, Modified: -1, Changed: 1 << 60, Inode: 1<<64 - 1},
	Verified: time.Unix(100, 0), Used: time.Unix(200, 0), Uses: 7,
}

func TestBlobIsThereAfterReopeningAndGoneWhenDropped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	a, b := digest.SHA256.FromString("a"), digest.SHA512.FromString("b")
	for _, d := range []digest.Digest{a, b} {
		if err := ix.PutBlob(d, stored); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, ix)
	ix = opened(t, path)
	defer closed(t, ix)
	seen := map[digest.Digest]Blob{}
	if err := ix.Blobs(func(d digest.Digest, b Blob) bool { seen[d] = b; return true }); err != nil {
		t.Fatal(err)
	}
	if want := (map[digest.Digest]Blob{a: stored, b: stored}); !reflect.DeepEqual(seen, want) {
		t.Errorf("got %+v, want %+v", seen, want)
	}
	if err := ix.DropBlobs(a); err != nil {
		t.Fatal(err)
	}
	if _, ok := ix.Blob(a); ok {
		t.Error("what was dropped is there")
	}
	if got, ok := ix.Blob(b); !ok || got != stored {
		t.Errorf("got %+v, %v; want %+v", got, ok, stored)
	}
}

func TestUsesAreSeenAtOnceWrittenBehindAndCountedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "index.db")
		ix := opened(t, path)
		d := digest.FromString("a")
		begun := time.Now()
		if err := ix.PutBlob(d, Blob{Used: begun, Uses: 1}); err != nil {
			t.Fatal(err)
		}
		want := func(uses uint32, used time.Time) {
			t.Helper()
			if got, ok := ix.Blob(d); !ok || got.Uses != uses || got.Used.Unix() != used.Unix() {
				t.Errorf("%d uses, the last at %v, %v; want %d, %v", got.Uses, got.Used, ok, uses, used)
			}
		}
		// The layers' ranges of one pull.
		time.Sleep(usesApart / 2)
		ix.UseBlob(d, time.Now())
		want(1, time.Now())
		time.Sleep(2 * usesApart)
		ix.UseBlob(d, time.Now())
		ix.UseBlob(digest.FromString("not stored"), time.Now())
		want(2, time.Now())
		last := time.Now()
		closed(t, ix)
		ix = opened(t, path)
		want(2, last)
		if _, ok := ix.Blob(digest.FromString("not stored")); ok {
			t.Error("a use has made a record")
		}
		closed(t, ix)
	})
}
