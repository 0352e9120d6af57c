package cache

import (
	"errors"
	"slices"
	"sync/atomic"
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
	// lookEvery is how often at least the file system is asked how much is free if others
	// could fill it in that time, and lookRarely if they could not.
	lookEvery  = 30 * time.Second
	lookRarely = 10 * time.Minute
	// othersBytes and othersFiles are how much others may take of the file system in a
	// second.
	othersBytes = 1 << 30
	othersFiles = 100_000
	// lookApart is how long the looks that fills ask for are apart, of which there
	// may be thousands in a second.
	lookApart = 20 * time.Millisecond
	// leastStuck and mostStuck bound the pause after an eviction that could not free
	// enough: four times as long as it took. It ends sooner when more has been stored,
	// by stuckGrowth hundredths of the limit: that can be evicted.
	leastStuck  = 100 * time.Millisecond
	mostStuck   = 10 * time.Second
	stuckGrowth = 1
	// fileCost is about what a file takes up on disk beside its bytes: the unused rest
	// of its last block, at most, its inode and its name.
	fileCost = 4 << 10
	// leastInodes is the share of the inodes, in hundredths, that stays free if the
	// settings don't say more.
	leastInodes = 1
	// fewInodes stay free at least, but no more than a tenth of all.
	fewInodes = 256
	// trimLinksAfter is how many blobs are evicted at least before links are looked
	// through for those that lead nowhere.
	trimLinksAfter = 64
	// justStored is for how long something small counts as promised after it was stored or used: its
	// first reader may not be counted yet, and what was served lately would outlive it.
	justStored = 2 * time.Second
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
	// stuck is until when it is no use to try unless more is stored than stuckAt,
	// warned when that was last said.
	stuck, warned time.Time
	stuckAt       int64
	// evicted counts the blobs that were evicted since links were looked through.
	evicted int64
	// quiet is held.quiet as it was last found.
	quiet time.Duration
	// trimming is set while they are.
	trimming atomic.Bool
	// full is set while nothing more may be evicted, though more should be, and idle is what
	// parts had on disk that no fill goes on with. Any goroutine may read both.
	full atomic.Bool
	idle atomic.Int64
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
	look := time.NewTimer(lookEvery)
	defer look.Stop()
	var unused <-chan time.Time // while files are open that nobody may ask for any more
	for {
		select {
		case <-unused:
			unused = nil
			if e.cache.store.CloseUnused() > 0 {
				unused = time.After(unusedFor)
			}
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
			look.Reset(min(max(e.quiet, lookEvery), lookRarely))
		case <-again:
			again = e.keepWithin()
		case <-e.cache.uses.wake:
			flush = time.After(usesEvery)
			if unused == nil {
				unused = time.After(unusedFor)
			}
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
	// index is what the index has on disk, at most half of the limit: evicting does
	// not help against more.
	index int64
	// stored is how many blobs there are.
	stored int64
	// files are how many inodes have to become free, and should.
	mustFiles, wantFiles int64
	// idle are the parts that no fill goes on with.
	idle []store.Unfinished
	// quiet is how long others need at least to take so much of the file system that
	// something has to go.
	quiet time.Duration
}

func (h held) used() int64 { return h.blobs + h.parts + h.coming + h.index }

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
	h.stored, h.blobs = c.index.Totals()
	h.blobs += filesCost(h.stored)
	running := map[digest.Digest]int64{}
	for d, fills := range c.runningFills() {
		var expected int64
		for _, f := range fills {
			expected += max(f.Expected(), c.flying.bytes(fillKey{d, f.upstream}))
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
	var onDisk, idle int64
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
			idle += u.Bytes
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
	e.idle.Store(idle + here + coming)
	h.index = min(c.index.Bytes(), h.limit/2)
	c.index.BoundLists(h.limit / listShare)
	h.mustFiles, h.wantFiles, h.quiet = e.inodes()
	if least := c.settings().MinFree.of(size); least > 0 {
		h.quiet = min(h.quiet, time.Duration(max(0, free-least)/othersBytes)*time.Second)
	}
	c.limit.Store(h.limit)
	c.metrics.CacheLimit.Set(float64(h.limit))
	c.metrics.CacheParts.Set(float64(onDisk))
	return h, nil
}

// keepWithin evicts down to the low watermark where the high one is passed. It
// gives when to try again, where that did not suffice.
func (e *evictor) keepWithin() (again <-chan time.Time) {
	if e.cache.settings().MaxSize == (Room{}) {
		e.cache.limit.Store(0)
		return nil
	}
	begun := time.Now()
	h, err := e.look()
	if err != nil {
		e.cache.log.Warn("the room that the cache takes could not be found out", zap.Error(err))
		return nil
	}
	e.quiet = h.quiet
	e.boundNames(h.limit)
	need := evict.Need{Limit: h.limit, Must: h.used() - hundredths(h.limit, highWatermark), Want: h.used() - hundredths(h.limit, lowWatermark)}
	if need.Must <= 0 && h.mustFiles <= 0 {
		e.full.Store(false)
		return nil
	}
	if pause := e.stuck.Sub(begun); pause > 0 && h.blobs < e.stuckAt+hundredths(h.limit, stuckGrowth) {
		return time.After(pause)
	}
	var done evicted
	e.cache.dropParts(&done, h.idle, func(u store.Unfinished) bool { return begun.Sub(u.Touched) >= abandoned })
	if must := need.Must - done.freed(); need.Must > 0 && need.Want > done.freed() {
		e.dropPlanned(&done, evict.Need{Limit: need.Limit, Must: must, Want: need.Want - done.freed()}, h, begun, func(bytes int64) int64 { return bytes })
	}
	if gone := done.blobs + done.parts; h.mustFiles > gone {
		e.dropPlanned(&done, evict.Need{Limit: h.stored, Must: h.mustFiles - gone, Want: h.wantFiles - gone}, h, begun, func(int64) int64 { return 1 })
	}
	e.report(done, h, need, time.Since(begun))
	e.trimLinks(done.blobs, h.stored)
	short := done.short(h, need)
	e.full.Store(short)
	if short {
		pause := min(max(4*time.Since(begun), leastStuck), mostStuck)
		e.stuck, e.stuckAt = time.Now().Add(pause), h.blobs-done.freed()
		return time.After(pause)
	}
	return nil
}

const (
	// prefixDirs is how many directories the blobs of one algorithm are spread over.
	prefixDirs = 256
	// listShare is the part of the limit, as a divisor, that kept lists may take.
	listShare = 16
)

// filesCost returns about what n stored files take up beside their bytes.
func filesCost(n int64) int64 { return (n + min(n, prefixDirs)) * fileCost }

// freed returns about how many bytes of the disk are free that were not.
func (d evicted) freed() int64 { return d.bytes + d.blobs*fileCost }

// short reports whether less has gone than must, and nobody is about to change that.
func (d evicted) short(h held, need evict.Need) bool {
	return d.busy == 0 && (d.freed() < need.Must || d.blobs+d.parts < h.mustFiles)
}

// inodes returns how many files have to go so that the file system does not run out of
// inodes, how many should, and how long others need at least to change that.
func (e *evictor) inodes() (must, want int64, quiet time.Duration) {
	free, total, err := e.cache.store.Inodes()
	if err != nil || total == 0 {
		return 0, 0, lookRarely // such a file system has no bound on them
	}
	least := hundredths(total, int64(max(e.cache.settings().MinFree.Percent, leastInodes)))
	// On a small file system that is soon used up, while the evictor looks.
	least = max(least, min(total/10, fewInodes))
	if free >= least {
		return 0, 0, time.Duration((free-least)/othersFiles) * time.Second
	}
	return least - free, 2*least - free, 0
}

// hundredths gives n hundredths of limit.
func hundredths(limit, n int64) int64 { return limit/100*n + limit%100*n/100 }

// dropPlanned drops what a plan for need says, in which size measures what goes when a
// file of so many bytes on disk does. Partial files count as content that was used once.
func (e *evictor) dropPlanned(done *evicted, need evict.Need, h held, now time.Time, size func(bytes int64) int64) {
	c, idle := e.cache, h.idle
	e.takeUses()
	e.forgetServed(promiseFor)
	promised, kept, importing := e.promised(), e.retain(h.limit), c.heldByImport()
	pinned, err := e.pins.protected(c.ctx, c)
	if err != nil {
		c.log.Error("the index could not be read to evict by", zap.Error(err))
		return
	}
	item := func(d digest.Digest, b index.Blob) evict.Item {
		age := now.Sub(b.Used)
		isNew := b.Stamp.Size <= evict.Small && age < justStored
		return evict.Item{Size: size(b.Stamp.Size + fileCost), Age: age, Uses: b.Uses, Pinned: pinned[d] || kept[d] || importing[d], Promised: promised[d] || isNew}
	}
	part := func(u store.Unfinished) evict.Item {
		return evict.Item{Size: size(u.Bytes), Age: now.Sub(u.Touched), Uses: 1}
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
		zap.Int64("used", h.used()-done.freed()), zap.Int64("limit", h.limit), zap.Duration("took", took),
	}
	if done.busy > 0 && done.bytes == 0 || e.cache.ctx.Err() != nil {
		return
	}
	if done.short(h, need) {
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
func (c *Cache) runningFills() map[digest.Digest][]*blobFill {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make(map[digest.Digest][]*blobFill, len(c.fills))
	for k, f := range c.fills {
		list[k.digest] = append(list[k.digest], f)
	}
	return list
}
