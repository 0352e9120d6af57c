package server

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/cache"
)

const (
	// rawPiece is the most, in bytes, that is sent by a call that the scheduler does
	// not know of.
	rawPiece = 512 << 10
	// slow is a call of sendfile that has waited for the disk, most likely.
	slow = time.Millisecond
	// trusted is how many calls in a row must have been quick before one is raw, and
	// distrusted by how many more when one was slow.
	trusted    = 4
	distrusted = 16
)

// socket is a client's TCP socket, for what package net does not do.
//
// It sends from a place in a file, so that many answers can share one that is
// open, and looks at the client after each wait.
//
// Its calls are raw where they wait for nothing, as none does on a socket that does
// not block. Of any other call the runtime's watch (sysmon) takes the processor away
// that lasts for 20 µs, as most do that copy to a socket: another thread is woken,
// which finds nothing to do. A thread that is in a raw call keeps its processor, and
// holds up the collector: so what is sent of a file is only where the calls before
// have not waited for the disk. To ask the page cache before each (preadv2 with
// RWF_NOWAIT) took a tenth of the time of a range of 64 KiB.
//
// The header leaves by a write of its own. To hold it back for the first bytes of
// the body (MSG_MORE) made a range of 64 KiB half as dear again: together they
// are more than the kernel hands on at a time.
//
// One goroutine may read while another one writes or sends.
type socket struct {
	raw syscall.RawConn
	// These are methods; making a function of one for each call would allocate.
	receive, transmit, send func(fd uintptr) bool

	in  transfer
	out transfer

	file  int // that is sent
	at    int64
	moved func(time.Time)
	// streak counts the calls in a row that have sent of file quickly; below zero
	// it says how many are wanted first.
	streak int
}

// transfer is a call's state while it waits.
type transfer struct {
	b    []byte
	left int // of a file
	done int
	err  syscall.Errno
	over bool // the client sends no more
}

// end gives what came of a call of which the runtime said err.
func (t *transfer) end(call string, err error) (int, error) {
	was := *t
	*t = transfer{}
	switch {
	case err != nil:
	case was.err != 0:
		err = os.NewSyscallError(call, was.err)
	case was.over:
		err = io.EOF
	}
	return was.done, err
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
	s.receive, s.transmit, s.send = s.receiveNow, s.transmitNow, s.sendNow
	return s
}

// read is that of io.Reader.
func (s *socket) read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	s.in.b = b
	return s.in.end("read", s.raw.Read(s.receive))
}

func (s *socket) receiveNow(fd uintptr) bool {
	t := &s.in
	for {
		n, err := rawRead(fd, t.b)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return false
		}
		t.done, t.err, t.over = n, err, n == 0
		return true
	}
}

// write is that of io.Writer.
func (s *socket) write(b []byte) (int, error) {
	s.out.b = b
	return s.out.end("write", s.raw.Write(s.transmit))
}

func (s *socket) transmitNow(fd uintptr) bool {
	t := &s.out
	for len(t.b) > 0 {
		n, err := rawWrite(fd, t.b[:min(len(t.b), rawPiece)])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err != 0:
			t.err = err
			return true
		}
		t.done += n
		t.b = t.b[n:]
	}
	return true
}

// sendFile sends n bytes of file from the one at on, and gives how many were
// sent; fewer where the file ends. It calls moved with the time when it begins and
// after each wait. It neither uses nor changes the file's position.
func (s *socket) sendFile(file cache.File, at int64, n int, moved func(time.Time)) (int64, error) {
	if fd := int(file.Fd()); fd != s.file {
		s.file, s.streak = fd, 0
	}
	s.at, s.out.left, s.moved = at, n, moved
	sent, err := s.out.end("sendfile", s.raw.Write(s.send))
	s.moved = nil
	return int64(sent), err
}

func (s *socket) sendNow(fd uintptr) bool {
	t := &s.out
	begun := time.Now()
	s.moved(begun)
	for t.left > 0 {
		n, err := s.sendPiece(fd, min(t.left, rawPiece))
		now := time.Now()
		if s.streak++; now.Sub(begun) > slow {
			s.streak = -distrusted
		}
		begun = now
		t.left -= n
		t.done += n
		switch {
		case n > 0, err == unix.EINTR:
			// Fewer than were wanted do not tell that the socket is full: to wait
			// after them may be for ever.
		case err == unix.EAGAIN:
			return false
		default:
			t.err = err // none at the file's end
			return true
		}
	}
	return true
}

// sendPiece sends up to n bytes of the file, from where it is sent to.
func (s *socket) sendPiece(fd uintptr, n int) (int, syscall.Errno) {
	var sent uintptr
	var err syscall.Errno
	if s.streak >= trusted {
		sent, _, err = unix.RawSyscall6(unix.SYS_SENDFILE, fd, uintptr(s.file), uintptr(unsafe.Pointer(&s.at)), uintptr(n), 0, 0) // #nosec G103 -- as package unix does
	} else {
		sent, _, err = unix.Syscall6(unix.SYS_SENDFILE, fd, uintptr(s.file), uintptr(unsafe.Pointer(&s.at)), uintptr(n), 0, 0) // #nosec G103 -- as package unix does
	}
	if err != 0 {
		return 0, err
	}
	return int(sent), 0
}
