package cache

import (
	"context"
	"errors"
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
	if !c.restore() {
		return
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
	if _, err := c.index.Usage(func() bool { return c.ctx.Err() != nil }); err != nil {
		c.log.Warn("what each upstream has stored could not be counted", zap.Error(err))
	}
	if added+dropped > 0 {
		blobs, bytes := c.index.Totals()
		c.log.Info("the index agrees with what is stored again", zap.Int("found", added), zap.Int("lost", dropped),
			zap.Int64("blobs", blobs), zap.Int64("bytes", bytes), zap.Duration("took", time.Since(begun)))
	}
}

// restoreAgain is how soon a restore that failed is tried again.
const restoreAgain = 5 * time.Second

// restore restores an index that was begun anew, and tries again until all is back that can
// be. It returns false if the cache is closed before.
func (c *Cache) restore() bool {
	if c.index.Whole() {
		return true
	}
	begun := time.Now()
	for !c.index.Whole() {
		restored, err := c.index.Restore()
		switch {
		case err != nil:
			c.log.Warn("index not restored in full", zap.Int("restored", restored), zap.Error(err))
		case restored > 0:
			c.log.Info("index restored", zap.Int("restored", restored), zap.Duration("took", time.Since(begun)))
		}
		if c.index.Whole() {
			break
		}
		c.unrestored.Store(true)
		select {
		case <-time.After(restoreAgain):
		case <-c.ctx.Done():
			return false
		}
	}
	c.unrestored.Store(false)
	return true
}

// Restoring tells whether the index was lost and is being restored: until that is done, much
// of what is cached isn't known. It is false once a restore has failed, because clients may
// then be sent here as well as later.
func (c *Cache) Restoring() bool { return !c.index.Whole() && !c.unrestored.Load() }

// indexPatience bounds how long a request waits for the index to be restored.
const indexPatience = 20 * time.Second

// errIndexRestoring is the answer for what may be cached, for all that is known.
var errIndexRestoring = &oci.Error{Code: oci.CodeUnavailable, Status: 503, RetryAfter: 5 * time.Second,
	Message: "the cache's index was lost and is being restored: whether this is cached isn't known yet; try again in a moment"}

// knowledge is what a request knew of the index when it began.
type knowledge struct {
	whole  bool
	losses uint64
}

// known returns what a request that begins now may rely on.
func (c *Cache) known() knowledge { return knowledge{c.index.Whole(), c.losses.Load()} }

// stillKnows reports whether the index was whole all the time since a request began with
// k: what the request didn't find in it isn't cached. Otherwise that an upstream denies
// something says nothing about what is cached, and must neither be remembered nor remove
// anything.
func (c *Cache) stillKnows(k knowledge) bool {
	return k.whole && c.index.Whole() && c.losses.Load() == k.losses
}

// maxJudged is how often a request is judged anew if the index is lost again each time.
const maxJudged = 3

// judgeAnew takes the answer to a request that failed with err and began with k, and asks
// again, by ask, as long as the failure may be due to a lost index. It returns the last
// answer; if each one is in doubt, the error is errIndexRestoring.
func judgeAnew[V any](ctx context.Context, c *Cache, k knowledge, v V, out Outcome, err error, ask func() (V, Outcome, error)) (V, Outcome, error) {
	for judged := 0; err != nil; judged++ {
		var again bool
		if again, err = c.doubtful(ctx, k, err); !again {
			break
		}
		if judged == maxJudged {
			return v, out, errIndexRestoring
		}
		k = c.known()
		v, out, err = ask()
	}
	return v, out, err
}

// doubtful tells whether err, with which a request ended that began with k, may be due to an
// index that was lost. It then waits for the index, and the caller tries again; its error, if
// the index isn't restored in time, is the answer. An upstream that fails or denies what isn't
// known to be cached is no reason to say that it doesn't exist.
func (c *Cache) doubtful(ctx context.Context, k knowledge, err error) (again bool, _ error) {
	if err == nil || ctx.Err() != nil || c.stillKnows(k) {
		return false, err
	}
	if code := codeOf(err); code == "" || errors.Is(err, errClosing) {
		return false, err
	}
	waiting, cancel := context.WithTimeout(ctx, indexPatience)
	defer cancel()
	if c.index.AwaitWhole(waiting) == nil {
		return true, nil
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	return false, errIndexRestoring
}

// codeOf returns the code of an *oci.Error; empty if err is none.
func codeOf(err error) oci.Code {
	var e *oci.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
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
