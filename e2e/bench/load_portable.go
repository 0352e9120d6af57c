package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// runPortable is a goroutine for each connection, which reads the bodies. It is
// for TLS, and for systems that can not throw bodies away in the kernel.
func (l load) runPortable(ctx context.Context) (tally, error) {
	conns := make([]net.Conn, l.connections)
	var suite uint16
	for i := range conns {
		c, err := l.dial(ctx)
		if err != nil {
			return tally{}, err
		}
		defer c.Close()
		if c, ok := c.(*tls.Conn); ok {
			suite = c.ConnectionState().CipherSuite
		}
		conns[i] = c
	}
	p := portable{load: l, begin: time.Now()}
	var readers sync.WaitGroup
	for _, c := range conns {
		readers.Go(func() { p.reader(ctx, c) })
	}
	readers.Wait()
	p.tally.elapsed = time.Since(p.begin)
	p.tally.suite = suite
	return p.tally, ctx.Err()
}

func (l load) dial(ctx context.Context) (net.Conn, error) {
	if l.tls != nil {
		d := tls.Dialer{Config: l.tls}
		return d.DialContext(ctx, "tcp", l.address)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", l.address)
}

// portable is a load that runs.
type portable struct {
	load  load
	begin time.Time
	asked atomic.Int64

	mu    sync.Mutex
	tally tally
}

func (p *portable) reader(ctx context.Context, c net.Conn) {
	r := bufio.NewReaderSize(c, maxHead)
	buffer := make([]byte, 256<<10)
	for ctx.Err() == nil {
		n := p.asked.Add(1) - 1
		if p.load.count > 0 && n >= int64(p.load.count) || p.load.count == 0 && time.Since(p.begin) >= p.load.span {
			return
		}
		body, first, err := p.one(c, r, buffer, &p.load.requests[n%int64(len(p.load.requests))])
		p.mu.Lock()
		t := &p.tally
		t.bytes += body
		if !first.IsZero() && (t.first == 0 || first.Sub(p.begin) < t.first) {
			t.first = first.Sub(p.begin)
		}
		if err != nil {
			t.fail(err)
		} else {
			t.requests++
		}
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// one makes a request and reads its answer; first is when the body's first byte
// was there.
func (p *portable) one(c net.Conn, r *bufio.Reader, buffer []byte, q *request) (body int64, first time.Time, err error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, first, err
	}
	if _, err := c.Write(q.bytes); err != nil {
		return 0, first, fmt.Errorf("send a request: %w", err)
	}
	var h head
	for size, ok := 1, false; !ok; size = r.Buffered() + 1 {
		b, err := r.Peek(size)
		if err != nil {
			return 0, first, fmt.Errorf("%w: %w", errShort, err)
		}
		b, _ = r.Peek(max(len(b), r.Buffered())) // that much is there
		if h, ok, err = parseHead(b); err != nil {
			return 0, first, err
		}
	}
	if _, err := r.Discard(h.size); err != nil {
		return 0, first, err
	}
	if err := q.check(h); err != nil {
		return 0, first, err
	}
	if q.bare {
		h.length = 0
	}
	for body < h.length {
		// A deadline for each read would cost more than it is worth.
		if body>>26 != (body-int64(len(buffer)))>>26 {
			if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
				return body, first, err
			}
		}
		n, err := r.Read(buffer[:min(int64(len(buffer)), h.length-body)])
		if n > 0 && first.IsZero() {
			first = time.Now()
		}
		body += int64(n)
		if err != nil && body < h.length {
			if err == io.EOF {
				err = errShort
			}
			return body, first, err
		}
	}
	if h.length == 0 || r.Buffered() == 0 {
		return body, first, nil
	}
	return body, first, fmt.Errorf("%d bytes more than the body has", r.Buffered())
}
