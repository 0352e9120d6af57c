package server

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/entrepot-dev/entrepot/cache"
)

const (
	// largeBody and larger ones go to the connection directly; smaller ones
	// leave in one write with their header.
	largeBody = 64 << 10
	// largeSpan is that of blobs, which are files from here on.
	largeSpan = 32 << 10
	// piece is what is passed on at a time: within one call nobody would see
	// whether it moves.
	piece = 512 << 10
	// filePiece is that of a file where each wait is seen: it is how long a server
	// that stops may have to wait.
	filePiece = 2 << 20
	// tlsPiece is that for TLS, a record: a connection whose write was cut
	// short can not go on.
	tlsPiece = 16 << 10
	// copyPiece is what is read of a file at a time where it can not be sent as
	// it is.
	copyPiece = 32 << 10
	// glance is how long a write waits that asks whether there is any room.
	glance = 100 * time.Millisecond
)

// errTooLong says that a blob gave more than was announced.
var errTooLong = errors.New("the body is longer than was announced")

// pacer passes a body on and puts the connection's write deadline off as long
// as the client takes bytes, however few.
type pacer struct {
	w     io.Writer
	conn  net.Conn
	stall time.Duration
	// direct passes w by: its buffer, which is empty, remembers errors, and a
	// deadline is one that is looked at. left is then what may still be sent.
	direct bool
	left   int64

	// socket is set where SendFile need not read the file. putsOff is putOff,
	// and outlives an answer.
	socket  *socket
	putsOff func(time.Time)

	last     time.Time // when the deadline was last set
	glancing bool
	first    time.Time // when the first byte came
	sent     int64
}

func (p *pacer) Write(b []byte) (int, error) {
	dst, most := p.w, p.piece()
	long := false
	if p.direct {
		dst = p.conn
		if long = int64(len(b)) > p.left; long {
			b = b[:p.left]
		}
	}
	written := 0
	for len(b) > 0 {
		p.putOff(time.Now())
		n, err := dst.Write(b[:min(len(b), most)])
		written += n
		p.took(int64(n))
		if err != nil && !p.mayGoOn(n > 0, err) {
			return written, err
		}
		b = b[n:]
	}
	if long {
		return written, errTooLong
	}
	return written, nil
}

// SendFile sends the bytes of file in [from, to). It does not use the file's
// position, which others may share.
func (p *pacer) SendFile(file cache.File, from, to int64) (int64, error) {
	if !p.direct || p.socket == nil || to-from > p.left {
		return p.copyFile(file, from, to)
	}
	if p.putsOff == nil {
		p.putsOff = p.putOff
	}
	at := from
	for at < to {
		p.putOff(time.Now()) // a deadline that has passed would let nothing begin
		n, err := p.socket.sendFile(file, at, int(min(to-at, filePiece)), p.putsOff)
		at += n
		p.took(n)
		switch {
		case err == nil && n == 0:
			return at - from, nil // the file ends
		case err != nil && !p.mayGoOn(n > 0, err):
			return at - from, err
		}
	}
	return at - from, nil
}

// copyFile is SendFile for bytes that have to be read.
func (p *pacer) copyFile(file cache.File, from, to int64) (int64, error) {
	b := copyBuffers.Get().(*[copyPiece]byte)
	defer copyBuffers.Put(b)
	for at := from; at < to; {
		n, err := file.ReadAt(b[:min(copyPiece, to-at)], at)
		sent, failed := p.Write(b[:n])
		at += int64(sent)
		switch {
		case failed != nil:
			return at - from, failed
		case errors.Is(err, io.EOF):
			return at - from, nil // the file ends
		case err != nil:
			return at - from, err
		}
	}
	return to - from, nil
}

// copyBuffers are for TLS, where each answer wants one.
var copyBuffers = sync.Pool{New: func() any { return new([copyPiece]byte) }}

func (p *pacer) piece() int {
	if _, ok := p.conn.(*secureConn); ok {
		return tlsPiece
	}
	return piece
}

func (p *pacer) took(n int64) {
	p.sent += n
	p.left -= n
	if n > 0 && p.glancing {
		p.glancing, p.last = false, time.Time{}
	}
}

// mayGoOn tells whether a write that has failed may go on, since the client has
// taken bytes. moved says that some went out before the deadline.
func (p *pacer) mayGoOn(moved bool, err error) bool {
	switch {
	case !p.direct || !errors.Is(err, os.ErrDeadlineExceeded):
		return false
	case moved:
		p.last = time.Time{} // set it anew
		return true
	case p.glancing:
		return false
	}
	// A writer is woken when a good part of the system's buffer, of megabytes,
	// is free. A slow client may have taken bytes for long without that: a
	// write that does not wait shows it.
	p.glancing, p.last = true, time.Now()
	_ = p.conn.SetWriteDeadline(p.last.Add(glance))
	return true
}

// putOff puts the deadline off, now that something moves or begins to.
func (p *pacer) putOff(now time.Time) {
	if p.first.IsZero() {
		p.first = now
	}
	if now.Sub(p.last) < p.stall/8 {
		return
	}
	p.last = now
	// An error here comes again, with a better word, from the write.
	_ = p.conn.SetWriteDeadline(now.Add(p.stall))
}
