package cache

import (
	"errors"
	"fmt"
	"sync"

	"github.com/entrepot-dev/entrepot/cache/evict"
)

// errCrowdedOut says that a blob is not kept because those that are being fetched would
// not fit into the cache together with it.
var errCrowdedOut = errors.New("the blobs that are being fetched fill the cache already")

// inFlight counts the bytes of the blobs that are being fetched. Its zero value is ready;
// its methods are safe for concurrent use.
type inFlight struct {
	mu    sync.Mutex
	of    map[fillKey]int64
	total int64
}

// enter counts the fill of k, of so many bytes, unless all together would have more than
// limit bytes; then the error is errCrowdedOut. One alone may have more than that. Who has
// entered leaves.
func (f *inFlight) enter(k fillKey, bytes, limit int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	others := f.total - f.of[k]
	if bytes = max(0, bytes); others > 0 && others+bytes > limit {
		return fmt.Errorf("%d bytes beside %d of at most %d: %w", bytes, others, limit, errCrowdedOut)
	}
	if f.of == nil {
		f.of = map[fillKey]int64{}
	}
	f.total += bytes - f.of[k]
	f.of[k] = bytes
	return nil
}

// count sets the bytes of the fill of k, whatever the others have: its size isn't known
// beforehand.
func (f *inFlight) count(k fillKey, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of == nil {
		f.of = map[fillKey]int64{}
	}
	f.total += bytes - f.of[k]
	f.of[k] = bytes
}

// bytes returns what was counted for the fill of k.
func (f *inFlight) bytes(k fillKey) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.of[k]
}

// fitting returns how many bytes those fills have together that fit into a cache of limit
// bytes: no room is made for others.
func (f *inFlight) fitting(limit int64) (total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, bytes := range f.of {
		if !evict.Oversize(bytes, limit) {
			total += bytes
		}
	}
	return total
}

// leave undoes enter, if that was called.
func (f *inFlight) leave(k fillKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total -= f.of[k]
	delete(f.of, k)
}
