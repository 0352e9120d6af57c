package clients

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestWhatADaemonSavesIsImportedAndPulledOffline carries images by "docker save" alone:
// the daemon gets from a proxy without any upstream what it had.
func TestWhatADaemonSavesIsImportedAndPulledOffline(t *testing.T) {
	needRoot(t, "dockerd")
	need(t, "dockerd")
	w := newWorld(t)
	docker := startDockerd(t, w.proxy.Host())
	id := func(ref string) string { return strings.TrimSpace(docker("image", "inspect", "-f", "{{.Id}}", ref)) }
	had := map[string]string{}
	for _, ref := range []string{"app:list", "app:index"} {
		docker("pull", "--platform", "linux/amd64", ref)
		had[ref] = id(ref)
	}
	file := filepath.Join(t.TempDir(), "saved.tar")
	docker("save", "-o", file, "app:list", "app:index")
	for ref := range had {
		docker("image", "rm", "-f", id(ref))
	}

	inside := proxy.Start(t, proxy.Options{Config: "cache: {offline: true}"})
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), "import", "--config", inside.Config(), file)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "docker.io/library/app:list") {
		t.Fatalf("%v: %s", err, out)
	}
	for ref, want := range had {
		at := inside.Host() + "/library/" + ref
		docker("pull", at)
		if got := id(at); got != want {
			t.Errorf("%s: the image is %s, want %s", ref, got, want)
		}
	}
}
