package cache

import (
	"sync"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// maxPlanned bounds the layers of one image that are fetched ahead.
	maxPlanned = 512
	// planTTL is for how long a client may take from a manifest to its layers.
	planTTL = 10 * time.Minute
	// largeLayer and larger ones weigh as much as largeWeight small ones: a
	// fill of one has that many connections itself.
	largeLayer  = fill.MaxWriters * fill.MinSegment
	largeWeight = fill.MaxWriters
)

// plan is what a manifest that was just fetched names: what a client that
// pulls it asks for next.
type plan struct {
	target oci.Target // its Digest is the manifest's
	layers []v1.Descriptor
	once   sync.Once
}

// expect plans the layers of t's manifest p. They are fetched once a client asks
// for the first of them: who only looks at a manifest costs the upstream nothing.
func (c *Cache) expect(t oci.Target, p *oci.Parsed) {
	if up := c.settings().upstreams[t.Upstream]; p.Kind != oci.KindManifest || up.ahead == nil {
		return
	}
	next := &plan{target: t}
	for _, d := range p.Children {
		if len(next.layers) < maxPlanned && d.Digest != p.Config.Digest && !oci.IsForeign(d) {
			next.layers = append(next.layers, d)
		}
	}
	if len(next.layers) < 2 {
		return
	}
	for _, d := range next.layers {
		c.planned.put(digestKey("", withDigest(t, d.Digest)), next, planTTL)
	}
}

// prefetch fetches ahead what t's blob, which a client has asked for, was planned
// with.
func (c *Cache) prefetch(up *upstream, t oci.Target) {
	if up.ahead == nil || c.disk.isDegraded() {
		return
	}
	next, ok := c.planned.get(digestKey("", t))
	if !ok {
		return
	}
	next.once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.closed {
			c.work.Go(func() { c.fetchAhead(up, next) })
		}
	})
}

// fetchAhead fills the blobs of p in their order, as many at a time as the
// upstream's limit lets it. It ends with the cache, or with the first that fails:
// clients that ask are told why, and nobody else waits. The cache owns it.
func (c *Cache) fetchAhead(up *upstream, p *plan) {
	var failed sync.Once
	stop := make(chan struct{})
	for _, d := range p.layers {
		weight := int64(1)
		if d.Size >= largeLayer {
			weight = min(largeWeight, up.aheadMax)
		}
		if up.ahead.Acquire(c.ctx, weight) != nil {
			return
		}
		t := withDigest(p.target, d.Digest)
		var f *blobFill
		select {
		case <-stop:
		default:
			f = c.fillAhead(up, t, saidSize(d))
		}
		if f == nil {
			up.ahead.Release(weight)
			continue
		}
		c.work.Go(func() {
			defer up.ahead.Release(weight)
			<-f.gone
			if f.Failure() != nil {
				failed.Do(func() { close(stop) })
			}
		})
	}
}

// fillAhead begins the fill of t's blob, of size bytes, unless that is here, on
// its way, or known to be absent.
func (c *Cache) fillAhead(up *upstream, t oci.Target, size int64) *blobFill {
	if _, absent := c.negative.get(digestKey("blob:", t)); absent || c.holds(t.Digest) || c.anyFillOf(t.Digest) != nil {
		return nil
	}
	l, linked, right := c.rightTo(t)
	f, mine, err := c.join(up, t, wanted{proved: right == maySend, joins: c.mayJoin(t, l, linked), size: size})
	if err != nil || !mine {
		return nil
	}
	c.metrics.Prefetches.WithLabelValues(t.Upstream).Inc()
	return f
}

// newAhead gives the bound on what is fetched ahead; nil where nothing is.
func newAhead(n int) *semaphore.Weighted {
	if n <= 0 {
		return nil
	}
	return semaphore.NewWeighted(int64(n))
}
