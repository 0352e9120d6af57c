package cache

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// DefaultMaxFills and DefaultManifestMemory are what the options default to.
	DefaultMaxFills       = 128
	DefaultManifestMemory = 32 << 20
	// fillPatience is how long a fill waits for a place: about as long as a
	// client waits for a first byte without giving up.
	fillPatience = 10 * time.Second
	// fillRetry is when a client may come back that found no place.
	fillRetry = 5 * time.Second
)

// errNoPlace says that a fill found no place.
var errNoPlace = errors.New("limits.fills is reached")

// places bounds the fills that run at a time. Fills of one upstream have at most
// three quarters of them: one that hangs does not take them all.
type places struct {
	all, ofUpstream *semaphore.Weighted
}

// newPlaces gives a function that makes the places of one upstream more, which
// share n with all others.
func newPlaces(n int) func() places {
	all := semaphore.NewWeighted(int64(n))
	return func() places {
		return places{all: all, ofUpstream: semaphore.NewWeighted(int64(max(1, n-n/4)))}
	}
}

// take waits for a place. It fails with ctx's error.
func (p places) take(ctx context.Context) error {
	if err := p.ofUpstream.Acquire(ctx, 1); err != nil {
		return err
	}
	if err := p.all.Acquire(ctx, 1); err != nil {
		p.ofUpstream.Release(1)
		return err
	}
	return nil
}

func (p places) release() {
	p.all.Release(1)
	p.ofUpstream.Release(1)
}

// admit waits for a place for a fill from up, which leave gives back.
func (c *Cache) admit(up *upstream) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(c.ctx, fillPatience)
	defer cancel()
	if up.places.take(ctx) == nil {
		return up.places.release, nil
	}
	if c.ctx.Err() != nil {
		return nil, context.Cause(c.ctx)
	}
	c.metrics.Refused.WithLabelValues("fills").Inc()
	return nil, &oci.Error{
		Code: oci.CodeUnavailable, RetryAfter: fillRetry, Err: errNoPlace,
		Message: "the cache fetches as many blobs as it may (limits.fills), and none of them ended soon; ask again",
	}
}
