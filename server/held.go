package server

import (
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
)

// smallBody is the size up to which a body is not counted: it is copied into its
// connection's buffer, which is there anyway.
const smallBody = writeBufferSize

// holding bounds the memory for bodies that clients are reading, however slowly.
// Clients that read the same body share it. All methods are safe for concurrent use.
type holding struct {
	most    int64
	refused prometheus.Counter

	mu     sync.Mutex
	used   int64
	bodies map[bodyKey]*heldBody
}

// bodyKey says which bodies are the same: a manifest by its digest, another one by a
// hash of its content.
type bodyKey struct {
	digest digest.Digest
	sum    uint64
	size   int64
}

// heldBody is a body with its readers. Each calls release once.
type heldBody struct {
	in    *holding
	key   bodyKey
	ready chan struct{} // closed when bytes is set
	bytes []byte
	users int // guarded by in.mu
}

func newHolding(most int64, refused prometheus.Counter) *holding {
	return &holding{most: most, refused: refused, bodies: map[bodyKey]*heldBody{}}
}

// hold gives the body of key, which content makes if nobody is reading it now; nil if
// there is no memory left for it. content gives key.size bytes, and waits for nothing.
func (h *holding) hold(key bodyKey, content func() []byte) *heldBody {
	h.mu.Lock()
	b := h.bodies[key]
	if b != nil {
		b.users++
		h.mu.Unlock()
		<-b.ready
		return b
	}
	if h.used+key.size > h.most {
		h.mu.Unlock()
		h.refused.Inc()
		return nil
	}
	b = &heldBody{in: h, key: key, ready: make(chan struct{}), users: 1}
	h.bodies[key] = b
	h.used += key.size
	h.mu.Unlock()
	defer close(b.ready)
	b.bytes = content()
	return b
}

// release says that a reader is done with the body.
func (b *heldBody) release() {
	b.in.mu.Lock()
	defer b.in.mu.Unlock()
	if b.users--; b.users == 0 {
		b.in.used -= b.key.size
		delete(b.in.bodies, b.key)
	}
}
