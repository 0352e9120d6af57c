package clients

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// startContainerd runs a daemon of the test's own, and gives its socket and the
// ctr command for it.
func startContainerd(t *testing.T) (socket string, do func(args ...string) string) {
	t.Helper()
	containerd, ctr := need(t, "containerd"), need(t, "ctr")
	dir := shortDir(t)
	socket = filepath.Join(dir, "s")
	config := write(t, dir, "config.toml", `version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
`)
	cmd := exec.Command(containerd, "--config", config, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"), "--address", socket)
	daemon(t, cmd, func(string) bool {
		if _, err := os.Stat(socket); err != nil {
			return false
		}
		_, err := try(t, nil, ctr, "-a", socket, "version")
		return err == nil
	})
	return socket, func(args ...string) string {
		t.Helper()
		return run(t, nil, ctr, slices.Concat([]string{"-a", socket}, args)...)
	}
}

func TestContainerdPullsThroughHostsTOML(t *testing.T) {
	needRoot(t, "containerd")
	need(t, "containerd")
	w := newWorld(t)
	_, ctr := startContainerd(t)
	ofHub := map[string]*image.Image{
		"docker.io/library/app:list":                      w.list,
		"docker.io/library/app:index":                     w.index,
		"docker.io/library/app@" + w.list.Digest.String(): w.list,
	}
	ofAll := maps.Clone(ofHub)
	ofAll["ghcr.io/org/app:index"] = w.index
	ofAll["ghcr.io/org/app@"+w.index.Digest.String()] = w.index
	one, all := t.TempDir(), t.TempDir()
	write(t, one, "docker.io/hosts.toml", readyFile(t, "containerd/docker.io/hosts.toml", w.proxy.Host()))
	write(t, all, "_default/hosts.toml", readyFile(t, "containerd/_default/hosts.toml", w.proxy.Host()))
	pull := func(t *testing.T, hosts string, images map[string]*image.Image) {
		for ref, want := range images {
			ctr("images", "pull", "--hosts-dir", hosts, "--all-platforms", "--snapshotter", "native", ref)
			for d, m := range want.Manifests {
				if got := ctr("content", "get", d.String()); got != string(m.Bytes) {
					t.Errorf("%s: manifest %s: %d bytes, want %d", ref, d, len(got), len(m.Bytes))
				}
			}
			for d, b := range want.Blobs {
				if got := ctr("content", "get", d.String()); got != string(b) {
					t.Errorf("%s: blob %s: %d bytes, want %d", ref, d, len(got), len(b))
				}
			}
			ctr("images", "rm", "--sync", ref)
			if left := ctr("content", "ls", "-q"); left != "" {
				t.Fatalf("%s was removed, and there is still %s", ref, left)
			}
		}
	}
	w.twice(t, func(t *testing.T) {
		t.Run("one upstream", func(t *testing.T) { pull(t, one, ofHub) })
		t.Run("all upstreams", func(t *testing.T) { pull(t, all, ofAll) })
	})
}
