package cache

import (
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
)

// usage counts what is stored, for the metrics.
type usage struct {
	counted bool
	// early are those that were stored while the tree was still being
	// counted, which the walk may or may not have seen.
	early map[digest.Digest]struct{}
}

var errStop = errors.New("stop")

// countStored walks the tree once, behind the start, and then sets the gauges.
func (c *Cache) countStored() {
	var blobs, bytes int64
	seen := func(d digest.Digest, size int64) error {
		if c.ctx.Err() != nil {
			return errStop
		}
		c.mu.Lock()
		_, early := c.usage.early[d]
		c.mu.Unlock()
		if !early {
			blobs++
			bytes += size
		}
		return nil
	}
	if err := c.store.Walk(seen); err != nil && !errors.Is(err, errStop) {
		c.log.Warn("the cache's size could not be counted", zap.Error(err))
	}
	c.mu.Lock()
	c.usage = usage{counted: true}
	c.mu.Unlock()
	c.metrics.CacheBlobs.Add(float64(blobs))
	c.metrics.CacheBytes.Add(float64(bytes))
}

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

// noteStored counts content that has just been stored for the first time.
func (c *Cache) noteStored(d digest.Digest, size int64) {
	c.mu.Lock()
	if !c.usage.counted {
		if c.usage.early == nil {
			c.usage.early = map[digest.Digest]struct{}{}
		}
		c.usage.early[d] = struct{}{}
	}
	c.mu.Unlock()
	c.metrics.CacheBlobs.Inc()
	c.metrics.CacheBytes.Add(float64(size))
}

// noteRemoved forgets and counts content that has just been removed.
func (c *Cache) noteRemoved(d digest.Digest, size int64) {
	if err := c.index.DropBlobs(d); err != nil {
		c.log.Warn("removed content could not be forgotten", zap.Stringer("digest", d), zap.Error(err))
	}
	c.metrics.CacheBlobs.Dec()
	c.metrics.CacheBytes.Sub(float64(size))
}
