package clients

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// startDockerd runs a daemon that has the program, at host mirror, as its
// mirror, and gives the docker command for it.
func startDockerd(t *testing.T, mirror string) func(args ...string) string {
	t.Helper()
	docker, client := need(t, "docker"), runDockerd(t, mirror)
	return func(args ...string) string {
		t.Helper()
		return run(t, nil, docker, slices.Concat([]string{"--config", t.TempDir()}, client, args)...)
	}
}

// runDockerd runs the daemon with the program, at host mirror, as its mirror, and
// gives the arguments of docker that lead to it.
func runDockerd(t *testing.T, mirror string) []string {
	t.Helper()
	return runDockerdWith(t, readyFile(t, "daemon.json", mirror), "")
}

// runDockerdWith runs the daemon with a configuration, and gives the arguments of
// docker that lead to it. Where etc is not empty the daemon, and nobody else, finds
// that directory as /etc/docker.
func runDockerdWith(t *testing.T, configuration, etc string) []string {
	t.Helper()
	dockerd, docker := need(t, "dockerd"), need(t, "docker")
	// Without one of its own it would take the one of the system, if that runs.
	containerd, _ := startContainerd(t)
	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	config := write(t, dir, "daemon.json", configuration)
	client := []string{"-H", "unix://" + socket}
	command := []string{dockerd,
		"--config-file", config, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--containerd", containerd, "--pidfile", filepath.Join(dir, "pid"), "-H", "unix://" + socket,
		// vfs works on every file system.
		"--storage-driver=vfs", "--bridge=none", "--iptables=false", "--ip-masq=false"}
	if etc != "" {
		// In a mount namespace of its own, which ends with it.
		command = slices.Concat([]string{need(t, "unshare"), "--mount", "sh", "-c",
			`mkdir -p /etc/docker && mount --bind "$0" /etc/docker && exec "$@"`, etc}, command)
	}
	daemon(t, exec.Command(command[0], command[1:]...), func(string) bool {
		if _, err := os.Stat(socket); err != nil {
			return false
		}
		_, err := try(t, nil, docker, slices.Concat([]string{"--config", dir}, client, []string{"version"})...)
		return err == nil
	})
	return client
}

// wantDockerImage checks what the daemon has of a platform against the
// upstream's image.
func wantDockerImage(t *testing.T, inspected, platform string, want *image.Image) {
	t.Helper()
	var got []struct {
		ID          string `json:"Id"`
		RepoDigests []string
		RootFS      struct{ Layers []digest.Digest }
	}
	if err := json.Unmarshal([]byte(inspected), &got); err != nil || len(got) != 1 {
		t.Fatalf("inspect: %v, %s", err, inspected)
	}
	config, diffIDs := unpacked(t, want, platform)
	if got[0].ID != config.String() {
		t.Errorf("image ID %s, want %s", got[0].ID, config)
	}
	if !slices.Equal(got[0].RootFS.Layers, diffIDs) {
		t.Errorf("layers %v, want %v", got[0].RootFS.Layers, diffIDs)
	}
	if !slices.ContainsFunc(got[0].RepoDigests, func(s string) bool { return strings.HasSuffix(s, "@"+want.Digest.String()) }) {
		t.Errorf("digests %v, want %s", got[0].RepoDigests, want.Digest)
	}
}

func TestDockerDaemonPullsThroughItsMirror(t *testing.T) {
	needRoot(t, "dockerd")
	need(t, "dockerd")
	w := newWorld(t)
	docker := startDockerd(t, w.proxy.Host())
	w.twice(t, func(t *testing.T) {
		for tag, want := range map[string]*image.Image{"list": w.list, "index": w.index} {
			for _, ref := range []string{"app:" + tag, "app@" + want.Digest.String()} {
				for _, platform := range []string{"linux/amd64", "linux/arm64"} {
					docker("pull", "--platform", platform, ref)
					wantDockerImage(t, docker("image", "inspect", ref), platform, want)
					docker("image", "rm", "-f", strings.TrimSpace(docker("image", "inspect", "-f", "{{.Id}}", ref)))
				}
			}
		}
		if left := docker("image", "ls", "-qa"); left != "" {
			t.Errorf("all images were removed, and there are still %s", left)
		}
	})
}

func TestDockerManifestInspectSeesEveryPlatform(t *testing.T) {
	docker := need(t, "docker")
	w := newWorld(t)
	inspect := func(ref string) (string, error) {
		return try(t, []string{"DOCKER_CLI_EXPERIMENTAL=enabled"}, docker, "--config", t.TempDir(), "manifest", "inspect", "--insecure", "-v", w.proxy.Host()+ref)
	}
	var ociToo bool
	w.twice(t, func(t *testing.T) {
		images := map[string]*image.Image{
			"/docker.io/library/app:list": w.list,
			"/library/app:list":           w.list,
			"/ghcr.io/org/app:list":       w.list,
		}
		if _, err := inspect("/ghcr.io/org/app:index"); err == nil || !strings.Contains(err.Error(), "unsupported manifest media type") {
			images["/ghcr.io/org/app:index"] = w.index
			ociToo = true
		}
		for ref, want := range images {
			out, err := inspect(ref)
			if err != nil {
				t.Fatal(err)
			}
			var got []struct{ Descriptor v1.Descriptor }
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			seen := map[digest.Digest]bool{}
			for _, m := range got {
				seen[m.Descriptor.Digest] = true
			}
			for platform, d := range want.Platforms {
				if !seen[d] {
					t.Errorf("%s: %s of %s is not among %v", ref, d, platform, seen)
				}
			}
		}
	})
	if !ociToo {
		t.Log("this docker command inspects no OCI manifests: only lists were tried")
	}
}
