package cache

import (
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
)

// errCrowdedOut says that a blob is not kept because those that are being fetched would
// not fit into the cache together with it.
var errCrowdedOut = errors.New("the blobs that are being fetched fill the cache already")

// inFlight counts the bytes of the blobs that are being fetched. Its zero value is ready;
// its methods are safe for concurrent use.
type inFlight struct {
	mu    sync.Mutex
	of    map[digest.Digest]int64
	total int64
}

// enter counts the blob of d, of so many bytes, unless all together would have more than
// limit bytes; then the error is errCrowdedOut. One alone may have more than that. Who has
// entered leaves.
func (f *inFlight) enter(d digest.Digest, bytes, limit int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	others := f.total - f.of[d]
	if bytes = max(0, bytes); others > 0 && others+bytes > limit {
		return fmt.Errorf("%d bytes beside %d of at most %d: %w", bytes, others, limit, errCrowdedOut)
	}
	if f.of == nil {
		f.of = map[digest.Digest]int64{}
	}
	f.total += bytes - f.of[d]
	f.of[d] = bytes
	return nil
}

// leave undoes enter, if that was called.
func (f *inFlight) leave(d digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total -= f.of[d]
	delete(f.of, d)
}
