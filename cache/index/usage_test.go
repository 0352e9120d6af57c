package index

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/store"
)

// usageOf counts what the records and the sources say.
func usageOf(t *testing.T, ix *Index) map[string]Usage {
	t.Helper()
	all := map[string]Usage{}
	err := ix.Blobs(func(d digest.Digest, b Blob) bool {
		for _, s := range ix.Sources(d) {
			n := all[s.Upstream]
			all[s.Upstream] = Usage{n.Blobs + 1, n.Bytes + b.Stamp.Size}
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func wantUsage(t *testing.T, what string, ix *Index) {
	t.Helper()
	got, err := ix.Usage(func() bool { return false })
	if want := usageOf(t, ix); err != nil || !maps.Equal(got, want) {
		t.Errorf("%s: got %v, want %v, %v", what, got, want, err)
	}
}

// TestUsageIsWhatRecordsAndSourcesSay changes records and sources at random, in new files and
// in one of an older version, which is counted a part at a time meanwhile.
func TestUsageIsWhatRecordsAndSourcesSay(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			path := filepath.Join(t.TempDir(), "index.db")
			reopen := func(ix *Index) *Index {
				if ix != nil {
					if err := ix.Close(); err != nil {
						t.Fatal(err)
					}
				}
				ix, _, err := Open(path)
				if err != nil {
					t.Fatal(err)
				}
				return ix
			}
			ix := reopen(nil)
			defer func() { _ = ix.Close() }()
			for round := range 4 {
				for range 60 {
					changeAtRandom(t, ix, rnd)
				}
				wantUsage(t, fmt.Sprint("round ", round), ix)
				ix = reopen(ix)
				wantUsage(t, fmt.Sprint("after a restart, round ", round), ix)
				if round != 1 {
					continue
				}
				// A file of an older version has no counters.
				if err := ix.update(func(tx *tx) error { return tx.Bucket(metaBucket).Delete(usageKey) }); err != nil {
					t.Fatal(err)
				}
				for n := range 30 {
					changeAtRandom(t, ix, rnd)
					if n%10 != 0 {
						continue
					}
					if err := ix.update(func(tx *tx) error {
						u := readUsage(tx)
						u.countMore(tx, 8)
						return writeUsage(tx, u)
					}); err != nil {
						t.Fatal(err)
					}
				}
				wantUsage(t, "once counted", ix)
			}
			// Nor has one that can't be written.
			if err := errors.Join(ix.update(func(tx *tx) error { return tx.Bucket(metaBucket).Delete(usageKey) }), ix.Close()); err != nil {
				t.Fatal(err)
			}
			var err error
			if ix, _, err = OpenWith(path, Options{ReadOnly: true}); err != nil {
				t.Fatal(err)
			}
			wantUsage(t, "read-only", ix)
		})
	}
}

// changeAtRandom does one thing to one of forty digests.
func changeAtRandom(t *testing.T, ix *Index, rnd *rand.Rand) {
	t.Helper()
	d := digest.FromString(fmt.Sprint(rnd.IntN(40)))
	upstream := []string{"docker.io", "ghcr.io", "quay.io"}[rnd.IntN(3)]
	b := Blob{Stamp: store.Stamp{Size: rnd.Int64N(1000)}}
	var err error
	switch rnd.IntN(7) {
	case 0:
		err = ix.Put(Change{Upstream: upstream, Repository: "app", Links: map[digest.Digest]Link{d: {Proof: Fetched}}, Blobs: map[digest.Digest]Blob{d: b}})
	case 1:
		err = ix.Put(Change{Upstream: upstream, Repository: "app", Sent: []digest.Digest{d}})
	case 2:
		err = ix.PutBlob(d, b)
	case 3:
		err = ix.DropBlobs(d)
	case 4:
		err = ix.Verified(d, b.Stamp, b.Verified)
	case 5:
		err = ix.update(func(tx *tx) error { return assumeSource(tx, d, upstream, fmt.Sprint("app", rnd.IntN(3))) })
	case 6:
		_, _, err = ix.Mend(digest.SHA256, blobKey(d)[1], []digest.Digest{d}, func(digest.Digest) (Blob, bool) { return b, rnd.IntN(2) == 0 })
	}
	if err != nil {
		t.Fatal(err)
	}
}
