package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/entrepot-dev/entrepot/oci"
)

// storedBlob is a blob on disk. Its file is open, so that it can be read to its
// end even when it is removed meanwhile.
type storedBlob struct {
	file *os.File
	size int64
}

func (b *storedBlob) Size() int64  { return b.size }
func (b *storedBlob) Close() error { return b.file.Close() }

func (b *storedBlob) Send(w io.Writer, span oci.Span) (int64, error) {
	return sendFile(w, b.file, span.From, end(span, b.size))
}

// memoryBlob is a small blob in memory.
type memoryBlob []byte

func (b memoryBlob) Size() int64  { return int64(len(b)) }
func (b memoryBlob) Close() error { return nil }

func (b memoryBlob) Send(w io.Writer, span oci.Span) (int64, error) {
	n, err := w.Write(b[span.From:end(span, b.Size())])
	return int64(n), err
}

// follower is a reader of a fill: it sends what is there, sleeps where it
// reaches the end of that, and is sent on when more has come.
type follower struct {
	ctx  context.Context
	fill *fill
	file io.ReadSeekCloser
	size int64
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

func (b *follower) Size() int64  { return b.size }
func (b *follower) Close() error { return b.file.Close() }

func (b *follower) Send(w io.Writer, span oci.Span) (int64, error) {
	var sent int64
	for at, to := span.From, end(span, b.size); at < to; {
		limit, err := b.fill.await(b.ctx, at)
		if err != nil {
			return sent, err
		}
		n, err := sendFile(w, b.file, at, min(limit, to))
		at, sent = at+n, sent+n
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

// sendFile writes the bytes of file in [from, to) to w. The reader that io.Copy
// hands to a w that can ReadFrom is the one that package net knows to give to
// sendfile.
func sendFile(w io.Writer, file io.ReadSeeker, from, to int64) (int64, error) {
	if _, err := file.Seek(from, io.SeekStart); err != nil {
		return 0, &diskError{err}
	}
	n, err := io.Copy(w, &io.LimitedReader{R: file, N: to - from})
	if err == nil && n < to-from {
		err = fmt.Errorf("send bytes %d to %d: the file ends at %d: %w", from, to, from+n, io.ErrUnexpectedEOF)
	}
	return n, err
}

// readSmall reads a stored blob that memory can hold.
func readSmall(b *storedBlob) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(int(b.size))
	if _, err := b.Send(&buf, oci.Whole); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
