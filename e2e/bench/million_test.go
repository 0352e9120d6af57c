package main

import (
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
)

func TestFullCacheIsOneThatTheStoreAndTheIndexKnow(t *testing.T) {
	dir := t.TempDir()
	const n = 700
	if err := fillCache(t.Context(), dir, n); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ix, aside, err := index.Open(filepath.Join(dir, "index.db"))
	if err != nil || aside != "" {
		t.Fatal(aside, err)
	}
	defer ix.Close()
	found := 0
	err = s.Walk(func(d digest.Digest, size int64) error {
		found++
		b, ok := ix.Blob(d)
		stamp, err := s.Stamp(d)
		if _, linked := ix.Link("docker.io", "library/many-blobs", d); err != nil || !ok || !linked || b.Stamp != stamp || stamp.Size != size {
			t.Errorf("%s: linked %v, known %v as %+v, its file is %+v, %v", d, linked, ok, b, stamp, err)
		}
		return nil
	})
	if err != nil || found != n {
		t.Errorf("%d blobs, want %d: %v", found, n, err)
	}
}
