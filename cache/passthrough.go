package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// maxPassages bounds the clients that are passed something on at a time:
	// each costs a request to its upstream, and about 320 KiB of memory.
	maxPassages = 32
	// passagePatience is how long a request waits for others' passages to end.
	passagePatience = 5 * time.Second
)

// passage passes a blob on to one client without keeping it, because the cache's
// disk fails. It is verified all the same: whatever of its last chunk is asked for
// is held back, in memory, until the whole has been hashed, for which a range that
// reaches there is read from the blob's first byte on. It is for one goroutine.
type passage struct {
	ctx    context.Context
	cache  *Cache
	up     *upstream
	target oci.Target
	size   int64 // -1 until the upstream has told it

	// content is the whole where it is small; it is verified.
	content []byte
	// kept, where it is set, holds the blob's first have bytes, which need not
	// be asked for again.
	kept io.ReaderAt
	have int64

	holds  bool // one of the cache's passages
	opened bool // the upstream has begun to send
	body   *oci.Body
	at     int64 // where body stands
}

// passOn begins to pass t's blob on, of which span will be sent; why is what the
// disk said. It waits for the upstream's answer, so that what can not be had is an
// error. The caller closes it.
func (c *Cache) passOn(ctx context.Context, up *upstream, t oci.Target, size int64, span oci.Span, why error) (*passage, error) {
	p := &passage{ctx: ctx, cache: c, up: up, target: t, size: size}
	if err := p.enter(passagePatience); err != nil {
		return nil, err
	}
	first := span.From
	if span.To == oci.Open || size < 0 || span.To > size-fill.Withheld {
		first = 0
	}
	to := span.To
	if to == oci.Open || first == 0 {
		to = size
	}
	if err := p.open(first, to); err != nil {
		p.Close()
		return nil, err
	}
	if p.size < 0 {
		p.Close()
		return nil, fill.OnDisk(why) // without a size there is no header to send
	}
	if p.size <= fill.Withheld {
		if err := p.readAll(); err != nil {
			p.Close()
			return nil, err
		}
	}
	return p, nil
}

// SendRest sends the bytes in [from, to) to w, after the disk has failed a fill. kept is the
// fill's file, which has the blob's first have bytes.
func (p *passage) SendRest(w io.Writer, from, to int64, kept io.ReaderAt, have int64) (int64, error) {
	if err := p.enter(0); err != nil {
		return 0, err
	}
	p.kept, p.have = kept, have
	return p.send(w, from, to)
}

// enter takes one of the cache's passages, of which there is a bound, and waits
// for it; for ever where patience is zero.
func (p *passage) enter(patience time.Duration) error {
	var after <-chan time.Time
	if patience > 0 {
		t := time.NewTimer(patience)
		defer t.Stop()
		after = t.C
	}
	select {
	case p.cache.passages <- struct{}{}:
		p.holds = true
		p.cache.metrics.PassedOn.WithLabelValues(p.target.Upstream).Inc()
		return nil
	case <-after:
		return &oci.Error{
			Code: oci.CodeUnavailable,
			Message: fmt.Sprintf("%s can't be cached just now, because the disk fails or what is being fetched fills it, "+
				"and too many clients are served without the cache already: ask again in a moment", p.target),
			RetryAfter: diskRetry,
		}
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

func (p *passage) Size() int64 { return p.size }

func (p *passage) Close() error {
	p.closeBody()
	if p.holds {
		p.holds = false
		<-p.cache.passages
	}
	return nil
}

func (p *passage) closeBody() {
	if p.body != nil {
		_ = p.body.Close() // nothing more is wanted of it
		p.body = nil
	}
}

// readAll reads and verifies what is small, and keeps it in memory.
func (p *passage) readAll() error {
	content := make([]byte, 0, p.size)
	_, err := p.send(appender{&content}, 0, p.size)
	if err != nil {
		return err
	}
	p.content = content
	if p.size <= smallBlob {
		t := p.target
		p.cache.memory.setBlob(t.Digest, content)
		l, _ := p.cache.records.Link(t)
		l.Size, l.Proof = p.size, index.Fetched
		p.cache.put(index.Change{Upstream: t.Upstream, Repository: t.Repository, Links: map[digest.Digest]index.Link{t.Digest: l}})
	}
	return p.Close()
}

type appender struct{ b *[]byte }

func (a appender) Write(b []byte) (int, error) {
	*a.b = append(*a.b, b...)
	return len(b), nil
}

// Prepare is false if the upstream has to be asked: nothing is stored between two spans.
func (p *passage) Prepare([]oci.Span) bool { return p.content != nil }

// Send sends span as Blob says.
func (p *passage) Send(w io.Writer, span oci.Span) (int64, error) {
	if p.content != nil {
		return memoryBlob(p.content).Send(w, span)
	}
	return p.send(w, span.From, fill.End(span, p.size))
}

// send sends the bytes in [from, to) to w.
func (p *passage) send(w io.Writer, from, to int64) (sent int64, err error) {
	most := p.size - fill.Withheld
	at, goal := from, to
	whole := to > most
	if whole {
		at, goal = 0, p.size
	}
	hash := p.target.Digest.Algorithm().Hash()
	var held []byte
	buf := fill.Buffers.Get().(*[fill.ReadSize]byte)
	defer fill.Buffers.Put(buf)
	for at < goal {
		n, err := p.next(buf[:], at, goal)
		if err != nil {
			return sent, err
		}
		b := buf[:n]
		hash.Write(b)
		// What of b is asked for, and what of that may go now.
		first, last := max(from, at), min(to, at+int64(n))
		if first < last {
			b = b[first-at : last-at]
			now := b[:max(0, min(int64(len(b)), most-first))]
			held = append(held, b[len(now):]...)
			if len(now) > 0 {
				n, err := w.Write(now)
				sent += int64(n)
				if err != nil {
					return sent, err
				}
			}
		}
		at += int64(n)
	}
	if whole && digest.NewDigest(p.target.Digest.Algorithm(), hash) != p.target.Digest {
		return sent, p.mismatch()
	}
	n, err := w.Write(held)
	return sent + int64(n), err
}

// mismatch tells of bytes that are not the digest's.
func (p *passage) mismatch() error {
	err := fmt.Errorf("%s: %w", p.target.Digest, fill.ErrMismatch)
	if p.kept != nil {
		return err // they may have been the disk's
	}
	p.cache.metrics.DigestMismatches.WithLabelValues(p.target.Upstream).Inc()
	p.cache.log.Error("an upstream sent bytes that are not the digest's", zap.Stringer("reference", p.target))
	if p.body != nil && p.body.Refuse != nil {
		p.body.Refuse()
	}
	return err
}

// next reads some bytes at off, of those up to goal: from what is kept, else from
// the upstream. What breaks off is resumed.
func (p *passage) next(buf []byte, off, goal int64) (int, error) {
	if off < p.have {
		if n, _ := p.kept.ReadAt(buf[:min(int64(len(buf)), p.have-off)], off); n > 0 {
			return n, nil
		}
		p.have = off // the disk does not give it
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = 200 * time.Millisecond
	pause.MaxInterval = 5 * time.Second
	for try := 1; ; try++ {
		err := p.open(off, goal)
		if err == nil {
			n, rerr := p.body.Read(buf[:min(int64(len(buf)), goal-off)])
			p.at += int64(n)
			if n > 0 {
				return n, nil
			}
			err = fmt.Errorf("read at byte %d: %w", off, fill.Unexpected(rerr))
			p.closeBody()
		}
		if p.ctx.Err() != nil {
			return 0, context.Cause(p.ctx)
		}
		if try == fill.MaxTries || !p.opened || oci.IsAbsent(err) {
			return 0, err
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-p.ctx.Done():
			return 0, context.Cause(p.ctx)
		}
	}
}

// open sees to it that body stands at off. It is asked for up to goal; to the
// end where that is the size, or the size is not known.
func (p *passage) open(off, goal int64) error {
	if p.body != nil && p.at == off {
		return nil
	}
	p.closeBody()
	ask := oci.Span{From: off, To: goal}
	if goal < 0 || goal == p.size {
		ask.To = oci.Open
	}
	body, err := p.up.origin.Blob(p.ctx, p.target.Repository, p.target.Digest, ask)
	if err != nil {
		return err
	}
	if p.size < 0 {
		p.size = body.Size
	}
	skip := off - body.Span.From
	if skip < 0 || body.Size >= 0 && body.Size != p.size {
		err := oci.Errorf(oci.CodeUnavailable, "%s sent another span of %s than it was asked for", body.Source, p.target)
		err.Status = 502
		return errors.Join(err, body.Close())
	}
	if _, err := io.CopyN(io.Discard, body, skip); err != nil {
		_ = body.Close() // it has failed already
		return fmt.Errorf("skip %d bytes: %w", skip, fill.Unexpected(err))
	}
	p.body, p.at, p.opened = body, off, true
	return nil
}
