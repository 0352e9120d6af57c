//go:build !race

package server

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawRead and rawWrite are read and write of a socket, by system calls that the
// scheduler does not know of. They give no negative number.

func rawRead(fd uintptr, b []byte) (int, syscall.Errno) { return rawIO(unix.SYS_READ, fd, b) }

func rawWrite(fd uintptr, b []byte) (int, syscall.Errno) { return rawIO(unix.SYS_WRITE, fd, b) }

func rawIO(trap, fd uintptr, b []byte) (int, syscall.Errno) {
	n, _, err := unix.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b))) // #nosec G103 -- as package syscall does
	if err != 0 {
		return 0, err
	}
	return int(n), 0
}
