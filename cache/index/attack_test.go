package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// victims returns the ids of the pages of a file, by kind.
func victims(t *testing.T, b []byte) map[string][]uint64 {
	t.Helper()
	const size = 4096
	m, ok := metaOf(b, size)
	if !ok {
		t.Fatal("the file has no meta page")
	}
	free, more, err := freePages(b, size, m)
	if err != nil {
		t.Fatal(err)
	}
	isFree := map[uint64]bool{}
	for _, id := range free {
		isFree[id] = true
	}
	list := map[string][]uint64{"meta": {m.txid % 2}, "older meta": {1 - m.txid%2}, "both metas": {1}, "root": {m.root}}
	for id := m.freeList; id <= m.freeList+more; id++ {
		list["free list"] = append(list["free list"], id)
	}
	for id := uint64(2); id < m.pages; id++ {
		p, err := pageAt(b, size, id)
		if err != nil || isFree[id] {
			continue
		}
		switch {
		case !p.leaf:
			list["branch"] = append(list["branch"], id)
		case id != m.root:
			list["leaf"] = append(list["leaf"], id)
		}
		if p.more > 0 {
			list["overflow"] = append(list["overflow"], id, id+1)
		}
	}
	for _, kind := range []string{"branch", "leaf", "overflow", "free list"} {
		if len(list[kind]) == 0 {
			t.Fatalf("the file has no page of the kind %s", kind)
		}
	}
	return list
}

// attacked fills an index with some of everything, closes it, and returns its file's bytes.
func attacked(t *testing.T, path string, links int) []byte {
	t.Helper()
	ix := opened(t, path)
	ix.Restore()
	for i := 0; i < links; i += 500 {
		change := Change{Upstream: "docker.io", Repository: "library/nginx", Tag: fmt.Sprint("t", i), Record: Tag{Digest: digest.FromString(fmt.Sprint(i)), Checked: time.Unix(1, 0)},
			How: SeenGet, Links: map[digest.Digest]Link{}, Blobs: map[digest.Digest]Blob{}}
		for k := i; k < i+500; k++ {
			d := digest.FromString(fmt.Sprint(k))
			change.Links[d] = Link{Size: int64(k), Manifest: true, MediaType: "application/vnd.oci.image.manifest.v1+json"}
			change.Blobs[d] = Blob{Verified: time.Unix(1, 0), Used: time.Unix(1, 0)}
		}
		if err := ix.Put(change); err != nil {
			t.Fatal(err)
		}
	}
	// A value of several pages, and pages that are free.
	var names []string
	for i := range 2000 {
		names = append(names, fmt.Sprint("some-tag-", i))
	}
	if err := ix.PutList(Tags, "docker.io", "library/nginx", "", List{Tags: names, Checked: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	var gone []digest.Digest
	for k := range links / 10 {
		gone = append(gone, digest.FromString(fmt.Sprint("gone", k)))
		if k%100 == 0 || k == links/10-1 {
			more := map[digest.Digest]Link{}
			for _, d := range gone {
				more[d] = Link{}
			}
			if err := ix.PutLinks("docker.io", "library/gone", more); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := ix.DropLinks("docker.io", "library/gone", gone, nil); err != nil {
		t.Fatal(err)
	}
	closed(t, ix)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// harm damages a page of b, and returns what it has done.
func harm(rnd *rand.Rand, b []byte, id uint64, how string) string {
	page := b[id*4096:][:4096]
	switch how {
	case "a bit of its header":
		at := rnd.IntN(16 * 8)
		page[at/8] ^= 1 << (at % 8)
		return fmt.Sprint("bit ", at)
	case "a bit of its first entries":
		at := 16*8 + rnd.IntN(64*8)
		page[at/8] ^= 1 << (at % 8)
		return fmt.Sprint("bit ", at)
	case "a bit":
		at := rnd.IntN(len(page) * 8)
		page[at/8] ^= 1 << (at % 8)
		return fmt.Sprint("bit ", at)
	case "zeros":
		clear(page)
	case "random":
		for i := range page {
			page[i] = byte(rnd.Uint32())
		}
	case "a loop": // the first child is the page itself
		binary.NativeEndian.PutUint64(page[16+8:], id)
	}
	return ""
}

var harms = []string{"a bit of its header", "a bit of its first entries", "a bit", "zeros", "random", "a loop"}

const attackedLinks = 2500

// use reads and writes all that an index knows, and fails where that is wrong or not to be
// had for long.
func use(t *testing.T, ix *Index, what string, rnd *rand.Rand) {
	t.Helper()
	for range 200 {
		k := rnd.IntN(attackedLinks)
		d := digest.FromString(fmt.Sprint(k))
		if l, ok := ix.Link("docker.io", "library/nginx", d); ok && l.Size != int64(k) {
			t.Errorf("%s: a link is known as %+v, want the size %d", what, l, k)
		}
		tag := k / 500 * 500
		if got, ok := ix.Tag("docker.io", "library/nginx", fmt.Sprint("t", tag)); ok && got.Digest != digest.FromString(fmt.Sprint(tag)) {
			t.Errorf("%s: tag t%d is known as %+v", what, tag, got)
		}
		ix.Blob(d)
		if k%20 == 0 {
			if err := ix.Put(Change{Upstream: "docker.io", Repository: "library/nginx", Links: map[digest.Digest]Link{d: {Size: int64(k)}}, Blobs: map[digest.Digest]Blob{d: {Used: time.Now()}}}); err != nil {
				t.Errorf("%s: put: %v", what, err)
			}
		}
	}
	if l, ok := ix.List(Tags, "docker.io", "library/nginx", ""); ok && len(l.Tags) != 2000 {
		t.Errorf("%s: a list has %d tags", what, len(l.Tags))
	}
	ix.Repositories()
	ix.Links("", "", func(_, _ string, d digest.Digest, l Link) bool { return true })
	ix.Blobs(func(digest.Digest, Blob) bool { return true })
}

// wantAll restores an index if it was lost, and wants all of it back. Damage that the index
// finds while it is asked here is restored too: all that isn't there must be due to damage that
// it has found.
func wantAll(t *testing.T, ix *Index, what string) {
	t.Helper()
	for found := 0; ; found++ {
		for tries := 0; !ix.Whole(); tries++ {
			if _, err := ix.Restore(); err != nil && tries > 5 {
				t.Errorf("%s: restore: %v", what, err)
				return
			}
		}
		missing := firstMissing(ix)
		if missing == "" {
			return
		}
		if ix.Whole() || found > 5 {
			t.Errorf("%s: %s after all was restored", what, missing)
			return
		}
	}
}

// firstMissing describes the first entry of attacked that an index does not return; empty if
// there is none.
func firstMissing(ix *Index) string {
	for k := range attackedLinks {
		if l, ok := ix.Link("docker.io", "library/nginx", digest.FromString(fmt.Sprint(k))); !ok || l.Size != int64(k) {
			return fmt.Sprintf("link %d is %+v, %v", k, l, ok)
		}
	}
	for k := 0; k < attackedLinks; k += 500 {
		if got, ok := ix.Tag("docker.io", "library/nginx", fmt.Sprint("t", k)); !ok || got.Digest != digest.FromString(fmt.Sprint(k)) {
			return fmt.Sprintf("tag t%d is %+v, %v", k, got, ok)
		}
	}
	return ""
}

// TestACountThatIsWrongHidesNothing changes each bit of the count of elements of a page of each
// kind. What a page hides then must not pass for what was never there, neither for a reader nor
// in a walk, and is there again once it is restored.
func TestACountThatIsWrongHidesNothing(t *testing.T) {
	dir := t.TempDir()
	good := attacked(t, filepath.Join(dir, "index.db"), attackedLinks)
	backup, err := os.ReadFile(filepath.Join(dir, "index.backup"))
	if err != nil {
		t.Fatal(err)
	}
	kinds := victims(t, good)
	for _, kind := range []string{"root", "branch", "leaf"} {
		pages := kinds[kind]
		for bit := range 16 {
			for _, walk := range []bool{true, false} {
				id := pages[len(pages)/2]
				b := bytes.Clone(good)
				b[id*4096+10+uint64(bit/8)] ^= 1 << (bit % 8)
				what := fmt.Sprintf("%s page, bit %d of its count, a walk %v", kind, bit, walk)
				dir := filepath.Join(dir, fmt.Sprint(kind, bit, walk))
				path := placed(t, dir, b, backup)
				ix, _, err := Open(path)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if walk {
					links := 0
					err := ix.Links("docker.io", "library/nginx", func(_, _ string, _ digest.Digest, _ Link) bool { links++; return true })
					if err == nil && ix.Whole() && links != attackedLinks {
						t.Errorf("%s: %d links and no error", what, links)
					}
				}
				wantAll(t, ix, what)
				closed(t, ix)
				os.RemoveAll(dir)
			}
		}
	}
}

// TestAWrongKeyOfABranchHidesNothing lets each key of a branch page lead to a later and to an
// earlier place: an entry that isn't where its key leads must not pass for one that was never
// there.
func TestAWrongKeyOfABranchHidesNothing(t *testing.T) {
	dir := t.TempDir()
	good := attacked(t, filepath.Join(dir, "index.db"), attackedLinks)
	backup, err := os.ReadFile(filepath.Join(dir, "index.backup"))
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, id := range victims(t, good)["branch"] {
		p, err := pageAt(good, 4096, id)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < p.count; i += 9 {
			for _, by := range []int{1, -1} {
				b := bytes.Clone(good)
				p, err := pageAt(b, 4096, id)
				if err != nil {
					t.Fatal(err)
				}
				key, _, _, _, err := p.element(i)
				if err != nil {
					t.Fatal(err)
				}
				key[len(key)-1] += byte(by)
				what := fmt.Sprintf("page %d, key %d, by %d", id, i, by)
				dir := filepath.Join(dir, fmt.Sprint(id, "-", i, by))
				ix, _, err := Open(placed(t, dir, b, backup))
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				wantAll(t, ix, what)
				closed(t, ix)
				os.RemoveAll(dir)
				tried++
			}
		}
	}
	t.Log(tried, "keys")
}

// placed writes the file of an index and its backup into dir, and returns the path of the first.
func placed(t *testing.T, dir string, b, backup []byte) string {
	t.Helper()
	path := filepath.Join(dir, "index.db")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{path: b, filepath.Join(dir, "index.backup"): backup} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// TestDamageAtRestLosesNothing damages each kind of page of a file that is closed. It is
// opened and used, then restored, closed and opened again: nothing ends the process, nothing
// is wrong, and in the end all is there.
func TestDamageAtRestLosesNothing(t *testing.T) {
	dir := t.TempDir()
	good := attacked(t, filepath.Join(dir, "index.db"), attackedLinks)
	backup, err := os.ReadFile(filepath.Join(dir, "index.backup"))
	if err != nil {
		t.Fatal(err)
	}
	kinds := victims(t, good)
	// Behind the last page in use, there is nothing to lose.
	used := 0
	for _, pages := range kinds {
		used = max(used, int(slices.Max(pages))*4096)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	until := time.Now().Add(4 * time.Second)
	asides := map[string]int{}
	for seed := 0; seed < 8 && time.Now().Before(until); seed++ {
		for _, kind := range slices.Sorted(maps.Keys(kinds)) { // the same order each time
			pages := kinds[kind]
			for _, how := range harms {
				b := bytes.Clone(good)
				what := fmt.Sprintf("seed %d, %s of a %s page, ", seed, how, kind)
				if kind == "both metas" {
					harm(rnd, b, 0, how)
				}
				what += harm(rnd, b, pages[rnd.IntN(len(pages))], how)
				if attack(t, filepath.Join(dir, fmt.Sprintf("%d-%s-%s", seed, kind, how)), b, backup, what, rnd) {
					asides[kind]++
				}
			}
		}
		what := fmt.Sprintf("seed %d, cut short", seed)
		short := bytes.Clone(good[:rnd.IntN(used)])
		if !attack(t, filepath.Join(dir, fmt.Sprint("short", seed)), short, backup, what, rnd) {
			t.Errorf("%s to %d of %d bytes: nobody has noticed", what, len(short), len(good))
		}
		if t.Failed() {
			break
		}
	}
	for _, kind := range []string{"both metas", "free list", "branch", "leaf", "overflow", "root"} {
		if asides[kind] == 0 {
			t.Errorf("no damage to a %s page was noticed", kind)
		}
	}
	t.Log(asides)
}

// attack uses an index of these bytes, and tells whether it was found damaged.
func attack(t *testing.T, dir string, b, backup []byte, what string, rnd *rand.Rand) bool {
	t.Helper()
	path := placed(t, dir, b, backup)
	for range 2 {
		ix, _, err := Open(path)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		use(t, ix, what, rnd)
		wantAll(t, ix, what)
		if err := ix.Close(); err != nil {
			t.Errorf("%s: close: %v", what, err)
		}
	}
	aside, _ := filepath.Glob(path + ".damaged-*")
	os.RemoveAll(dir)
	return len(aside) > 0
}

// TestDamageInUseLosesNothing damages each kind of page of a file that is read and written
// by several goroutines.
func TestDamageInUseLosesNothing(t *testing.T) {
	dir := t.TempDir()
	good := attacked(t, filepath.Join(dir, "index.db"), attackedLinks)
	backup, err := os.ReadFile(filepath.Join(dir, "index.backup"))
	if err != nil {
		t.Fatal(err)
	}
	seeds := rand.New(rand.NewPCG(3, 4))
	until := time.Now().Add(4 * time.Second)
	lost := 0
	for seed := 0; seed < 100 && time.Now().Before(until) && !t.Failed(); seed++ {
		dir := filepath.Join(dir, fmt.Sprint(seed))
		path := placed(t, dir, good, backup)
		ix := opened(t, path)
		how := append(harms, "cut short")[seed%(len(harms)+1)]
		what := fmt.Sprintf("seed %d, %s", seed, how)
		asides := make(chan struct{}, 100)
		ix.Lost(func(string, error) { asides <- struct{}{} })
		var users sync.WaitGroup
		for range 4 {
			rnd := rand.New(rand.NewPCG(seeds.Uint64(), 0))
			users.Go(func() {
				use(t, ix, what, rnd)
				use(t, ix, what, rnd)
			})
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if how == "cut short" {
			err = f.Truncate(seeds.Int64N(int64(len(good))))
		} else {
			now, readErr := os.ReadFile(path)
			if readErr != nil {
				t.Fatal(readErr)
			}
			for range 1 + seed%5 {
				id := seeds.Uint64N(uint64(len(now) / 4096))
				harm(seeds, now, id, how)
				_, err = f.WriteAt(now[id*4096:][:4096], int64(id*4096))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		users.Wait()
		use(t, ix, what, seeds)
		wantAll(t, ix, what)
		closed(t, ix)
		f.Close()
		ix = opened(t, path)
		use(t, ix, what, seeds)
		wantAll(t, ix, what)
		closed(t, ix)
		lost += len(asides)
		os.RemoveAll(dir)
	}
	if lost == 0 {
		t.Error("no damage was noticed")
	}
	t.Log(lost)
}
