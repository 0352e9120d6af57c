package clients

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

func TestPodmanPullsThroughItsMirror(t *testing.T) {
	needRoot(t, "podman")
	podman := need(t, "podman")
	w := newWorld(t)
	dir := shortDir(t)
	policy := write(t, dir, "policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	env := []string{"CONTAINERS_REGISTRIES_CONF=" + registriesConf(t, w.proxy.Host()), "XDG_RUNTIME_DIR=" + dir}
	do := func(t *testing.T, args ...string) string {
		t.Helper()
		return run(t, env, podman, slices.Concat([]string{
			"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
			"--storage-driver", "vfs", "--events-backend", "none", "--cgroup-manager", "cgroupfs"}, args)...)
	}
	w.twice(t, func(t *testing.T) {
		for ref, want := range map[string]*image.Image{
			"docker.io/library/app:list":                       w.list,
			"docker.io/library/app@" + w.list.Digest.String():  w.list,
			"docker.io/library/app@" + w.index.Digest.String(): w.index,
			"ghcr.io/org/app:index":                            w.index,
		} {
			for _, arch := range []string{"amd64", "arm64"} {
				do(t, "pull", "-q", "--signature-policy", policy, "--arch", arch, ref)
				var got []struct {
					ID          string `json:"Id"`
					RepoDigests []string
					RootFS      struct{ Layers []digest.Digest }
				}
				out := do(t, "image", "inspect", ref)
				if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) != 1 {
					t.Fatalf("inspect %s: %v, %s", ref, err, out)
				}
				config, diffIDs := unpacked(t, want, "linux/"+arch)
				if got[0].ID != config.Encoded() {
					t.Errorf("%s for %s: image ID %s, want %s", ref, arch, got[0].ID, config)
				}
				if !slices.Equal(got[0].RootFS.Layers, diffIDs) {
					t.Errorf("%s for %s: layers %v, want %v", ref, arch, got[0].RootFS.Layers, diffIDs)
				}
				if !slices.ContainsFunc(got[0].RepoDigests, func(s string) bool { return strings.HasSuffix(s, "@"+want.Digest.String()) }) {
					t.Errorf("%s for %s: digests %v, want %s", ref, arch, got[0].RepoDigests, want.Digest)
				}
				do(t, "image", "rm", "-f", got[0].ID)
			}
		}
	})
}
