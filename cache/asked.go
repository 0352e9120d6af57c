package cache

import (
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// askedEvery is how long what clients ask for may wait before it is written: so
	// much of it a crash loses, and so exact is the time of it.
	askedEvery = 10 * time.Second
	// maxAskedShard bounds what one shard holds; what is beyond it is not noted.
	maxAskedShard = 4 << 10
	// askedRounds is for how many rounds what nobody asks for any more is held: to hold
	// it anew is an allocation.
	askedRounds = 30
)

// asked notes what clients ask for on its way to the index. What is held already costs
// a hash, a look into a map, and no allocation, though its name may lie in a buffer
// that is used again.
type asked struct {
	seed maphash.Seed
	// wake holds a token while there is something noted.
	wake   chan struct{}
	shards [16]askedShard
}

type askedShard struct {
	mu    sync.Mutex
	held  map[uint64]*askedEntry
	noted bool // something has been noted since the last round
}

// askedEntry is one reference. It is guarded by its shard.
type askedEntry struct {
	kind                      askedKind
	upstream, repo, reference string
	// given is what a tag was last answered with.
	given       digest.Digest
	gets, heads int64
	idle        int // rounds since it was asked for
}

type askedKind byte

const (
	askedTag askedKind = iota
	askedDigest
	askedReferrers
)

func newAsked() *asked {
	a := &asked{seed: maphash.MakeSeed(), wake: make(chan struct{}, 1)}
	for i := range a.shards {
		a.shards[i].held = map[uint64]*askedEntry{}
	}
	return a
}

// note notes that a client asked for t, and was given the manifest of d, or with head
// what there is of it.
func (a *asked) note(t oci.Target, d digest.Digest, head bool) {
	if t.Digest == "" && t.AsOf.IsZero() {
		a.add(askedTag, t, t.Tag, d, head)
		return
	}
	a.add(askedDigest, t, string(d), d, head)
}

// noteReferrers notes that a client asked what refers to t.
func (a *asked) noteReferrers(t oci.Target) {
	a.add(askedReferrers, t, string(t.Digest), t.Digest, false)
}

func (a *asked) add(kind askedKind, t oci.Target, reference string, given digest.Digest, head bool) {
	var h maphash.Hash
	h.SetSeed(a.seed)
	_ = h.WriteByte(byte(kind)) // never fails
	for _, s := range [...]string{t.Upstream, t.Repository, reference} {
		_, _ = h.WriteString(s)
		_ = h.WriteByte(0)
	}
	sum := h.Sum64()
	s := &a.shards[sum&15]
	s.mu.Lock()
	e := s.held[sum]
	if e == nil {
		if len(s.held) >= maxAskedShard {
			s.mu.Unlock()
			return
		}
		e = &askedEntry{kind: kind, upstream: strings.Clone(t.Upstream), repo: strings.Clone(t.Repository), reference: strings.Clone(reference)}
		s.held[sum] = e
	}
	if e.given != given {
		e.given = digest.Digest(strings.Clone(string(given)))
	}
	if head {
		e.heads++
	} else {
		e.gets++
	}
	first := !s.noted
	s.noted = true
	s.mu.Unlock()
	if first {
		select {
		case a.wake <- struct{}{}:
		default: // it is awake
		}
	}
}

// drain gives what was noted since the last round, as of now.
func (a *asked) drain(now time.Time) (list []index.Asked) {
	day := index.DayOf(now)
	for i := range a.shards {
		s := &a.shards[i]
		s.mu.Lock()
		for sum, e := range s.held {
			if e.gets == 0 && e.heads == 0 {
				if e.idle++; e.idle > askedRounds {
					delete(s.held, sum)
				}
				continue
			}
			of := index.Asked{Upstream: e.upstream, Repository: e.repo, Digest: e.given, Last: now, Days: []index.AskedDay{{Day: day, Gets: e.gets, Heads: e.heads}}}
			switch e.kind {
			case askedTag:
				of.Tag = e.reference
			case askedReferrers:
				of.Referrers = true
			}
			list = append(list, of)
			e.gets, e.heads, e.idle = 0, 0, 0
		}
		s.noted = false
		s.mu.Unlock()
	}
	return list
}

// writeAsked hands what clients ask for to the index, now and then, until the cache is
// closed. The cache owns it.
func (c *Cache) writeAsked() {
	for {
		select {
		case <-c.asked.wake:
		case <-c.ctx.Done():
			c.flushAsked()
			return
		}
		select {
		case <-time.After(askedEvery):
			c.flushAsked()
		case <-c.ctx.Done():
			c.flushAsked()
			return
		}
	}
}

// flushAsked writes what was noted. What can not be written is lost: it is no reason to
// hold more and more of it.
func (c *Cache) flushAsked() {
	c.flushMissing()
	list := c.asked.drain(time.Now())
	if len(list) == 0 || c.store.ReadOnly() {
		return
	}
	if err := c.index.AddAsked(list, time.Now()); err != nil {
		c.log.Warn("what clients have asked for could not be noted", zap.Int("references", len(list)), zap.Error(err))
	}
}
