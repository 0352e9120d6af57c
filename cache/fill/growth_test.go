package fill

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// line is a way to a source on which all connections share a rate, beside the
// one that each has of its own, in bytes a second.
type line struct {
	own, shared float64
	open, most  atomic.Int64
	requests    atomic.Int64
}

// through makes s send by l.
func (l *line) through(s *source) {
	const delay = 30 * time.Millisecond
	s.open = func(_ int, span oci.Span) (*oci.Body, error) {
		time.Sleep(delay)
		size := int64(len(s.content))
		if span.To == oci.Open {
			span.To = size
		}
		l.requests.Add(1)
		l.most.Store(max(l.most.Load(), l.open.Add(1)))
		r := &slowBody{line: l, rest: s.content[span.From:span.To]}
		return &oci.Body{ReadCloser: r, Span: span, Size: size, Source: "source.test"}, nil
	}
}

type slowBody struct {
	line *line
	rest []byte
}

func (b *slowBody) Read(p []byte) (int, error) {
	n := copy(p[:min(len(p), 16<<10)], b.rest)
	rate := min(b.line.own, b.line.shared/float64(b.line.open.Load()))
	time.Sleep(time.Duration(float64(n) / rate * float64(time.Second)))
	b.rest = b.rest[n:]
	return n, nil
}

func (b *slowBody) Close() error {
	b.line.open.Add(-1)
	return nil
}

// The clock is fake: times are the line's, and not the machine's.
func TestFillTakesAsManyConnectionsAsHelp(t *testing.T) {
	const size = 32 << 20
	for name, c := range map[string]*struct {
		line        line
		connections int64
		// share is of the time that one connection takes; at most.
		share float64
		// unsized is set if no manifest has told the blob's size.
		unsized bool
	}{
		"each connection is slow":       {line: line{own: 4e6, shared: 1e9}, connections: MaxWriters, share: 0.3},
		"each is slow, and no manifest": {line: line{own: 4e6, shared: 1e9}, connections: MaxWriters, share: 0.3, unsized: true},
		"the line is full with one":     {line: line{own: 1e9, shared: 4e6}, connections: 2, share: 1.05},
		"the line is full with two":     {line: line{own: 4e6, shared: 8e6}, connections: MaxWriters, share: 0.55},
		"one connection is fast enough": {line: line{own: 500e6, shared: 1e9}, connections: 1, share: 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &source{content: content(21, size)}
				c.line.through(s)
				f := newTestFill(s, &memoryPart{})
				f.least = 2 << 20
				if c.unsized {
					f.size, f.task.Size = -1, -1
				}
				begun := time.Now()
				if err := f.Run(context.Background()); err != nil {
					t.Fatal(err)
				}
				took, alone := time.Since(begun), time.Duration(size/min(c.line.own, c.line.shared)*float64(time.Second))
				if got := float64(took) / float64(alone); got > c.share {
					t.Errorf("it took %v, %.2f of the %v of one connection; want at most %.2f", took, got, alone, c.share)
				}
				if got := c.line.most.Load(); got != c.connections {
					t.Errorf("%d connections at a time, want %d", got, c.connections)
				}
			})
		})
	}
}
