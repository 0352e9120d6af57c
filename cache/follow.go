package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/fill"
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
	to := fill.End(span, b.size)
	if !b.unverified {
		return b.send(w, span.From, to)
	}
	v := b.cache.verifying(b.digest, foundOnServing)
	if span.From > 0 || to < b.size {
		return b.send(w, span.From, to)
	}
	v.hurry()
	most := max(0, to-fill.Withheld)
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
	n, err := fill.SendFile(w, b.file, from, to)
	if err != nil && (errors.Is(err, syscall.EIO) || errors.Is(err, fill.ErrShort)) {
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
	n, err := w.Write(b[span.From:fill.End(span, b.Size())])
	return int64(n), err
}

// readSmall reads a stored blob that memory can hold.
func readSmall(b *storedBlob) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(int(b.size))
	if _, err := fill.SendFile(&buf, b.file, 0, b.size); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
