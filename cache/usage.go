package cache

import (
	"errors"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
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

// noteRemoved counts content that has just been removed.
func (c *Cache) noteRemoved(size int64) {
	c.metrics.CacheBlobs.Dec()
	c.metrics.CacheBytes.Sub(float64(size))
}
