package cache

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// names writes targets as people do.
func names(t *testing.T, c *Cache) string {
	t.Helper()
	list, err := c.Named(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, l := range list {
		text = append(text, l.String())
	}
	return strings.Join(text, " ")
}

// TestNamedAreTagsAndWhatWasAskedForByDigest and neither what tags stood for before, nor
// what an index or a HEAD has named, nor what is of an upstream that is not there any more.
func TestNamedAreTagsAndWhatWasAskedForByDigest(t *testing.T) {
	r := newRegistry()
	dir := t.TempDir()
	c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": r, "quay.io": r}, TagRule{Match: "*", TTL: time.Nanosecond, StaleIfError: time.Hour})
	first, second, bare := r.addImage("app", []byte("first")), r.addImage("app", []byte("second")), r.addImage("app", []byte("bare"))
	child := r.addImage("app", []byte("child"))
	index := r.addDocument("app", v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{withPlatform(child, "linux", "amd64", "")},
	})
	signature := r.addDocument("app", v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: r.addBlob("app", []byte("{}")), Subject: &bare,
	})
	r.tag("app", "1", first)
	r.tag("app", "index", index)
	r.tag("app", "head", second)
	for _, d := range []digest.Digest{signature.Digest, child.Digest, bare.Digest} {
		if _, _, err := c.Manifest(t.Context(), digested("app", d), rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tag := range []string{"1", "index"} {
		if _, _, err := c.Manifest(t.Context(), tagged("app", tag), rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := c.Describe(t.Context(), tagged("app", "head"), rewrite.Accept{}); err != nil {
		t.Fatal(err)
	}
	gone := tagged("app", "1")
	gone.Upstream = "quay.io"
	if _, _, err := c.Manifest(t.Context(), gone, rewrite.Accept{}); err != nil {
		t.Fatal(err)
	}
	r.tag("app", "1", second)
	if _, _, err := c.Manifest(t.Context(), tagged("app", "1"), rewrite.Accept{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c = open(t, Options{Dir: dir}, map[string]*registry{"docker.io": r})
	// What head stands for is stored by now, for 1 stands for it too.
	want := "docker.io/app:1 docker.io/app:head docker.io/app:index docker.io/app@" + bare.Digest.String() + " docker.io/app@" + signature.Digest.String()
	if got := names(t, c); got != want {
		t.Errorf("want\n%s\ngot\n%s", want, got)
	}
	if d, at, err := c.StandsFor(tagged("app", "1")); d != second.Digest || time.Since(at) > time.Hour || err != nil {
		t.Errorf("the tag stands for %s, seen at %s, %v; want %s", d, at, err, second.Digest)
	}
	if _, _, err := c.StandsFor(tagged("app", "never")); !oci.IsAbsent(err) {
		t.Errorf("want that nothing is known of it, got %v", err)
	}
	if d, at, err := c.StandsFor(digested("app", digest.FromString("never"))); d != digest.FromString("never") || !at.IsZero() || err != nil {
		t.Errorf("got %s, %s, %v", d, at, err)
	}
	if _, _, err := c.StandsFor(gone); err == nil {
		t.Error("want that its upstream is not configured")
	}
	if _, _, ok := c.Stored(digested("other", bare.Digest)); ok {
		t.Error("another repository has what is not its own")
	}
}

func TestStandsForIsWhatAClientIsGivenWhileTheUpstreamIsDown(t *testing.T) {
	for onMove, want := range map[OnMove]int{FollowMove: 1, HoldOnMove: 0, BlockOnMove: -1} {
		t.Run(string(onMove), func(t *testing.T) {
			r := newRegistry()
			c := open(t, Options{}, map[string]*registry{"docker.io": r}, TagRule{Match: "*", TTL: time.Nanosecond, StaleIfError: time.Hour, OnMove: onMove})
			stands := []v1.Descriptor{r.addImage("app", []byte("before")), r.addImage("app", []byte("after"))}
			for _, d := range stands {
				r.tag("app", "1", d)
				_, _, err := c.Manifest(t.Context(), tagged("app", "1"), rewrite.Accept{})
				if err != nil && want >= 0 {
					t.Fatal(err)
				}
			}
			d, _, err := c.StandsFor(tagged("app", "1"))
			if want < 0 {
				if e := (*oci.Error)(nil); !errors.As(err, &e) || e.Code != oci.CodeDenied {
					t.Errorf("want it refused, got %s, %v", d, err)
				}
				return
			}
			if err != nil || d != stands[want].Digest {
				t.Errorf("want %s, got %s, %v", stands[want].Digest, d, err)
			}
		})
	}
}

func TestOpenStoredVerifiesToTheEnd(t *testing.T) {
	r := newRegistry()
	dir := t.TempDir()
	c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": r})
	content := bytes.Repeat([]byte("layer"), 100_000)
	r.tag("app", "1", r.addImage("app", content))
	if _, _, err := c.Manifest(t.Context(), tagged("app", "1"), rewrite.Accept{}); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(content)
	wantBlob(t, c, digested("app", d), content, Miss)
	until(t, "the layer is stored", func() bool {
		_, _, ok := c.Stored(digested("app", d))
		b, known := c.index.Blob(d) // its record follows its file
		return ok && known && b.Uses > 0
	})
	before, _ := c.index.Blob(d)
	read := func() ([]byte, error) {
		in, err := c.OpenStored(t.Context(), d)
		if err != nil {
			return nil, err
		}
		defer in.Close()
		return io.ReadAll(in)
	}
	if b, err := read(); err != nil || !bytes.Equal(b, content) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if after, _ := c.index.Blob(d); after.Uses != before.Uses {
		t.Error("it has counted as a use")
	}
	path := filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
	damaged := bytes.Clone(content)
	damaged[0] ^= 1
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := read(); !errors.Is(err, errDamaged) {
		t.Errorf("want that it is damaged, got %d bytes, %v", len(b), err)
	}
	if _, err := read(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("want it to be set aside, got %v", err)
	}
}
