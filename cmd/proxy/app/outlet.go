package app

import (
	"bytes"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// outletBytes is the most, in bytes, that waits for a slow reader of the log;
	// as much again may be on its way to it.
	outletBytes = 4 << 20
	// outletPiece is the most that one write takes.
	outletPiece = 64 << 10
	// outletPatience is how long the end of the program waits for a reader that
	// takes nothing.
	outletPatience = time.Second
)

// outlet is a writer that never waits for its reader. It buffers what is written
// to it, and a goroutine of its own passes that on. While the reader is too slow
// or gone, the outlet drops lines and counts them. So the log's reader (a pipe, a
// terminal, a full disk) cannot hold up the service.
//
// Each Write must be one line or several whole ones. An outlet is safe for
// concurrent use.
type outlet struct {
	w io.Writer
	// notice makes the line that tells of n dropped lines, once the reader takes
	// some again; nil makes none. It is set before the first Write.
	notice func(n int) []byte

	mu      sync.Mutex
	pending []byte
	spare   []byte // an empty buffer to take the place of pending
	busy    bool   // the goroutine has taken lines and not yet written them
	dropped int    // since the last notice
	total   int    // dropped before there was a counter
	counter prometheus.Counter
	idle    chan struct{} // closed when nothing is pending; nil while nobody waits
	closed  bool
	wake    chan struct{} // holds a token while lines are pending
}

// newOutlet makes an outlet to w and starts its goroutine, which close ends.
func newOutlet(w io.Writer) *outlet {
	o := &outlet{w: w, wake: make(chan struct{}, 1)}
	go o.run()
	return o
}

// Write takes p or drops it; it never waits and gives no error.
func (o *outlet) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || len(o.pending)+len(p) > outletBytes {
		o.drop(p)
		return len(p), nil
	}
	o.pending = append(o.pending, p...)
	o.signal()
	return len(p), nil
}

// signal wakes the goroutine. o.mu is held.
func (o *outlet) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// drop counts the lines of p as dropped. o.mu is held.
func (o *outlet) drop(p []byte) {
	n := max(bytes.Count(p, []byte("\n")), 1)
	o.dropped += n
	if o.counter == nil {
		o.total += n
		return
	}
	o.counter.Add(float64(n))
}

// countTo adds the lines that were and will be dropped to c.
func (o *outlet) countTo(c prometheus.Counter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.counter = c
	c.Add(float64(o.total))
	o.total = 0
}

// run passes on what is pending, until close.
func (o *outlet) run() {
	for {
		lines, dropped, ok := o.take()
		if !ok {
			return
		}
		if lines == nil {
			<-o.wake
			continue
		}
		failed := o.send(lines)
		if !failed && dropped > 0 && o.notice != nil {
			failed = o.send(o.notice(dropped))
		}
		o.gave(lines, dropped, failed)
	}
}

// take gives what is to be written now, nil for nothing yet, and how many lines
// were dropped before; ok is false when there will be nothing more.
func (o *outlet) take() (lines []byte, dropped int, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.pending) == 0 {
		if o.idle != nil {
			close(o.idle)
			o.idle = nil
		}
		return nil, 0, !o.closed
	}
	lines, o.pending, o.spare = o.pending, o.spare[:0], nil
	o.busy = true
	dropped, o.dropped = o.dropped, 0
	return lines, dropped, true
}

// gave notes that what take gave has been written, or failed to be.
func (o *outlet) gave(lines []byte, dropped int, failed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spare, o.busy = lines[:0], false
	if failed || o.notice == nil {
		o.dropped += dropped // to be told later
	}
}

// send writes lines in pieces, and drops what the reader does not take. It tells
// whether it has dropped any.
func (o *outlet) send(lines []byte) (failed bool) {
	for len(lines) > 0 {
		piece := lines
		if len(piece) > outletPiece {
			// A piece ends with a line, where one does.
			piece = piece[:outletPiece]
			if end := bytes.LastIndexByte(piece, '\n'); end >= 0 {
				piece = piece[:end+1]
			}
		}
		lines = lines[len(piece):]
		if n, err := o.w.Write(piece); err != nil {
			failed = true
			o.mu.Lock()
			o.drop(piece[min(max(n, 0), len(piece)):])
			o.mu.Unlock()
		}
	}
	return failed
}

// flush waits until everything is written, for outletPatience at most.
func (o *outlet) flush() {
	o.mu.Lock()
	if len(o.pending) == 0 && !o.busy {
		o.mu.Unlock()
		return
	}
	if o.idle == nil {
		o.idle = make(chan struct{})
	}
	idle := o.idle
	o.signal()
	o.mu.Unlock()
	patience := time.NewTimer(outletPatience)
	defer patience.Stop()
	select {
	case <-idle:
	case <-patience.C:
	}
}

// close flushes, and ends the goroutine. One that is stuck in a write to a reader
// that takes nothing is left behind: the program ends. What is written later is
// dropped.
func (o *outlet) close() {
	o.flush()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.signal()
}

// target gives what o passes its lines on to.
func (o *outlet) target() io.Writer { return o.w }

// buffer puts outlets before what the process prints to, and makes it survive
// that its readers leave. For a command whose output is its result that would be
// wrong: `entrepot ls | head` ends with head. run flushes the outlets at the end.
func (p *process) buffer() {
	// Go ends a program whose write to stdout or stderr meets a closed pipe,
	// unless it receives SIGPIPE. Nobody needs to read it. Children have it as
	// usual, as they would not after signal.Ignore.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	p.outlets = []*outlet{newOutlet(p.stdout), newOutlet(p.stderr)}
	p.stdout, p.stderr = p.outlets[0], p.outlets[1]
}

// closeOutlets writes what buffer has left to write, if it was called.
func (p *process) closeOutlets() {
	for _, o := range p.outlets {
		o.close()
	}
}
