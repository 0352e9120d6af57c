package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	link, linked := c.link(t.Upstream, t.Repository, t.Digest)
	if linked {
		if b, ok := c.keptBlob(t.Digest); ok {
			return b, Outcome{Status: Hit}, nil
		}
	}
	k := digestKey("blob:", t)
	if err, ok := c.negative.get(k); ok {
		return nil, Outcome{Status: Negative}, err
	}
	if !linked && (c.holds(t.Digest) || c.filling(t.Digest) != nil) {
		// It is here on another repository's account: the upstream says
		// whether this one has it too.
		if link, err = c.confirm(ctx, up, t); err != nil {
			return nil, Outcome{Status: Miss}, err
		}
		if b, ok := c.keptBlob(t.Digest); ok {
			return b, Outcome{Status: Revalidated}, nil
		}
		linked = true
	}
	if !linked {
		link.Size = -1
	}
	b, st, err := c.fetchBlob(ctx, up, t, link.Size, hint.From)
	return b, Outcome{Status: st}, c.noteAbsent(k, err)
}

// Stat gives the size in bytes of the blob that t names by digest. What is not
// there is asked for by HEAD.
func (c *Cache) Stat(ctx context.Context, t rewrite.Target) (int64, Outcome, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return 0, Outcome{}, err
	}
	if _, ok := c.link(t.Upstream, t.Repository, t.Digest); ok {
		if b, ok := c.memory.blob(t.Digest); ok {
			return int64(len(b)), Outcome{Status: Hit}, nil
		}
		if size, ok := c.store.Has(t.Digest); ok {
			return size, Outcome{Status: Hit}, nil
		}
	}
	k := digestKey("blob:", t)
	if err, ok := c.negative.get(k); ok {
		return 0, Outcome{Status: Negative}, err
	}
	link, err := c.confirm(ctx, up, t)
	if err != nil {
		return 0, Outcome{Status: Miss}, err
	}
	if link.Size >= 0 {
		return link.Size, Outcome{Status: Miss}, nil
	}
	// An upstream that does not say a size on HEAD may say it on GET.
	b, st, err := c.fetchBlob(ctx, up, t, -1, 0)
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
		if err != nil {
			return index.Link{}, c.noteAbsent(digestKey("blob:", t), err)
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

// keptBlob gives the blob of d from memory or disk.
func (c *Cache) keptBlob(d digest.Digest) (Blob, bool) {
	if b, ok := c.memory.blob(d); ok {
		return memoryBlob(b), true
	}
	file, size, err := c.store.Get(d)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.log.Error("a stored blob could not be opened", zap.Stringer("digest", d), zap.Error(err))
		}
		return nil, false
	}
	b := &storedBlob{file: file, size: size}
	if size > smallBlob {
		return b, true
	}
	content, err := readSmall(b)
	if err != nil || d.Algorithm().FromBytes(content) != d {
		// The disk has lost it; it is fetched again.
		c.log.Warn("a stored blob is damaged and is fetched again", zap.Stringer("digest", d), zap.Error(err))
		if err := errors.Join(b.Close(), c.store.Remove(d)); err == nil {
			c.noteRemoved(d, size)
		}
		return nil, false
	}
	b.Close()
	c.memory.setBlob(d, content)
	return memoryBlob(content), true
}

// filling gives the running fill of d, or nil.
func (c *Cache) filling(d digest.Digest) *blobFill {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fills[d]
}

// fetchBlob joins the fill of t's blob or begins it, and waits until its size
// is known. size is what a manifest says it is, or -1; first is the byte that is
// wanted first.
func (c *Cache) fetchBlob(ctx context.Context, up *upstream, t rewrite.Target, size, first int64) (Blob, Status, error) {
	for {
		f, mine, err := c.join(up, t, size, first)
		if err != nil {
			return nil, Miss, err
		}
		if f == nil {
			if b, ok := c.keptBlob(t.Digest); ok {
				return b, Hit, nil
			}
			continue // stored, and gone or damaged since
		}
		size, err := f.ready(ctx)
		if err == nil {
			b, err := follow(ctx, f.fill, size)
			if err != nil {
				return nil, status(mine), fillError(t, err)
			}
			return b, status(mine), nil
		}
		if ctx.Err() != nil {
			return nil, status(mine), err
		}
		if mine || f.upstream == t.Upstream && f.repo == t.Repository {
			return nil, status(mine), fillError(t, err)
		}
		// Another repository's fetch has failed. This one's may do better,
		// once that has given up the part.
		select {
		case <-f.gone:
		case <-ctx.Done():
			return nil, Collapsed, context.Cause(ctx)
		}
	}
}

// join gives the running fill of t's blob, or begins one; nil where the blob is
// stored by now.
func (c *Cache) join(up *upstream, t rewrite.Target, size, first int64) (f *blobFill, mine bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false, closing()
	}
	if f, ok := c.fills[t.Digest]; ok {
		return f, false, nil
	}
	// A fill is taken off the map after its content has its name, so that
	// what was filled a moment ago is seen here.
	if c.holds(t.Digest) {
		return nil, false, nil
	}
	f = &blobFill{
		fill:     newFill(c.fillTask(up, t, size, first)),
		upstream: t.Upstream, repo: t.Repository,
		gone: make(chan struct{}),
	}
	c.fills[t.Digest] = f
	c.metrics.FillsInFlight.Inc()
	c.work.Go(func() { c.runFill(f, t) })
	return f, true, nil
}

func (c *Cache) fillTask(up *upstream, t rewrite.Target, size, first int64) fillTask {
	return fillTask{
		digest: t.Digest,
		size:   size,
		first:  first,
		begin: func() (part, store.Spans, int64, error) {
			p, have, size, err := c.store.Part(t.Digest)
			if err != nil {
				return nil, store.Spans{}, -1, &diskError{err}
			}
			return p, have, size, nil
		},
		open: func(ctx context.Context, span oci.Span) (*oci.Body, error) {
			return up.origin.Blob(ctx, t.Repository, t.Digest, span)
		},
		record: func(size int64) {
			c.noteStored(t.Digest, size)
			change := index.Change{Upstream: t.Upstream, Repository: t.Repository, Blobs: c.recordOf(t.Digest)}
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

// runFill runs f to its end and takes it off the map. The cache owns it.
func (c *Cache) runFill(f *blobFill, t rewrite.Target) {
	err := f.run(c.ctx)
	c.mu.Lock()
	delete(c.fills, t.Digest)
	c.mu.Unlock()
	close(f.gone)

	result := "ok"
	switch {
	case err == nil:
	case errors.Is(err, errMismatch):
		result = "mismatch"
	case c.ctx.Err() != nil:
		result = "canceled"
	default:
		result = "error"
		if !oci.IsAbsent(err) {
			c.log.Warn("a blob could not be fetched", zap.Stringer("reference", t), zap.Error(err))
		}
	}
	c.metrics.FillsInFlight.Dec()
	c.metrics.Fills.WithLabelValues(t.Upstream, result).Inc()
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
