package cache

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// fallback sends what is left of a blob without the disk, after that has failed the fill.
type fallback interface {
	// sendRest sends the bytes in [from, to) to w. kept has the blob's first have bytes, which
	// need not be fetched again.
	sendRest(w io.Writer, from, to int64, kept io.ReaderAt, have int64) (int64, error)
	Close() error
}

// follower is a reader of a fill: it sends what is there, sleeps where it
// reaches the end of that, and is sent on when more has come.
type follower struct {
	ctx  context.Context
	fill *fill
	file store.Reader
	size int64
	// attached is set if the fill counts it.
	attached bool
	// prepared is set if the fill knows what this reader will wait for.
	prepared bool
	// fallback, if it is set, goes on when the disk has failed the fill.
	fallback fallback
}

// follow returns a reader of f, whose ready has returned size. Its waits end with ctx. If the
// disk fails, it sends the rest by fallback, unless that is nil. The caller closes the reader,
// which closes fallback too. An error is the disk's, and leaves fallback open.
func follow(ctx context.Context, f *fill, size int64, fallback fallback) (*follower, error) {
	file, err := f.part.Open()
	if err != nil {
		return nil, onDisk(err)
	}
	return &follower{ctx: ctx, fill: f, file: file, size: size, fallback: fallback}, nil
}

// followAttached is follow for a reader that f counts already: Close detaches it.
func followAttached(ctx context.Context, f *fill, size int64, fallback fallback) (*follower, error) {
	b, err := follow(ctx, f, size, fallback)
	if err == nil {
		b.attached = true
	}
	return b, err
}

// origin returns the HTTP status by which the upstream began to send, and whether the blob has
// been verified, and stored, by now.
func (b *follower) origin() (status int, verified, stored bool) {
	_, verified = b.fill.verified()
	status, stored = b.fill.origin()
	return status, verified, stored
}

func (b *follower) Size() int64 { return b.size }

func (b *follower) Close() error {
	if b.prepared {
		b.fill.forget(b)
	}
	if b.attached {
		b.attached = false
		b.fill.detach()
	}
	if b.fallback != nil {
		_ = b.fallback.Close() // gives none
	}
	return b.file.Close()
}

// Prepare makes a failing disk end the answer: without the fill's file, each span would
// cost the upstream a request, and those in the blob's end the whole blob.
func (b *follower) Prepare(spans []oci.Span) bool {
	b.prepared = true
	b.fill.foreseeAll(b, spans)
	if b.fallback != nil {
		_ = b.fallback.Close() // gives none
		b.fallback = nil
	}
	return true
}

func (b *follower) Send(w io.Writer, span oci.Span) (int64, error) {
	var sent int64
	span.To = end(span, b.size)
	for at, to := span.From, span.To; at < to; {
		limit, err := b.fill.await(b.ctx, span, at)
		if err == nil {
			err = b.fill.isOf(b.size)
		}
		if err == nil {
			var n int64
			n, err = sendFile(w, b.file, at, min(limit, to))
			at, sent = at+n, sent+n
		}
		if err != nil && b.fallback != nil && (isOfDisk(err) || errors.Is(err, syscall.EIO)) {
			n, err := b.fallback.sendRest(w, at, to, b.file, b.fill.prefix())
			return sent + n, err
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// end gives the end of span in a blob of size bytes.
func end(span oci.Span, size int64) int64 {
	if span.To == oci.Open {
		return size
	}
	return min(span.To, size)
}
