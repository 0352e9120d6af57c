package cache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// gcGrace is how long content must not have been used that nothing names before it is
// removed: what is being brought is named last.
const gcGrace = 24 * time.Hour

// Collected is what a garbage collection has removed, or would have.
type Collected struct {
	// Repositories is how many were looked at, of RepositoriesTotal.
	Repositories      int `json:"repositories"`
	RepositoriesTotal int `json:"repositoriesTotal"`
	// Links of content that is not here and that no image which is here consists of,
	// Lists of what no repository has any more, and Tags that the upstream has deleted
	// and of which nothing is here, were forgotten.
	Links int `json:"links"`
	Lists int `json:"lists"`
	Tags  int `json:"tags"`
	// Blobs is how many manifests, configs and layers were removed that no repository
	// may serve, and Size what they had on disk in bytes.
	Blobs int   `json:"blobs"`
	Size  int64 `json:"size"`
	// Parts is how many parts of content were removed that nobody has gone on with for a
	// day, and PartsSize what they had on disk in bytes.
	Parts     int   `json:"parts"`
	PartsSize int64 `json:"partsSize"`
	// Young is how many contents were left that no repository may serve, for they have
	// come or been used within a day.
	Young int `json:"young"`
	// Dry says that nothing was changed.
	Dry bool `json:"dry,omitempty"`
}

// CollectGarbage removes what nothing leads to any more; dry only counts it. Images stay as
// they are: nothing of what clients are served goes. What is fetched or imported meanwhile
// stays. It waits for another walk over many images, and its error may be that this one
// goes on. progress, where it is not nil, is told after each repository, and what
// it gives ends the collection, as ctx does; what was removed until then is right.
func (c *Cache) CollectGarbage(ctx context.Context, dry bool, progress func(Collected) error) (*Collected, error) {
	losses, leave, err := c.beginCleaning(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	w := c.newWalk(ctx)
	defer w.end()
	if err := w.takePlace(); err != nil {
		return nil, err
	}
	watch, end := c.index.Watch()
	defer end()
	g := &collector{ctx: ctx, cache: c, watch: watch, losses: losses, done: Collected{Dry: dry}}
	if err := g.run(progress); err != nil {
		return nil, fmt.Errorf("collect garbage: %w", err)
	}
	return &g.done, nil
}

// collector makes one garbage collection.
type collector struct {
	ctx   context.Context
	cache *Cache
	watch *index.Watch
	// losses is what awaitIndex gave.
	losses uint64
	done   Collected
}

func (g *collector) run(progress func(Collected) error) error {
	// The content that a repository may serve, once those links are gone that go.
	linked := newDigestSet()
	names, err := g.cache.knownRepositories()
	if err != nil {
		return err
	}
	g.done.RepositoriesTotal = len(names)
	for _, r := range names {
		if err := g.repository(r, linked); err != nil {
			return err
		}
		g.done.Repositories++
		if progress != nil {
			if err := progress(g.done); err != nil {
				return err
			}
		}
	}
	if err := g.content(linked); err != nil {
		return err
	}
	return g.parts()
}

// knownRepositories lists those of which anything is known, sorted: also a list alone.
func (c *Cache) knownRepositories() ([]repository, error) {
	known := map[repository]bool{}
	names, err := c.index.Repositories()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		upstream, repo, _ := strings.Cut(name, "/")
		known[repository{upstream, repo}] = true
	}
	lists, err := c.index.Lists("", "")
	if err != nil {
		return nil, err
	}
	for _, l := range lists {
		known[repository{l.Upstream, l.Repository}] = true
	}
	list := make([]repository, 0, len(known))
	for r := range known {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b repository) int {
		return strings.Compare(a.upstream+"/"+a.name, b.upstream+"/"+b.name)
	})
	return list, nil
}

// repository drops the links, lists and tags of r that lead to nothing.
func (g *collector) repository(r repository, linked *digestSet) error {
	c := g.cache
	gone := map[string]bool{}
	tags := 0
	err := c.index.Records(r.upstream, r.name, func(_, _, tag string, rec index.Tag) bool {
		tags++
		if rec.Gone && !slices.ContainsFunc(formerly(rec), c.holds) {
			gone[tag] = true
		}
		return g.ctx.Err() == nil
	})
	if err != nil {
		return err
	}
	reached, err := c.reached(g.ctx, r, keepers{leave: func(t oci.Target) bool { return gone[t.Tag] }})
	if err != nil {
		return err
	}
	var stale []digest.Digest
	links := 0
	own := newDigestSet()
	err = c.index.Links(r.upstream, r.name, func(_, _ string, d digest.Digest, _ index.Link) bool {
		links++
		if c.holds(d) || reached.has(d) || c.anyFillOf(d) != nil {
			own.add(d)
		} else {
			stale = append(stale, d)
		}
		return g.ctx.Err() == nil
	})
	if err := errors.Join(context.Cause(g.ctx), err); err != nil {
		return err
	}
	empty := len(stale) == links && len(gone) == tags
	lists, err := c.index.Lists(r.upstream, r.name)
	if err != nil {
		return err
	}
	lists = slices.DeleteFunc(lists, func(l index.ListName) bool {
		if l.Kind == index.Tags {
			return !empty
		}
		return own.has(digest.Digest(l.Of)) || g.watch.Linked(digest.Digest(l.Of))
	})
	for _, d := range own.list() {
		linked.add(d)
	}
	g.done.Lists += len(lists)
	if g.done.Dry {
		g.done.Tags += len(gone)
		g.done.Links += len(stale)
		return nil
	}
	if len(gone) > 0 {
		n, err := c.records.DropTags(r.upstream, r.name, slices.Sorted(maps.Keys(gone)), g.watch)
		if g.done.Tags += n; err != nil {
			return err
		}
	}
	dropped, err := c.records.DropLinks(r.upstream, r.name, stale, g.watch)
	g.done.Links += len(dropped)
	return errors.Join(err, c.records.DropLists(lists, g.watch))
}

// content removes what is not in linked.
func (g *collector) content(linked *digestSet) error {
	c := g.cache
	var going []digest.Digest
	var size int64
	young := func(b index.Blob) bool { return time.Since(b.Used) < gcGrace }
	err := c.index.Blobs(func(d digest.Digest, b index.Blob) bool {
		switch {
		case linked.has(d):
		case young(b):
			g.done.Young++
		default:
			going = append(going, d)
			size += b.Stamp.Size
		}
		return g.ctx.Err() == nil
	})
	if err := errors.Join(context.Cause(g.ctx), err); err != nil {
		return err
	}
	if g.done.Dry {
		g.done.Blobs, g.done.Size = len(going), size
		return nil
	}
	var done evicted
	for batch := range slices.Chunk(going, evictBatch) {
		if err := errors.Join(context.Cause(g.ctx), c.keptIndex(g.losses)); err != nil {
			return err
		}
		// Who links it or brings it anew uses it.
		c.dropBatch(&done, batch, func(d digest.Digest) bool {
			b, ok := c.index.Blob(d)
			return !ok || young(b) || g.watch.Linked(d)
		})
	}
	g.done.Blobs, g.done.Size = int(done.blobs), done.bytes
	return nil
}

// parts removes parts that nobody has gone on with for long.
func (g *collector) parts() error {
	c := g.cache
	list, err := c.store.Unfinished()
	if err != nil {
		return err
	}
	running, importing := c.runningFills(), c.heldByImport()
	old := slices.DeleteFunc(list, func(u store.Unfinished) bool {
		return running[u.Digest] != nil || importing[u.Digest] || time.Since(u.Touched) < abandoned
	})
	if g.done.Dry {
		for _, u := range old {
			g.done.Parts++
			g.done.PartsSize += u.Bytes
		}
		return nil
	}
	var done evicted
	c.dropParts(&done, old, func(store.Unfinished) bool { return true })
	g.done.Parts, g.done.PartsSize = int(done.parts), done.bytes
	return nil
}
