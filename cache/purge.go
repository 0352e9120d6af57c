package cache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// errCleaning says that another purge or gc runs.
var errCleaning = &oci.Error{Code: oci.CodeUnknown, Status: 409, Message: "a purge or gc runs already: wait for it to end"}

// beginCleaning begins the one purge or gc that runs at a time, once it is known what
// content is of. losses is for keptIndex; leave ends it. The error is errCleaning, or
// awaitIndex's, or that of a directory of content that cannot be listed: what cannot be looked
// at is not gone.
func (c *Cache) beginCleaning(ctx context.Context) (losses uint64, leave func(), err error) {
	select {
	case c.cleaning <- struct{}{}:
	default:
		return 0, nil, errCleaning
	}
	leave = func() { <-c.cleaning }
	if losses, err = c.awaitIndex(ctx); err == nil {
		err = c.store.Listable()
	}
	if err != nil {
		leave()
		return 0, nil, err
	}
	return losses, leave, nil
}

// PurgeOptions say what is purged, and how.
type PurgeOptions struct {
	// Target is an image: a tag, or an index or manifest by its digest, also where tags
	// stand for it or an index names it. Where it is the zero Target, images are purged
	// that Upstream and Before say.
	Target oci.Target
	// Also are more images, if Target is one.
	Also []oci.Target
	// Upstream, where it is set, is the one of which images are purged; it need not be
	// configured any more.
	Upstream string
	// Before, where it is set, purges the images that have not been used since.
	Before time.Time
	// Force purges pinned images as well, with their pins. Without it the pinned images
	// that Before takes stay, and others are an error.
	Force bool
	// Dry changes nothing.
	Dry bool
}

// Purged is what a purge has removed, or with PurgeOptions.Dry would have.
type Purged struct {
	// Images are the references that were purged, sorted; of a whole upstream its
	// repositories.
	Images []string `json:"images"`
	// Pinned are those that were left, for they are pinned.
	Pinned []string `json:"pinned"`
	// Tags, Links and Lists are how many records of them were forgotten.
	Tags  int `json:"tags"`
	Links int `json:"links"`
	Lists int `json:"lists"`
	// Blobs is how many manifests, configs and layers were removed, which nobody else
	// names, and Size what they had on disk in bytes.
	Blobs int   `json:"blobs"`
	Size  int64 `json:"size"`
	// Busy is how many were left because they are being fetched just now.
	Busy int `json:"busy"`
	// Dry says that nothing was changed.
	Dry bool `json:"dry,omitempty"`
}

// Purge removes images: what is known of their tags, that their repositories may serve
// what they consist of, and the content that no other image names. Who reads some of it
// reads to the end; what is fetched or imported meanwhile stays. What is asked for next is
// asked of the upstream. Its error is *oci.Error where there is nothing to purge, or where
// what is to be purged is pinned.
func (c *Cache) Purge(ctx context.Context, o PurgeOptions) (*Purged, error) {
	losses, leave, err := c.beginCleaning(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	p, end := c.newPurge(ctx, o)
	defer end()
	p.losses = losses
	if err := p.choose(); err != nil {
		return nil, err
	}
	content, err := p.decide()
	if err == nil {
		err = p.run(content)
	}
	if err != nil {
		return nil, fmt.Errorf("purge: %w", err)
	}
	slices.Sort(p.done.Images)
	slices.Sort(p.done.Pinned)
	return &p.done, nil
}

func (r repository) at(tag string, d digest.Digest) oci.Target {
	return oci.Target{Upstream: r.upstream, Repository: r.name, Tag: tag, Digest: d}
}

// repoPurge is what is purged of a repository.
type repoPurge struct {
	// tags and digests are the images; forced says of a digest that it goes whoever
	// names it.
	tags    map[string]bool
	digests map[digest.Digest]bool
	forced  bool
	// whole is set where all of the repository goes.
	whole bool
	// going is what the repository shall serve no more.
	going *digestSet
}

type purge struct {
	PurgeOptions
	ctx   context.Context
	cache *Cache
	repos map[repository]*repoPurge
	// watch sees what is fetched or imported meanwhile: that stays.
	watch *index.Watch
	// losses is what awaitIndex gave.
	losses uint64
	done   Purged
}

// newPurge makes a purge; the caller calls end after it.
func (c *Cache) newPurge(ctx context.Context, o PurgeOptions) (p *purge, end func()) {
	p = &purge{ctx: ctx, cache: c, PurgeOptions: o, repos: map[repository]*repoPurge{}}
	p.done = Purged{Images: []string{}, Pinned: []string{}, Dry: o.Dry}
	p.watch, end = c.index.Watch()
	return p, end
}

func (p *purge) repo(r repository) *repoPurge {
	if p.repos[r] == nil {
		p.repos[r] = &repoPurge{tags: map[string]bool{}, digests: map[digest.Digest]bool{}, going: newDigestSet()}
	}
	return p.repos[r]
}

// choose finds the images that are to go.
func (p *purge) choose() error {
	switch {
	case p.Target.Upstream != "":
		for _, t := range append([]oci.Target{p.Target}, p.Also...) {
			if err := p.chooseTarget(t); err != nil {
				return err
			}
		}
		return nil
	case !p.Before.IsZero():
		return p.chooseUnused()
	default:
		return p.chooseUpstream()
	}
}

func (p *purge) chooseTarget(t oci.Target) error {
	c := p.cache
	r := p.repo(repository{t.Upstream, t.Repository})
	if t.Tag != "" {
		rec, ok := c.records.PeekTag(t)
		if !ok {
			return oci.Errorf(oci.CodeManifestUnknown, "%s is not in the cache", t)
		}
		if err := p.mayGo(t, rec.Digest); err != nil {
			return err
		}
		r.tags[t.Tag] = true
		p.done.Images = append(p.done.Images, t.String())
		return nil
	}
	if _, ok := c.records.PeekLink(t); !ok {
		return oci.Errorf(oci.CodeManifestUnknown, "%s is not in the cache", t)
	}
	if err := p.mayGo(t, t.Digest); err != nil {
		return err
	}
	if err := p.mayGoByItself(t); err != nil {
		return err
	}
	r.digests[t.Digest], r.forced = true, true
	p.done.Images = append(p.done.Images, t.String())
	var failure error
	err := c.index.Records(t.Upstream, t.Repository, func(_, _, tag string, rec index.Tag) bool {
		if rec.Digest != t.Digest {
			return true
		}
		named := oci.Target{Upstream: t.Upstream, Repository: t.Repository, Tag: tag}
		failure = p.mayGo(named, rec.Digest)
		r.tags[tag] = true
		p.done.Images = append(p.done.Images, named.String())
		return failure == nil
	})
	return errors.Join(failure, err)
}

// mayGo gives an error where t, which stands for d, is pinned.
func (p *purge) mayGo(t oci.Target, d digest.Digest) error {
	if p.Force || !p.cache.isPinned(t, d) {
		return nil
	}
	return &oci.Error{Code: oci.CodeUnknown, Status: 409,
		Message: fmt.Sprintf("%s is pinned: unpin it with `entrepot unpin %s`, or purge it with --force", t, t)}
}

// mayGoByItself gives an error where t's digest is a part of what is pinned.
func (p *purge) mayGoByItself(t oci.Target) (why error) {
	if p.Force {
		return nil
	}
	err := p.cache.index.Pins(t.Upstream, t.Repository, func(_, _, ref string, pin index.Pin) bool {
		whole := pinTarget(t.Upstream, t.Repository, ref)
		if content, _ := p.cache.pinnedContent(p.ctx, whole, pin); content[t.Digest] {
			why = &oci.Error{Code: oci.CodeUnknown, Status: 409,
				Message: fmt.Sprintf("%s is a part of %s, which is pinned: unpin that, or purge with --force", t, whole)}
		}
		return why == nil && p.ctx.Err() == nil
	})
	return errors.Join(why, err, context.Cause(p.ctx))
}

// chooseUnused takes the images that have not been used since Before.
func (p *purge) chooseUnused() error {
	_, err := p.cache.EachImage(p.ctx, ImagesFilter{}, func(i *Image) error {
		if p.Upstream != "" && i.target.Upstream != p.Upstream || i.Used.IsZero() || !i.Used.Before(p.Before) {
			return nil
		}
		if i.Pinned && !p.Force {
			p.done.Pinned = append(p.done.Pinned, i.Reference)
			return nil
		}
		r := p.repo(repository{i.target.Upstream, i.target.Repository})
		if i.target.Tag != "" {
			r.tags[i.target.Tag] = true
		} else {
			r.digests[i.target.Digest] = true
		}
		p.done.Images = append(p.done.Images, i.Reference)
		return nil
	})
	return err
}

// chooseUpstream takes all of Upstream.
func (p *purge) chooseUpstream() error {
	c := p.cache
	if !p.Force {
		pins, first := 0, ""
		if err := c.index.Pins(p.Upstream, "", func(upstream, repo, ref string, _ index.Pin) bool {
			if pins++; pins == 1 {
				first = pinTarget(upstream, repo, ref).String()
			}
			return true
		}); err != nil {
			return err
		}
		if pins > 0 {
			return &oci.Error{Code: oci.CodeUnknown, Status: 409,
				Message: fmt.Sprintf("of %s %d images are pinned, as %s is: unpin them, or purge them with --force", p.Upstream, pins, first)}
		}
	}
	known, err := c.knownRepositories()
	if err != nil {
		return err
	}
	for _, r := range known {
		if r.upstream == p.Upstream {
			p.repo(r).whole = true
			p.done.Images = append(p.done.Images, r.upstream+"/"+r.name)
		}
	}
	if len(p.repos) == 0 {
		return oci.Errorf(oci.CodeNameUnknown, "nothing of %s is in the cache", p.Upstream)
	}
	return nil
}

// decide finds out what goes with what was chosen, and returns the digests of which
// nothing stays.
func (p *purge) decide() (*digestSet, error) {
	going := newDigestSet()
	for r, images := range p.repos {
		if err := p.plan(r, images); err != nil {
			return nil, err
		}
		for _, d := range images.going.list() {
			going.add(d)
		}
	}
	return going, p.spare(going)
}

// fewLookups is how many links at most are looked for one by one: that takes as long as to
// read some more.
const fewLookups = 200_000

// spare takes out of going what another repository may serve.
func (p *purge) spare(going *digestSet) error {
	spare := func(upstream, repo string, d digest.Digest) bool {
		if images := p.repos[repository{upstream, repo}]; images == nil || !images.going.has(d) {
			going.drop(d)
		}
		return p.ctx.Err() == nil
	}
	repos, err := p.cache.index.Repositories()
	if err == nil && going.len() <= fewLookups/max(1, len(repos)) {
		err = p.cache.index.LinksOf(repos, going.list(), spare)
	} else if err == nil {
		err = p.cache.index.LinkNames(func(upstream, repo, d []byte) bool {
			return !going.hasText(d) || spare(string(upstream), string(repo), digest.Digest(d))
		})
	}
	return errors.Join(context.Cause(p.ctx), err)
}

// run removes what was decided: first what makes it found, then the content, and what
// fetches that broke off have left of it.
func (p *purge) run(going *digestSet) error {
	for r, images := range p.repos {
		if err := p.forget(r, images); err != nil {
			return err
		}
	}
	content := slices.DeleteFunc(going.list(), func(d digest.Digest) bool { return !p.cache.holds(d) })
	if err := p.remove(content); err != nil || p.Dry {
		return err
	}
	return p.removeParts(going)
}

// removeParts removes the partial files of what goes, unless they are being written.
func (p *purge) removeParts(going *digestSet) error {
	c := p.cache
	list, err := c.store.Unfinished()
	if err != nil {
		return err
	}
	running, importing := c.runningFills(), c.heldByImport()
	var done evicted
	c.dropParts(&done, list, func(u store.Unfinished) bool {
		return u.Digest != "" && going.has(u.Digest) && running[u.Digest] == nil && !importing[u.Digest] && !p.watch.Linked(u.Digest)
	})
	return nil
}

// plan finds what r shall serve no more: what its images consist of, and no other image
// of it does.
func (p *purge) plan(r repository, images *repoPurge) error {
	c := p.cache
	if images.whole {
		tags, err := c.tagNames(r)
		if err != nil {
			return err
		}
		for _, tag := range tags {
			images.tags[tag] = true
		}
		return c.index.Links(r.upstream, r.name, func(_, _ string, d digest.Digest, _ index.Link) bool {
			images.going.add(d)
			return p.ctx.Err() == nil
		})
	}
	// signatures are the tags of cosign that go with what they are of.
	signatures := map[string]digest.Digest{}
	take := func(t oci.Target) error {
		tree, err := c.keptTree(p.ctx, t, TreeOptions{Referrers: true, Documents: true})
		if err != nil {
			return context.Cause(p.ctx) // or it is not here
		}
		for n := range tree.Nodes() {
			images.going.add(n.Digest)
			for _, referrer := range n.Referrers {
				if referrer.Tag != "" {
					signatures[referrer.Tag] = n.Digest
				}
			}
		}
		return nil
	}
	for tag := range images.tags {
		if rec, ok := c.index.Tag(r.upstream, r.name, tag); ok {
			for _, d := range formerly(rec) {
				images.going.add(d)
				if err := take(r.at("", d)); err != nil {
					return err
				}
			}
		}
	}
	for d := range images.digests {
		images.going.add(d)
		if err := take(r.at("", d)); err != nil {
			return err
		}
	}
	k := keepers{unpinned: images.names, leave: func(t oci.Target) bool {
		_, signature := signatures[t.Tag]
		return t.Tag != "" && (signature || images.tags[t.Tag]) || t.Tag == "" && images.going.has(t.Digest)
	}}
	if images.forced {
		k.without = images.digests
	}
	reached, err := c.reached(p.ctx, r, k)
	if err != nil {
		return err
	}
	for _, d := range reached.list() {
		images.going.drop(d)
	}
	for tag, subject := range signatures {
		if images.going.has(subject) {
			images.tags[tag] = true
		}
	}
	return nil
}

// names tells whether t is one of the images.
func (r *repoPurge) names(t oci.Target) bool {
	return r.whole || t.Tag != "" && r.tags[t.Tag] || t.Digest != "" && r.digests[t.Digest]
}

// formerly gives what a record of a tag names.
func formerly(rec index.Tag) []digest.Digest {
	list := []digest.Digest{rec.Digest}
	if rec.Previous != "" {
		list = append(list, rec.Previous)
	}
	if rec.Held != nil {
		list = append(list, rec.Held.Digest)
	}
	return list
}

// keepers say what of a repository stays.
type keepers struct {
	// leave says which tags, and which indexes and manifests, are none, and unpinned which
	// pins. Nil is none of them.
	leave, unpinned func(oci.Target) bool
	// without are digests that go, and what is below them with them.
	without map[digest.Digest]bool
}

// reached gives all that the images of a repository consist of: of its tags, its pins,
// and the indexes and manifests that are here.
func (c *Cache) reached(ctx context.Context, r repository, k keepers) (*digestSet, error) {
	none := func(oci.Target) bool { return false }
	if k.leave == nil {
		k.leave = none
	}
	if k.unpinned == nil {
		k.unpinned = none
	}
	reached := newDigestSet()
	var visit func(n *Node)
	visit = func(n *Node) {
		if reached.has(n.Digest) || k.without[n.Digest] {
			return
		}
		reached.add(n.Digest)
		for _, list := range [][]*Node{n.Children, n.Referrers} {
			for _, below := range list {
				visit(below)
			}
		}
	}
	reach := func(d digest.Digest) {
		if k.without[d] || reached.has(d) {
			return
		}
		if tree, err := c.keptTree(ctx, r.at("", d), TreeOptions{Referrers: true, Documents: true}); err == nil {
			visit(tree.Root)
		}
		reached.add(d) // also where it is not here
	}
	err := c.index.Records(r.upstream, r.name, func(_, _, tag string, rec index.Tag) bool {
		if !k.leave(r.at(tag, "")) {
			for _, d := range formerly(rec) {
				reach(d)
			}
		}
		return ctx.Err() == nil
	})
	if err == nil {
		err = c.index.Pins(r.upstream, r.name, func(_, _, ref string, pin index.Pin) bool {
			if !k.unpinned(pinTarget(r.upstream, r.name, ref)) {
				reach(pin.Digest)
			}
			return ctx.Err() == nil
		})
	}
	if err == nil {
		err = c.index.Links(r.upstream, r.name, func(_, _ string, d digest.Digest, l index.Link) bool {
			if l.Manifest && !k.leave(r.at("", d)) && c.holds(d) {
				reach(d)
			}
			return ctx.Err() == nil
		})
	}
	return reached, errors.Join(context.Cause(ctx), err)
}

func (c *Cache) tagNames(r repository) ([]string, error) { return c.index.TagNames(r.upstream, r.name) }

// forget removes what makes the images of r found.
func (p *purge) forget(r repository, images *repoPurge) error {
	c, going := p.cache, images.going.list()
	lists, err := c.index.Lists(r.upstream, r.name)
	if err != nil {
		return err
	}
	lists = slices.DeleteFunc(lists, func(l index.ListName) bool {
		return !images.whole && (l.Kind != index.Referrers || !images.going.has(digest.Digest(l.Of)))
	})
	p.done.Lists += len(lists)
	if p.Dry {
		p.done.Tags += len(images.tags)
		for _, d := range going {
			if _, ok := c.index.Link(r.upstream, r.name, d); ok {
				p.done.Links++
			}
		}
		return nil
	}
	n, err := c.records.DropTags(r.upstream, r.name, slices.Sorted(maps.Keys(images.tags)), p.watch)
	if p.done.Tags += n; err != nil {
		return err
	}
	if err := p.unpin(r, images); err != nil {
		return err
	}
	dropped, err := c.records.DropLinks(r.upstream, r.name, going, p.watch)
	p.done.Links += len(dropped)
	if err != nil {
		return err
	}
	return c.records.DropLists(lists, p.watch)
}

// unpin drops the pins of what goes.
func (p *purge) unpin(r repository, images *repoPurge) error {
	var refs []string
	err := p.cache.index.Pins(r.upstream, r.name, func(_, _, ref string, _ index.Pin) bool {
		if images.names(pinTarget(r.upstream, r.name, ref)) {
			refs = append(refs, ref)
		}
		return true
	})
	for _, ref := range refs {
		_, dropErr := p.cache.index.DropPin(r.upstream, r.name, ref)
		err = errors.Join(err, dropErr)
	}
	return err
}

// remove removes content.
func (p *purge) remove(content []digest.Digest) error {
	c := p.cache
	if p.Dry {
		for _, d := range content {
			size, _ := c.store.Has(d)
			p.done.Blobs++
			p.done.Size += size
		}
		return nil
	}
	var done evicted
	for batch := range slices.Chunk(content, evictBatch) {
		if err := errors.Join(context.Cause(p.ctx), c.keptIndex(p.losses)); err != nil {
			return err
		}
		c.dropBatch(&done, batch, p.watch.Linked)
		c.forgetContent(batch)
	}
	p.done.Blobs, p.done.Size, p.done.Busy = int(done.blobs), done.bytes, int(done.busy)
	return nil
}
