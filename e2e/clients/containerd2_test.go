package clients

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestNewestContainerdPullsLayersInChunks pulls images as `ctr` does, by the transfer service, and
// as Kubernetes does, by the CRI. Layers are fetched in chunks beside each other: containerd asks for
// everything from an offset and closes the connection when it has its chunk.
func TestNewestContainerdPullsLayersInChunks(t *testing.T) {
	needRoot(t, "containerd")
	containerd, ctr := newest(t, "containerd"), newest(t, "ctr")
	// Layers of several chunks.
	layers := []image.Layer{{Size: 12 << 20}, {Size: 9 << 20}, {Size: 5000}}
	h, other := hub.New(t, hub.Options{}), hub.New(t, hub.Options{Service: "ghcr.io"})
	list := image.Index(image.Options{Seed: 1, Flavour: image.Docker, Layers: layers})
	index := image.Index(image.Options{Seed: 2, Layers: layers})
	h.Push("library/app", "list", list)
	other.Push("org/app", "index", index)
	w := &world{hub: h, other: other, cutsShort: true}
	w.proxy = proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h, "ghcr.io": other},
		Config:    `upstreams: {docker.io: {tags: [{match: "*", ttl: 1h}]}, ghcr.io: {tags: [{match: "*", ttl: 1h}]}}`,
	})

	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	hosts := t.TempDir()
	write(t, hosts, "_default/hosts.toml", readyFile(t, "containerd/_default/hosts.toml", w.proxy.Host()))
	config := write(t, dir, "config.toml", fmt.Sprintf(`version = 3
[plugins.'io.containerd.transfer.v1.local']
  max_concurrent_downloads = 4
  concurrent_layer_fetch_buffer = 2097152
  config_path = %[1]q
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = 'linux/amd64'
    snapshotter = 'native'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'native'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = %[1]q
[plugins.'io.containerd.grpc.v1.cri']
  disable_tcp_service = true
`, hosts))
	cmd := exec.Command(containerd, "--config", config, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"), "--address", socket)
	daemon(t, cmd, func(string) bool {
		if _, err := os.Stat(socket); err != nil {
			return false
		}
		_, err := try(t, nil, ctr, "-a", socket, "version")
		return err == nil
	})
	do := func(args ...string) string {
		return run(t, nil, ctr, append([]string{"-a", socket, "-n", "k8s.io"}, args...)...)
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	images := cri.NewImageServiceClient(conn)

	refs := map[string]*image.Image{
		"docker.io/library/app:list":                    list,
		"docker.io/library/app@" + list.Digest.String(): list,
		"ghcr.io/org/app:index":                         index,
		"ghcr.io/org/app@" + index.Digest.String():      index,
	}
	wantContent := func(t *testing.T, ref string, want *image.Image) {
		t.Helper()
		m := want.Platforms["linux/amd64"]
		for _, l := range want.Layers("linux/amd64") {
			if got := do("content", "get", l.Digest.String()); got != string(want.Blobs[l.Digest]) {
				t.Errorf("%s: layer %s: %d bytes, want %d", ref, l.Digest, len(got), l.Size)
			}
		}
		if got := do("content", "get", m.String()); got != string(want.Manifests[m].Bytes) {
			t.Errorf("%s: manifest %s: %d bytes", ref, m, len(got))
		}
		for _, left := range strings.Fields(do("images", "ls", "-q")) {
			do("images", "rm", "--sync", left)
		}
		do("content", "prune", "references")
		if left := do("content", "ls", "-q"); left != "" {
			t.Fatalf("%s was removed, and there is still %s", ref, left)
		}
	}
	pulls := map[string]func(t *testing.T, ref string){
		"transfer service": func(t *testing.T, ref string) {
			do("images", "pull", "--platform", "linux/amd64", "--hosts-dir", hosts, "--snapshotter", "native", ref)
		},
		"CRI": func(t *testing.T, ref string) {
			if _, err := images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
				t.Fatal(err)
			}
		},
	}
	w.twice(t, func(t *testing.T) {
		for way, pull := range pulls {
			for ref, want := range refs {
				t.Run(way+" "+ref, func(t *testing.T) {
					pull(t, ref)
					wantContent(t, ref, want)
				})
			}
		}
	})
	for _, i := range []*image.Image{list, index} {
		for _, l := range i.Layers("linux/amd64") {
			// A connection is cut where another chunk is waited for further ahead. What is on its way
			// then counts as sent: on loopback that is up to 6 MiB, which the kernel buffers, for each
			// of the three. Without sharing, four chunks would be the layer four times.
			if sent := h.Sent(l.Digest) + other.Sent(l.Digest); sent > l.Size+3*6<<20 {
				t.Errorf("the upstream sent %d bytes of a layer of %d", sent, l.Size)
			}
		}
	}
}
