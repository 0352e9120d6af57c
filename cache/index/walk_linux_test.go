package index

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
)

// resident gives how many KiB of the file at path are in this process's memory.
func resident(t *testing.T, path string) (kib int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	of := regexp.MustCompile(regexp.QuoteMeta(path) + `\n(?:[A-Z].*\n)*?Rss: *(\d+) kB`)
	for _, m := range of.FindAllSubmatch(maps, -1) {
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		kib += n
	}
	return kib
}

func TestWalkOverAllRecordsLeavesNoneOfThemInMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix, _, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	all := Change{Upstream: "docker.io", Repository: "library/many", Blobs: map[digest.Digest]Blob{}}
	for i := range 20_000 {
		all.Blobs[digest.FromString(strconv.Itoa(i))] = Blob{Uses: 1}
	}
	if err := ix.Put(all); err != nil {
		t.Fatal(err)
	}
	look := func() (n int) {
		for d := range all.Blobs {
			if _, ok := ix.Blob(d); ok {
				n++
			}
		}
		return n
	}
	if n := look(); n != len(all.Blobs) {
		t.Fatalf("%d records of %d", n, len(all.Blobs))
	}
	before := resident(t, path)
	if before < 500 {
		t.Fatalf("%d KiB of the index are in memory when all has been looked at: the test sees nothing", before)
	}
	n := 0
	if err := ix.Blobs(func(digest.Digest, Blob) bool { n++; return true }); err != nil || n != len(all.Blobs) {
		t.Fatalf("%d records of %d, %v", n, len(all.Blobs), err)
	}
	if after := resident(t, path); after > before/2 {
		t.Errorf("%d KiB of the index are in memory after a walk, and %d were before", after, before)
	}
	if n := look(); n != len(all.Blobs) {
		t.Errorf("after a walk there are %d records of %d", n, len(all.Blobs))
	}
}
