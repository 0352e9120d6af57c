package index

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestNamesAboveTheShareGoFromTheLeastRecentlyUsedOn fills an index with tags of one manifest
// and drops what is above its share.
func TestNamesAboveTheShareGoFromTheLeastRecentlyUsedOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	defer closed(t, ix)
	const n, share = 4000, 1 << 20
	var told atomic.Int64
	ix.SetShare(share, func() { told.Add(1) })
	d := digest.FromString("manifest")
	at := func(i int) time.Time { return time.Unix(1_000_000+int64(i), 0) }
	repo := func(i int) string { return strings.Repeat("n", 100) + fmt.Sprint(i) }
	var asked []Asked
	put := func(i int) {
		t.Helper()
		err := ix.Put(Change{Upstream: "reg.test", Repository: repo(i), Tag: "1", Record: Tag{Digest: d, Checked: at(i)}, How: SeenGet,
			Links: map[digest.Digest]Link{d: {Size: 1, Manifest: true, Proof: Fetched}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	var changes []Change
	for i := range n {
		changes = append(changes, Change{Upstream: "reg.test", Repository: repo(i), Tag: "1", Record: Tag{Digest: d, Checked: at(i)}, How: SeenGet,
			Links: map[digest.Digest]Link{d: {Size: 1, Manifest: true, Proof: Fetched}}})
		asked = append(asked, Asked{Upstream: "reg.test", Repository: repo(i), Tag: "1", Digest: d, Last: at(i), Days: []AskedDay{{Day: DayOf(at(i)), Gets: 1}}})
		if len(changes) == 500 {
			if err := ix.Put(changes...); err != nil {
				t.Fatal(err)
			}
			changes = changes[:0]
		}
	}
	const pinned, used, ranked = 7, 8, 9
	// One was asked for lately, though its upstream was not.
	asked[used].Last = at(n)
	if err := ix.AddAsked(asked, at(n)); err != nil {
		t.Fatal(err)
	}
	if err := ix.PutPin("reg.test", repo(pinned), "1", Pin{Digest: d, Since: at(0)}); err != nil {
		t.Fatal(err)
	}
	if told.Load() == 0 || !ix.IsOverShare() {
		t.Fatalf("%d bytes of %d are not above the share, told %d times", ix.Bytes(), share, told.Load())
	}
	var tags, links int
	drop := func() {
		t.Helper()
		err := ix.DropNames(func(n Name, _ Tag) int {
			if n.Repository == repo(ranked) {
				return 1
			}
			return 0
		}, func(areLinks bool, names []Name) {
			if areLinks {
				links += len(names)
			} else {
				tags += len(names)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	drop()
	left, kept := 0, 0
	for i := range n {
		_, tag := ix.Tag("reg.test", repo(i), "1")
		_, link := ix.Link("reg.test", repo(i), d)
		history := len(ix.History("reg.test", repo(i), "1")) > 0
		if tag != link || tag != history {
			t.Fatalf("of name %d the tag is there: %v, its link: %v, its history: %v", i, tag, link, history)
		}
		special := i == pinned || i == used || i == ranked
		switch {
		case special && !tag:
			t.Errorf("name %d is gone", i)
		case tag && !special:
			left++
			kept = max(kept, n-i)
		}
	}
	if left == 0 || left != kept || tags != n-left-3 || links != tags {
		t.Errorf("%d names are left, and the %d newest; %d tags and %d links were dropped", left, kept, tags, links)
	}
	if list, err := ix.AskedSince(at(0)); err != nil || len(list) != left+3 {
		t.Errorf("of %d names it is known who asked, want %d: %v", len(list), left+3, err)
	}
	if got := ix.Bytes(); got > share {
		t.Errorf("the file has %d bytes, more than its share of %d", got, share)
	}
	if ix.IsOverShare() {
		t.Error("it is above its share still")
	}
	// It goes on.
	told.Store(0)
	for i := n; i < n+4000 && told.Load() == 0; i++ {
		put(i)
	}
	if told.Load() == 0 || ix.Bytes() > 2*share {
		t.Errorf("nobody was told that it has %d bytes again", ix.Bytes())
	}
	drop()
	if _, ok := ix.Tag("reg.test", repo(pinned), "1"); !ok {
		t.Error("the pinned name is gone")
	}
}
