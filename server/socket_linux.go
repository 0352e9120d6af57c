package server

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/cache"
)

// socket is a client's TCP socket, for what package net does not do: sendfile
// from a place in a file, so that many answers can share one that is open, with
// a look at the client after each wait. It is for the goroutine that answers.
//
// The header leaves by a write of its own. To hold it back for the first bytes of
// the body (MSG_MORE) made a range of 64 KiB half as dear again: together they
// are more than the kernel hands on at a time.
type socket struct {
	raw syscall.RawConn
	// send is step; making that of it for each call would allocate.
	send func(fd uintptr) bool

	from  int // the file
	at    int64
	left  int
	sent  int64
	moved func()
	err   error
}

// newSocket gives the socket of c; nil where c is none.
func newSocket(c net.Conn) *socket {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	s := &socket{raw: raw}
	s.send = s.step
	return s
}

// sendFile sends n bytes of file from the one at on, and gives how many were
// sent; fewer where the file ends. It calls moved when it begins and after each
// wait. It neither uses nor changes the file's position.
func (s *socket) sendFile(file cache.File, at int64, n int, moved func()) (int64, error) {
	s.from, s.at, s.left, s.sent, s.moved, s.err = int(file.Fd()), at, n, 0, moved, nil
	err := s.raw.Write(s.send)
	s.moved = nil
	if err == nil && s.err != nil {
		err = os.NewSyscallError("sendfile", s.err)
	}
	return s.sent, err
}

func (s *socket) step(fd uintptr) bool {
	s.moved()
	for s.left > 0 {
		n, err := unix.Sendfile(int(fd), s.from, &s.at, s.left)
		switch {
		case n > 0:
			s.left -= n
			s.sent += int64(n)
		case err == unix.EAGAIN:
			return false
		case err == unix.EINTR:
		default:
			s.err = err // nil at the file's end
			return true
		}
	}
	return true
}
