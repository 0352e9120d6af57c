package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// face is one listener of the hub, which can go away and come back.
type face struct {
	addr    string
	tls     *tls.Config // nil for plain http
	handler http.Handler
	done    context.Context
	shape   *atomic.Int64 // see Hub.Shape

	mu      sync.Mutex
	server  *http.Server  // nil while down
	ended   chan struct{} // closed when server's Serve has returned
	hole    chan struct{} // not nil while black; closed when it ends
	broken  bool          // handshakes fail
	stopped bool
}

// connKey is the context key of a request's net.Conn, for faults that reset it.
type connKey struct{}

// openFace listens at addr. swallowed is called with each request that a black
// hole takes.
func openFace(addr string, cfg *tls.Config, handler http.Handler, swallowed func(), done context.Context, shape *atomic.Int64) (*face, error) {
	f := &face{addr: addr, done: done, shape: shape}
	if cfg != nil {
		f.tls = cfg.Clone()
		f.tls.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			if f.isBroken() {
				return nil, errors.New("broken, as it is meant to be")
			}
			return cfg, nil
		}
	}
	f.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		hole := f.hole
		f.mu.Unlock()
		if hole != nil {
			swallowed()
			select {
			case <-hole:
			case <-r.Context().Done():
			case <-done.Done():
			}
			panic(http.ErrAbortHandler)
		}
		if f.isBroken() {
			panic(http.ErrAbortHandler)
		}
		handler.ServeHTTP(w, r)
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	return f, f.listen()
}

// listen starts a server at addr. f.mu is held.
func (f *face) listen() error {
	l, err := net.Listen("tcp", f.addr)
	if err != nil {
		return err
	}
	f.addr = l.Addr().String()
	l = shapedListener{l, f.shape}
	f.server = &http.Server{
		Handler:           f.handler,
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(io.Discard, "", 0), // resets are meant
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	if f.tls != nil {
		l = tls.NewListener(l, f.tls)
	}
	f.ended = make(chan struct{})
	go func(s *http.Server, ended chan struct{}) {
		defer close(ended)
		_ = s.Serve(l) // ends with an error when it is closed
	}(f.server, f.ended)
	return nil
}

func (f *face) address() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addr
}

func (f *face) down() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.server == nil {
		return
	}
	_ = f.server.Close() // the listener's close error does not matter here
	<-f.ended
	f.server = nil
}

func (f *face) up() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return errors.New("the hub is closed")
	}
	if f.hole != nil {
		close(f.hole)
		f.hole = nil
	}
	f.broken = false
	if f.server != nil {
		return nil
	}
	// Another socket may have been given the port for a moment.
	var err error
	for range 50 {
		if err = f.listen(); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("listen again at %s: %w", f.addr, err)
}

func (f *face) swallow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hole == nil {
		f.hole = make(chan struct{})
	}
}

func (f *face) breakTLS() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = true
}

func (f *face) isBroken() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken
}

func (f *face) close() error {
	f.mu.Lock()
	f.stopped = true
	f.mu.Unlock()
	f.down()
	return nil
}

// reset breaks r's connection without a proper end, as a crash or a firewall
// does. It does not return.
func reset(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn()
		}
		if s, ok := c.(*shapedConn); ok {
			c = s.Conn
		}
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // at worst the client sees an ordinary close
		}
	}
	panic(http.ErrAbortHandler)
}
