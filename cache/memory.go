package cache

import (
	"fmt"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// smallBlob is the largest blob, in bytes, that memory keeps: configs are
	// smaller, layers are for the page cache and sendfile.
	smallBlob = 32 << 10
	// entryCost is about what an entry costs beside its content, in bytes.
	entryCost = 256
)

// memory is the tier in front of the disk: manifests, small blobs, and the
// records that say what may be served. It may forget anything at any time, and
// never holds what the disk or the upstream has not said. All methods are safe
// for concurrent use.
type memory struct {
	lru *ristretto.Cache[string, any]
	m   *metrics.Metrics
}

// newMemory makes a tier of about bytes bytes; of none where that is zero.
func newMemory(bytes int64, m *metrics.Metrics) (*memory, error) {
	if bytes <= 0 {
		return &memory{m: m}, nil
	}
	lru, err := ristretto.NewCache(&ristretto.Config[string, any]{
		// Ten times the number of entries that fit, as ristretto advises.
		NumCounters:        max(10*bytes/(4*entryCost), 1000),
		MaxCost:            bytes,
		BufferItems:        64,
		IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, fmt.Errorf("memory tier of %d bytes: %w", bytes, err)
	}
	return &memory{lru: lru, m: m}, nil
}

// close ends the tier's goroutines.
func (m *memory) close() {
	if m.lru != nil {
		m.lru.Close()
	}
}

func (m *memory) manifest(d digest.Digest) (*oci.Manifest, bool) {
	return find[*oci.Manifest](m, "m:"+string(d))
}

func (m *memory) setManifest(v *oci.Manifest) {
	m.set("m:"+string(v.Digest), v, int64(len(v.Bytes)))
}

func (m *memory) blob(d digest.Digest) ([]byte, bool) { return find[[]byte](m, "b:"+string(d)) }

func (m *memory) setBlob(d digest.Digest, b []byte) { m.set("b:"+string(d), b, int64(len(b))) }

func (m *memory) link(upstream, repo string, d digest.Digest) (index.Link, bool) {
	return find[index.Link](m, linkKey(upstream, repo, d))
}

func (m *memory) setLink(upstream, repo string, d digest.Digest, l index.Link) {
	m.set(linkKey(upstream, repo, d), l, 0)
}

func linkKey(upstream, repo string, d digest.Digest) string {
	return "l:" + upstream + "\x00" + repo + "\x00" + string(d)
}

// tag and list give what never stays behind what was set last.
func (m *memory) tag(key string) (index.Tag, bool) { return find[index.Tag](m, "t:"+key) }

func (m *memory) setTag(key string, t index.Tag) { m.replace("t:"+key, t, 0) }

func (m *memory) dropTag(key string) { m.drop("t:" + key) }

func (m *memory) list(key string) (index.List, bool) { return find[index.List](m, "s:"+key) }

func (m *memory) setList(key string, l index.List) {
	cost := int64(0)
	for _, t := range l.Tags {
		cost += int64(len(t)) + 16
	}
	m.replace("s:"+key, l, cost+int64(len(l.Referrers))*entryCost)
}

func find[V any](m *memory, key string) (V, bool) {
	if m.lru != nil {
		if v, ok := m.lru.Get(key); ok {
			if v, ok := v.(V); ok {
				m.m.MemoryHits.Inc()
				return v, true
			}
		}
	}
	m.m.MemoryMisses.Inc()
	var none V
	return none, false
}

// set keeps what never changes; it may not be found at once, or ever.
func (m *memory) set(key string, v any, cost int64) {
	if m.lru != nil {
		m.lru.Set(key, v, cost+entryCost)
	}
}

// replace keeps what changes. Ristretto may drop a set and keep the value
// before it, so that value is dropped first, and the buffers that could still
// bring it are drained.
func (m *memory) replace(key string, v any, cost int64) {
	if m.lru == nil {
		return
	}
	m.drop(key)
	m.lru.Set(key, v, cost+entryCost)
}

func (m *memory) drop(key string) {
	if m.lru != nil {
		m.lru.Del(key)
		m.lru.Wait()
	}
}
