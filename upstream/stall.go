package upstream

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// errStalled is the cause with which a request is cancelled whose body stalls.
var errStalled = errors.New("no bytes came")

// body is a response's body that ends with an error when no byte comes for a
// while, or when fewer come than were promised. It is for one goroutine.
//
// Only the time inside Read counts: a reader that takes its time is no stall.
type body struct {
	rc io.ReadCloser
	// left is how many bytes are still promised; -1 where nobody said.
	left   int64
	stall  time.Duration
	timer  *time.Timer
	ctx    context.Context
	cancel context.CancelCauseFunc
	count  prometheus.Counter
	// explain, where it is set, makes the error that the reader gets.
	explain func(error) error
	close   sync.Once
	release func() // called once, by Close; may be nil
}

// newBody wraps rc, whose request ends with ctx; cancel ends it.
func newBody(ctx context.Context, cancel context.CancelCauseFunc, rc io.ReadCloser, stall time.Duration, count prometheus.Counter) *body {
	b := &body{rc: rc, left: -1, stall: stall, ctx: ctx, cancel: cancel, count: count}
	b.timer = time.AfterFunc(stall, func() { cancel(errStalled) })
	b.timer.Stop()
	return b
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	b.timer.Reset(b.stall)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	if n > 0 {
		b.count.Add(float64(n))
		if b.left > 0 {
			b.left -= int64(n)
		}
	}
	switch {
	case err == nil, b.left == 0:
		return n, nil
	case err == io.EOF && b.left < 0:
		return n, io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	// The cause says more than "context canceled".
	if cause := context.Cause(b.ctx); cause != nil {
		err = cause
	}
	if b.explain != nil {
		err = b.explain(err)
	}
	return n, err
}

// Close may be called more than once, and while no Read runs.
func (b *body) Close() error {
	b.close.Do(func() {
		b.timer.Stop()
		_ = b.rc.Close()
		b.cancel(nil)
		if b.release != nil {
			b.release()
		}
	})
	return nil
}
