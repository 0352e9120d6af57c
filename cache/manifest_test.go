package cache

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// TestStoredManifestIsReadIntoItsOwnSize reads a large index from disk: that takes little
// more memory than its bytes.
func TestStoredManifestIsReadIntoItsOwnSize(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	idx := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	for i := range 10_000 {
		idx.Manifests = append(idx.Manifests, v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Size: 100, Digest: digest.FromString(fmt.Sprint(i))})
	}
	d := hub.addDocument("library/app", v1.MediaTypeImageIndex, idx)
	hub.tag("library/app", "1", d)
	wantManifest(t, c, tagged("library/app", "1"), d, Miss)
	const reads = 10
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range reads {
		if m, ok := c.storedManifest(d.Digest); !ok || m.MediaType != v1.MediaTypeImageIndex || int64(len(m.Bytes)) != d.Size {
			t.Fatal("the index is not read as it was stored")
		}
	}
	runtime.ReadMemStats(&after)
	if took := int64(after.TotalAlloc-before.TotalAlloc) / reads; took > d.Size+d.Size/2 {
		t.Errorf("an index of %d bytes takes %d to be read", d.Size, took)
	}
}
