package clients

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// bundled fills a cache and writes a bundle of these images with the program's own
// commands. It gives the bundle's path.
func bundled(t *testing.T, w *world, platforms string, refs ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "bundle.tar")
	for _, command := range [][]string{{"warm"}, {"export", "--bundle", file}} {
		args := slices.Concat(command, []string{"--config", w.proxy.Config(), "--platform", platforms}, refs)
		run(t, nil, proxy.Binary(t), args...)
	}
	return file
}

// bundledImages are those of a world as a bundle names them.
func bundledImages(w *world) map[string]*image.Image {
	return map[string]*image.Image{
		"docker.io/library/app:list": w.list, "docker.io/library/app:index": w.index, "ghcr.io/org/app:index": w.index,
	}
}

func TestSkopeoReadsABundle(t *testing.T) {
	skopeo := need(t, "skopeo")
	w := newWorld(t)
	env := []string{"_CONTAINERS_ROOTLESS_UID=1000"}
	file := bundled(t, w, "all", "app:list", "app:index", "ghcr.io/org/app:index")
	for ref, want := range bundledImages(w) {
		if want == w.list {
			// Of a layout it looks at OCI's media types alone.
			config := run(t, env, skopeo, "--insecure-policy", "inspect", "--config", "--raw", "docker-archive:"+file+":"+ref)
			if d := w.list.Parsed(w.list.Platforms["linux/amd64"]).Config.Digest; config != string(w.list.Blobs[d]) {
				t.Errorf("%s: the config has %d bytes, want %d", ref, len(config), len(w.list.Blobs[d]))
			}
			continue
		}
		source := "oci-archive:" + file + ":" + ref
		if got := run(t, env, skopeo, "--insecure-policy", "inspect", "--raw", source); got != string(want.Bytes()) {
			t.Errorf("inspect --raw %s: %d bytes, want %d", ref, len(got), len(want.Bytes()))
		}
		dir := t.TempDir()
		run(t, env, skopeo, "--insecure-policy", "copy", "--all", source, "dir:"+dir)
		wantFile(t, filepath.Join(dir, "manifest.json"), want.Bytes())
		for _, d := range want.Platforms {
			wantFile(t, filepath.Join(dir, d.Encoded()+".manifest.json"), want.Manifests[d].Bytes)
		}
		for d, b := range want.Blobs {
			wantFile(t, filepath.Join(dir, d.Encoded()), b)
		}
	}
	// A sparse index is the same index.
	sparse := bundled(t, w, "linux/arm64", "app:index")
	if got := run(t, env, skopeo, "--insecure-policy", "inspect", "--raw", "oci-archive:"+sparse); got != string(w.index.Bytes()) {
		t.Errorf("a sparse index has %d bytes, want %d", len(got), len(w.index.Bytes()))
	}
	dir := t.TempDir()
	run(t, env, skopeo, "--insecure-policy", "--override-arch", "arm64", "copy", "oci-archive:"+sparse, "dir:"+dir)
	wantFile(t, filepath.Join(dir, "manifest.json"), w.index.Manifests[w.index.Platforms["linux/arm64"]].Bytes)
}

func TestCranePushesABundle(t *testing.T) {
	crane := need(t, "crane")
	w := newWorld(t)
	dir := t.TempDir()
	run(t, nil, "tar", "-xf", bundled(t, w, "all", "app:index"), "-C", dir)
	to := hub.New(t, hub.Options{Auth: hub.Open, NoCDN: true})
	ref := to.Host() + "/library/carried:1"
	run(t, nil, crane, "--insecure", "push", dir, ref)
	if got := run(t, nil, crane, "--insecure", "manifest", ref); got != string(w.index.Bytes()) {
		t.Errorf("the index has %d bytes, want %d", len(got), len(w.index.Bytes()))
	}
	run(t, nil, crane, "--insecure", "validate", "--remote", ref)
}

func TestContainerdImportsABundle(t *testing.T) {
	needRoot(t, "containerd")
	need(t, "containerd")
	w := newWorld(t)
	file := bundled(t, w, "all", "app:list", "app:index", "ghcr.io/org/app:index")
	_, ctr := startContainerd(t)
	ctr("images", "import", "--all-platforms", "--no-unpack", file)
	list := ctr("images", "ls")
	for ref, want := range bundledImages(w) {
		if !strings.Contains(list, ref+" ") {
			t.Errorf("there is no %s:\n%s", ref, list)
		}
		for d, m := range want.Manifests {
			if got := ctr("content", "get", d.String()); got != string(m.Bytes) {
				t.Errorf("%s: manifest %s has %d bytes, want %d", ref, d, len(got), len(m.Bytes))
			}
		}
	}
}

func TestDockerAndPodmanLoadABundle(t *testing.T) {
	needRoot(t, "dockerd")
	need(t, "dockerd")
	w := newWorld(t)
	file := bundled(t, w, "linux/arm64,linux/amd64", "app:list", "ghcr.io/org/app:index")
	check := func(t *testing.T, inspected, platform string, want *image.Image) {
		t.Helper()
		var got []struct {
			ID     string `json:"Id"`
			RootFS struct{ Layers []digest.Digest }
		}
		if err := json.Unmarshal([]byte(inspected), &got); err != nil || len(got) != 1 {
			t.Fatalf("inspect: %v, %s", err, inspected)
		}
		config, diffIDs := unpacked(t, want, platform)
		// A daemon with the containerd image store calls an image by the digest of its index.
		if id := strings.TrimPrefix(got[0].ID, "sha256:"); id != config.Encoded() && id != want.Digest.Encoded() {
			t.Errorf("image ID %s, want %s or %s", got[0].ID, config, want.Digest)
		}
		if !slices.Equal(got[0].RootFS.Layers, diffIDs) {
			t.Errorf("layers %v, want %v", got[0].RootFS.Layers, diffIDs)
		}
	}
	t.Run("docker", func(t *testing.T) {
		docker := startDockerd(t, w.proxy.Host())
		docker("load", "-i", file)
		check(t, docker("image", "inspect", "app:list"), "linux/amd64", w.list)
		check(t, docker("image", "inspect", "ghcr.io/org/app:index"), "linux/amd64", w.index)
	})
	t.Run("podman", func(t *testing.T) {
		podman, dir := need(t, "podman"), shortDir(t)
		policy := write(t, dir, "policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
		do := func(args ...string) string {
			t.Helper()
			return run(t, []string{"XDG_RUNTIME_DIR=" + dir}, podman, slices.Concat([]string{
				"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
				"--storage-driver", "vfs", "--events-backend", "none", "--cgroup-manager", "cgroupfs"}, args)...)
		}
		do("load", "-q", "--signature-policy", policy, "-i", file)
		check(t, do("image", "inspect", "docker.io/library/app:list"), "linux/amd64", w.list)
	})
}
