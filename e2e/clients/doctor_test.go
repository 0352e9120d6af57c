package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// diagnosis is what the doctor prints as JSON.
type diagnosis struct {
	Findings []struct{ Check, Status, Seen, Advice string }
	text     string
}

// doctor runs the command for a client, whose files are below root.
func (w *world) doctor(t *testing.T, env []string, client, root string, args ...string) diagnosis {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*limit)
	defer cancel()
	args = append([]string{"doctor", "--output", "json", "--client", client, "--root", root, "--url", w.proxy.URL(),
		"--admin-listen", strings.TrimPrefix(w.proxy.AdminURL(), "http://"), "--image", "docker.io/library/app:list"}, args...)
	cmd := exec.CommandContext(ctx, proxy.Binary(t), args...)
	cmd.Env = environment(t, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	d := diagnosis{text: out.String() + errs.String()}
	if err := json.Unmarshal(out.Bytes(), &d); err != nil {
		t.Fatalf("%v: %s", err, d.text)
	}
	return d
}

// want checks that one of the findings of a check has a status and words of what was seen.
func (d diagnosis) want(t *testing.T, check, status, seen string) {
	t.Helper()
	for _, f := range d.Findings {
		if f.Check == check && f.Status == status && strings.Contains(f.Seen, seen) {
			return
		}
	}
	t.Errorf("want %s: %s, %q in:\n%s", check, status, seen, d.text)
}

// TestDoctorSeesWhetherDockerPullsThroughTheCache has two daemons: one whose mirror is
// the cache, and one that has the registry itself.
func TestDoctorSeesWhetherDockerPullsThroughTheCache(t *testing.T) {
	needRoot(t, "dockerd")
	need(t, "dockerd")
	w := newWorld(t)
	root := t.TempDir()
	w.doctor(t, nil, "docker", root, "--write", "--no-pull").want(t, "docker configuration", "warning", "has been written")
	written, err := os.ReadFile(filepath.Join(root, "etc/docker/daemon.json"))
	if err != nil {
		t.Fatal(err)
	}
	env := func(client []string) []string { return []string{"DOCKER_HOST=" + client[1]} }

	through := runDockerdWith(t, string(written), "")
	d := w.doctor(t, env(through), "docker", root)
	d.want(t, "docker configuration", "ok", "says what it is to say")
	d.want(t, "docker pull", "ok", "came through the cache")
	if left := run(t, env(through), "docker", "image", "ls", "-qa"); left != "" {
		t.Errorf("the image was left behind: %s", left)
	}
	run(t, env(through), "docker", "pull", "app:list")
	w.doctor(t, env(through), "docker", root).want(t, "docker pull", "ok", "was there before")

	past := runDockerdWith(t, fmt.Sprintf(`{"registry-mirrors": [%q]}`, w.hub.URL()), "")
	d = w.doctor(t, env(past), "docker", root)
	d.want(t, "docker pull", "failure", "silent bypass")
	d.want(t, "docker pull", "warning", "has other mirrors, "+w.hub.URL())
	d.want(t, "docker pull", "warning", "it has not read that since it changed")
}

func TestDoctorSeesWhetherContainerdPullsThroughTheCache(t *testing.T) {
	needRoot(t, "containerd")
	need(t, "containerd")
	w := newWorld(t)
	socket, _ := startContainerd(t)
	env := []string{"CONTAINERD_ADDRESS=" + socket}
	through, past := t.TempDir(), t.TempDir()
	w.doctor(t, env, "containerd", through, "--write", "--no-pull").want(t, "containerd configuration", "ok", "hosts.toml has been written")
	d := w.doctor(t, env, "containerd", through)
	d.want(t, "containerd pull", "ok", "came through the cache")

	write(t, past, "etc/containerd/certs.d/docker.io/hosts.toml", fmt.Sprintf("server = %[1]q\n\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", w.hub.URL()))
	d = w.doctor(t, env, "containerd", past)
	d.want(t, "containerd pull", "failure", "silent bypass")
	d.want(t, "containerd pull", "warning", "docker.io/hosts.toml does not say that the cache is to be asked first")
}

func TestDoctorSeesWhetherPodmanPullsThroughTheCache(t *testing.T) {
	needRoot(t, "podman")
	need(t, "podman")
	w := newWorld(t)
	dir := shortDir(t)
	storage := write(t, dir, "storage.conf", fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", filepath.Join(dir, "root"), filepath.Join(dir, "run")))
	engine := write(t, dir, "containers.conf", fmt.Sprintf("[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\ntmp_dir = %q\n", filepath.Join(dir, "tmp")))
	empty := write(t, dir, "registries.conf", "")
	// podman reads the drop-ins of the user beside those of the system.
	with := func(root string) []string {
		home := t.TempDir()
		write(t, home, ".config/containers/policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
		if err := os.CopyFS(filepath.Join(home, ".config/containers/registries.conf.d"), os.DirFS(filepath.Join(root, "etc/containers/registries.conf.d"))); err != nil {
			t.Fatal(err)
		}
		return []string{"HOME=" + home, "CONTAINERS_STORAGE_CONF=" + storage, "CONTAINERS_CONF=" + engine, "CONTAINERS_REGISTRIES_CONF=" + empty, "XDG_RUNTIME_DIR=" + dir}
	}
	through, past := t.TempDir(), t.TempDir()
	w.doctor(t, nil, "podman", through, "--write", "--no-pull").want(t, "podman configuration", "ok", "has been written")
	w.doctor(t, with(through), "podman", through).want(t, "podman pull", "ok", "came through the cache")

	write(t, past, "etc/containers/registries.conf.d/10-others.conf",
		fmt.Sprintf("[[registry]]\nprefix = \"docker.io\"\nlocation = %q\ninsecure = true\n", strings.TrimPrefix(w.hub.URL(), "http://")))
	d := w.doctor(t, with(past), "podman", past)
	d.want(t, "podman pull", "failure", "silent bypass")
	d.want(t, "podman pull", "warning", "50-entrepot.conf is not there")
}

// TestDoctorTracesClientsThatAreNotHere has programs on the path that stand in for those
// of BuildKit and k3s: they ask what those would ask.
func TestDoctorTracesClientsThatAreNotHere(t *testing.T) {
	curl := need(t, "curl")
	w := newWorld(t)
	layer := w.list.Layers("linux/amd64")[0].Digest
	for client, program := range map[string]string{"buildkit": "buildctl", "k3s": "k3s"} {
		t.Run(client, func(t *testing.T) {
			root, bin := t.TempDir(), t.TempDir()
			env := []string{"PATH=" + bin + ":" + os.Getenv("PATH")}
			stand := func(script string) {
				t.Helper()
				path := write(t, bin, program, "#!/bin/sh\nset -e\nfor word; do if [ \"$word\" = inspecti ]; then exit 1; fi; done\n"+script)
				if err := os.Chmod(path, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			w.doctor(t, env, client, root, "--write", "--no-pull").want(t, client+" configuration", "warning", "has been written")
			from := func(base string) string {
				return fmt.Sprintf("%s -sf --noproxy '*' -o /dev/null '%s/v2/library/app/manifests/list?ns=docker.io' '%s/v2/library/app/blobs/%s?ns=docker.io'\n", curl, base, base, layer)
			}
			stand(from(w.proxy.URL()))
			w.doctor(t, env, client, root).want(t, client+" pull", "ok", "came through the cache")
			stand("exit 0\n")
			w.doctor(t, env, client, root).want(t, client+" pull", "failure", "silent bypass")
			stand(fmt.Sprintf("%s -s --noproxy '*' -o /dev/null '%s/v2/library/app/manifests/list?ns=nowhere.test'\n", curl, w.proxy.URL()))
			w.doctor(t, env, client, root).want(t, client+" pull", "failure", "and the client went to the registry itself")
			stand("echo 'no such image' >&2; exit 1\n")
			w.doctor(t, env, client, root).want(t, client+" pull", "failure", "no such image")
		})
	}
	root := t.TempDir()
	w.doctor(t, []string{"PATH=" + t.TempDir()}, "k3s", root).want(t, "k3s pull", "warning", "k3s is not in the path")
	w.doctor(t, []string{"PATH=" + t.TempDir()}, "containerd", root).want(t, "containerd pull", "warning", "crictl nor ctr")
}
