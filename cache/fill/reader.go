package fill

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// Fallback sends what is left of a blob without the disk, after that has failed the fill.
type Fallback interface {
	// SendRest sends the bytes in [from, to) to w. kept has the blob's first have bytes, which
	// need not be fetched again.
	SendRest(w io.Writer, from, to int64, kept io.ReaderAt, have int64) (int64, error)
	Close() error
}

// Reader reads a blob while it is downloaded. It sends what is cached, waits at the end of that, and
// goes on when more has come. It is for one goroutine.
type Reader struct {
	ctx  context.Context
	fill *Fill
	file store.Reader
	size int64
	// attached is set if the fill counts it.
	attached bool
	// prepared is set if the fill knows what this reader will wait for.
	prepared bool
	// fallback, if it is set, goes on when the disk has failed the fill.
	fallback Fallback
}

// newReader returns a reader that f doesn't count; see Follow.
func newReader(ctx context.Context, f *Fill, size int64, fallback Fallback) (*Reader, error) {
	file, err := f.part.Open()
	if err != nil {
		return nil, OnDisk(err)
	}
	return &Reader{ctx: ctx, fill: f, file: file, size: size, fallback: fallback}, nil
}

// Follow returns a reader of f, after Attach, and Ready, which returned size. The reader's waits end
// with ctx. If the disk fails, it sends the rest by fallback, unless that is nil. The caller closes the
// reader, which detaches it and closes fallback. An error is a DiskError; then f still counts the
// reader, and fallback is left open.
func Follow(ctx context.Context, f *Fill, size int64, fallback Fallback) (*Reader, error) {
	b, err := newReader(ctx, f, size, fallback)
	if err == nil {
		b.attached = true
	}
	return b, err
}

// Origin returns the HTTP status with which the upstream began to send, and whether the blob is verified
// and stored by now.
func (b *Reader) Origin() (status int, verified, stored bool) {
	_, verified = b.fill.Verified()
	status, stored = b.fill.Origin()
	return status, verified, stored
}

// Size returns the blob's size in bytes.
func (b *Reader) Size() int64 { return b.size }

// Close detaches the reader from its fill. It is called once.
func (b *Reader) Close() error {
	if b.prepared {
		b.fill.forget(b)
	}
	if b.attached {
		b.attached = false
		b.fill.Detach()
	}
	if b.fallback != nil {
		_ = b.fallback.Close() // gives none
	}
	return b.file.Close()
}

// Prepare has spans fetched side by side that will be sent one after another. From now on a failing
// disk ends the answer: without the fill's file each span would cost the upstream a request, and
// those at the blob's end the whole blob.
func (b *Reader) Prepare(spans []oci.Span) bool {
	b.prepared = true
	b.fill.foreseeAll(b, spans)
	if b.fallback != nil {
		_ = b.fallback.Close() // gives none
		b.fallback = nil
	}
	return true
}

// Send writes span to w as it comes, and returns how many bytes it wrote. The blob's last bytes follow
// once the digest is verified, if span begins at the first byte.
func (b *Reader) Send(w io.Writer, span oci.Span) (int64, error) {
	var sent int64
	span.To = End(span, b.size)
	for at, to := span.From, span.To; at < to; {
		limit, err := b.fill.await(b.ctx, span, at)
		if err == nil {
			err = b.fill.isOf(b.size)
		}
		if err == nil {
			var n int64
			n, err = SendFile(w, b.file, at, min(limit, to))
			at, sent = at+n, sent+n
		}
		if err != nil && b.fallback != nil && (IsDiskError(err) || errors.Is(err, syscall.EIO)) {
			n, err := b.fallback.SendRest(w, at, to, b.file, b.fill.prefix())
			return sent + n, err
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// End returns the end of span in a blob of size bytes.
func End(span oci.Span, size int64) int64 {
	if span.To == oci.Open {
		return size
	}
	return min(span.To, size)
}
