package hub

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Shape bounds what each connection sends, whatever requests it carries, in bytes per
// second; zero is no bound. It is what networks and CDNs do, where Slow bounds each
// answer.
func (h *Hub) Shape(bytesPerSecond int64) { h.shape.Store(bytesPerSecond) }

// shapedListener makes connections that send no more than rate bytes per second each.
type shapedListener struct {
	net.Listener
	rate *atomic.Int64
}

func (l shapedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &shapedConn{Conn: c, rate: l.rate}, nil
}

// slack is how far a connection may be ahead, and how much it may catch up: what is
// written at a time is too little for a sleep of its own.
const slack = 5 * time.Millisecond

type shapedConn struct {
	net.Conn
	rate *atomic.Int64

	mu  sync.Mutex
	due time.Time // when what has been sent would have been, at the rate
}

func (c *shapedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if rate := c.rate.Load(); rate > 0 && n > 0 {
		c.mu.Lock()
		if late := time.Now().Add(-slack); c.due.Before(late) {
			c.due = late
		}
		c.due = c.due.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
		wait := time.Until(c.due)
		c.mu.Unlock()
		if wait > slack {
			time.Sleep(wait)
		}
	}
	return n, err
}
