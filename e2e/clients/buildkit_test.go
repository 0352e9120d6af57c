package clients

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestBuildKitBuildsThroughItsMirror builds from images of two registries, and from a cache in a
// registry, with the daemon's file that is offered to users.
func TestBuildKitBuildsThroughItsMirror(t *testing.T) {
	needRoot(t, "buildkitd")
	buildkitd, buildctl := newest(t, "buildkitd"), newest(t, "buildctl")
	need(t, "runc")

	// The registry that holds the builds' cache takes pushes.
	var asked atomic.Int64
	inner := registry.New()
	caches := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(caches.Close)
	h, other := hub.New(t, hub.Options{}), hub.New(t, hub.Options{Service: "ghcr.io"})
	layers := []image.Layer{{Size: 300 << 10}, {Size: 5000}}
	ofHub := image.Index(image.Options{Seed: 1, Flavour: image.Docker, Layers: layers})
	ofOther := image.Index(image.Options{Seed: 2, Layers: layers})
	h.Push("library/app", "1", ofHub)
	other.Push("org/app", "1", ofOther)
	w := &world{hub: h, other: other, cutsShort: true}
	w.proxy = proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h, "ghcr.io": other},
		Config: `upstreams: {docker.io: {tags: [{match: "*", ttl: 1h}]}, ghcr.io: {tags: [{match: "*", ttl: 1h}]},
  cache.test: {endpoints: ["` + caches.URL + `"], tags: [{match: "*", ttl: 1h}]}}`,
	})

	start := func(t *testing.T) func(args ...string) string {
		dir := shortDir(t)
		address := "unix://" + filepath.Join(dir, "s")
		config := write(t, dir, "buildkitd.toml", readyFile(t, "buildkitd.toml", w.proxy.Host())+`
[registry."cache.test"]
  mirrors = ["`+w.proxy.Host()+`/cache.test"]
`)
		// The worker needs no image store, mounts nothing of overlay and runs nothing.
		cmd := exec.Command(buildkitd, "--config", config, "--root", filepath.Join(dir, "root"), "--addr", address,
			"--oci-worker=true", "--oci-worker-snapshotter=native", "--containerd-worker=false", "--oci-worker-net=host")
		daemon(t, cmd, func(string) bool {
			_, err := try(t, nil, buildctl, "--addr", address, "debug", "workers")
			return err == nil
		})
		return func(args ...string) string {
			t.Helper()
			return run(t, nil, buildctl, append([]string{"--addr", address}, args...)...)
		}
	}
	context := t.TempDir()
	write(t, context, "Dockerfile", `FROM docker.io/library/app:1 AS first
FROM ghcr.io/org/app@`+ofOther.Digest.String()+`
COPY --from=first / /first/
COPY Dockerfile /
`)
	build := func(do func(args ...string) string, more ...string) string {
		return do(append([]string{"build", "--progress=plain", "--frontend=dockerfile.v0", "--local", "context=" + context, "--local", "dockerfile=" + context,
			"--opt", "platform=linux/amd64"}, more...)...)
	}
	build(start(t), "--export-cache", "type=registry,mode=max,registry.insecure=true,ref="+strings.TrimPrefix(caches.URL, "http://")+"/team/cache:1")
	w.proxy.WaitIdle(t)

	// Each daemon has nothing, and gets all of it through the mirror.
	w.twice(t, func(t *testing.T) {
		out := t.TempDir()
		for name, more := range map[string][]string{
			"from images":  nil,
			"from a cache": {"--import-cache", "type=registry,ref=cache.test/team/cache:1"},
		} {
			before := asked.Load()
			tar := filepath.Join(out, "image.tar")
			build(start(t), append(more, "--output", "type=oci,dest="+tar)...)
			i, err := os.Stat(tar)
			if err != nil || i.Size() == 0 {
				t.Errorf("the build %s has no result: %v", name, err)
			}
			if first := strings.HasSuffix(t.Name(), "/first"); (asked.Load() > before) != (first && more != nil) {
				t.Errorf("%s: the registry of the builds' cache was asked %d times", name, asked.Load()-before)
			}
		}
	})
}
