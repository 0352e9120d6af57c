package cache

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// addIndex gives repo an index of two platforms, an attestation of the first, and a
// signature of the index by the referrers API.
func (r *registry) addIndex(repo, tag string) (idx, amd64, arm64, attestation, signature v1.Descriptor) {
	amd64 = r.addImage(repo, content(1, 3000), []byte(tag))
	arm64 = r.addImage(repo, content(2, 5000), []byte(tag))
	attestation = r.addImage(repo, []byte("attestation of "+tag))
	attested := withPlatform(attestation, "unknown", "unknown", "")
	attested.Annotations = map[string]string{attestedDigest: amd64.Digest.String()}
	idx = r.addDocument(repo, v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{withPlatform(amd64, "linux", "amd64", ""), withPlatform(arm64, "linux", "arm64", ""), attested},
	})
	signature = r.addImage(repo, []byte("signature of "+tag))
	r.mu.Lock()
	r.referrers[idx.Digest] = []v1.Descriptor{signature}
	r.mu.Unlock()
	r.tag(repo, tag, idx)
	return idx, amd64, arm64, attestation, signature
}

// pullTree pulls a manifest with its config and layers.
func pullTree(t *testing.T, c *Cache, hub *registry, repo string, d v1.Descriptor) {
	t.Helper()
	m, _, err := c.Manifest(t.Context(), digested(repo, d.Digest), rewrite.Accept{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := oci.ParseManifest(m.Bytes, m.MediaType)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range p.Children {
		if _, _, err := readBlob(t, c, digested(repo, b.Digest)); err != nil {
			t.Fatal(err)
		}
	}
}

// shape writes a tree in one line: the kind of each node, "+" where it is stored, and
// what is below it.
func shape(n *Node) string {
	s := string(n.Kind)
	if n.Stored {
		s += "+"
	}
	if n.Left {
		s += "-"
	}
	for _, list := range [][]*Node{n.Children, n.Referrers} {
		if len(list) == 0 {
			continue
		}
		var below []string
		for _, c := range list {
			below = append(below, shape(c))
		}
		s += "(" + strings.Join(below, " ") + ")"
	}
	return s
}

func TestATreeSaysWhatIsHere(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
	idx, amd64, _, _, signature := hub.addIndex("app", "1")
	cosign := hub.addImage("app", []byte("by cosign"))
	hub.tag("app", "sha256-"+idx.Digest.Encoded()+".sig", cosign)
	wantTree := func(target oci.Target, o TreeOptions, want string) *Tree {
		t.Helper()
		tree, err := c.Tree(t.Context(), target, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := shape(tree.Root); got != want {
			t.Errorf("%v:\n got %s\nwant %s", target, got, want)
		}
		return tree
	}
	one := tagged("app", "1")
	if _, err := c.Tree(t.Context(), one, TreeOptions{}); !oci.IsAbsent(err) || !strings.Contains(err.Error(), "docker.io/app:1 is not in the cache") {
		t.Fatalf("what is not here: %v", err)
	}
	wantManifest(t, c, one, idx, Miss)
	wantTree(one, TreeOptions{}, "index+(manifest manifest manifest)")
	pullTree(t, c, hub, "app", amd64)
	asked := hub.count()
	tree := wantTree(one, TreeOptions{Configs: true}, "index+(manifest+(config+ layer+ layer+) manifest manifest)")
	if tree.Tag == nil || tree.Tag.Digest != idx.Digest || tree.Root.Digest != idx.Digest || digest.FromBytes(tree.Root.Bytes) != idx.Digest {
		t.Errorf("the root is %+v of %+v", tree.Root, tree.Tag)
	}
	config := tree.Root.Children[0].Children[0]
	if digest.FromBytes(config.Bytes) != config.Digest {
		t.Errorf("the config is %q", config.Bytes)
	}
	if n := tree.Root.Children[1]; n.Bytes != nil || !oci.IsAbsent(n.Missing) {
		t.Errorf("what is missing says %v", n.Missing)
	}
	wantTree(digested("app", amd64.Digest), TreeOptions{}, "manifest+(config+ layer+ layer+)")
	wantTree(one, TreeOptions{Platforms: []string{"linux/arm64"}}, "index+(manifest+- manifest manifest-)")
	wantTree(one, TreeOptions{Platforms: []string{"linux/amd64"}}, "index+(manifest+(config+ layer+ layer+) manifest- manifest)")
	if got := hub.count(); !maps.Equal(got, asked) {
		t.Errorf("the upstream was asked %v, before %v", got, asked)
	}

	// Referrers are known once a client has asked for them.
	wantTree(one, TreeOptions{Referrers: true}, "index+(manifest+(config+ layer+ layer+) manifest manifest)")
	if _, _, err := c.Referrers(t.Context(), digested("app", idx.Digest)); err != nil {
		t.Fatal(err)
	}
	pullTree(t, c, hub, "app", signature)
	if _, _, err := c.Manifest(t.Context(), tagged("app", "sha256-"+idx.Digest.Encoded()+".sig"), rewrite.Accept{}); err != nil {
		t.Fatal(err)
	}
	tree = wantTree(one, TreeOptions{Referrers: true}, "index+(manifest+(config+ layer+ layer+) manifest manifest)(manifest+(config+ layer+) manifest+(config+ layer))")
	if n := tree.Root.Referrers[1]; n.Tag != "sha256-"+idx.Digest.Encoded()+".sig" || n.Digest != cosign.Digest {
		t.Errorf("cosign's signature is %+v", n)
	}
	seen := map[digest.Digest]bool{}
	for n := range tree.Nodes() {
		if seen[n.Digest] {
			t.Errorf("%s comes twice", n.Digest)
		}
		seen[n.Digest] = true
	}
	if len(seen) != 11 { // the images share a config
		t.Errorf("%d digests, want 11: %v", len(seen), seen)
	}
	// Another repository's content is not this one's.
	if _, err := c.Tree(t.Context(), digested("other", idx.Digest), TreeOptions{}); !oci.IsAbsent(err) {
		t.Errorf("by another repository: %v", err)
	}
}

func TestATreeOfTheUpstreamIsNotKept(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
	hub.addIndex("app", "1")
	wantAsked := func(want map[string]int) {
		t.Helper()
		if got := hub.count(); !maps.Equal(got, want) {
			t.Errorf("the upstream was asked %v, want %v", got, want)
		}
	}
	tree, err := c.Tree(t.Context(), tagged("app", "1"), TreeOptions{Ask: true, AskPlatforms: []string{"linux/amd64"}, Configs: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := shape(tree.Root), "index(manifest(config layer layer) manifest manifest)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if b := tree.Root.Children[0].Children[0].Bytes; b == nil {
		t.Error("the config was not fetched")
	}
	wantAsked(map[string]int{"manifest": 2, "blob": 1})
	if tree, err = c.Tree(t.Context(), tagged("app", "1"), TreeOptions{Ask: true, Referrers: true, Platforms: []string{"linux/arm64"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := shape(tree.Root), "index(manifest- manifest(config layer layer) manifest-)(manifest)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	wantAsked(map[string]int{"manifest": 4, "blob": 1, "referrers": 1})
	if blobs, _ := c.index.Totals(); blobs != 0 {
		t.Errorf("%d blobs were kept", blobs)
	}
	if names, err := c.Repositories(t.Context(), "", "", 10); err != nil || len(names) > 0 {
		t.Errorf("%v was kept, %v", names, err)
	}
	hub.set(errDown, 0)
	if _, err := c.Tree(t.Context(), tagged("app", "1"), TreeOptions{Ask: true}); !errors.Is(err, errDown) {
		t.Errorf("while the upstream is down: %v", err)
	}
}

func TestATreeOfflineSaysSo(t *testing.T) {
	hub := newRegistry()
	hub.addIndex("app", "1")
	c := open(t, Options{Settings: Settings{Offline: true}}, map[string]*registry{"docker.io": hub})
	_, err := c.Tree(t.Context(), tagged("app", "1"), TreeOptions{Ask: true})
	if err == nil || !strings.Contains(err.Error(), "the proxy is offline") {
		t.Errorf("offline: %v", err)
	}
}

func TestATreeEndsWhateverAnUpstreamSays(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	// Two images that are said to refer to each other, and an index of indexes.
	one, two := hub.addImage("app", []byte("one")), hub.addImage("app", []byte("two"))
	hub.referrers[one.Digest], hub.referrers[two.Digest] = []v1.Descriptor{two}, []v1.Descriptor{one, two}
	for _, d := range []v1.Descriptor{one, two} {
		pullTree(t, c, hub, "app", d)
		if _, _, err := c.Referrers(t.Context(), digested("app", d.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := c.Tree(t.Context(), digested("app", one.Digest), TreeOptions{Referrers: true})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for range tree.Nodes() {
		n++
	}
	if n != 5 {
		t.Errorf("%d nodes, want 5", n)
	}
	// Who goes down a tree comes to an end.
	if got, want := shape(tree.Root), "manifest+(config+ layer+)(manifest+(config+ layer+)(manifest+ manifest+))"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	nested := one
	for i := range 2 * maxTreeDepth {
		nested = hub.addDocument("app", v1.MediaTypeImageIndex, v1.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
			Manifests: []v1.Descriptor{nested}, Annotations: map[string]string{"n": fmt.Sprint(i)},
		})
	}
	tree, err = c.Tree(t.Context(), digested("app", nested.Digest), TreeOptions{Ask: true})
	if err != nil {
		t.Fatal(err)
	}
	for n := tree.Root; ; n = n.Children[0] {
		if len(n.Children) == 0 {
			if n.Missing == nil || !strings.Contains(n.Missing.Error(), "nested") {
				t.Errorf("the last says %v", n.Missing)
			}
			break
		}
	}
}

func TestATreeIsNoLargerUnfoldedThanItMayBe(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	// Each index of a level names all of the level below: few documents, and of paths
	// through them more than anybody can walk.
	level := []v1.Descriptor{hub.addImage("app", []byte("layer"))}
	for depth := range maxTreeDepth {
		var above []v1.Descriptor
		for i := range 12 {
			above = append(above, hub.addDocument("app", v1.MediaTypeImageIndex, v1.Index{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
				Manifests: level, Annotations: map[string]string{"n": fmt.Sprint(depth, i)},
			}))
		}
		level = above
	}
	if _, err := c.Tree(t.Context(), digested("app", level[0].Digest), TreeOptions{Ask: true}); !errors.Is(err, errTreeSize) {
		t.Errorf("the tree gives %v, want %v", err, errTreeSize)
	}
	// Of few paths each may come to much.
	heavy := []v1.Descriptor{hub.addDocument("app", v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Annotations: map[string]string{"n": strings.Repeat("n", 1<<20)},
	})}
	for depth := range 3 {
		var above []v1.Descriptor
		for i := range 9 {
			above = append(above, hub.addDocument("app", v1.MediaTypeImageIndex, v1.Index{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
				Manifests: heavy, Annotations: map[string]string{"heavy": fmt.Sprint(depth, i)},
			}))
		}
		heavy = above
	}
	if _, err := c.Tree(t.Context(), digested("app", heavy[0].Digest), TreeOptions{Ask: true}); !errors.Is(err, errTreeSize) {
		t.Errorf("the heavy tree gives %v, want %v", err, errTreeSize)
	}
	// The list of what is here has it all the same, and the others.
	var pull func(d v1.Descriptor)
	pulled := map[digest.Digest]bool{}
	pull = func(d v1.Descriptor) {
		if pulled[d.Digest] {
			return
		}
		pulled[d.Digest] = true
		m, _, err := c.Manifest(t.Context(), digested("app", d.Digest), rewrite.Accept{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := oci.ParseManifest(m.Bytes, m.MediaType)
		if err != nil {
			t.Fatal(err)
		}
		for _, child := range p.Children {
			if p.Kind == oci.KindIndex {
				pull(child)
			}
		}
	}
	pull(level[0])
	pullTree(t, c, hub, "fine", hub.addImage("fine", []byte("layer of another")))
	list, err := c.Images(t.Context(), ImagesFilter{})
	if err != nil || len(list.Images) != 2 || list.Images[0].Digest != level[0].Digest {
		t.Errorf("the list is %+v, %v", list, err)
	}
}
