package upstream

import (
	"context"
	"sync"
)

// slots bounds the parallel requests to an upstream. A part of them is kept
// from blobs, whose bodies may take hours, so that manifests are not starved.
type slots struct {
	all  chan struct{}
	bulk chan struct{}
}

func newSlots(n int) *slots {
	reserve := 0
	if n > 1 {
		reserve = max(1, n/8)
	}
	return &slots{all: make(chan struct{}, n), bulk: make(chan struct{}, n-reserve)}
}

// take waits for a slot and gives what releases it, which may be called more
// than once. It fails only with ctx's error.
func (s *slots) take(ctx context.Context, bulk bool) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if bulk {
		select {
		case s.bulk <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case s.all <- struct{}{}:
	case <-ctx.Done():
		if bulk {
			<-s.bulk
		}
		return nil, ctx.Err()
	}
	return sync.OnceFunc(func() {
		<-s.all
		if bulk {
			<-s.bulk
		}
	}), nil
}
