package cache

import (
	"slices"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// evicted counts what went, and what would have if nobody had been about to
// change it: who is wakes the evictor when that is done.
type evicted struct{ blobs, parts, bytes, busy int64 }

// dropParts drops those idle parts that go says. What went has negative Bytes
// from then on.
func (c *Cache) dropParts(done *evicted, idle []store.Unfinished, goes func(store.Unfinished) bool) {
	for i, u := range idle {
		if u.Bytes < 0 || !goes(u) {
			continue
		}
		if u.Digest != "" {
			if !c.tryClaim(u.Digest) {
				continue
			}
		}
		err := c.store.RemoveUnfinished(u)
		if u.Digest != "" {
			c.unclaim(u.Digest)
		}
		if err != nil {
			c.log.Warn("a part could not be removed", zap.Stringer("digest", u.Digest), zap.Error(err))
			continue
		}
		done.parts++
		done.bytes += u.Bytes
		idle[i].Bytes = -1
	}
}

// dropBatch drops blobs from the store, and then their records, unless stays, where it is
// not nil, says of one whose claim is held that it is to stay. Who reads one has it open
// and reads to its end; who asks for one now waits for its claim, does not find it and
// fetches it again.
func (c *Cache) dropBatch(done *evicted, batch []digest.Digest, stays func(digest.Digest) bool) {
	asked := len(batch)
	batch = slices.DeleteFunc(slices.Clone(batch), func(d digest.Digest) bool { return !c.tryClaim(d) })
	done.busy += int64(asked - len(batch))
	defer c.unclaim(batch...)
	var gone []digest.Digest
	for _, d := range batch {
		if stays != nil && stays(d) {
			continue
		}
		size, _ := c.store.Has(d)
		if err := c.store.Remove(d); err != nil {
			c.log.Warn("stored content could not be removed", zap.Stringer("digest", d), zap.Error(err))
			continue
		}
		gone = append(gone, d)
		done.blobs++
		done.bytes += size
	}
	if err := c.index.DropBlobs(gone...); err != nil {
		c.log.Error("removed content could not be forgotten", zap.Error(err))
	}
}

// forgetContent drops content from memory, so that who asks for it finds that it is gone.
func (c *Cache) forgetContent(ds []digest.Digest) {
	names := make([]name, 0, 2*len(ds))
	for _, d := range ds {
		names = append(names, name{kind: ofManifest, reference: string(d)}, blobName(d))
	}
	c.memory.dropAll(names)
}

// dropTags forgets tags, but those that w has seen to be put again.
func (c *Cache) dropTags(r repository, tags []string, w *index.Watch) (dropped int, err error) {
	dropped, err = c.index.DropTags(r.upstream, r.name, tags, w)
	names := make([]name, 0, len(tags))
	for _, tag := range tags {
		names = append(names, name{ofTag, r.upstream, r.name, tag})
	}
	c.tagsMu.Lock()
	defer c.tagsMu.Unlock()
	c.tagsGen++
	c.drops.Add(1)
	c.memory.dropAll(names)
	return dropped, err
}

// dropLinks has a repository serve these digests no more, but for those that w has seen to
// be linked again.
func (c *Cache) dropLinks(up, repo string, ds []digest.Digest, w *index.Watch) (dropped []digest.Digest, err error) {
	if len(ds) == 0 {
		return nil, nil
	}
	dropped, err = c.index.DropLinks(up, repo, ds, w)
	names := make([]name, 0, len(dropped))
	for _, d := range dropped {
		names = append(names, name{ofLink, up, repo, string(d)})
	}
	c.linksMu.Lock()
	defer c.linksMu.Unlock()
	c.linksGen++
	c.drops.Add(1)
	c.memory.dropAll(names)
	return dropped, err
}

// dropLists forgets lists, but those of which w has seen that something was put.
func (c *Cache) dropLists(list []index.ListName, w *index.Watch) error {
	err := c.index.DropLists(list, w)
	names := make([]name, 0, len(list))
	for _, l := range list {
		t := oci.Target{Upstream: l.Upstream, Repository: l.Repository, Digest: digest.Digest(l.Of)}
		names = append(names, name{kind: ofList, reference: listKey(l.Kind, t)})
	}
	c.memory.dropAll(names)
	return err
}
