package index

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
)

// TestAMostlyFreeIndexShrinksWhileItIsUsed fills an index, drops nearly all, and compacts it
// while others read and write.
func TestAMostlyFreeIndexShrinksWhileItIsUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	all := putMany(t, ix, 20_000)
	if ix.wasteful() {
		t.Error("a full index is wasteful")
	}
	for i := range 500 {
		if err := ix.PutTag("docker.io", "library/kept", fmt.Sprint(i), record(fmt.Sprint(i), 100)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ix.DropLinks("docker.io", "library/gone", all, nil); err != nil {
		t.Fatal(err)
	}
	before := ix.Bytes()
	if before < compactFrom || !ix.wasteful() {
		t.Fatalf("an index of %d bytes, all of them free, is not wasteful", before)
	}
	var users sync.WaitGroup
	var stop atomic.Bool
	put := make([]int, 4)
	for u := range put {
		users.Go(func() {
			for i := 0; !stop.Load(); i++ {
				if err := ix.PutTag("docker.io", fmt.Sprint("library/", u), fmt.Sprint(i), record(fmt.Sprint(i), 100)); err != nil {
					t.Errorf("put: %v", err)
				}
				put[u] = i + 1
				if got, ok := ix.Tag("docker.io", "library/kept", fmt.Sprint(i%500)); !ok || got.Digest != digest.FromString(fmt.Sprint(i%500)) {
					t.Errorf("a tag is %+v, %v", got, ok)
				}
				if _, err := ix.DropTags("docker.io", fmt.Sprint("library/", u), []string{fmt.Sprint(i - 5)}, nil); err != nil {
					t.Errorf("drop: %v", err)
				}
			}
		})
	}
	for range 3 {
		if err := ix.compact(); err != nil {
			t.Errorf("compact: %v", err)
		}
	}
	stop.Store(true)
	users.Wait()
	if after := ix.Bytes(); after > before/4 {
		t.Errorf("it has %d bytes after, and had %d", after, before)
	}
	check := func() {
		t.Helper()
		for i := range 500 {
			if _, ok := ix.Tag("docker.io", "library/kept", fmt.Sprint(i)); !ok {
				t.Fatalf("tag %d is gone", i)
			}
		}
		for u, n := range put {
			for i := range n {
				if _, ok := ix.Tag("docker.io", fmt.Sprint("library/", u), fmt.Sprint(i)); ok != (i >= n-5) {
					t.Fatalf("tag %d of %d of user %d: %v", i, n, u, ok)
				}
			}
		}
		if _, ok := ix.Link("docker.io", "library/gone", all[0]); ok {
			t.Error("what was dropped is there")
		}
		if !ix.Whole() {
			t.Error("it isn't whole")
		}
	}
	check()
	closed(t, ix)
	// A crash has left a copy.
	if err := os.WriteFile(compactPath(path), []byte("half a copy"), 0o600); err != nil {
		t.Fatal(err)
	}
	ix = opened(t, path)
	defer closed(t, ix)
	if _, err := os.Stat(compactPath(path)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the copy is left: %v", err)
	}
	check()
	if aside, _ := filepath.Glob(path + ".damaged-*"); len(aside) > 0 {
		t.Errorf("quarantined: %v", aside)
	}
}

// putMany puts n links and returns their digests.
func putMany(t *testing.T, ix *Index, n int) (all []digest.Digest) {
	t.Helper()
	links := map[digest.Digest]Link{}
	for k := range n {
		d := digest.FromString(fmt.Sprint(k))
		links[d], all = Link{Size: int64(k), MediaType: "application/vnd.oci.image.layer.v1.tar+gzip"}, append(all, d)
	}
	if err := ix.PutLinks("docker.io", "library/gone", links); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestAnIndexOfASmallCacheShrinksByItself drops what an index holds, and waits.
func TestAnIndexOfASmallCacheShrinksByItself(t *testing.T) {
	t.Parallel()
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	ix.SetShare(2<<20, func() {})
	all := putMany(t, ix, 4000)
	before := ix.Bytes()
	if before < ix.worthCompacting() || before >= compactFrom {
		t.Fatalf("an index of %d bytes shows nothing of small caches", before)
	}
	if _, err := ix.DropLinks("docker.io", "library/gone", all, nil); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); ix.Bytes() > before/4; time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatalf("it has %d bytes still, and had %d", ix.Bytes(), before)
		}
	}
	if _, ok := ix.Link("docker.io", "library/gone", all[0]); ok {
		t.Error("what was dropped is there")
	}
}

// TestAnIndexWithoutChecksumsGetsThem opens a file as older versions wrote it.
func TestAnIndexWithoutChecksumsGetsThem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	filled(t, path, 3000)
	old, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = old.Update(func(b *bbolt.Tx) error {
		if err := b.DeleteBucket(askedBucket); err != nil { // there was none at first
			return err
		}
		return b.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
			values := map[string][]byte{}
			err := bucket.ForEach(func(k, v []byte) error {
				values[string(k)] = append([]byte(nil), v[:len(v)-sealLen]...)
				return nil
			})
			for k, v := range values {
				err = errors.Join(err, bucket.Put([]byte(k), v))
			}
			return err
		})
	})
	if err := errors.Join(err, old.Close()); err != nil {
		t.Fatal(err)
	}
	ix := opened(t, path)
	if ix.db.Load().sealed {
		t.Fatal("the file has checksums")
	}
	wantFilled(t, ix, 3000)
	if !ix.wasteful() {
		t.Error("it isn't to be copied")
	}
	if err := ix.compact(); err != nil {
		t.Fatal(err)
	}
	if !ix.db.Load().sealed {
		t.Error("the copy has no checksums")
	}
	wantFilled(t, ix, 3000)
	closed(t, ix)
	ix = opened(t, path)
	defer closed(t, ix)
	wantFilled(t, ix, 3000)
}
