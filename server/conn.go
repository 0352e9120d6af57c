package server

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/entrepot-dev/entrepot/access"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// conn is a client's connection. It leaves by the door it came in by, and knows
// what it is doing, so that Shutdown cuts off nobody who is being answered and
// waits for nobody who is not.
type conn struct {
	net.Conn
	server *Server
	from   netip.Addr
	// counted is the address that the door has counted it by.
	counted netip.Addr
	phase   atomic.Int32
	closed  atomic.Bool

	read, write deadline
	// readBy is for the next Read, where it is pending. Both are for the
	// goroutine that reads.
	readBy  time.Time
	pending bool

	// socket is set on Linux where the client speaks TCP.
	socket *socket

	// said is the last Accept header that was read, and accept what it means;
	// they are for the goroutine that answers.
	said   []byte
	accept rewrite.Accept
	// peer is the client's certificate, once it was asked for; for the same.
	peer  *x509.Certificate
	asked bool
	// recent is who was found to ask by this connection; for the same.
	recent access.Recent
	// pulledBy is the address that has pulled by this connection last; for the
	// goroutine that answers.
	pulledBy netip.Addr
	// headNoted is when a HEAD of it was last told to the bypasses; for the same.
	headNoted time.Time
	// long reads the end of a long Range header.
	long longRange
	// greeted is set once the first bytes are known to be TLS; for the goroutine
	// that reads.
	greeted bool
}

// What a conn does. A request makes it go from reading to answering to idle.
const (
	fresh     int32 = iota // it has sent nothing yet
	reading                // a request's header is coming
	answering              // the header was there
	idle                   // between two requests
	ended                  // closed while it was fresh
)

// lastHeader is how long a request that had begun when the server was told to
// stop may take to be complete.
const lastHeader = time.Second

// own gives the conn that is, or is below, what fasthttp holds.
func own(c net.Conn) *conn {
	switch c := c.(type) {
	case *conn:
		return c
	case *secureConn:
		return c.conn
	}
	return nil
}

// A secureConn is TLS over a conn.
type secureConn struct {
	*tls.Conn
	conn *conn
}

func (c *secureConn) Read(b []byte) (int, error) { return c.conn.readRequest(b, c.Conn) }

// secureListener speaks TLS to those whom the gate lets in.
type secureListener struct {
	gate
	config *tls.Config
}

func (l secureListener) Accept() (net.Conn, error) {
	c, err := l.gate.Accept()
	if err != nil {
		return nil, err
	}
	return &secureConn{tls.Server(c, l.config), own(c)}, nil
}

func (c *conn) enter(phase int32) {
	if c != nil {
		c.phase.Store(phase)
	}
}

func (c *conn) Close() error {
	if !c.closed.Swap(true) {
		c.server.door.leave(c.counted)
	}
	c.dropLongRange()
	return c.Conn.Close()
}

// SetReadDeadline notes a deadline for the next Read. It is set there, if then:
// most requests come in one piece, and need none of their own.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.readBy, c.pending = t, true
	return nil
}

func (c *conn) Read(b []byte) (int, error) {
	if c.server.tls != nil {
		return c.readSocket(b)
	}
	return c.readRequest(b, (*socketReader)(c))
}

// A socketReader reads what a conn's socket brings.
type socketReader conn

func (c *socketReader) Read(b []byte) (int, error) { return (*conn)(c).readSocket(b) }

func (c *conn) readSocket(b []byte) (int, error) {
	if c.pending {
		c.pending = false
		if err := c.setReadDeadline(c.readBy); err != nil {
			return 0, err
		}
	}
	n, err := c.receive(b)
	if !c.greeted && n > 0 && c.server.tls != nil {
		if plain := c.checkScheme(b[:n]); plain != nil {
			return 0, plain
		}
	}
	return n, err
}

func (c *conn) receive(b []byte) (int, error) {
	if c.socket != nil {
		return c.socket.read(b)
	}
	return c.Conn.Read(b)
}

func (c *conn) Write(b []byte) (int, error) {
	if c.socket != nil {
		return c.socket.write(b)
	}
	return c.Conn.Write(b)
}

// setReadDeadline gives who is still sending a request little time once the
// server was told to stop.
func (c *conn) setReadDeadline(t time.Time) error {
	if !c.read.serves(t) {
		if err := c.Conn.SetReadDeadline(t); err != nil {
			return err
		}
	}
	if c.server.draining.Err() != nil {
		if last := time.Now().Add(lastHeader); t.IsZero() || t.After(last) {
			return c.Conn.SetReadDeadline(last)
		}
	}
	return nil
}

// SetWriteDeadline may be called by another goroutine than that which writes.
func (c *conn) SetWriteDeadline(t time.Time) error {
	if c.write.serves(t) {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t) // gives none
	return c.SetWriteDeadline(t)
}

// drain ends a connection that is not being answered, at once or soon.
// fasthttp closes those that are idle by itself.
func (c *conn) drain() {
	switch {
	case c == nil:
	case c.phase.CompareAndSwap(fresh, ended):
		_ = c.Close()
	case c.phase.Load() == reading:
		_ = c.Conn.SetReadDeadline(time.Now().Add(lastHeader))
	}
}
