package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/image"
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
		{"1,000 blobs", 100, 8, 1 << 10},
		{"a layer of 128 MiB", 1, 1, 128 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, dir := imported(t, c.images, c.layers, c.size)
			cmd := exporting(t, "--cache-dir", dir, "--bundle", filepath.Join(t.TempDir(), "bundle.tar"))
			if peak := runPeak(t, cmd); peak == 0 || peak > most {
				t.Errorf("it took %d MiB of memory, want at most %d", peak>>20, most>>20)
			}
		})
	}
}

// TestAFileSystemThatTakesNoLargeFileIsTold as that of many a stick is.
func TestAFileSystemThatTakesNoLargeFileIsTold(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	tagAndPull(t, h, p, "library/app", "1", image.New(image.Options{Layers: []image.Layer{{Size: 5 << 20}}}))
	p.WaitIdle(t)
	file := filepath.Join(t.TempDir(), "bundle.tar")
	// 3 MiB, in blocks of 512 bytes.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `ulimit -f 6144 && exec "$@"`, "sh", proxy.Binary(t), "export", "--config", p.Config(), "--bundle", file, "app:1")
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "file too large: the file system takes no file as large as that; split the bundle by --volume-size") {
		t.Errorf("%v: %s", err, out)
	}
	operate(t, p, "export", "--bundle", file, "--volume-size", "2MiB", "app:1").want(t, 0, file+".001, "+file+".002, "+file+".003, "+file+".sha256: 1 image")
}
