package cache

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// reconcile makes the index agree with the tree, behind the start: an index that
// has been begun anew is restored from its backup as far as that goes; content
// without a record gets one, which says that its bytes are still to be verified;
// a record without content goes. A record is all that is looked at where both
// are there, so it costs a list of the directories and one walk over the records,
// and the memory of one directory of 256.
func (c *Cache) reconcile() {
	begun := time.Now()
	if !c.index.Whole() {
		restored, err := c.index.Restore()
		switch {
		case err != nil:
			c.log.Warn("the index could not be restored in full; what is missing is learned again from the upstreams",
				zap.Int("restored", restored), zap.Error(err))
		case restored > 0:
			c.log.Info("the index was restored from its backup", zap.Int("restored", restored), zap.Duration("took", time.Since(begun)))
		}
	}
	var added, dropped int
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		for prefix := range 256 {
			if c.ctx.Err() != nil {
				return
			}
			stored, err := c.store.List(alg, byte(prefix))
			if err != nil {
				c.log.Warn("a directory of the cache could not be read; what is in it may not count against the limit", zap.Error(err))
				continue
			}
			a, d, err := c.index.Mend(alg, byte(prefix), stored, c.found)
			if err != nil {
				c.log.Warn("the index could not be made to agree with what is stored", zap.Error(err))
				return
			}
			added, dropped = added+a, dropped+d
		}
	}
	if !c.index.Sourced() {
		if err := c.index.AssumeSources(func() bool { return c.ctx.Err() != nil }); err != nil {
			c.log.Warn("where content of an older version came from could not be found out; it is fetched again where access differs", zap.Error(err))
		}
	}
	if added+dropped > 0 {
		blobs, bytes := c.index.Totals()
		c.log.Info("the index agrees with what is stored again", zap.Int("found", added), zap.Int("lost", dropped),
			zap.Int64("blobs", blobs), zap.Int64("bytes", bytes), zap.Duration("took", time.Since(begun)))
	}
}

// indexLost starts to restore an index that was found damaged in use.
func (c *Cache) indexLost(aside string, cause error) {
	c.losses.Add(1)
	c.log.Error("index damaged; quarantined, restoring from its backup and from the cached content",
		zap.String("quarantined", aside), zap.Error(cause))
	c.goOn(c.reconcile)
}

// errIndexLost says that it is not known what content is of.
var errIndexLost = &oci.Error{Code: oci.CodeUnavailable, Status: 503,
	Message: "the index was damaged and is being made again from its backup: nothing may be removed until it is known what content is of; ask again in a moment"}

// awaitIndex waits until it is known what content is of, after a start with an index that
// was begun anew. Its error is ctx's, or errIndexLost; losses is for keptIndex.
func (c *Cache) awaitIndex(ctx context.Context) (losses uint64, err error) {
	losses = c.losses.Load()
	if c.index.Whole() {
		return losses, nil
	}
	select {
	case <-c.reconciled:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-c.ctx.Done():
		return 0, closing()
	}
	if !c.index.Whole() {
		return 0, errIndexLost
	}
	return losses, nil
}

// keptIndex gives errIndexLost where the index was lost since awaitIndex.
func (c *Cache) keptIndex(losses uint64) error {
	if !c.index.Whole() || c.losses.Load() != losses {
		return errIndexLost
	}
	return nil
}

// found is the record of content that is stored and of which nothing is known.
func (c *Cache) found(d digest.Digest) (index.Blob, bool) {
	stamp, err := c.store.Stamp(d)
	if err != nil {
		return index.Blob{}, false
	}
	return index.Blob{Stamp: stamp, Used: time.Unix(0, stamp.Modified), Uses: 1}, true
}
