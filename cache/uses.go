package cache

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// usesEvery is how long a use may wait before the index learns of it.
	usesEvery = 5 * time.Second
	// maxUses bounds the uses that one shard notes in that time.
	maxUses = 16 << 10
)

// uses notes what is asked for on its way to the index: a hit costs a look into
// a map of strings that are there already.
type uses struct {
	// wake holds a token while there is something noted.
	wake   chan struct{}
	shards [16]useShard
}

type useShard struct {
	mu    sync.Mutex
	noted map[digest.Digest]use
	spare map[digest.Digest]use // empty, and grown already
}

type use struct {
	at       int64 // Unix seconds
	manifest bool
}

func newUses() *uses {
	u := &uses{wake: make(chan struct{}, 1)}
	for i := range u.shards {
		u.shards[i].noted, u.shards[i].spare = map[digest.Digest]use{}, map[digest.Digest]use{}
	}
	return u
}

// note notes that d was asked for now.
func (u *uses) note(d digest.Digest, manifest bool) {
	s := &u.shards[d[len(d)-1]&15]
	now := time.Now().Unix()
	s.mu.Lock()
	first := len(s.noted) == 0
	if len(s.noted) < maxUses {
		s.noted[d] = use{now, manifest}
	}
	s.mu.Unlock()
	if first {
		select {
		case u.wake <- struct{}{}:
		default: // it is awake
		}
	}
}

// drain calls fn with all that was noted, and forgets it. It is for one
// goroutine.
func (u *uses) drain(fn func(d digest.Digest, at time.Time, manifest bool)) {
	for i := range u.shards {
		s := &u.shards[i]
		s.mu.Lock()
		noted := s.noted
		s.noted = s.spare
		s.mu.Unlock()
		for d, use := range noted {
			fn(d, time.Unix(use.at, 0), use.manifest)
		}
		clear(noted)
		s.mu.Lock()
		s.spare = noted
		s.mu.Unlock()
	}
}
