package cache

import (
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
)

// countStored has the metrics and the evictor follow what the index has records
// of.
func (c *Cache) countStored() {
	count := func(blobs, bytes int64) {
		c.metrics.CacheBlobs.Add(float64(blobs))
		c.metrics.CacheBytes.Add(float64(bytes))
		c.evictor.soon()
	}
	count(c.index.Totals())
	c.index.Counted(count)
}

// Totals gives how many manifests, configs and layers are stored, and their bytes. It reads
// nothing from the disk.
func (c *Cache) Totals() (blobs, bytes int64) { return c.index.Totals() }

// recordOf gives the index's record of content that has just been verified and
// stored, under its digest; none where it has gone meanwhile.
func (c *Cache) recordOf(d digest.Digest) map[digest.Digest]index.Blob {
	stamp, err := c.store.Stamp(d)
	if err != nil {
		return nil
	}
	now := time.Now()
	return map[digest.Digest]index.Blob{d: {Stamp: stamp, Verified: now, Used: now, Uses: 1}}
}

// noteRemoved forgets content that has just been removed.
func (c *Cache) noteRemoved(d digest.Digest) {
	if err := c.index.DropBlobs(d); err != nil {
		c.log.Warn("removed content could not be forgotten", zap.Stringer("digest", d), zap.Error(err))
	}
}
