package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// unfitFor is for how long a stored file that the disk can not read is
	// passed over.
	unfitFor = time.Minute
	// filesPatience is about how long a request waits for others to close
	// their files when the process may open no more.
	filesPatience = 2 * time.Second
	// maxTouches is how often a file that something keeps touching is verified
	// before it is sent; then it is verified while it is.
	maxTouches = 2
)

// verified says how the file of a blob looked when its bytes were last found to
// be the digest's.
type verified struct {
	stamp store.Stamp
	at    time.Time
}

// keptBlob gives the blob of d from memory or disk, nil where it is not there.
// Small content is verified as it is read; of other content the file must look
// as it did when it was verified, else it is verified again first, and dropped
// where it is damaged. size is what a link says it has, or -1. Errors are ctx's,
// and that the process may open no more files.
func (c *Cache) keptBlob(ctx context.Context, d digest.Digest, size int64) (Blob, error) {
	content, small, known := c.memory.blob(d)
	if small {
		return memoryBlob(content), nil
	}
	for try := 1; ; try++ {
		file, stamp, err := openBy(ctx, c, d, c.store.Share)
		if file == nil || err != nil {
			return nil, err
		}
		b := storedBlobs.Get().(*storedBlob)
		*b = storedBlob{ctx: ctx, cache: c, digest: d, file: file, size: stamp.Size}
		if stamp.Size <= smallBlob {
			return c.readVerified(b, stamp)
		}
		if known == nil {
			known = c.recall(d)
		}
		switch {
		case known == nil && c.committing(d) != nil:
			// It has its name since a moment, and its record not yet: who
			// follows the fill need not verify it again.
			return nil, b.Close()
		case known == nil && (size < 0 || size == stamp.Size):
			b.unverified = true // the index has forgotten it
			return b, nil
		case known != nil && known.stamp != stamp && try > maxTouches:
			b.unverified = true
			return b, nil
		case known != nil && known.stamp == stamp:
			b.unverified = c.isDue(known)
			return b, nil
		}
		// Something has touched it, or cut it short.
		if err := b.Close(); err != nil {
			return nil, err
		}
		v := c.verifying(d, foundOnOpen)
		v.hurry()
		switch err := v.wait(ctx); {
		case err == nil:
		case errors.Is(err, errDamaged), errors.Is(err, fs.ErrNotExist), fill.IsDiskError(err):
			return nil, nil // it has been said, and it is not there any more
		default:
			return nil, err
		}
		known = &verified{stamp: v.stamp, at: time.Now()}
	}
}

// keptSize gives the size of the blob of d as keptBlob would give it. It brings a
// small one into memory, as that does.
func (c *Cache) keptSize(ctx context.Context, d digest.Digest, size int64) (int64, bool, error) {
	content, small, known := c.memory.blob(d)
	if small {
		return int64(len(content)), true, nil
	}
	stamp, err := c.store.Stamp(d)
	if err != nil || c.isUnfit(d) {
		return 0, false, nil
	}
	if known == nil && stamp.Size > smallBlob {
		known = c.recall(d)
	}
	if known != nil && known.stamp == stamp {
		return stamp.Size, true, nil
	}
	b, err := c.keptBlob(ctx, d, size)
	if b == nil || err != nil {
		return 0, false, err
	}
	return b.Size(), true, b.Close()
}

// recall gives what the index knows of when d's content was verified; nil for
// nothing.
func (c *Cache) recall(d digest.Digest) *verified {
	rec, ok := c.index.Blob(d)
	if !ok {
		return nil
	}
	v := &verified{stamp: rec.Stamp, at: rec.Verified}
	c.memory.recallVerified(d, v)
	return v
}

// openStored opens the content of d for one reader; nil where it is not stored or
// can not be read.
func (c *Cache) openStored(ctx context.Context, d digest.Digest) (*os.File, store.Stamp, error) {
	return openBy(ctx, c, d, c.store.Get)
}

// openBy opens the content of d by open, of which it gives the zero F where d is
// not stored or can not be read. When the process may open no more files, it waits
// a little for one.
func openBy[F any](ctx context.Context, c *Cache, d digest.Digest, open func(digest.Digest) (F, store.Stamp, error)) (none F, _ store.Stamp, _ error) {
	if c.isUnfit(d) {
		return none, store.Stamp{}, nil
	}
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		file, stamp, err := open(d)
		switch {
		case err == nil:
			return file, stamp, nil
		case errors.Is(err, fs.ErrNotExist):
			return none, stamp, nil
		case causeOf(err) != causeFiles:
			c.disk.failed("open a stored blob", err, 0)
			pass := unfitFor
			if c.noteDenied(d, err) {
				pass = deniedFor
			}
			c.unfit.put(d.String(), struct{}{}, pass)
			return none, stamp, nil
		case wait > filesPatience:
			c.disk.failed("open a stored blob", err, 0)
			return none, stamp, &oci.Error{
				Code: oci.CodeUnavailable, Message: "the proxy has too many files open: ask again in a moment",
				RetryAfter: 5 * time.Second, Err: err,
			}
		}
		c.store.CloseIdle()
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return none, store.Stamp{}, context.Cause(ctx)
		}
	}
}

// readVerified gives what b, which is small, holds, and closes it; nil where
// that is damaged.
func (c *Cache) readVerified(b *storedBlob, stamp store.Stamp) (Blob, error) {
	defer b.Close()
	content, err := readSmall(b)
	switch {
	case err != nil:
		c.unreadable(b.digest, err)
		return nil, nil
	case b.digest.Algorithm().FromBytes(content) != b.digest:
		c.setAside(b.digest, stamp, foundOnOpen)
		return nil, nil
	}
	c.memory.setBlob(b.digest, content)
	return memoryBlob(content), nil
}

// unreadable notes that the disk does not give d's content, which may well be
// right: it is passed over for a while, and replaced if it can be fetched.
func (c *Cache) unreadable(d digest.Digest, err error) {
	c.disk.failed("read a stored blob", err, 0)
	c.unfit.put(d.String(), struct{}{}, unfitFor)
}

// isUnfit tells whether what is stored of d must not be served.
func (c *Cache) isUnfit(d digest.Digest) bool {
	_, ok := c.unfit.get(string(d))
	return ok
}

// setAside takes damaged content out of the store. seen is how its file looked
// when it was read. It is never served again, also where the disk does not let
// go of it.
func (c *Cache) setAside(d digest.Digest, seen store.Stamp, found string) {
	c.metrics.Damaged.WithLabelValues(found).Inc()
	c.memory.dropBlob(d)
	c.lost.put(string(d), struct{}{}, lostFor)
	c.claim(d)
	defer c.unclaim(d)
	err := c.store.SetAside(d, seen)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, store.ErrChanged):
		return
	case err != nil:
		c.unfit.put(string(d), struct{}{}, lostFor)
		c.disk.failed("set damaged content aside", err, 0)
	default:
		c.noteRemoved(d)
	}
	c.log.Warn("stored content is damaged: it has been set aside and is fetched again",
		zap.Stringer("digest", d), zap.String("found", found), zap.Error(err))
}

// tellLost says in an offline proxy's error that content is missing for it was
// damaged.
func (c *Cache) tellLost(d digest.Digest, err error) error {
	if _, lost := c.lost.get(string(d)); !lost || !errors.Is(err, errOffline) {
		return err
	}
	return &oci.Error{
		Code: oci.CodeUnavailable,
		Message: fmt.Sprintf("what was stored of %s was damaged and has been set aside, and the proxy is offline: "+
			"import a bundle that has it, or set cache.offline: false and pull it once", d),
		Err: err,
	}
}

// rememberVerified keeps in memory when content too large for memory was
// verified.
func (c *Cache) rememberVerified(d digest.Digest, stamp store.Stamp, at time.Time) {
	c.unfit.drop(string(d))
	c.lost.drop(string(d))
	if stamp.Size > smallBlob {
		c.memory.setVerified(d, &verified{stamp: stamp, at: at})
	}
}
