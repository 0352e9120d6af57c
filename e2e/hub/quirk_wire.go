package hub

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// Wire is a network path to a hub's registry that can lose everything sent over it, as
// firewalls and broken routes do. Nobody is told: connections stay open, and new ones are
// accepted. Its methods are safe for concurrent use.
type Wire struct {
	l      net.Listener
	target string

	mu    sync.Mutex
	lost  bool // nothing gets through
	epoch int  // connections of an earlier one are dead for good
	conns map[net.Conn]bool
	ended bool
	work  sync.WaitGroup
}

// NewWire makes a path to h's registry that ends with the test.
func NewWire(t testing.TB, h *Hub) *Wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{l: l, target: h.Host(), conns: map[net.Conn]bool{}}
	w.work.Go(w.accept)
	t.Cleanup(w.close)
	return w
}

// URL is the address at which the registry is reached over w; u is the hub's own.
func (w *Wire) URL(u string) string {
	v, err := url.Parse(u)
	if err != nil {
		panic(err)
	}
	v.Host = w.l.Addr().String()
	return v.String()
}

// Lose loses everything from now on, until Mend.
func (w *Wire) Lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = true
}

// Mend lets new connections work. Those that exist stay dead.
func (w *Wire) Mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = false
	w.epoch++
}

func (w *Wire) dead(epoch int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost || w.epoch != epoch
}

// own notes c, which close closes; false if w is closed already.
func (w *Wire) own(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		_ = c.Close()
		return false
	}
	w.conns[c] = true
	return true
}

func (w *Wire) disown(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, c)
	_ = c.Close()
}

func (w *Wire) close() {
	_ = w.l.Close()
	w.mu.Lock()
	w.ended = true
	for c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	w.work.Wait()
}

func (w *Wire) accept() {
	for {
		c, err := w.l.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		epoch := w.epoch
		w.mu.Unlock()
		w.work.Go(func() { w.carry(c, epoch) })
	}
}

// carry moves bytes between c and the hub until both have ended.
func (w *Wire) carry(c net.Conn, epoch int) {
	if !w.own(c) {
		return
	}
	defer w.disown(c)
	far, err := net.Dial("tcp", w.target)
	if err != nil || !w.own(far) {
		return
	}
	defer w.disown(far)
	var both sync.WaitGroup
	for from, to := range map[net.Conn]net.Conn{c: far, far: c} {
		both.Go(func() {
			buf := make([]byte, 32<<10)
			for {
				n, err := from.Read(buf)
				if err == nil && w.dead(epoch) {
					continue
				}
				if err == nil {
					_, err = to.Write(buf[:n])
				}
				if err != nil {
					if w.dead(epoch) {
						_, _ = io.Copy(io.Discard, from) // nor does the end get through
						return
					}
					_ = to.Close()
					_ = from.Close()
					return
				}
			}
		})
	}
	both.Wait()
}
