package index

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestLinksAreDroppedUnlessTheyWerePutMeanwhile(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	links := map[digest.Digest]Link{}
	var all []digest.Digest
	for i := range dropChunk + 10 {
		d := digest.FromString(fmt.Sprint(i))
		links[d] = Link{Size: int64(i)}
		all = append(all, d)
	}
	for _, repo := range []string{"app", "other"} {
		if err := ix.PutLinks("docker.io", repo, links); err != nil {
			t.Fatal(err)
		}
	}
	w, end := ix.Watch()
	again := all[7]
	if err := ix.PutLinks("docker.io", "app", map[digest.Digest]Link{again: {Size: 7}}); err != nil {
		t.Fatal(err)
	}
	unknown := digest.FromString("unknown")
	dropped, err := ix.DropLinks("docker.io", "app", append(all, unknown), w)
	if err != nil || len(dropped) != len(all)-1 || slices.Contains(dropped, again) || slices.Contains(dropped, unknown) {
		t.Errorf("%d dropped, %v; want %d", len(dropped), err, len(all)-1)
	}
	end()
	count := func(repo string) (n int) {
		t.Helper()
		if err := ix.Links("docker.io", repo, func(string, string, digest.Digest, Link) bool { n++; return true }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count("app"); n != 1 {
		t.Errorf("%d links are left, want 1", n)
	}
	if n := count("other"); n != len(all) {
		t.Errorf("another repository has %d links, want %d", n, len(all))
	}
	// What is put after the watch has ended is not kept from being dropped.
	if dropped, err := ix.DropLinks("docker.io", "app", all, nil); err != nil || len(dropped) != 1 {
		t.Errorf("%d dropped, %v; want 1", len(dropped), err)
	}
}

func TestListsAreNamedAndDropped(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	d := digest.FromString("x").String()
	all := []ListName{
		{Tags, "docker.io", "app", ""}, {Tags, "docker.io", "app2", ""}, {Tags, "ghcr.io", "app", ""},
		{Referrers, "docker.io", "app", d}, {Referrers, "ghcr.io", "app", d},
	}
	for _, l := range all {
		if err := ix.PutList(l.Kind, l.Upstream, l.Repository, l.Of, List{Checked: at(1)}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(upstream, repo string, want ...ListName) {
		t.Helper()
		if got, err := ix.Lists(upstream, repo); err != nil || !slices.Equal(got, want) {
			t.Errorf("lists of %s/%s: %v, %v; want %v", upstream, repo, got, err, want)
		}
	}
	want("", "", all...)
	want("docker.io", "", all[0], all[1], all[3])
	want("docker.io", "app", all[0], all[3])
	if err := ix.DropLists([]ListName{all[0], all[3]}, nil); err != nil {
		t.Fatal(err)
	}
	want("docker.io", "app")
	want("", "", all[1], all[2], all[4])
}

func TestManyTagsAreDroppedAtOnceAndStayInTheLedger(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	var tags []string
	for i := range dropChunk + 5 {
		tags = append(tags, fmt.Sprint(i))
	}
	d := digest.FromString("x")
	var changes []Change
	for _, tag := range tags {
		changes = append(changes, Change{Upstream: "docker.io", Repository: "app", Tag: tag, Record: Tag{Digest: d, Checked: at(1)}, How: SeenGet})
	}
	if err := ix.Put(changes...); err != nil {
		t.Fatal(err)
	}
	ix.Touch("docker.io", "app", "1", Tag{Digest: d, Checked: at(5)})
	if _, err := ix.DropTags("docker.io", "app", tags[1:], nil); err != nil {
		t.Fatal(err)
	}
	if left, err := ix.TagNames("docker.io", "app"); err != nil || !slices.Equal(left, tags[:1]) {
		t.Errorf("%d tags are left, %v", len(left), err)
	}
	if h := ix.History("docker.io", "app", "1"); len(h) != 1 || h[0].Digest != d || !h[0].Last.Equal(at(5)) {
		t.Errorf("what the tag stood for: %+v", h)
	}
	if _, err := ix.DropTags("docker.io", "app", nil, nil); err != nil {
		t.Errorf("of none: %v", err)
	}
}

func TestATagIsDroppedUnlessItWasPutMeanwhile(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	d := digest.FromString("x")
	for _, tag := range []string{"1", "2"} {
		if err := ix.PutTag("docker.io", "app", tag, Tag{Digest: d}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ix.PutList(Referrers, "docker.io", "app", d.String(), List{}); err != nil {
		t.Fatal(err)
	}
	w, end := ix.Watch()
	defer end()
	if err := ix.Put(Change{Upstream: "docker.io", Repository: "app", Tag: "2", Record: Tag{Digest: d}, Referrers: map[digest.Digest]List{d: {}}}); err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[string]bool{"1": true, "2": false} {
		n, err := ix.DropTags("docker.io", "app", []string{tag}, w)
		dropped := n == 1
		if _, there := ix.Tag("docker.io", "app", tag); err != nil || dropped != want || there == want {
			t.Errorf("tag %s: dropped %v, there %v, %v", tag, dropped, there, err)
		}
	}
	if err := ix.DropLists([]ListName{{Referrers, "docker.io", "app", d.String()}}, w); err != nil {
		t.Fatal(err)
	}
	if _, there := ix.List(Referrers, "docker.io", "app", d.String()); !there {
		t.Error("referrers that have been put meanwhile are forgotten")
	}
}

func TestAWatchBeginsAfterWhatIsBeingPut(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	tx, err := ix.db.Load().bolt.Begin(true) // as a large Put holds it
	if err != nil {
		t.Fatal(err)
	}
	put, began := make(chan error, 1), make(chan struct{})
	go func() { put <- ix.PutTag("docker.io", "app", "1", Tag{Digest: digest.FromString("x")}) }()
	for ix.putting.TryLock() { // until it has looked for a watch
		ix.putting.Unlock()
		time.Sleep(time.Millisecond)
	}
	go func() {
		_, end := ix.Watch()
		defer end()
		close(began)
	}()
	select {
	case <-began:
		t.Error("the watch has begun, and does not see what is being put")
	case <-time.After(50 * time.Millisecond):
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-put; err != nil {
		t.Fatal(err)
	}
	<-began
}
