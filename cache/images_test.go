package cache

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

func TestImagesAreListedByTagAndElseByDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub, "ghcr.io": hub})
		idx, amd64, _, _, signature := hub.addIndex("library/app", "1")
		old := hub.addImage("library/app", []byte("old"))
		hub.tag("library/app", "same", idx)
		begun := time.Now()
		for _, tag := range []string{"1", "same"} {
			wantManifest(t, c, tagged("library/app", tag), idx, Miss)
		}
		pullTree(t, c, hub, "library/app", amd64)
		pullTree(t, c, hub, "library/app", signature)
		pullTree(t, c, hub, "library/app", old)
		if _, _, err := c.Referrers(t.Context(), digested("library/app", idx.Digest)); err != nil {
			t.Fatal(err)
		}
		org := hub.addImage("org/tool", []byte("x"))
		if _, _, err := c.Manifest(t.Context(), oci.Target{Upstream: "ghcr.io", Repository: "org/tool", Digest: org.Digest}, rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		settle()
		time.Sleep(time.Hour)
		wantManifest(t, c, digested("library/app", amd64.Digest), amd64, Hit)
		settle()
		for pattern, want := range map[string][]string{
			"":              {"docker.io/library/app:1", "docker.io/library/app:same", "docker.io/library/app@", "ghcr.io/org/tool@"},
			"app":           {"docker.io/library/app:1", "docker.io/library/app:same", "docker.io/library/app@"},
			"library/app:?": {"docker.io/library/app:1"},
			"ghcr.io/*":     {"ghcr.io/org/tool@"},
			"org/tool":      nil, // of Docker Hub
			"*sha256:*":     {"docker.io/library/app@", "ghcr.io/org/tool@"},
		} {
			list, err := c.Images(t.Context(), ImagesFilter{Pattern: pattern})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, i := range list.Images {
				name, _, _ := strings.Cut(i.Reference, "@")
				if name != i.Reference {
					name += "@"
				}
				got = append(got, name)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%q lists %q, want %q", pattern, got, want)
			}
		}
		list, err := c.Images(t.Context(), ImagesFilter{Pattern: "app:*"})
		if err != nil || len(list.Images) != 2 {
			t.Fatalf("%+v, %v", list, err)
		}
		var size int64
		for d := range distinctDigests(idx.Digest, amd64.Digest, hub.children(t, amd64)...) {
			n, ok := c.store.Has(d)
			if !ok {
				t.Fatalf("%s is not here", d)
			}
			size += n
		}
		for _, i := range list.Images {
			if i.Size != size || list.Size != size {
				t.Errorf("%s has %d bytes of %d, want %d of as many", i.Reference, i.Size, list.Size, size)
			}
			if want := []ImagePlatform{{"linux/amd64", true}, {"linux/arm64", false}}; !slices.Equal(i.Platforms, want) {
				t.Errorf("%s is there for %v, want %v", i.Reference, i.Platforms, want)
			}
			if used := i.Used.Sub(begun); used < time.Hour || used > 2*time.Hour {
				t.Errorf("%s was used %v after it was fetched, want about an hour", i.Reference, used)
			}
		}
	})
}

func distinctDigests(one, two digest.Digest, more ...digest.Digest) map[digest.Digest]bool {
	all := map[digest.Digest]bool{one: true, two: true}
	for _, d := range more {
		all[d] = true
	}
	return all
}

// children gives what a manifest of the registry names.
func (r *registry) children(t *testing.T, d v1.Descriptor) (list []digest.Digest) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, repo := range r.manifests {
		if m := repo[d.Digest]; m != nil {
			p, err := oci.ParseManifest(m.Bytes, m.MediaType)
			if err != nil {
				t.Fatal(err)
			}
			for _, child := range p.Children {
				list = append(list, child.Digest)
			}
			return list
		}
	}
	t.Fatalf("the registry has no %s", d.Digest)
	return nil
}

func TestVerifyingFindsWhatIsNotTheDigests(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	image := hub.addImage("app", content(1, 5000), content(2, 5000))
	hub.tag("app", "1", image)
	bad := digest.FromBytes(content(2, 5000))
	hub.blobs["app"][bad] = content(3, 5000)
	one := tagged("app", "1")
	tree, err := c.Tree(t.Context(), one, TreeOptions{Ask: true})
	if err != nil {
		t.Fatal(err)
	}
	for n := range tree.Nodes() {
		err := c.VerifyNode(t.Context(), one, n)
		if (err == nil) == (n.Digest == bad) {
			t.Errorf("%s %s: %v", n.Kind, n.Digest, err)
		}
	}
	// More than there should be is not read for ever, and is not right either.
	hub.blobs["app"][bad] = content(2, 50_000)
	if err := c.VerifyNode(t.Context(), one, tree.Root.Children[2]); err == nil {
		t.Error("what is longer is taken for right")
	}
}
