package cache

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
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

	target oci.Target // as Reference
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

// Images lists the images of which the index or manifest is here, as EachImage does.
func (c *Cache) Images(ctx context.Context, f ImagesFilter) (*Images, error) {
	list := Images{Images: []Image{}}
	var err error
	list.Size, err = c.EachImage(ctx, f, func(i *Image) error {
		list.Images = append(list.Images, *i)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &list, nil
}

// EachImage calls fn for each image of which the index or manifest is here, by the names of
// their repositories, and gives what is here of all of them on disk in bytes, each content
// counted once. fn is called by the caller's goroutine. Only what f takes is looked at, and a
// few images are held at a time. Of those who look at much, one does so at a time: the others wait for it, but not
// long (see errWalking). An error is ctx's, fn's, of the index, or says that another walk
// goes on. No upstream is asked, and it counts as no use of anything.
func (c *Cache) EachImage(ctx context.Context, f ImagesFilter, fn func(*Image) error) (size int64, err error) {
	l := &imageLister{ctx: ctx, cache: c, pattern: newImagePattern(f.Pattern), tell: fn, counted: newContentSum()}
	l.walk = c.newWalk(ctx)
	defer l.walk.end()
	if f.Pinned {
		err = l.pins()
	} else {
		err = l.repositories()
	}
	if err != nil {
		return 0, fmt.Errorf("list the images: %w", err)
	}
	return l.counted.bytes, nil
}

// imageLister makes one list. What is behind its pointers may be used by copies of it in
// several goroutines.
type imageLister struct {
	ctx     context.Context
	cache   *Cache
	pattern *imagePattern
	tell    func(*Image) error
	walk    *bigWalk
	counted *contentSum
	// pinned are the references, tags or digests, that are pinned of the repository that is
	// looked at.
	pinned map[string]bool
}

// repositories tells of the images that the pattern takes. While it tells of those of one
// repository, those of the next are looked at.
func (l *imageLister) repositories() error {
	names, err := l.pattern.repositories(l.cache.index)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(l.ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel(nil)
	// ahead is what is looked at of a repository. err is set before images is closed.
	type ahead struct {
		images chan Image
		err    error
	}
	next := make(chan *ahead, 1) // this and the one that is told of: two are looked at
	running.Go(func() {
		defer close(next)
		for _, name := range names {
			a := &ahead{images: make(chan Image, imagesAhead)}
			select {
			case next <- a:
			case <-ctx.Done():
				return
			}
			running.Go(func() {
				defer close(a.images)
				upstream, repo, _ := strings.Cut(name, "/")
				of := *l
				of.ctx = ctx
				of.tell = func(i *Image) error {
					select {
					case a.images <- *i:
						return nil
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				}
				a.err = of.repository(repository{upstream, repo})
			})
		}
	})
	for a := range next {
		for i := range a.images {
			if err := context.Cause(l.ctx); err != nil {
				return err
			}
			if err := l.tell(&i); err != nil {
				return err
			}
		}
		if a.err != nil {
			return a.err
		}
	}
	return context.Cause(l.ctx)
}

// imagesAhead is how many images of a repository may wait to be told of.
const imagesAhead = 32

// repository tells of the images of a repository: those of tags, and then those that are
// neither a tag's nor a part of another, nor refer to one.
func (l *imageLister) repository(r repository) error {
	c := l.cache
	whole := l.pattern.takes(r.at("", ""))
	// loose are the manifests that no tag has led to; nil where none of them is listed.
	loose, some := newDigestSet(), false
	if whole || !l.pattern.tagsOnly {
		err := c.index.Manifests(r.upstream, r.name, func(d digest.Digest) bool {
			loose.add(d)
			some = some || whole || l.pattern.takes(r.at("", d))
			return l.ctx.Err() == nil
		})
		if err != nil {
			return err
		}
	}
	if !some {
		loose = nil
	}
	if err := l.readPins(r); err != nil {
		return err
	}
	var failure error
	err := c.index.Records(r.upstream, r.name, func(_, _, tag string, rec index.Tag) bool {
		t := r.at(tag, "")
		if listed := whole || l.pattern.takes(t); listed || loose != nil {
			failure = l.add(t, &rec, listed, loose)
		}
		return failure == nil
	})
	if err := cmp.Or(failure, err); err != nil {
		return err
	}
	return l.loose(r, loose)
}

// readPins reads what is pinned of a repository.
func (l *imageLister) readPins(r repository) error {
	l.pinned = map[string]bool{}
	return l.cache.index.Pins(r.upstream, r.name, func(_, _, ref string, _ index.Pin) bool {
		l.pinned[ref] = true
		return true
	})
}

// loose tells of the images among some manifests of a repository that no tag leads to:
// those that no index among them names, and that refer to nothing.
func (l *imageLister) loose(r repository, loose *digestSet) error {
	if loose == nil {
		return nil
	}
	c := l.cache
	list := slices.DeleteFunc(loose.list(), func(d digest.Digest) bool { return !c.holds(d) })
	slices.Sort(list)
	below := newDigestSet()
	for _, d := range list {
		if err := l.walk.step(); err != nil {
			return err
		}
		m, ok := c.peekManifest(d)
		if !ok {
			continue
		}
		p, err := oci.ParseManifest(m.Bytes, m.MediaType)
		if err != nil {
			continue
		}
		for _, child := range p.Children {
			if loose.has(child.Digest) {
				below.add(child.Digest)
			}
		}
		if p.Subject != nil {
			below.add(d)
		}
	}
	for _, d := range list {
		t := r.at("", d)
		if below.has(d) || !loose.has(d) || !l.pattern.takes(t) {
			continue
		}
		if err := l.add(t, nil, true, loose); err != nil {
			return err
		}
	}
	return nil
}

// add takes what the image of t consists of out of loose, and tells of it where it is to be
// listed and its root is here. rec is the record of t's tag, if it has one.
func (l *imageLister) add(t oci.Target, rec *index.Tag, listed bool, loose *digestSet) error {
	if err := l.walk.step(); err != nil {
		return err
	}
	tree, err := l.tree(t, rec, TreeOptions{Referrers: true, Documents: !listed})
	if tree == nil {
		return err
	}
	if loose != nil {
		for n := range tree.Nodes() {
			loose.drop(n.Digest)
		}
	}
	if !listed || !tree.Root.Stored {
		return nil
	}
	i := l.image(tree)
	i.Pinned = l.pinned[t.Tag] || l.pinned[string(tree.Root.Digest)]
	return l.tell(&i)
}

// tree gives the tree of t, or no more than its root where it is too large; nil where t is
// not here. An error ends the list.
func (l *imageLister) tree(t oci.Target, rec *index.Tag, o TreeOptions) (*Tree, error) {
	tree, err := l.cache.keptTreeOf(l.ctx, t, rec, o)
	if errors.Is(err, errTreeSize) {
		tree, err = l.cache.keptTreeOf(l.ctx, t, rec, TreeOptions{RootOnly: true})
	}
	if why := (*oci.Error)(nil); errors.As(err, &why) {
		return nil, nil // it is not here
	}
	return tree, err
}

// pins tells of what is pinned and taken by the pattern, also where nothing of it is here:
// of each pinned reference, and of each tag that stands for what is pinned by its digest.
func (l *imageLister) pins() error {
	var names []repository // sorted, as pins are
	err := l.cache.index.Pins("", "", func(upstream, repo, _ string, _ index.Pin) bool {
		if r := (repository{upstream, repo}); len(names) == 0 || names[len(names)-1] != r {
			names = append(names, r)
		}
		return true
	})
	if err != nil {
		return err
	}
	for _, r := range names {
		if err := l.pinsOf(r); err != nil {
			return err
		}
	}
	return nil
}

// pinsOf is pins for one repository.
func (l *imageLister) pinsOf(r repository) error {
	c := l.cache
	var tags []string
	digests := map[digest.Digest]bool{}
	pins := map[string]index.Pin{}
	err := c.index.Pins(r.upstream, r.name, func(_, _, ref string, p index.Pin) bool {
		if t := pinTarget(r.upstream, r.name, ref); t.Tag != "" {
			tags = append(tags, t.Tag)
		} else {
			digests[t.Digest] = true
		}
		pins[ref] = p
		return true
	})
	// Tags of what is pinned by its digest have to be looked for among all of the repository.
	if err == nil && len(digests) > 0 {
		err = c.index.Records(r.upstream, r.name, func(_, _, tag string, rec index.Tag) bool {
			if slices.ContainsFunc(formerly(rec), func(d digest.Digest) bool { return digests[d] }) {
				tags = append(tags, tag)
			}
			return l.ctx.Err() == nil
		})
	}
	if err != nil {
		return err
	}
	slices.Sort(tags)
	told := map[digest.Digest]bool{}
	for _, tag := range slices.Compact(tags) {
		d, err := l.addPin(r.at(tag, ""), pins, digests)
		if err != nil {
			return err
		}
		told[d] = true
	}
	for _, d := range slices.Sorted(maps.Keys(digests)) {
		if told[d] {
			continue
		}
		if _, err := l.addPin(r.at("", d), pins, digests); err != nil {
			return err
		}
	}
	return nil
}

// addPin tells of t where it is pinned, or stands for one of digests, and gives the digest
// of what it has told of.
func (l *imageLister) addPin(t oci.Target, pins map[string]index.Pin, digests map[digest.Digest]bool) (digest.Digest, error) {
	if !l.pattern.takes(t) {
		return "", nil
	}
	if err := l.walk.step(); err != nil {
		return "", err
	}
	tree, err := l.tree(t, nil, TreeOptions{Referrers: true})
	if err != nil {
		return "", err
	}
	pin, pinned := pins[t.Reference()]
	i := Image{Reference: t.String(), Digest: pin.Digest, Platforms: []ImagePlatform{}}
	if tree != nil && tree.Root.Stored {
		i = l.image(tree)
		pinned = pinned || digests[i.Digest]
	}
	if !pinned {
		return "", nil
	}
	i.Pinned = true
	return i.Digest, l.tell(&i)
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
		l.counted.add(n.Digest, n.Size)
		if n.Kind == KindConfig || n.Kind == KindLayer {
			return
		}
		b, ok := l.cache.index.Blob(n.Digest)
		if ok && b.Used.After(i.Used) {
			i.Used = b.Used.UTC()
		}
		if ok && n == root {
			i.Uses, i.Fetched = b.Uses, time.Unix(0, b.Stamp.Modified).UTC()
		}
	})
	if i.Fetched.IsZero() {
		if stamp, err := l.cache.store.Stamp(root.Digest); err == nil {
			i.Fetched = time.Unix(0, stamp.Modified).UTC()
		}
	}
	root.platforms(func(n *Node) {
		p := ImagePlatform{Name: oci.PlatformName(n.Platform), Whole: n.Whole()}
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
		if !oci.IsAttestation(child.Descriptor) {
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
			return oci.PlatformName(&p)
		}
	}
	return ""
}
