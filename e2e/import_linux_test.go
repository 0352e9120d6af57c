package e2e

import (
	"path/filepath"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestAnImportTakesLittleMemory however many blobs come, and however large they are.
func TestAnImportTakesLittleMemory(t *testing.T) {
	most, images, size := int64(100<<20), 1000, int64(256<<20)
	if proxy.Raced {
		most, images, size = 10*most, images/10, size/8 // so the race detector's manual, and it is slow
	}
	for _, c := range []struct {
		name           string
		images, layers int
		size           int64
	}{
		{"10,000 blobs", images, 8, 1 << 10},
		{"a large layer", 1, 1, size},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := makeBundle(t, filepath.Join(t.TempDir(), "bundle.tar"), c.images, c.layers, c.size)
			peak := runWatched(t, importing(t, filepath.Join(t.TempDir(), "cache"), m.path))
			if peak == 0 || peak > most {
				t.Errorf("it took %d MiB of memory, want at most %d", peak>>20, most>>20)
			}
		})
	}
}
