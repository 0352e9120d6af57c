// Package memory is the tier of memory in front of the disk. It holds values of several
// kinds by name, within a bound in bytes, and may forget anything at any time.
package memory

import (
	"fmt"
	"hash/maphash"

	"github.com/dgraph-io/ristretto/v2"

	"github.com/entrepot-dev/entrepot/metrics"
)

const (
	// entryCost is about what an entry costs beside its name and its value, in bytes:
	// the entry itself and its places in ristretto's maps, which are not all full.
	entryCost = 256
	// WordCost is about what a map or the backing of a slice costs beside what it
	// holds, in bytes.
	WordCost = 64
	// largestShare is the largest part of the tier, as a divisor, that one entry may
	// take: a larger one would push out everything else.
	largestShare = 4
)

// Tier holds values by name. All methods are safe for concurrent use. A nil value of its
// store, as New makes for no bytes, holds nothing.
type Tier struct {
	lru     *ristretto.Cache[uint64, *Entry]
	most    int64 // the largest cost of one entry
	seed    maphash.Seed
	metrics *metrics.Metrics
}

// Entry is a value and its name. Ristretto is given only a hash of the name, so that a
// look-up makes no string; other names may have the same hash.
type Entry struct {
	Name  Name
	Value any
}

// Name says what a value is of. Its strings are an upstream, a repository, and a tag or
// digest, as far as the kind has them.
type Name struct {
	Kind           Kind
	Upstream, Repo string
	Reference      string
}

// Kind is what kind of value a name stands for: two kinds never meet.
type Kind byte

const (
	// Manifest and Blob are content, by digest alone.
	Manifest Kind = iota
	Blob
	// Link, Tag and List are records of a repository.
	Link
	Tag
	List
)

// New makes a tier of about bytes bytes; of none if that is zero. The caller calls Close.
func New(bytes int64, m *metrics.Metrics) (*Tier, error) {
	if bytes <= 0 {
		return &Tier{metrics: m}, nil
	}
	lru, err := ristretto.NewCache(&ristretto.Config[uint64, *Entry]{
		// Ten times the number of entries that fit, of about a KiB, as
		// ristretto advises.
		NumCounters:        max(10*bytes/1024, 1000),
		MaxCost:            bytes,
		BufferItems:        64,
		IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, fmt.Errorf("memory tier of %d bytes: %w", bytes, err)
	}
	return &Tier{lru: lru, most: bytes / largestShare, seed: maphash.MakeSeed(), metrics: m}, nil
}

// Close ends the tier's goroutines.
func (t *Tier) Close() {
	if t.lru != nil {
		t.lru.Close()
	}
}

// hash returns ristretto's key of n.
func (t *Tier) hash(n Name) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	_ = h.WriteByte(byte(n.Kind)) // never fails
	for _, s := range [...]string{n.Upstream, n.Repo, n.Reference} {
		_, _ = h.WriteString(s)
		_ = h.WriteByte(0)
	}
	return h.Sum64()
}

// Get returns the entry of n; nil if there is none. It allocates nothing, keeps none of n's
// strings, and counts neither as a hit nor as a miss: see CountHit.
func (t *Tier) Get(n Name) *Entry {
	if t.lru == nil {
		return nil
	}
	if e, ok := t.lru.Get(t.hash(n)); ok && e.Name == n {
		return e
	}
	return nil
}

// CountHit counts a hit in the metrics, for those who use Get.
func (t *Tier) CountHit() { t.metrics.MemoryHits.Inc() }

// Peek returns the value of n if it is a V. It counts neither as a hit nor as a miss.
func Peek[V any](t *Tier, n Name) (v V, ok bool) {
	if e := t.Get(n); e != nil {
		v, ok = e.Value.(V)
	}
	return v, ok
}

// Find is Peek for clients' requests: it counts as a hit or a miss.
func Find[V any](t *Tier, n Name) (V, bool) {
	if e := t.Get(n); e != nil {
		if v, ok := e.Value.(V); ok {
			t.metrics.MemoryHits.Inc()
			return v, true
		}
	}
	t.metrics.MemoryMisses.Inc()
	var none V
	return none, false
}

// Set keeps a value that never changes; it may not be found at once, or ever. cost is about
// how many bytes v takes up. The tier keeps n's strings.
func (t *Tier) Set(n Name, v any, cost int64) {
	if cost += costOf(n); t.lru != nil && cost <= t.most {
		t.lru.Set(t.hash(n), &Entry{n, v}, cost)
	}
}

// costOf returns about how many bytes an entry of that name takes up beside its value.
func costOf(n Name) int64 { return entryCost + int64(len(n.Upstream)+len(n.Repo)+len(n.Reference)) }

// Replace keeps a value that changes: once it returns, nobody finds the value before.
func (t *Tier) Replace(n Name, v any, cost int64) {
	if t.lru == nil {
		return
	}
	// Ristretto may drop a set and keep the value before it. So that value is dropped
	// first, and the buffers that could still bring it are drained.
	t.Drop(n)
	if cost += costOf(n); cost <= t.most {
		t.lru.Set(t.hash(n), &Entry{n, v}, cost)
	}
}

// Drop forgets values: once it returns, nobody finds one that was there before.
func (t *Tier) Drop(names ...Name) {
	if t.lru == nil || len(names) == 0 {
		return
	}
	for _, n := range names {
		t.lru.Del(t.hash(n))
	}
	t.lru.Wait()
}

// Wait waits until what was set is there to be found, and Clear forgets everything. They
// are for tests.
func (t *Tier) Wait() {
	if t.lru != nil {
		t.lru.Wait()
	}
}

// Clear forgets everything; see Wait.
func (t *Tier) Clear() {
	if t.lru != nil {
		t.lru.Clear()
	}
}
