package index

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// TestChangesArePutAllOrNothing puts several at once of which the last can not be.
func TestChangesArePutAllOrNothing(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	good := Change{Upstream: "docker.io", Repository: "library/nginx", Tag: "latest", Record: one, How: SeenImport,
		Links: map[digest.Digest]Link{one.Digest: {Size: 1, Manifest: true}}}
	if err := ix.Put(good, Change{Blobs: map[digest.Digest]Blob{"nonsense": {}}}); err == nil {
		t.Fatal("want an error")
	}
	wantTag(t, ix, Tag{}, false)
	if _, ok := ix.Link("docker.io", "library/nginx", one.Digest); ok {
		t.Error("a part of it was put")
	}
	other := good
	other.Repository = "library/redis"
	if err := ix.Put(good, other); err != nil {
		t.Fatal(err)
	}
	wantTag(t, ix, one, true)
	if _, ok := ix.Tag("docker.io", "library/redis", "latest"); !ok {
		t.Error("the second was not put")
	}
	if h := ix.History("docker.io", "library/nginx", "latest"); len(h) != 1 || h[0].How != SeenImport {
		t.Errorf("the ledger says %+v", h)
	}
}

// TestATagIsNotMadeOlder neither where its newer record is written, nor where that
// waits for the disk.
func TestATagIsNotMadeOlder(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	if err := ix.PutTag("docker.io", "library/nginx", "latest", two); err != nil {
		t.Fatal(err)
	}
	older := Change{Upstream: "docker.io", Repository: "library/nginx", Tag: "latest", Record: one, NotOlder: true}
	if err := ix.Put(older); err != nil {
		t.Fatal(err)
	}
	wantTag(t, ix, two, true)
	touched := two
	touched.Checked = two.Checked.Add(time.Hour)
	ix.Touch("docker.io", "library/nginx", "latest", touched)
	older.Record.Checked = two.Checked.Add(time.Minute)
	if err := ix.Put(older); err != nil {
		t.Fatal(err)
	}
	wantTag(t, ix, touched, true)
	older.Record.Checked = touched.Checked.Add(time.Minute)
	if err := ix.Put(older); err != nil {
		t.Fatal(err)
	}
	wantTag(t, ix, older.Record, true)
}

func TestReferrersAreAddedToThoseThatAreKnown(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	desc := func(s string) v1.Descriptor {
		return v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString(s), Size: 1}
	}
	put := func(checked time.Time, ds ...v1.Descriptor) List {
		t.Helper()
		err := ix.Put(Change{Upstream: "docker.io", Repository: "library/nginx", Referrers: map[digest.Digest]List{one.Digest: {Referrers: ds, Checked: checked}}})
		if err != nil {
			t.Fatal(err)
		}
		l, _ := ix.List(Referrers, "docker.io", "library/nginx", one.Digest.String())
		return l
	}
	if l := put(one.Checked, desc("a")); len(l.Referrers) != 1 || !l.Checked.Equal(one.Checked) {
		t.Errorf("got %+v", l)
	}
	if l := put(two.Checked, desc("b"), desc("a")); len(l.Referrers) != 2 || l.Referrers[1].Digest != desc("b").Digest || !l.Checked.Equal(one.Checked) {
		t.Errorf("got %+v", l)
	}
}
