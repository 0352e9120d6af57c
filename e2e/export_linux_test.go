package e2e

import (
	"path/filepath"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestAnExportTakesLittleMemory however many blobs there are, and however large they are.
func TestAnExportTakesLittleMemory(t *testing.T) {
	most := int64(100 << 20)
	if proxy.Raced {
		most *= 10 // so the race detector's manual
	}
	for _, c := range []struct {
		name           string
		images, layers int
		size           int64
	}{
		{"3,000 blobs", 300, 8, 1 << 10},
		{"a layer of 256 MiB", 1, 1, 256 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, dir := imported(t, c.images, c.layers, c.size)
			cmd := exporting(t, "--cache-dir", dir, "-o", filepath.Join(t.TempDir(), "bundle.tar"))
			if peak := runPeak(t, cmd); peak == 0 || peak > most {
				t.Errorf("it took %d MiB of memory, want at most %d", peak>>20, most>>20)
			}
		})
	}
}
