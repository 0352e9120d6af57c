package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// storedBlob is a blob on disk. Its file is open, so that it can be read to its
// end even when it is removed meanwhile.
type storedBlob struct {
	ctx    context.Context
	cache  *Cache
	digest digest.Digest
	file   *store.Content
	size   int64
	// unverified is set where it was not verified for so long, or never as far
	// as is known, that this is due while it is sent.
	unverified bool
}

// storedBlobs are used again: each hit wants one.
var storedBlobs = sync.Pool{New: func() any { return new(storedBlob) }}

func (b *storedBlob) Size() int64 { return b.size }

// Close may be called once.
func (b *storedBlob) Close() error {
	file := b.file
	*b = storedBlob{}
	storedBlobs.Put(b)
	return file.Close()
}

// Prepare has nothing to do.
func (b *storedBlob) Prepare([]oci.Span) bool { return true }

// Send of the whole of an unverified blob holds the last chunk back until it has
// been hashed; that of a range has it hashed behind.
func (b *storedBlob) Send(w io.Writer, span oci.Span) (int64, error) {
	to := end(span, b.size)
	if !b.unverified {
		return b.send(w, span.From, to)
	}
	v := b.cache.verifying(b.digest, foundOnServing)
	if span.From > 0 || to < b.size {
		return b.send(w, span.From, to)
	}
	v.hurry()
	most := max(0, to-heldBack)
	n, err := b.send(w, 0, most)
	if err != nil {
		return n, err
	}
	if err := v.wait(b.ctx); err != nil {
		return n, err
	}
	m, err := b.send(w, most, to)
	return n + m, err
}

// send sends what the file holds. Where the disk does not give it, it is
// verified, and so dropped if it is damaged.
func (b *storedBlob) send(w io.Writer, from, to int64) (int64, error) {
	n, err := sendFile(w, b.file, from, to)
	if err != nil && (errors.Is(err, syscall.EIO) || errors.Is(err, errShort)) {
		b.cache.verifying(b.digest, foundOnServing)
	}
	return n, err
}

// memoryBlob is a small blob in memory.
type memoryBlob []byte

func (b memoryBlob) Size() int64  { return int64(len(b)) }
func (b memoryBlob) Close() error { return nil }

func (b memoryBlob) Prepare([]oci.Span) bool { return true }

func (b memoryBlob) Send(w io.Writer, span oci.Span) (int64, error) {
	n, err := w.Write(b[span.From:end(span, b.Size())])
	return int64(n), err
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
	// pass, where it is set, goes on when the disk has failed the fill.
	pass *passage
}

// follow makes a reader of f, of which ready has given the size. Its waits end
// with ctx. The caller closes it.
func follow(ctx context.Context, f *fill, size int64) (*follower, error) {
	file, err := f.part.Open()
	if err != nil {
		return nil, &diskError{err}
	}
	return &follower{ctx: ctx, fill: f, file: file, size: size}, nil
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
	if b.pass != nil {
		_ = b.pass.Close() // gives none
	}
	return b.file.Close()
}

// Prepare makes a failing disk end the answer: without the fill's file, each span would
// cost the upstream a request, and those in the blob's end the whole blob.
func (b *follower) Prepare(spans []oci.Span) bool {
	b.prepared = true
	b.fill.foreseeAll(b, spans)
	if b.pass != nil {
		_ = b.pass.Close() // gives none
		b.pass = nil
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
		if err != nil && b.pass != nil && (isOfDisk(err) || errors.Is(err, syscall.EIO)) {
			n, err := b.passOn(w, at, to)
			return sent + n, err
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// passOn sends the bytes in [at, to) though the disk has failed: what is in the
// part's file is read from there, so that the upstream is asked for the rest only.
func (b *follower) passOn(w io.Writer, at, to int64) (int64, error) {
	if err := b.pass.enter(0); err != nil {
		return 0, err
	}
	b.pass.kept, b.pass.have = b.file, b.fill.prefix()
	return b.pass.send(w, at, to)
}

// end gives the end of span in a blob of size bytes.
func end(span oci.Span, size int64) int64 {
	if span.To == oci.Open {
		return size
	}
	return min(span.To, size)
}

// errShort says that a file has fewer bytes than it had.
var errShort = errors.New("the file ends early")

// fileSender is what a writer may be that sends a file's bytes without reading
// them: those in [from, to). It leaves the file's position alone.
type fileSender interface {
	SendFile(file File, from, to int64) (int64, error)
}

// File is an open file whose position nobody uses.
type File interface {
	io.ReaderAt
	Fd() uintptr
}

// sendFile writes the bytes of file in [from, to) to w.
func sendFile(w io.Writer, file io.ReaderAt, from, to int64) (int64, error) {
	var n int64
	var err error
	s, sends := w.(fileSender)
	if f, is := file.(File); sends && is {
		n, err = s.SendFile(f, from, to)
	} else {
		n, err = io.Copy(w, io.NewSectionReader(file, from, to-from))
	}
	if err == nil && n < to-from {
		err = fmt.Errorf("send bytes %d to %d: %w at %d", from, to, errShort, from+n)
	}
	return n, err
}

// readSmall reads a stored blob that memory can hold.
func readSmall(b *storedBlob) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(int(b.size))
	if _, err := sendFile(&buf, b.file, 0, b.size); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
