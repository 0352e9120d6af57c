package cache

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// Image is what is here of an image: of what a tag stands for, or of an index or
// manifest that no tag stands for.
type Image struct {
	// Reference is "docker.io/library/nginx:1.27", or with a digest where there is
	// no tag.
	Reference string        `json:"reference"`
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	// Platforms are those that it is there for, in the order of its index.
	Platforms []ImagePlatform `json:"platforms"`
	// Size is what is here of it on disk in bytes, each content counted once.
	Size int64 `json:"size"`
	// Fetched is when the index or manifest was stored, and Used when that or a
	// manifest of the index was last asked for.
	Fetched time.Time `json:"fetched"`
	Used    time.Time `json:"used"`
	// Uses is how often the index or manifest was asked for since it was fetched, the
	// requests of one pull counted as one.
	Uses uint32 `json:"uses"`
	// Pinned says that it is not evicted.
	Pinned bool `json:"pinned"`

	target rewrite.Target // as Reference
}

// ImagePlatform is a platform that an image is there for.
type ImagePlatform struct {
	// Name is "linux/arm/v7"; empty where the image says none.
	Name string `json:"name,omitempty"`
	// Whole says that its manifest, config and layers are here.
	Whole bool `json:"whole"`
}

// Images is a list of images.
type Images struct {
	Images []Image `json:"images"`
	// Size is what is here of all of them on disk in bytes, each content counted once.
	Size int64 `json:"size"`
}

// ImagesFilter says which images are listed.
type ImagesFilter struct {
	// Pattern is one over the whole reference, the repository or the upstream; * stands
	// for any characters, ? for one. Those of docker.io may be written as people do,
	// "nginx:1.*". Empty is all.
	Pattern string
	// Pinned lists those alone that are pinned, and those of them, too, of which
	// nothing is here any more.
	Pinned bool
}

// Images lists the images of which the index or manifest is here, by name. An error is
// ctx's or of the index. No upstream is asked, and it counts as no use of anything.
func (c *Cache) Images(ctx context.Context, f ImagesFilter) (*Images, error) {
	l := &imageLister{ctx: ctx, cache: c, pattern: referencePattern(f.Pattern), pinned: f.Pinned, counted: map[digest.Digest]bool{}, list: Images{Images: []Image{}}}
	names, err := c.index.Repositories()
	if err != nil {
		return nil, fmt.Errorf("list the cached repositories: %w", err)
	}
	for _, name := range names {
		upstream, repo, _ := strings.Cut(name, "/")
		if err := l.repository(upstream, repo); err != nil {
			return nil, fmt.Errorf("list the images of %s: %w", name, err)
		}
	}
	if f.Pinned {
		if err := l.lostPins(); err != nil {
			return nil, fmt.Errorf("list what is pinned: %w", err)
		}
	}
	return &l.list, nil
}

// referencePattern compiles a pattern of ImagesFilter; nil for all.
func referencePattern(text string) *regexp.Regexp {
	if text = strings.TrimSuffix(text, "/"); text == "" || text == "*" {
		return nil
	}
	return compilePattern(text)
}

// matchesReference tells whether a pattern takes a reference, or its repository.
func matchesReference(pattern *regexp.Regexp, t rewrite.Target) bool {
	if pattern == nil {
		return true
	}
	repository := rewrite.Target{Upstream: t.Upstream, Repository: t.Repository}
	for _, name := range []string{t.String(), repository.String()} {
		if pattern.MatchString(name) {
			return true
		}
		short, hub := strings.CutPrefix(name, "docker.io/")
		shorter, _ := strings.CutPrefix(short, "library/")
		if hub && (pattern.MatchString(short) || pattern.MatchString(shorter) || pattern.MatchString("docker.io/"+shorter)) {
			return true
		}
	}
	return pattern.MatchString(t.Upstream)
}

// imageLister makes one list.
type imageLister struct {
	ctx     context.Context
	cache   *Cache
	pattern *regexp.Regexp
	pinned  bool
	counted map[digest.Digest]bool
	list    Images
}

// repository adds the images of a repository: those of tags, and then those that are
// neither a tag's nor a part of another, nor refer to one.
func (l *imageLister) repository(upstream, repo string) error {
	c := l.cache
	reached := map[digest.Digest]bool{}
	var failure error
	err := c.index.Records(upstream, repo, func(_, _, tag string, _ index.Tag) bool {
		failure = l.add(rewrite.Target{Upstream: upstream, Repository: repo, Tag: tag}, reached)
		return failure == nil
	})
	if err := cmp.Or(failure, err); err != nil {
		return err
	}
	var loose []digest.Digest
	err = c.index.Links(upstream, repo, func(_, _ string, d digest.Digest, link index.Link) bool {
		if link.Manifest && !reached[d] && c.holds(d) {
			loose = append(loose, d)
		}
		return l.ctx.Err() == nil
	})
	if err != nil {
		return err
	}
	below := map[digest.Digest]bool{}
	for _, d := range loose {
		m, ok := c.peekManifest(d)
		if !ok {
			continue
		}
		p, err := rewrite.Parse(m.Bytes, m.MediaType)
		if err != nil {
			continue
		}
		for _, child := range p.Children {
			below[child.Digest] = true
		}
		if p.Subject != nil {
			below[d] = true
		}
	}
	for _, d := range loose {
		if below[d] {
			continue
		}
		if err := l.add(rewrite.Target{Upstream: upstream, Repository: repo, Digest: d}, reached); err != nil {
			return err
		}
	}
	return nil
}

// add adds the image of t where the pattern takes it and its root is here, and notes
// what it consists of.
func (l *imageLister) add(t rewrite.Target, reached map[digest.Digest]bool) error {
	if err := context.Cause(l.ctx); err != nil {
		return err
	}
	tree, err := l.cache.keptTree(l.ctx, t, TreeOptions{Referrers: true})
	if errors.Is(err, errTreeSize) {
		tree, err = l.cache.keptTree(l.ctx, t, TreeOptions{RootOnly: true})
	}
	var why *oci.Error
	switch {
	case errors.As(err, &why):
		return nil // it is not here
	case err != nil:
		return err
	}
	for n := range tree.Nodes() {
		reached[n.Digest] = true
	}
	pinned := l.cache.isPinned(t, tree.Root.Digest)
	if tree.Root.Stored && matchesReference(l.pattern, t) && (pinned || !l.pinned) {
		i := l.image(tree)
		i.Pinned = pinned
		l.list.Images = append(l.list.Images, i)
	}
	return nil
}

// lostPins adds what is pinned and not listed: parts of images, and that of which nothing
// is here.
func (l *imageLister) lostPins() error {
	listed := map[string]bool{}
	for _, i := range l.list.Images {
		listed[i.Reference] = true
		// A tag may be listed for what its digest is pinned as.
		if t, _, ok := strings.Cut(i.Reference, "@"); !ok {
			listed[t[:strings.LastIndexByte(t, ':')]+"@"+string(i.Digest)] = true
		}
	}
	return l.cache.index.Pins("", "", func(upstream, repo, ref string, p index.Pin) bool {
		t := pinTarget(upstream, repo, ref)
		if listed[t.String()] || !matchesReference(l.pattern, t) {
			return true
		}
		i := Image{Reference: t.String(), Digest: p.Digest, Platforms: []ImagePlatform{}}
		if tree, err := l.cache.keptTree(l.ctx, t, TreeOptions{Referrers: true}); err == nil && tree.Root.Stored {
			i = l.image(tree)
		}
		i.Pinned = true
		l.list.Images = append(l.list.Images, i)
		return l.ctx.Err() == nil
	})
}

// image makes an Image of what is here of tree, its referrers aside.
func (l *imageLister) image(tree *Tree) Image {
	root := tree.Root
	i := Image{target: tree.Target, Reference: tree.Target.String(), Digest: root.Digest, MediaType: root.MediaType, Platforms: []ImagePlatform{}}
	own := map[digest.Digest]bool{}
	root.image(own, func(n *Node) {
		if !n.Stored {
			return
		}
		i.Size += n.Size
		if !l.counted[n.Digest] {
			l.counted[n.Digest] = true
			l.list.Size += n.Size
		}
		if n.Kind == KindConfig || n.Kind == KindLayer {
			return
		}
		b, ok := l.cache.index.Blob(n.Digest)
		if ok && b.Used.After(i.Used) {
			i.Used = b.Used.UTC()
		}
		if ok && n == root {
			i.Uses = b.Uses
		}
	})
	if stamp, err := l.cache.store.Stamp(root.Digest); err == nil {
		i.Fetched = time.Unix(0, stamp.Modified).UTC()
	}
	root.platforms(func(n *Node) {
		p := ImagePlatform{Name: rewrite.PlatformName(n.Platform), Whole: n.Whole()}
		if n == root {
			p.Name = l.cache.configPlatform(l.ctx, n)
		}
		i.Platforms = append(i.Platforms, p)
	})
	return i
}

// image calls fn for n and what it consists of, each digest once.
func (n *Node) image(seen map[digest.Digest]bool, fn func(*Node)) {
	if seen[n.Digest] {
		return
	}
	seen[n.Digest] = true
	fn(n)
	for _, child := range n.Children {
		child.image(seen, fn)
	}
}

// platforms calls fn for the manifests of an index that are for a platform, or for a
// manifest itself.
func (n *Node) platforms(fn func(*Node)) {
	if n.Kind != KindIndex {
		fn(n)
		return
	}
	for _, child := range n.Children {
		if !rewrite.IsAttestation(child.Descriptor) {
			child.platforms(fn)
		}
	}
}

// Whole tells whether all that n consists of is here, but for what registries need not
// have.
func (n *Node) Whole() bool {
	if n.Foreign {
		return true
	}
	isDocument := n.Kind == KindIndex || n.Kind == KindManifest
	return n.Stored && (!isDocument || n.Parsed != nil) && !slices.ContainsFunc(n.Children, func(child *Node) bool { return !child.Whole() })
}

// configPlatform gives the platform that a manifest's config says; empty where that is
// not here or says none.
func (c *Cache) configPlatform(ctx context.Context, n *Node) string {
	for _, child := range n.Children {
		if child.Kind != KindConfig || !child.Stored || child.Size > maxConfig {
			continue
		}
		var p v1.Platform
		if b, ok := c.peekBlob(ctx, child.Digest); ok && json.Unmarshal(b, &p) == nil && p.OS != "" {
			return rewrite.PlatformName(&p)
		}
	}
	return ""
}
