package cache

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/evict"
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
)

const (
	// highWatermark is the part of the limit, in hundredths, above which
	// content is evicted, lowWatermark the one down to which it is.
	highWatermark = 95
	lowWatermark  = 85
	// promiseFor is for how long what a manifest names is promised to those
	// who were given the manifest.
	promiseFor = time.Hour
	// maxServed bounds the manifests that promise something, maxPromising the size in
	// bytes of one: a larger one is read for nobody's eviction.
	maxServed    = 10_000
	maxPromising = 256 << 10
	// abandoned is the age at which a part that nobody goes on with goes before
	// anything that is whole.
	abandoned = 24 * time.Hour
	// lookEvery is how often the file system is asked how much is free, for
	// others may fill it.
	lookEvery = 30 * time.Second
	// lookApart is how long the looks that fills ask for are apart, of which there
	// may be thousands in a second.
	lookApart = 20 * time.Millisecond
	// leastStuck and mostStuck bound the pause after an eviction that could not
	// free enough: fifty times as long as it took, for what keeps it from that,
	// fills above all, may be over in a moment, and the next may take as long.
	leastStuck = 100 * time.Millisecond
	mostStuck  = 10 * time.Second
	// unusedFor is for how long at least a file stays open that nobody asks
	// for; for twice as long at most.
	unusedFor = 10 * time.Second
	// evictBatch is how many blobs go by one write of the index.
	evictBatch = 256
)

// Room is a part of the cache's file system.
type Room struct {
	// Bytes is its size, or where it is zero Percent of the file system.
	Bytes   int64
	Percent int
}

func (r Room) of(fileSystem int64) int64 {
	if r.Percent > 0 {
		return fileSystem / 100 * int64(r.Percent)
	}
	return r.Bytes
}

// evictor keeps what is stored within the limit. It is one goroutine, woken by
// what changes the size, and all but wake is for that goroutine.
type evictor struct {
	cache *Cache
	wake  chan struct{} // holds one token while there may be something to do

	// served are the manifests that were given out lately, and when.
	served map[digest.Digest]time.Time
	// retained is what is kept of tags' history.
	retained retained
	// pins are what nothing may evict.
	pins pins
	// stuck is until when it is no use to try, warned when that was last said.
	stuck, warned time.Time
}

func newEvictor(c *Cache) *evictor {
	return &evictor{cache: c, wake: make(chan struct{}, 1), served: map[digest.Digest]time.Time{}}
}

// soon has the evictor look whether something has to go.
func (e *evictor) soon() {
	select {
	case e.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// run works until the cache is closed, and hands on the last uses then.
func (e *evictor) run() {
	var flush, again, rest <-chan time.Time
	woken := false // while it rests
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	unused := time.NewTicker(unusedFor)
	defer unused.Stop()
	for {
		select {
		case <-unused.C:
			e.cache.store.CloseUnused()
		case <-e.wake:
			if rest != nil {
				woken = true
				continue
			}
			again, rest = e.keepWithin(), time.After(lookApart)
		case <-rest:
			rest = nil
			if woken {
				again, rest, woken = e.keepWithin(), time.After(lookApart), false
			}
		case <-look.C:
			again = e.keepWithin()
		case <-again:
			again = e.keepWithin()
		case <-e.cache.uses.wake:
			flush = time.After(usesEvery)
		case <-flush:
			flush = nil
			e.takeUses()
		case <-e.cache.ctx.Done():
			e.takeUses()
			return
		}
	}
}

// takeUses hands what was noted to the index.
func (e *evictor) takeUses() {
	e.cache.uses.drain(func(d digest.Digest, at time.Time, manifest bool) {
		e.cache.index.UseBlob(d, at)
		if manifest {
			e.served[d] = at
		}
	})
	if len(e.served) > maxServed {
		e.forgetServed(promiseFor)
	}
	for keep := promiseFor; len(e.served) > maxServed; keep /= 2 {
		e.forgetServed(keep)
	}
}

// forgetServed forgets the manifests that were given out longer ago than keep.
func (e *evictor) forgetServed(keep time.Duration) {
	for d, at := range e.served {
		if time.Since(at) >= keep {
			delete(e.served, d)
		}
	}
}

// held is what stands against the limit.
type held struct {
	// limit is in bytes.
	limit int64
	// blobs are the bytes of what is stored, parts those that parts have on
	// disk, and coming those that running fills have still to write.
	blobs, parts, coming int64
	// idle are the parts that no fill goes on with.
	idle []store.Unfinished
}

func (h held) used() int64 { return h.blobs + h.parts + h.coming }

// look finds out what stands against the limit. Its error is the disk's.
func (e *evictor) look() (held, error) {
	c := e.cache
	var h held
	free, size, err := c.store.Room()
	if err != nil {
		return h, err
	}
	h.limit = c.settings().MaxSize.of(size)
	// Before the fills: one that ends meanwhile is rather missed than counted
	// twice, and wakes the evictor once more.
	_, h.blobs = c.index.Totals()
	running := map[digest.Digest]int64{}
	for d, fills := range c.runningFills() {
		var expected int64
		for _, f := range fills {
			expected += f.expected()
		}
		// No room is made for what is too large, and what has been recorded
		// counts already.
		if _, recorded := c.index.Blob(d); recorded || evict.Oversize(expected, h.limit) {
			expected = 0
		}
		running[d] = expected
	}
	list, err := c.store.Unfinished()
	if err != nil {
		return h, err
	}
	var onDisk int64
	importing := c.heldByImport()
	here, coming := c.incoming(list)
	h.parts, h.coming = here, coming
	for _, u := range list {
		onDisk += u.Bytes
		expected, fills := running[u.Digest]
		switch {
		case u.Incoming && importing != nil && (u.Digest == "" || importing[u.Digest]):
		case !fills || u.Incoming:
			h.idle = append(h.idle, u)
			h.parts += u.Bytes
		case expected > 0:
			h.parts += min(u.Bytes, expected)
			running[u.Digest] = max(0, expected-u.Bytes)
		}
	}
	for _, expected := range running {
		h.coming += expected
	}
	if least := c.settings().MinFree.of(size); least > 0 {
		h.limit = min(h.limit, max(0, h.blobs+onDisk+free-least))
	}
	c.metrics.CacheLimit.Set(float64(h.limit))
	c.metrics.CacheParts.Set(float64(onDisk))
	return h, nil
}

// keepWithin evicts down to the low watermark where the high one is passed. It
// gives when to try again, where that did not suffice.
func (e *evictor) keepWithin() (again <-chan time.Time) {
	if e.cache.settings().MaxSize == (Room{}) {
		return nil
	}
	begun := time.Now()
	h, err := e.look()
	if err != nil {
		e.cache.log.Warn("the room that the cache takes could not be found out", zap.Error(err))
		return nil
	}
	need := evict.Need{Limit: h.limit, Must: h.used() - hundredths(h.limit, highWatermark), Want: h.used() - hundredths(h.limit, lowWatermark)}
	if need.Must <= 0 {
		return nil
	}
	if pause := e.stuck.Sub(begun); pause > 0 {
		return time.After(pause)
	}
	var done evicted
	e.cache.dropParts(&done, h.idle, func(u store.Unfinished) bool { return begun.Sub(u.Touched) >= abandoned })
	if left := need.Want - done.bytes; left > 0 {
		e.dropPlanned(&done, evict.Need{Limit: need.Limit, Must: need.Must - done.bytes, Want: left}, h.idle, begun)
	}
	e.report(done, h, need, time.Since(begun))
	if done.bytes < need.Must && done.busy == 0 {
		pause := min(max(50*time.Since(begun), leastStuck), mostStuck)
		e.stuck = time.Now().Add(pause)
		return time.After(pause)
	}
	return nil
}

// hundredths gives n hundredths of limit.
func hundredths(limit, n int64) int64 { return limit/100*n + limit%100*n/100 }

// dropPlanned drops what a plan for need says. Parts count as content that was
// used once.
func (e *evictor) dropPlanned(done *evicted, need evict.Need, idle []store.Unfinished, now time.Time) {
	c := e.cache
	e.takeUses()
	e.forgetServed(promiseFor)
	promised, kept, importing := e.promised(), e.retain(need.Limit), c.heldByImport()
	pinned, err := e.pins.protected(c.ctx, c)
	if err != nil {
		c.log.Error("the index could not be read to evict by", zap.Error(err))
		return
	}
	item := func(d digest.Digest, b index.Blob) evict.Item {
		return evict.Item{Size: b.Stamp.Size, Age: now.Sub(b.Used), Uses: b.Uses, Pinned: pinned[d] || kept[d] || importing[d], Promised: promised[d]}
	}
	part := func(u store.Unfinished) evict.Item {
		return evict.Item{Size: u.Bytes, Age: now.Sub(u.Touched), Uses: 1}
	}
	plan := evict.NewPlan(need)
	// What is no part is being written at this moment, unless a crash has left it.
	goes := func(u store.Unfinished) bool { return u.Digest != "" && u.Bytes >= 0 }
	for _, u := range idle {
		if goes(u) {
			plan.Add(part(u))
		}
	}
	var going []digest.Digest
	err = errors.Join(
		c.index.Blobs(func(d digest.Digest, b index.Blob) bool {
			plan.Add(item(d, b))
			return c.ctx.Err() == nil
		}),
		c.index.Blobs(func(d digest.Digest, b index.Blob) bool {
			if plan.Evict(item(d, b)) {
				going = append(going, d)
			}
			return c.ctx.Err() == nil
		}),
	)
	if err != nil {
		c.log.Error("the index could not be read to evict by", zap.Error(err))
		return
	}
	c.dropParts(done, idle, func(u store.Unfinished) bool { return goes(u) && plan.Evict(part(u)) })
	for batch := range slices.Chunk(going, evictBatch) {
		if c.ctx.Err() != nil {
			return
		}
		before := *done
		c.dropBatch(done, batch, nil)
		c.metrics.Evictions.Add(float64(done.blobs - before.blobs))
		c.metrics.EvictedBytes.Add(float64(done.bytes - before.bytes))
	}
}

// promised gives what those who were served a manifest lately may be about to
// ask for: the manifest, its config and layers, and of an index the manifests.
func (e *evictor) promised() map[digest.Digest]bool {
	promised := map[digest.Digest]bool{}
	for d := range e.served {
		promised[d] = true
		if size, ok := e.cache.store.Has(d); !ok || size > maxPromising {
			continue
		}
		for _, child := range children(e.parsed(d)) {
			promised[child.Digest] = true
		}
	}
	return promised
}

// report says what went, and whether it was enough.
func (e *evictor) report(done evicted, h held, need evict.Need, took time.Duration) {
	fields := []zap.Field{
		zap.Int64("blobs", done.blobs), zap.Int64("parts", done.parts), zap.Int64("bytes", done.bytes),
		zap.Int64("used", h.used()-done.bytes), zap.Int64("limit", h.limit), zap.Duration("took", took),
	}
	if done.busy > 0 && done.bytes == 0 || e.cache.ctx.Err() != nil {
		return
	}
	if done.bytes < need.Must && done.busy == 0 {
		if time.Since(e.warned) < mostStuck {
			return
		}
		e.warned = time.Now()
		e.cache.log.Warn("the cache is larger than its limit, and nothing more may be evicted", fields...)
		return
	}
	e.cache.log.Info("evicted to make room", fields...)
}

// runningFills returns the fills that run, by digest: several if upstreams are
// fetched from at the same time.
func (c *Cache) runningFills() map[digest.Digest][]*fill {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make(map[digest.Digest][]*fill, len(c.fills))
	for k, f := range c.fills {
		list[k.digest] = append(list[k.digest], f.fill)
	}
	return list
}

// expected gives the size of what f fetches in bytes, as far as it is known.
func (f *fill) expected() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return cmp.Or(max(f.size, 0), f.have.Len())
}
