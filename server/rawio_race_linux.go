//go:build race

package server

import (
	"errors"
	"syscall"
)

// rawRead and rawWrite tell the race detector what is read and written, and that what
// was done before a write comes before what is done after the read of it, as package
// syscall does.

func rawRead(fd uintptr, b []byte) (int, syscall.Errno) { return numbered(syscall.Read(int(fd), b)) }

func rawWrite(fd uintptr, b []byte) (int, syscall.Errno) { return numbered(syscall.Write(int(fd), b)) }

func numbered(n int, err error) (int, syscall.Errno) {
	var number syscall.Errno
	if errors.As(err, &number) {
		return 0, number
	}
	return n, 0
}
