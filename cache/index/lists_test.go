package index

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// keptLists returns the number of lists in the file and their bytes.
func keptLists(t *testing.T, ix *Index) (n, bytes int) {
	t.Helper()
	err := ix.view(func(tx *tx) error {
		c := tx.Bucket(listsBucket).Cursor()
		for key, v := c.First(); key != nil; key, v = c.Next() {
			n, bytes = n+1, bytes+len(v)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, bytes
}

func annotated(bytes int) List {
	return List{Referrers: []v1.Descriptor{{Digest: "sha256:x", Annotations: map[string]string{"a": strings.Repeat("x", bytes)}}}}
}

func TestListsAreBoundedInNumberAndBytesAndTheLeastRecentlyUsedGoFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix, _, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, l List) {
		t.Helper()
		if err := ix.PutList(Referrers, "docker.io", "library/app", name, l); err != nil {
			t.Fatal(err)
		}
	}
	there := func(name string) bool {
		_, ok := ix.List(Referrers, "docker.io", "library/app", name)
		return ok
	}
	ix.BoundLists(4 << 20)
	// One that is too large is not kept, nor what it replaces.
	put("large", annotated(1000))
	put("large", annotated(maxListBytes))
	if there("large") {
		t.Error("a list beyond the bound of one was kept")
	}
	put("dear", annotated(100_000))
	for i := range 100 {
		put(fmt.Sprint(i), annotated(100_000))
		if !there("dear") {
			t.Fatalf("the list that is in use went with list %d", i)
		}
	}
	if n, bytes := keptLists(t, ix); bytes > 4<<20 || n < 20 {
		t.Errorf("%d lists of %d bytes are kept, want as many as fit into 4 MiB", n, bytes)
	}
	if there("0") || !there("99") {
		t.Errorf("want the first list gone and the last one kept: %v %v", there("0"), there("99"))
	}
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
	// The bounds hold for what an earlier process has left.
	if ix, _, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	ix.BoundLists(1 << 20)
	put("new", annotated(1000))
	if _, bytes := keptLists(t, ix); bytes > 1<<20 || !there("new") {
		t.Errorf("%d bytes are kept after a restart with a bound of 1 MiB", bytes)
	}
}
