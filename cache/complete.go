package cache

import (
	"context"
	"sync"
	"time"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/oci"
)

// Blobs of which clients have read pieces are completed in the background, one at a time
// for each upstream, when nobody has waited for that upstream for a while. A fill of
// pieces ends when nobody reads it, so that it takes no place among the fills; what it
// has fetched stays in its partial file.

// Completion is when a blob is completed of which clients have asked for pieces.
type Completion int

const (
	// CompleteIdle is when nobody has waited for its upstream for a while.
	CompleteIdle Completion = iota
	// CompleteAlways is at once.
	CompleteAlways
	// CompleteNever is when a client asks for all of it.
	CompleteNever
)

// maxParked bounds the blobs of one upstream that wait for being completed. Those that are
// one too many are completed when they are read again.
const maxParked = 256

// parked are blobs of one upstream that wait for being completed. Its zero value is ready;
// it is safe for concurrent use.
type parked struct {
	mu      sync.Mutex
	waiting []oci.Target // each once
	running bool         // a goroutine completes them
}

// add adds t. It says whether a goroutine is to be started.
func (p *parked) add(t oci.Target) (start bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.waiting {
		if o.Digest == t.Digest {
			return false
		}
	}
	if len(p.waiting) >= maxParked {
		return false
	}
	p.waiting = append(p.waiting, t)
	start = !p.running
	p.running = true
	return start
}

// next takes the first one out. Without one it returns false, and the goroutine ends.
func (p *parked) next() (t oci.Target, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) == 0 {
		p.running = false
		return t, false
	}
	t = p.waiting[0]
	p.waiting = p.waiting[1:]
	return t, true
}

// completeLater has t's blob, of which a part is here, completed, if the settings say so.
func (c *Cache) completeLater(up *upstream, t oci.Target) {
	if up.complete == CompleteNever {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && up.parked.add(t) {
		c.work.Go(func() { c.completeParked(up) })
	}
}

// completeParked completes the parked blobs of up, one after another. It ends with the
// cache, or when there are no more. The cache owns it.
func (c *Cache) completeParked(up *upstream) {
	for {
		t, ok := up.parked.next()
		if !ok {
			return
		}
		if c.awaitQuiet(c.ctx, up.name) != nil {
			return
		}
		if f := c.completeNow(t); f != nil && f.awaitGone(c.ctx) != nil {
			return
		}
	}
}

// completeNow begins the fill that completes t's blob, unless somebody else does.
func (c *Cache) completeNow(t oci.Target) *blobFill {
	up := c.settings().upstreams[t.Upstream]
	if up == nil || up.complete == CompleteNever || c.holds(t.Digest) || c.disk.isDegraded() {
		return nil
	}
	l, linked, right := c.rightTo(t)
	if !linked {
		l.Size = -1
	}
	// A part that this repository's fill has left is this repository's.
	f, mine, err := c.join(up, t, wanted{proved: right == maySend, joins: true, size: l.Size, rest: true})
	if err != nil || !mine {
		return nil
	}
	return f
}

// awaitQuiet waits until nobody has waited for the upstream of that name for a while.
func (c *Cache) awaitQuiet(ctx context.Context, name string) error {
	for {
		left := c.untilQuiet(name)
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// untilQuiet returns after how long the upstream of that name will have been quiet for long
// enough, if nobody waits for it meanwhile; zero or less if it has been.
func (c *Cache) untilQuiet(name string) time.Duration {
	now, used := c.demand(name)
	if now {
		return fill.Quiet
	}
	return fill.Quiet - time.Since(used)
}

// demand says whether somebody waits for a fill of an upstream, and when somebody last did.
func (c *Cache) demand(name string) (now bool, used time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, f := range c.fills {
		if k.upstream == name {
			n, u := f.IsInDemand()
			if now = now || n; u.After(used) {
				used = u
			}
		}
	}
	return now, used
}

// awaitParked waits until a fill of k that nobody reads has ended. One that goes on does
// so for the caller: eagerly, if that is set. c.mu is held, and given up meanwhile.
func (c *Cache) awaitParked(k fillKey, eager bool) {
	for f := c.fills[k]; f != nil && !f.Stay(eager); f = c.fills[k] {
		c.mu.Unlock()
		<-f.gone
		c.mu.Lock()
	}
}
