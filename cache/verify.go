package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/store"
)

// Where damage is found; a label of the metrics.
const (
	foundOnOpen    = "open"    // before the content was served
	foundOnServing = "serving" // while it was, with its last chunk held back
	foundByScrub   = "scrub"
)

// lostFor is for how long a miss says that what was here had been damaged.
const lostFor = time.Hour

// errDamaged says that stored bytes are not the digest's.
var errDamaged = errors.New("the stored bytes are not the digest's")

// verifier runs the verifications of stored content, one for each digest at a
// time.
type verifier struct {
	// slots bounds those that hash at a time: more would only be slower each.
	slots chan struct{}

	mu      sync.Mutex
	running map[digest.Digest]*verification
}

func newVerifier() *verifier {
	return &verifier{slots: make(chan struct{}, runtime.GOMAXPROCS(0)), running: map[digest.Digest]*verification{}}
}

// verification hashes one stored blob, for all who wait for it.
type verification struct {
	hurried atomic.Bool
	done    chan struct{} // closed at the end; what stands below is then set
	stamp   store.Stamp   // of the file that was read
	err     error         // nil where the bytes are right
}

// wait gives nil when the bytes are right; errDamaged, why they could not be
// read, or ctx's error else.
func (v *verification) wait(ctx context.Context) error {
	select {
	case <-v.done:
		return v.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hurry makes a verification that keeps to a rate do so no more: a client waits
// for it.
func (v *verification) hurry() { v.hurried.Store(true) }

// verifying joins the verification of d's content or begins one, at full speed.
// The cache owns its goroutine.
func (c *Cache) verifying(d digest.Digest, found string) *verification {
	return c.verifyingAt(d, found, nil)
}

// verifyingAt is verifying with a pace that is called for every n bytes read and
// may sleep.
func (c *Cache) verifyingAt(d digest.Digest, found string, pace func(ctx context.Context, n int) error) *verification {
	c.verifier.mu.Lock()
	if v, ok := c.verifier.running[d]; ok {
		c.verifier.mu.Unlock()
		return v
	}
	v := &verification{done: make(chan struct{})}
	c.verifier.running[d] = v
	c.verifier.mu.Unlock()
	end := func() {
		c.verifier.mu.Lock()
		delete(c.verifier.running, d)
		c.verifier.mu.Unlock()
		close(v.done)
	}
	if !c.goOn(func() {
		c.verify(v, d, found, pace)
		end()
		if v.err == nil { // whoever waits does not wait for this
			c.recordVerified(d, v.stamp)
		}
	}) {
		v.err = closing()
		end()
	}
	return v
}

// recordVerified notes in the index that d's file, which looks as stamp says, is
// right. What has been evicted meanwhile gets no record again.
func (c *Cache) recordVerified(d digest.Digest, stamp store.Stamp) {
	c.claim(d)
	defer c.unclaim(d)
	if !c.holds(d) {
		return
	}
	if err := c.index.Verified(d, stamp, time.Now()); err != nil {
		c.disk.failed("write the index", err, 0)
	}
}

// goOn runs f in a goroutine that Close waits for; false where the cache is
// closed.
func (c *Cache) goOn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.work.Go(f)
	return true
}

// verify hashes d's content, and sets it aside where it is damaged.
func (c *Cache) verify(v *verification, d digest.Digest, found string, pace func(context.Context, int) error) {
	select {
	case c.verifier.slots <- struct{}{}:
		defer func() { <-c.verifier.slots }()
	case <-c.ctx.Done():
		v.err = closing()
		return
	}
	file, stamp, err := c.openStored(c.ctx, d)
	if err == nil && file == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		v.err = fmt.Errorf("verify %s: %w", d, err)
		return
	}
	defer file.Close()
	v.stamp = stamp
	right, err := c.hashes(v, file, d, pace)
	switch {
	case c.ctx.Err() != nil:
		v.err = closing()
	case err != nil:
		c.unreadable(d, err)
		v.err = fmt.Errorf("verify %s: %w", d, fill.OnDisk(err))
	case !right:
		c.setAside(d, stamp, found)
		v.err = fmt.Errorf("verify %s: %w", d, errDamaged)
	default:
		c.rememberVerified(d, stamp, time.Now())
	}
}

// hashes tells whether file holds d's bytes.
func (c *Cache) hashes(v *verification, file *os.File, d digest.Digest, pace func(context.Context, int) error) (bool, error) {
	hash := d.Algorithm().Hash()
	buf := fill.Buffers.Get().(*[fill.ReadSize]byte)
	defer fill.Buffers.Put(buf)
	for {
		n, err := file.Read(buf[:])
		hash.Write(buf[:n])
		if err == io.EOF {
			return digest.NewDigest(d.Algorithm(), hash) == d, nil
		}
		if err == nil && pace != nil && !v.hurried.Load() {
			err = pace(c.ctx, n)
		}
		if err == nil {
			err = c.ctx.Err()
		}
		if err != nil {
			return false, err
		}
	}
}
