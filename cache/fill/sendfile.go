package fill

import (
	"errors"
	"fmt"
	"io"
)

// ErrShort says that a file has fewer bytes than it had.
var ErrShort = errors.New("the file ends early")

// fileSender is a writer that can send a file's bytes in [from, to) without reading them. It leaves
// the file's position alone.
type fileSender interface {
	SendFile(file File, from, to int64) (int64, error)
}

// File is an open file whose position nobody uses.
type File interface {
	io.ReaderAt
	Fd() uintptr
}

// SendFile writes the bytes of file in [from, to) to w.
func SendFile(w io.Writer, file io.ReaderAt, from, to int64) (int64, error) {
	var n int64
	var err error
	s, sends := w.(fileSender)
	if f, is := file.(File); sends && is {
		n, err = s.SendFile(f, from, to)
	} else {
		n, err = io.Copy(w, io.NewSectionReader(file, from, to-from))
	}
	if err == nil && n < to-from {
		err = fmt.Errorf("send bytes %d to %d: %w at %d", from, to, ErrShort, from+n)
	}
	return n, err
}
