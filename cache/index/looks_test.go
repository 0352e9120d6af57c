package index

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestALinkIsReadAsItIsWritten(t *testing.T) {
	for _, l := range []Link{
		{}, {Size: -1}, {Size: 5, Proof: Fetched}, {MediaType: "application/x", Size: 7, Manifest: true, Proof: Named}, {MediaType: "a/b", Size: 1 << 40, Proof: Confirmed},
		{MediaType: `a"b\c,"size":9`, Size: 3, Manifest: true}, {MediaType: "ü<>&", Size: 3, Proof: "of a later version"},
	} {
		b, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := decodeLink(b); !ok || got != l {
			t.Errorf("%s is read as %+v, %v", b, got, ok)
		}
	}
	for text, want := range map[string]Link{
		`{ "size": 4 }`: {Size: 4}, `{"size":4,"later":1}`: {Size: 4}, `{"size":4,"proof":"fetched","manifest":true}`: {Size: 4, Proof: Fetched, Manifest: true},
	} {
		if got, ok := decodeLink([]byte(text)); !ok || got != want {
			t.Errorf("%s is read as %+v, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "{", `{"size":4`, `{"size":x}`, `{"size":4}}`, `{"mediaType":"a`, `{"mediaType":"a","size":1,}`} {
		if got, ok := decodeLink([]byte(text)); ok {
			t.Errorf("%q is read as %+v", text, got)
		}
	}
}

func TestLooksSeeWhatWalksSee(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	one, two, three := digest.FromString("one"), digest.FromString("two"), digest.FromBytes([]byte("three"))
	for _, c := range []Change{
		{Upstream: "docker.io", Repository: "a", Tag: "1", Record: Tag{Digest: one, Checked: time.Now()}, Links: map[digest.Digest]Link{one: {Manifest: true, Proof: Fetched}, two: {Proof: Named}},
			Blobs: map[digest.Digest]Blob{one: {Uses: 3}, two: {Uses: 4}}},
		{Upstream: "quay.io", Repository: "a/b", Links: map[digest.Digest]Link{one: {Manifest: true, Proof: Fetched}, three: {MediaType: `"manifest":true`}}, Blobs: map[digest.Digest]Blob{three: {Uses: 5}}},
	} {
		if err := ix.Put(c); err != nil {
			t.Fatal(err)
		}
	}
	touched := digest.FromString("touched")
	ix.Touch("docker.io", "a", "1", Tag{Digest: touched, Checked: time.Now()})
	var got []string
	note := func(format string, args ...any) bool {
		got = append(got, fmt.Sprintf(format, args...))
		return true
	}
	err := ix.TagDigests(func(u, r, tag, d []byte) bool { return note("%s/%s:%s %s", u, r, tag, d) })
	if want := []string{"docker.io/a:1 " + touched.String()}; err != nil || !slices.Equal(got, want) {
		t.Errorf("tags: %q, want %q, %v", got, want, err)
	}
	got = nil
	err = ix.LinkNames(func(u, r, d []byte) bool { return note("%s/%s %s", u, r, d) })
	want := []string{"docker.io/a " + one.String(), "docker.io/a " + two.String(), "quay.io/a/b " + one.String(), "quay.io/a/b " + three.String()}
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("links: %q, want %q, %v", got, want, err)
	}
	got = nil
	repos, err := ix.Repositories()
	if err != nil {
		t.Fatal(err)
	}
	err = ix.LinksOf(repos, []digest.Digest{two, one, digest.FromString("nowhere")}, func(u, r string, d digest.Digest) bool { return note("%s/%s %s", u, r, d) })
	want = []string{"docker.io/a " + one.String(), "docker.io/a " + two.String(), "quay.io/a/b " + one.String()}
	slices.Sort(want)
	if slices.Sort(got); err != nil || !slices.Equal(got, want) {
		t.Errorf("links of two: %q, want %q, %v", got, want, err)
	}
	got = nil
	err = ix.Manifests("quay.io", "a/b", func(d digest.Digest) bool { return note("%s", d) })
	if err != nil || !slices.Equal(got, []string{one.String()}) {
		t.Errorf("manifests: %q, %v", got, err)
	}
	got = nil
	err = ix.Stored(func(key BlobKey, b Blob) bool { return note("%s %d", key.Digest(), b.Uses) })
	want = []string{one.String() + " 3", two.String() + " 4", three.String() + " 5"}
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("stored: %q, want %q, %v", got, want, err)
	}
	names, err := ix.RepositoriesWith("quay.io/a")
	if err != nil || !slices.Equal(names, []string{"quay.io/a/b"}) {
		t.Errorf("repositories: %q, %v", names, err)
	}
	if names, err = ix.RepositoriesWith("docker.io/b"); err != nil || len(names) > 0 {
		t.Errorf("repositories: %q, %v", names, err)
	}
}
