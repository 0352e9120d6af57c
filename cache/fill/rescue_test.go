package fill

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// trickle makes the requests for which slow is set bring a byte each five seconds.
func trickle(s *source, slow func(n int) bool) func(ctx context.Context, span oci.Span) (*oci.Body, error) {
	n := 0
	return func(ctx context.Context, span oci.Span) (*oci.Body, error) {
		s.mu.Lock()
		mine := n
		n++
		s.mu.Unlock()
		body, err := s.Blob(ctx, span)
		if err == nil && slow(mine) {
			b := body.ReadCloser.(*sourceBody)
			body.ReadCloser = &sourceBody{s: &source{pace: 5 * time.Second, chunk: 1}, ctx: ctx, rest: b.rest, cut: -1}
		}
		return body, err
	}
}

// A transfer that trickles gets a second request beside it, and the faster one wins.
func TestFillThatTricklesIsRescued(t *testing.T) {
	for name, c := range map[string]struct {
		size      int
		slow      func(n int) bool
		within    time.Duration
		noRanges  bool
		hideSize  bool
		mostAsked int
	}{
		"the first request":                      {size: 524_288, slow: func(n int) bool { return n == 0 }, within: 10 * time.Second, mostAsked: 2},
		"the first two":                          {size: 524_288, slow: func(n int) bool { return n < 2 }, within: 40 * time.Second, mostAsked: 3},
		"a segment of a large one":               {size: 8 << 20, slow: func(n int) bool { return n == 1 }, within: 15 * time.Second, mostAsked: 9},
		"an upstream that ignores ranges":        {size: 524_288, slow: func(n int) bool { return n == 0 }, within: 10 * time.Second, noRanges: true, mostAsked: 2},
		"an upstream that doesn't tell the size": {size: 524_288, slow: func(n int) bool { return n == 0 }, within: 10 * time.Second, hideSize: true, mostAsked: 2},
		"all of a small one":                     {size: 100, slow: func(n int) bool { return n == 0 }, within: 10 * time.Second, mostAsked: 2},
		"none":                                   {size: 524_288, slow: func(int) bool { return false }, within: time.Second, mostAsked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, p := &source{content: content(80, c.size), noRanges: c.noRanges, hideSize: c.hideSize}, &memoryPart{}
				f := newTestFill(s, p)
				f.task.Open = trickle(s, c.slow)
				begun := time.Now()
				ended := make(chan error)
				go func() { ended <- f.Run(t.Context()) }()
				got, err := read(t.Context(), f, oci.Whole)
				if err != nil || !bytes.Equal(got, s.content) {
					t.Errorf("a reader gets %d bytes, %v; want %d", len(got), err, c.size)
				}
				if err := <-ended; err != nil || !bytes.Equal(p.content, s.content) || !p.committed {
					t.Errorf("the fill ends with %v, %d bytes", err, len(p.content))
				}
				if took := time.Since(begun); took > c.within {
					t.Errorf("it took %v, want at most %v", took, c.within)
				}
				if n := len(s.requests); n > c.mostAsked {
					t.Errorf("the upstream was asked %d times, want at most %d", n, c.mostAsked)
				}
			})
		})
	}
}

// What a second request brings is verified as all else is, and one that fares no
// better displaces nothing.
func TestRescueThatFailsChangesNothing(t *testing.T) {
	for name, second := range map[string]func(span oci.Span, size int64) (*oci.Body, error){
		"refused": func(oci.Span, int64) (*oci.Body, error) { return nil, fmt.Errorf("no") },
		"cut short": func(span oci.Span, size int64) (*oci.Body, error) {
			return &oci.Body{ReadCloser: io.NopCloser(bytes.NewReader(nil)), Span: oci.Span{From: span.From, To: size}, Size: size}, nil
		},
		"another span": func(span oci.Span, size int64) (*oci.Body, error) {
			return &oci.Body{ReadCloser: io.NopCloser(bytes.NewReader(make([]byte, size))), Span: oci.Span{From: span.From + 1, To: size}, Size: size}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, p := &source{content: content(81, 400_000), pace: 5 * time.Second, chunk: 10_000}, &memoryPart{}
				s.open = func(n int, span oci.Span) (*oci.Body, error) {
					if n == 0 {
						return nil, nil
					}
					return second(span, int64(len(s.content)))
				}
				f := newTestFill(s, p)
				ended := make(chan error)
				go func() { ended <- f.Run(t.Context()) }()
				got, err := read(t.Context(), f, oci.Whole)
				if err != nil || !bytes.Equal(got, s.content) {
					t.Errorf("a reader gets %d bytes, %v", len(got), err)
				}
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if n := len(s.requests); n < 2 || n > 10 {
					t.Errorf("the upstream was asked %d times in 200 s", n)
				}
			})
		})
	}
}
