package cache

import (
	"slices"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/memory"
	"github.com/entrepot-dev/entrepot/cache/store"
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
	names := make([]memory.Name, 0, 2*len(ds))
	for _, d := range ds {
		names = append(names, manifestName(d), blobName(d))
	}
	c.memory.Drop(names...)
}
