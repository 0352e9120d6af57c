package server

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// headerPiece is the most that is read of a request's header at a time.
	headerPiece = 4 << 10
	// maxRangeBytes is how long a Range header may be: maxRanges ranges of any size take
	// less. All other headers together may have maxHeaderBytes.
	maxRangeBytes = 64 << 10
	// maxLongRanges is how many requests may have a long Range header at a time, which
	// takes 128 KiB each until its blob is found.
	maxLongRanges = 128
	// maxRangeDropped is how much is read of a Range header that is too long. Its client
	// would not see the answer if some of the header was left in the socket.
	maxRangeDropped = 1 << 20
)

// errLongRange is errTooManyRanges for a header that is not read to its end.
var errLongRange = &oci.Error{Code: oci.CodeRangeInvalid, Status: fasthttp.StatusBadRequest,
	Message: "the Range header is larger than " + strconv.Itoa(maxRangeBytes) + " bytes; ask for fewer ranges at a time"}

// A longRange reads a Range header that is longer than fasthttp's buffer: each connection has
// such a buffer, of maxHeaderBytes, and few have use for more. If a Range header does not come
// in one piece, fasthttp is given its beginning, and the end goes to more.
//
// Its fields are for the goroutine that reads and answers, but for placed.
type longRange struct {
	line  [len("range:")]byte // the beginning of the line that is being read
	n     int                 // bytes of line
	more  []byte              // the end of the request's Range header
	rest  []byte              // what came behind it, and fasthttp has not read yet
	taken bool                // there is a long Range header in this request
	// placed is set while the connection has one of maxLongRanges places.
	placed atomic.Bool
}

// isRange reports whether the line that is being read is a Range header.
func (l *longRange) isRange() bool {
	return l.n == len(l.line) && bytes.EqualFold(l.line[:], []byte("range:"))
}

// note remembers how the line begins in which b ends.
func (l *longRange) note(b []byte) {
	if bytes.HasSuffix(b, []byte("\r\n\r\n")) { // most requests come in one piece
		l.n = 0
		return
	}
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		b, l.n = b[i+1:], 0
	}
	l.n += copy(l.line[l.n:], b)
}

// readRequest is Read for what the client sends in the clear, which from reads.
func (c *conn) readRequest(b []byte, from io.Reader) (int, error) {
	l := &c.long
	if len(l.rest) > 0 {
		n := copy(b, l.rest)
		if l.rest = l.rest[n:]; len(l.rest) == 0 {
			l.rest = nil
		}
		l.note(b[:n])
		return n, nil
	}
	if c.phase.Load() != answering {
		if l.isRange() && !l.taken && c.server.placeLongRange(c) {
			return c.readLongRange(b, from)
		}
		b = b[:min(len(b), headerPiece)]
	}
	n, err := from.Read(b)
	if n > 0 {
		l.note(b[:n])
	}
	return n, err
}

// readLongRange reads the line to its end, and gives b what follows. The error is errLongRange,
// or from's.
func (c *conn) readLongRange(b []byte, from io.Reader) (int, error) {
	var line []byte
	for dropped := 0; dropped < maxRangeDropped; {
		if len(line) > maxRangeBytes {
			dropped += len(line)
			line = line[:0]
		}
		had := len(line)
		line = slices.Grow(line, headerPiece)
		n, err := from.Read(line[had:cap(line)])
		line = line[:had+n]
		if i := bytes.IndexByte(line[had:], '\n'); i >= 0 {
			if dropped > 0 || had+i > maxRangeBytes {
				return 0, errLongRange
			}
			end := had + i
			if end > 0 && line[end-1] == '\r' {
				end--
			}
			l := &c.long
			l.taken, l.more = true, line[:end:end]
			n := copy(b, line[end:])
			l.rest = line[end+n:]
			l.note(b[:n])
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, errLongRange
}

// placeLongRange takes one of the places for long Range headers for c; false if none is free.
func (s *Server) placeLongRange(c *conn) bool {
	if s.longRanges.Add(1) > maxLongRanges {
		s.longRanges.Add(-1)
		return false
	}
	c.long.placed.Store(true)
	return true
}

// dropLongRange gives c's place back, if it has one.
func (c *conn) dropLongRange() {
	if c.long.placed.Swap(false) {
		c.server.longRanges.Add(-1)
	}
}

// rangeHeader returns the request's Range header. It is empty if there is more than one of
// which one is long.
func (x *exchange) rangeHeader() []byte {
	h := &x.ctx.Request.Header
	v := h.Peek("Range")
	c := own(x.ctx.Conn())
	if c == nil || !c.long.taken {
		return v
	}
	if len(h.PeekAll("Range")) != 1 {
		return nil
	}
	return slices.Concat(v, c.long.more)
}

// forgetRange lets go of a long Range header, which nobody needs any more.
func (x *exchange) forgetRange() {
	if c := own(x.ctx.Conn()); c != nil && c.long.taken {
		c.long.taken, c.long.more = false, nil
		c.dropLongRange()
	}
}

// isLongRange reports whether a request could not be read because of its Range header.
func isLongRange(c *conn, err error) bool {
	var small *fasthttp.ErrSmallBuffer
	return errors.Is(err, errLongRange) || errors.As(err, &small) && c != nil && c.long.isRange()
}
