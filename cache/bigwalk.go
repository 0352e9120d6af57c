package cache

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// smallWalk is how many images a walk may look at beside others. Beyond that there is
	// one at a time, so that what they hold and the load that they are stay bounded.
	smallWalk = 1000
	// walkPatience is how long a walk waits for the one before.
	walkPatience = 30 * time.Second
	// letGoEvery is after how many images a walk lets go of the pages that it has read of
	// the index.
	letGoEvery = 1000
	// restEvery is after how many images a large walk rests: while it keeps all processors
	// busy, the runtime looks for clients' requests every 10 ms only, and at each rest.
	restEvery = 8
	rest      = 50 * time.Microsecond
	// maxCounted is how many contents a contentSum tells apart.
	maxCounted = 4 << 20
)

// errWalking says that a walk has waited long enough for another.
var errWalking = &oci.Error{Code: oci.CodeUnknown, Status: 409,
	Message: "another command is looking at all images of this cache (ls, gc, export --all, purge --older-than), and one does at a time: wait for it to end, or end it"}

// bigWalk is a walk over images. Its methods may be called by several goroutines.
type bigWalk struct {
	ctx   context.Context
	cache *Cache
	steps atomic.Int64
	mu    sync.Mutex // guards alone, and is held while a place is waited for
	alone bool
}

// newWalk begins a walk. The caller calls end.
func (c *Cache) newWalk(ctx context.Context) *bigWalk { return &bigWalk{ctx: ctx, cache: c} }

// BeginWalk begins a walk over all images, once no other goes on. The caller calls end. The
// error is ctx's, or says that another walk has not ended for long.
func (c *Cache) BeginWalk(ctx context.Context) (end func(), err error) {
	w := c.newWalk(ctx)
	return w.end, w.takePlace()
}

// step is called before each image that is looked at. Its error ends the walk: it is ctx's,
// or errWalking.
func (w *bigWalk) step() error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	steps := w.steps.Add(1)
	if steps%letGoEvery == 0 {
		_ = w.cache.index.LetGo() // it only costs memory
	}
	if steps <= smallWalk {
		return nil
	}
	if steps%restEvery == 0 {
		time.Sleep(rest)
	}
	return w.takePlace()
}

// takePlace waits until no other walk is large.
func (w *bigWalk) takePlace() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.alone {
		return nil
	}
	patience := time.NewTimer(walkPatience)
	defer patience.Stop()
	select {
	case w.cache.walking <- struct{}{}:
		w.alone = true
		return nil
	case <-patience.C:
		return errWalking
	case <-w.ctx.Done():
		return context.Cause(w.ctx)
	}
}

// end ends the walk.
func (w *bigWalk) end() {
	if w.alone {
		<-w.cache.walking
	}
}

// contentSum adds up the sizes of contents, each counted once. It tells maxCounted of them
// apart, by eight bytes each; what comes beyond those is counted as often as it is added.
// It may be used by several goroutines.
type contentSum struct {
	mu    sync.Mutex
	bytes int64
	seen  map[uint64]struct{}
	seed  maphash.Seed
}

func newContentSum() *contentSum {
	return &contentSum{seen: map[uint64]struct{}{}, seed: maphash.MakeSeed()}
}

func (s *contentSum) add(d digest.Digest, size int64) {
	key := maphash.String(s.seed, string(d))
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, twice := s.seen[key]; twice {
		return
	}
	if len(s.seen) < maxCounted {
		s.seen[key] = struct{}{}
	}
	s.bytes += size
}
