package cache

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/oci"
)

// content returns size bytes that look random and are the same for the same seed.
func content(seed uint64, size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// source is an upstream with one blob, which it sends slowly.
type source struct {
	content []byte
	// chunk bounds the bytes of one read; pace is the time before each.
	chunk int
	pace  time.Duration
	// open, if it is set, may answer the nth request (from 0); it returns nil, nil for the
	// usual answer.
	open func(n int, span oci.Span) (*oci.Body, error)

	mu       sync.Mutex
	requests []oci.Span
	sent     int64 // bytes that have been read, of all requests
}

func (s *source) Blob(ctx context.Context, span oci.Span) (*oci.Body, error) {
	s.mu.Lock()
	n := len(s.requests)
	s.requests = append(s.requests, span)
	s.mu.Unlock()
	if s.open != nil {
		if b, err := s.open(n, span); b != nil || err != nil {
			return b, err
		}
	}
	size := int64(len(s.content))
	got := oci.Span{From: span.From, To: fill.End(span, size)}
	body := &sourceBody{s: s, ctx: ctx, rest: s.content[got.From:got.To]}
	return &oci.Body{ReadCloser: body, Span: got, Size: size, Source: "source.test"}, nil
}

type sourceBody struct {
	s    *source
	ctx  context.Context
	rest []byte
}

func (b *sourceBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(b.s.pace):
	case <-b.ctx.Done():
		return 0, context.Cause(b.ctx)
	}
	n := copy(p[:min(len(p), b.s.chunk)], b.rest)
	b.rest = b.rest[n:]
	b.s.mu.Lock()
	b.s.sent += int64(n)
	b.s.mu.Unlock()
	return n, nil
}

func (b *sourceBody) Close() error { return nil }
