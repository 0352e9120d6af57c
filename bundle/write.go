package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
)

// bufferSize is how much is read and written at a time, in bytes.
const bufferSize = 1 << 20

// ContentError says that content could not be read while a bundle was made.
type ContentError struct {
	Digest digest.Digest
	Err    error
}

func (e *ContentError) Error() string {
	why := e.Err.Error()
	if errors.Is(e.Err, fs.ErrNotExist) {
		why = "it is not here any more"
	}
	return fmt.Sprintf("the bundle was broken off at %s: %s: fetch its image again (entrepot warm), and export again: "+
		"what is written is kept, and gone on with", e.Digest, why)
}

func (e *ContentError) Unwrap() error { return e.Err }

// WriteTar writes the bundle as a tar, without its first bytes as far as from, which an
// earlier run has written. It needs one buffer, whatever the bundle's size. Its error is
// a *ContentError where content is missing or damaged, an error of w, or ctx's.
func (f *Files) WriteTar(ctx context.Context, w io.Writer, from int64, source Source) error {
	out := &tail{w: w, skip: from}
	buffer := make([]byte, bufferSize)
	for _, file := range f.List {
		if file.End <= from {
			out.skip -= file.End - file.Start
			continue
		}
		header, err := file.header()
		if err != nil {
			return err
		}
		if _, err := out.Write(header); err != nil {
			return err
		}
		if file.document != nil {
			_, err = out.Write(file.document)
		} else {
			err = file.copy(ctx, out, source, buffer)
		}
		if err != nil {
			return err
		}
		if _, err := out.Write(make([]byte, file.End-file.Begin-file.Size)); err != nil {
			return err
		}
	}
	_, err := out.Write(make([]byte, endOfTar))
	return err
}

// copy writes the content of a file, and learns at its end whether it was right.
func (f File) copy(ctx context.Context, w io.Writer, source Source, buffer []byte) error {
	in, err := source.OpenStored(ctx, f.Digest)
	if err != nil {
		return &ContentError{f.Digest, err}
	}
	defer in.Close()
	for left := f.Size; ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := in.Read(buffer)
		if int64(n) > left || err == io.EOF && int64(n) < left {
			return &ContentError{f.Digest, fmt.Errorf("it does not have %d bytes", f.Size)}
		}
		left -= int64(n)
		if err != nil && err != io.EOF {
			return &ContentError{f.Digest, err}
		}
		if _, err := w.Write(buffer[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		}
	}
}

// tail writes all but the first bytes.
type tail struct {
	w    io.Writer
	skip int64
}

func (t *tail) Write(b []byte) (int, error) {
	skip := min(t.skip, int64(len(b)))
	t.skip -= skip
	if skip == int64(len(b)) {
		return len(b), nil
	}
	n, err := t.w.Write(b[skip:])
	return int(skip) + n, err
}
