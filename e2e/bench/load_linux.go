package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a connection of the load: a bare socket that does not block.
type wire struct {
	fd      int
	request *request
	pending []byte // the beginning of a head that is not all there
	inBody  bool
	left    int64 // of the body
}

// dialWire connects a socket to a server of this machine.
func dialWire(address string) (*wire, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}),
		unix.SetNonblock(fd, true),
	)
	if err != nil {
		_ = unix.Close(fd) // nothing was sent
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return &wire{fd: fd}, nil
}

// send sends the next request. A request is small: a socket that does not take
// it at once is broken.
func (w *wire) send(r *request) error {
	w.request, w.inBody, w.pending = r, false, w.pending[:0]
	n, err := unix.Write(w.fd, r.bytes)
	if err == nil && n < len(r.bytes) {
		err = unix.EAGAIN
	}
	if err != nil {
		return fmt.Errorf("send a request: %w", err)
	}
	return nil
}

// buffers are what recv is given. discard is never written to: MSG_TRUNC lets
// the kernel throw the bytes away.
type buffers struct{ head, discard []byte }

func newBuffers() buffers { return buffers{head: make([]byte, maxHead), discard: make([]byte, 4<<20)} }

// receive takes what there is, at most most bytes of a body, and tells how many
// bytes of a body it was and whether the answer is complete.
func (w *wire) receive(b buffers, most int64) (body int64, complete bool, err error) {
	if w.inBody {
		n, _, err := unix.Recvfrom(w.fd, b.discard[:min(w.left, most, int64(len(b.discard)))], unix.MSG_TRUNC)
		return w.took(int64(n), err)
	}
	into := b.head[copy(b.head, w.pending):]
	n, _, err := unix.Recvfrom(w.fd, into, 0)
	if err != nil || n == 0 {
		return w.took(int64(n), err)
	}
	got := b.head[:len(w.pending)+n]
	h, ok, err := parseHead(got)
	if err != nil {
		return 0, false, err
	}
	if !ok {
		w.pending = append(w.pending, got[len(w.pending):]...)
		return 0, false, nil
	}
	if err := w.request.check(h); err != nil {
		return 0, false, err
	}
	body = int64(len(got) - h.size)
	w.inBody, w.left = true, h.length-body
	if w.request.bare {
		w.left = -body
	}
	if w.left < 0 {
		return body, false, fmt.Errorf("%d bytes more than the body has", -w.left)
	}
	return body, w.left == 0, nil
}

// took makes of recv's answer that of receive.
func (w *wire) took(n int64, err error) (int64, bool, error) {
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return 0, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("receive: %w", err)
	case n == 0:
		return 0, false, errShort
	}
	w.left -= n
	return n, w.left == 0, nil
}

func (w *wire) close() { _ = unix.Close(w.fd) } // all that counts has been received

// runNative is one thread that waits for all sockets at once.
func (l load) runNative(ctx context.Context) (t tally, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return t, err
	}
	defer unix.Close(poll)
	wires := make([]*wire, l.connections)
	for i := range wires {
		if wires[i], err = dialWire(l.address); err != nil {
			return t, err
		}
		defer wires[i].close()
		if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, wires[i].fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			return t, err
		}
	}
	begin := time.Now()
	asked, open := 0, 0
	more := func() bool {
		if l.count > 0 {
			return asked < l.count
		}
		return time.Since(begin) < l.span
	}
	// next sends a wire's next request, or lets it rest.
	next := func(w *wire) {
		open--
		if !more() {
			return
		}
		if err := w.send(&l.requests[asked%len(l.requests)]); err != nil {
			t.fail(err)
			return
		}
		asked++
		open++
	}
	for _, w := range wires {
		open++
		next(w)
	}
	b := newBuffers()
	events := make([]unix.EpollEvent, 256)
	for open > 0 {
		n, err := unix.EpollWait(poll, events, int(patience/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return t, err
		}
		if n == 0 {
			t.fail(errStuck)
			break
		}
		if err := ctx.Err(); err != nil {
			return t, err
		}
		for _, e := range events[:n] {
			w := wires[e.Fd]
			body, complete, err := w.receive(b, 1<<62)
			t.bytes += body
			if body > 0 && t.first == 0 {
				t.first = time.Since(begin)
			}
			switch {
			case err != nil:
				t.fail(err)
				open--
				// Level-triggered: a broken socket would be told of for ever.
				if err := unix.EpollCtl(poll, unix.EPOLL_CTL_DEL, w.fd, nil); err != nil {
					return t, err
				}
			case complete:
				t.requests++
				next(w)
			}
		}
	}
	t.elapsed = time.Since(begin)
	return t, nil
}

// tick is how often a paced reader takes its bytes.
const tick = 100 * time.Millisecond

// runPaced lets each connection take a body at a rate, in bytes per second, for
// the load's span. The tally's bytes are those that came.
func (l load) runPaced(ctx context.Context, rate int64) (t tally, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wires := make([]*wire, l.connections)
	for i := range wires {
		if wires[i], err = dialWire(l.address); err != nil {
			return t, err
		}
		defer wires[i].close()
		// What the kernel takes ahead is to be little beside what is read.
		if err := unix.SetsockoptInt(wires[i].fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10); err != nil {
			return t, err
		}
	}
	taken := make([]int64, len(wires))
	b := newBuffers()
	begin := time.Now()
	for i, w := range wires {
		if err := w.send(&l.requests[i%len(l.requests)]); err != nil {
			t.fail(err)
			wires[i] = nil
			w.close()
		}
	}
	// The readers' turns are spread over the tick, twenty groups of them.
	const groups = 20
	for turn := 0; ; turn++ {
		now := time.Since(begin)
		if now >= l.span {
			break
		}
		if err := ctx.Err(); err != nil {
			return t, err
		}
		for i := turn % groups; i < len(wires); i += groups {
			w := wires[i]
			if w == nil {
				continue
			}
			for due := int64(now.Seconds()*float64(rate)) - taken[i]; due > 0; {
				body, complete, err := w.receive(b, due)
				taken[i] += body
				t.bytes += body
				due -= body
				if err != nil {
					t.fail(err)
					wires[i] = nil
					w.close()
					break
				}
				if complete {
					t.requests++
					if err := w.send(w.request); err != nil {
						t.fail(err)
						wires[i] = nil
						w.close()
						break
					}
				}
				if body == 0 {
					break // nothing is there now
				}
			}
		}
		time.Sleep(time.Until(begin.Add(time.Duration(turn+1) * tick / groups)))
	}
	t.elapsed = time.Since(begin)
	return t, nil
}
