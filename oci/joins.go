package oci

import (
	"context"
	"sync"
)

// Joins tells whoever fetches something for several callers that another caller has
// come to wait for it. Its zero value is ready, and its methods are safe for concurrent
// use.
type Joins struct {
	mu     sync.Mutex
	joined chan struct{}
	closed bool
}

// Note notes that a caller has joined.
func (j *Joins) Note() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if ch := j.made(); !j.closed {
		close(ch)
		j.closed = true
	}
}

// made returns the channel, which it makes if need be. j.mu is held.
func (j *Joins) made() chan struct{} {
	if j.joined == nil {
		j.joined = make(chan struct{})
	}
	return j.joined
}

type joinsKey struct{}

// WithJoins returns a context for a fetch that j is noted for.
func WithJoins(ctx context.Context, j *Joins) context.Context {
	return context.WithValue(ctx, joinsKey{}, j)
}

// Joined returns the channel that is closed when a second caller waits for the fetch
// that ctx belongs to; nil if nobody can join it.
func Joined(ctx context.Context) <-chan struct{} {
	j, ok := ctx.Value(joinsKey{}).(*Joins)
	if !ok {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.made()
}
