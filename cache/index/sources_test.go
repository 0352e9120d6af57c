package index

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestASourceIsKeptWithItsContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	d, other := digest.FromString("a"), digest.FromString("b")
	put := func(c Change) {
		t.Helper()
		if err := ix.Put(c); err != nil {
			t.Fatal(err)
		}
	}
	put(Change{Upstream: "docker.io", Repository: "app", Links: map[digest.Digest]Link{d: {Proof: Fetched}, other: {Proof: Named}}, Blobs: map[digest.Digest]Blob{d: {}, other: {}}})
	put(Change{Upstream: "ghcr.io", Repository: "app", Links: map[digest.Digest]Link{d: {Proof: Confirmed}}})
	put(Change{Upstream: "quay.io", Repository: "app", Sent: []digest.Digest{d}})
	closed(t, ix)
	ix = opened(t, path)
	defer closed(t, ix)
	if got, want := ix.Sources(d), []Source{{Upstream: "docker.io"}, {Upstream: "quay.io"}}; !slices.Equal(got, want) {
		t.Errorf("sources %+v, want %+v", got, want)
	}
	if got := ix.Sources(other); len(got) != 0 {
		t.Errorf("what is only named has the sources %+v", got)
	}
	if !ix.Sourced() {
		t.Error("a new index waits for sources to be assumed")
	}
	if err := ix.DropBlobs(d); err != nil {
		t.Fatal(err)
	}
	if got := ix.Sources(d); len(got) != 0 {
		t.Errorf("content that is gone has the sources %+v", got)
	}
}

func TestAStrongerProofStays(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	d := digest.FromString("a")
	for _, c := range []struct{ put, want Proof }{{Named, Named}, {"", Named}, {Confirmed, Confirmed}, {Named, Confirmed}, {Fetched, Fetched}, {Confirmed, Fetched}, {"", Fetched}} {
		if err := ix.PutLinks("docker.io", "app", map[digest.Digest]Link{d: {Size: 1, Proof: c.put}}); err != nil {
			t.Fatal(err)
		}
		if l, _ := ix.Link("docker.io", "app", d); l.Proof != c.want {
			t.Errorf("after %q the proof is %q, want %q", c.put, l.Proof, c.want)
		}
	}
}

func TestRestoredLinksBringTheirSources(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	d, old := digest.FromString("a"), digest.FromString("b")
	if err := ix.PutLinks("docker.io", "app", map[digest.Digest]Link{d: {Proof: Fetched}, old: {}}); err != nil {
		t.Fatal(err)
	}
	closed(t, ix)
	remove(t, path)
	ix = opened(t, path)
	defer closed(t, ix)
	if _, err := ix.Restore(); err != nil {
		t.Fatal(err)
	}
	if got := ix.Sources(d); !slices.Equal(got, []Source{{Upstream: "docker.io"}}) {
		t.Errorf("sources %+v", got)
	}
	if got := ix.Sources(old); len(got) != 0 {
		t.Errorf("of a link that proves nothing, where others may be lost, came %+v", got)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
