package cache

import (
	"sync"
	"time"
)

// maxRecent bounds what one recent holds, whatever strangers ask for.
const maxRecent = 10_000

// recent remembers things for a short time, and forgets them sooner when there
// are too many. All methods are safe for concurrent use.
type recent[V any] struct {
	mu      sync.Mutex
	entries map[string]recentEntry[V]
}

type recentEntry[V any] struct {
	value V
	until time.Time
}

// put remembers v under key for d.
func (r *recent[V]) put(key string, v V, d time.Duration) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.entries == nil {
		r.entries = map[string]recentEntry[V]{}
	}
	if len(r.entries) >= maxRecent {
		for k, e := range r.entries {
			if now.After(e.until) {
				delete(r.entries, k)
			}
		}
	}
	if len(r.entries) >= maxRecent {
		clear(r.entries) // each is only asked for once more
	}
	r.entries[key] = recentEntry[V]{v, now.Add(d)}
}

// get gives what is remembered under key.
func (r *recent[V]) get(key string) (V, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries[key]
	if ok && time.Now().After(e.until) {
		delete(r.entries, key)
		ok = false
	}
	if !ok {
		var none V
		return none, false
	}
	return e.value, true
}

// clear forgets everything.
func (r *recent[V]) clear() {
	r.mu.Lock()
	clear(r.entries)
	r.mu.Unlock()
}

// drop forgets key.
func (r *recent[V]) drop(key string) {
	r.mu.Lock()
	delete(r.entries, key)
	r.mu.Unlock()
}
