package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// diskRetry is when a client may come back after the cache's disk has failed.
const diskRetry = 30 * time.Second

// blobFill is a fill that runs, and whom it fetches from.
type blobFill struct {
	*fill
	upstream, repo string
	// gone is closed when the fill has ended and is not found any more.
	gone chan struct{}
}

// over tells whether the fill has failed, and not at the disk: what fails there is
// passed on at once.
func (f *blobFill) over() bool {
	err := f.failure()
	return err != nil && !isOfDisk(err)
}

// awaitGone waits until the fill is not found any more; its error is that ctx has ended.
func (f *blobFill) awaitGone(ctx context.Context) error {
	select {
	case <-f.gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Blob gives the blob that t names by digest: from memory, from disk, or as it
// comes from the upstream, of which it waits for the header. hint is the span that
// will be sent first, or the zero Span: a fetch that begins for it begins there.
// The Blob's Send ends when ctx does. The caller closes it. Errors are as for
// Manifest.
func (c *Cache) Blob(ctx context.Context, t rewrite.Target, hint oci.Span) (Blob, Outcome, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return nil, Outcome{}, err
	}
	if b := c.hotBlob(t); b != nil {
		return b, Outcome{Status: Hit}, nil
	}
	if b := c.hotFile(ctx, t); b != nil {
		return b, Outcome{Status: Hit}, nil
	}
	t = owned(t)
	link, linked := c.link(t.Upstream, t.Repository, t.Digest)
	if linked {
		if b, err := c.keptBlob(ctx, t.Digest, link.Size); b != nil || err != nil {
			c.uses.note(t.Digest, false)
			return b, Outcome{Status: Hit}, err
		}
	}
	k := digestKey("blob:", t)
	if err, ok := c.negative.get(ownAccount, k); ok {
		return nil, Outcome{Status: Negative}, err
	}
	if !linked && !c.filledFor(t) && (c.holds(t.Digest) || c.filling(t.Digest) != nil) {
		// It is here on another repository's account: the upstream says
		// whether this one has it too.
		if link, err = c.confirm(ctx, up, t); err != nil {
			return nil, Outcome{Status: Miss}, err
		}
		if b, err := c.keptBlob(ctx, t.Digest, link.Size); b != nil || err != nil {
			c.uses.note(t.Digest, false)
			return b, Outcome{Status: Revalidated}, err
		}
		linked = true
	}
	if !linked {
		link.Size = -1
	}
	b, st, err := c.fetchBlob(ctx, up, t, wanted{linked: linked, size: link.Size, hint: hint})
	out := Outcome{Status: st}
	if f, ok := b.(*follower); ok && st != Hit {
		out.Forwarded, out.Stored = f.fill.origin()
	}
	return b, out, c.noteWord(k, c.tellLost(t.Digest, err))
}

// Stat gives the size in bytes of the blob that t names by digest. What is not
// there is asked for by HEAD.
func (c *Cache) Stat(ctx context.Context, t rewrite.Target) (int64, Outcome, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return 0, Outcome{}, err
	}
	if b := c.hotBlob(t); b != nil {
		return b.Size(), Outcome{Status: Hit}, nil
	}
	t = owned(t)
	link, linked := c.link(t.Upstream, t.Repository, t.Digest)
	if linked {
		if size, ok, err := c.keptSize(ctx, t.Digest, link.Size); ok || err != nil {
			c.uses.note(t.Digest, false)
			return size, Outcome{Status: Hit}, err
		}
	}
	if f := c.filling(t.Digest); f != nil && (linked || c.filledFor(t)) {
		if size, ok := f.verified(); ok {
			return size, Outcome{Status: Hit}, nil
		}
	}
	k := digestKey("blob:", t)
	if err, ok := c.negative.get(ownAccount, k); ok {
		return 0, Outcome{Status: Negative}, err
	}
	if link, err = c.confirm(ctx, up, t); err != nil {
		return 0, Outcome{Status: Miss}, err
	}
	if link.Size >= 0 {
		return link.Size, Outcome{Status: Miss}, nil
	}
	// An upstream that does not say a size on HEAD may say it on GET.
	b, st, err := c.fetchBlob(ctx, up, t, wanted{linked: true, size: -1, hint: oci.Whole})
	if err != nil {
		return 0, Outcome{Status: st}, err
	}
	defer b.Close()
	return b.Size(), Outcome{Status: st}, nil
}

// confirm asks the upstream by HEAD whether t's repository has t's blob, and
// remembers that it does.
func (c *Cache) confirm(ctx context.Context, up *upstream, t rewrite.Target) (index.Link, error) {
	f, err := share(ctx, c, digestKey("stat:", t), func(ctx context.Context) (index.Link, error) {
		d, err := up.origin.Stat(ctx, t.Repository, t.Digest)
		if err == nil && d.Size < 0 {
			d.Size, err = probe(ctx, up, t)
		}
		if err != nil {
			return index.Link{}, c.noteWord(digestKey("blob:", t), err)
		}
		l, ok := c.link(t.Upstream, t.Repository, t.Digest)
		if !ok {
			l = index.Link{MediaType: d.MediaType, Size: d.Size}
			c.put(index.Change{Upstream: t.Upstream, Repository: t.Repository, Links: map[digest.Digest]index.Link{t.Digest: l}})
		}
		if l.Size < 0 {
			l.Size = d.Size
		}
		return l, nil
	})
	return f.value, err
}

// probe asks for the first byte of t's blob, and gives its size, or -1. It is for
// an upstream whose HEAD says no size: that may come from a registry that sends all
// there is and all there is not to its store, where signatures are for GET only.
func probe(ctx context.Context, up *upstream, t rewrite.Target) (int64, error) {
	if t.Digest.Algorithm().FromBytes(nil) == t.Digest {
		return 0, nil // it has no first byte, and is no secret
	}
	body, err := up.origin.Blob(ctx, t.Repository, t.Digest, oci.Span{From: 0, To: 1})
	if err != nil {
		return -1, err
	}
	return body.Size, body.Close()
}

// filling gives the running fill of d, or nil.
func (c *Cache) filling(d digest.Digest) *blobFill {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fills[d]
}

// filledFor tells whether t's blob has just been fetched, all of it, on the account
// of t's repository, and only the disk is behind.
func (c *Cache) filledFor(t rewrite.Target) bool {
	f := c.filling(t.Digest)
	if f == nil || f.upstream != t.Upstream || f.repo != t.Repository {
		return false
	}
	_, ok := f.verified()
	return ok
}

// wanted is what is known of a blob before it is fetched.
type wanted struct {
	// linked is set where its repository may have it whoever fetched it.
	linked bool
	// size is what a manifest says it is, or -1.
	size int64
	// hint is the span that is wanted first.
	hint oci.Span
}

// fetchBlob joins the fill of t's blob or begins it, and waits until its size
// is known. Where the disk fails, the blob is passed on instead.
func (c *Cache) fetchBlob(ctx context.Context, up *upstream, t rewrite.Target, w wanted) (Blob, Status, error) {
	for tries := 1; ; tries++ {
		f, mine, err := c.join(up, t, w)
		if err != nil {
			return nil, Miss, err
		}
		if f != nil && !mine && f.over() {
			// Its failure was told to those who waited for it. Who comes after it
			// has the upstream asked again, once that fill has given up the part.
			if err := f.awaitGone(ctx); err != nil {
				return nil, Collapsed, err
			}
			continue
		}
		if !w.linked && (f == nil || f.upstream != t.Upstream || f.repo != t.Repository) {
			// It has come since Blob looked, on another repository's account.
			if _, err := c.confirm(ctx, up, t); err != nil {
				return nil, Miss, err
			}
			w.linked = true
		}
		if f == nil {
			if b, err := c.keptBlob(ctx, t.Digest, w.size); b != nil || err != nil {
				return b, Hit, err
			}
			continue // stored, and gone or damaged since
		}
		_, here := f.verified()
		if w.hint.From == 0 {
			// Who reads pieces here and there does not want the whole image.
			c.prefetch(up, t)
		}
		told, err := f.ready(ctx)
		if err == nil {
			var b *follower
			if b, err = follow(ctx, f.fill, told); err == nil {
				b.pass = &passage{ctx: ctx, cache: c, up: up, target: t, size: told}
				if here && !mine {
					return b, Hit, nil
				}
				return b, status(mine), nil
			}
		}
		// It may have been all there, and be evicted already.
		evicted := errors.Is(err, fs.ErrNotExist) && tries < maxTries
		switch {
		case ctx.Err() != nil:
			return nil, status(mine), err
		case !evicted && isOfDisk(err):
			size := max(w.size, told)
			c.disk.failed("keep a blob", err, size)
			p, err := c.passOn(ctx, up, t, size, w.hint, err)
			if err != nil {
				return nil, Miss, fillError(t, err)
			}
			return p, Miss, nil
		case !evicted && (mine || f.upstream == t.Upstream && f.repo == t.Repository):
			return nil, status(mine), fillError(t, err)
		}
		// Or another repository's fetch has failed. This one's may do better,
		// once that has given up the part.
		if err := f.awaitGone(ctx); err != nil {
			return nil, Collapsed, err
		}
	}
}

// join gives the running fill of t's blob, or begins one; nil where the blob is
// stored by now.
func (c *Cache) join(up *upstream, t rewrite.Target, w wanted) (f *blobFill, mine bool, err error) {
	unfit := c.isUnfit(t.Digest)
	c.mu.Lock()
	defer c.mu.Unlock()
	// What is being evicted is gone in a moment.
	c.awaitClaim(t.Digest)
	if c.closed {
		return nil, false, closing()
	}
	if f, ok := c.fills[t.Digest]; ok {
		return f, false, nil
	}
	// A fill is taken off the map after its content has its name, so that
	// what was filled a moment ago is seen here.
	if _, stored := c.store.Has(t.Digest); stored && !unfit {
		return nil, false, nil
	}
	f = &blobFill{
		fill:     newFill(c.fillTask(up, t, w)),
		upstream: t.Upstream, repo: t.Repository,
		gone: make(chan struct{}),
	}
	c.fills[t.Digest] = f
	c.metrics.FillsInFlight.Inc()
	c.work.Go(func() { c.runFill(f, up, t) })
	c.evictor.soon()
	return f, true, nil
}

// maxUnsized is the most that is taken of a blob of which neither a manifest nor
// its upstream tells the size.
const maxUnsized = 8 << 30

// mostUnsized gives that bound in this cache: not so much that an upstream that
// never ends could push out all else.
func (c *Cache) mostUnsized() int64 {
	if b := c.settings().MaxSize.Bytes; b > 0 {
		return min(maxUnsized, b/4)
	}
	return maxUnsized
}

func (c *Cache) fillTask(up *upstream, t rewrite.Target, w wanted) fillTask {
	return fillTask{
		digest: t.Digest,
		size:   w.size,
		most:   c.mostUnsized(),
		first:  w.hint.From,
		begin: func() (part, store.Spans, int64, error) {
			p, have, size, err := c.store.Part(t.Digest)
			if err != nil {
				return nil, store.Spans{}, -1, &diskError{err}
			}
			if err := c.wantRoom(max(w.size, size) - have.Len()); err != nil {
				return nil, store.Spans{}, -1, errors.Join(&diskError{err}, p.Discard())
			}
			if !w.linked && size > 0 && have.Reach(0) >= size {
				// All was fetched, for whichever repository. This one's upstream
				// is asked for the last byte, and so whether it has the blob.
				have = store.Spans{}
				have.Add(0, size-1)
			}
			return p, have, size, nil
		},
		open: func(ctx context.Context, span oci.Span) (*oci.Body, error) {
			return up.origin.Blob(ctx, t.Repository, t.Digest, span)
		},
		record: func(size int64) {
			change := index.Change{Upstream: t.Upstream, Repository: t.Repository, Blobs: c.recordOf(t.Digest)}
			if rec, ok := change.Blobs[t.Digest]; ok {
				c.rememberVerified(t.Digest, rec.Stamp, rec.Verified)
			}
			if l, ok := c.link(t.Upstream, t.Repository, t.Digest); !ok || l.Size != size {
				l.Size = size
				change.Links = map[digest.Digest]index.Link{t.Digest: l}
			}
			c.put(change)
		},
		resumed: func() { c.metrics.FillResumes.WithLabelValues(t.Upstream).Inc() },
		mismatched: func() {
			c.metrics.DigestMismatches.WithLabelValues(t.Upstream).Inc()
			c.log.Error("an upstream sent bytes that are not the digest's", zap.Stringer("reference", t))
		},
	}
}

// runFill runs f to its end, once there is a place for it, and takes it off the
// map. The cache owns it.
func (c *Cache) runFill(f *blobFill, up *upstream, t rewrite.Target) {
	leave, err := c.admit(up)
	if err == nil {
		err = f.run(c.ctx)
		leave()
	} else {
		f.end(err)
	}
	c.mu.Lock()
	delete(c.fills, t.Digest)
	c.mu.Unlock()
	close(f.gone)
	c.evictor.soon()

	result := "ok"
	switch {
	case err == nil:
	case errors.Is(err, errMismatch):
		result = "mismatch"
	case c.ctx.Err() != nil:
		result = "canceled"
	default:
		result = "error"
		if isOfDisk(err) {
			c.disk.failed("keep a blob", err, max(0, f.size))
		} else if !oci.IsAbsent(err) {
			c.log.Warn("a blob could not be fetched", zap.Stringer("reference", t), zap.Error(err))
		}
	}
	c.metrics.FillsInFlight.Dec()
	c.metrics.Fills.WithLabelValues(t.Upstream, result).Inc()
}

// roomPatience is how long a fetch waits for the evictor to make room.
const roomPatience = time.Second

// wantRoom tells, as an error, whether the disk has no room for so many bytes,
// and the evictor makes none at once.
func (c *Cache) wantRoom(bytes int64) error {
	for begun := time.Now(); ; {
		free, _, err := c.store.Room()
		if bytes <= 0 || err != nil || free >= bytes {
			return nil // what can not be told beforehand is found out
		}
		if c.settings().MaxSize == (Room{}) || c.disk.isDegraded() || time.Since(begun) > roomPatience {
			return fmt.Errorf("%d bytes are wanted and %d are free: %w", bytes, free, syscall.ENOSPC)
		}
		c.evictor.soon()
		select {
		case <-time.After(50 * time.Millisecond):
		case <-c.ctx.Done():
			return closing()
		}
	}
}

// fillError says for a client why t's blob can not be had.
func fillError(t rewrite.Target, err error) error {
	var e *oci.Error
	var disk *diskError
	switch {
	case errors.As(err, &disk):
		return &oci.Error{
			Code:       oci.CodeUnavailable,
			Message:    fmt.Sprintf("%s can not be fetched because the cache's disk fails: see the proxy's log, and its disk", t),
			RetryAfter: diskRetry, Err: err,
		}
	case errors.As(err, &e):
		return err
	case errors.Is(err, errClosing):
		return closing()
	case errors.Is(err, errMismatch):
		return &oci.Error{
			Code: oci.CodeUnavailable, Status: 502,
			Message: fmt.Sprintf("what %s sent for %s is not what the digest says; nothing of it was kept", t.Upstream, t), Err: err,
		}
	default:
		return &oci.Error{
			Code: oci.CodeUnavailable, Status: 502,
			Message: fmt.Sprintf("%s broke off while it sent %s, and again when it was asked for the rest", t.Upstream, t), Err: err,
		}
	}
}
