package clients

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

const authToken = "a-token-that-nobody-guesses-1234567890"

// newGuarded is a proxy that wants to know who asks: alice by her password, robot
// by a token.
func newGuarded(t *testing.T) (*proxy.Proxy, *image.Image) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("wonderland"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(authToken))
	h := hub.New(t, hub.Options{})
	i := image.Index(image.Options{Seed: 1, Flavour: image.Docker, Layers: []image.Layer{{Size: 5000}}})
	h.Push("library/app", "1", i)
	return proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h},
		Config: fmt.Sprintf("auth: {htpasswd: %s, tokens: [{name: robot, sha256: %s}]}\n",
			write(t, t.TempDir(), "htpasswd", "alice:"+string(hash)+"\n"), hex.EncodeToString(sum[:])),
	}), i
}

// dockerConfig is what docker login writes, and what the pull secrets of Kubernetes
// hold.
func dockerConfig(t *testing.T, host, user, password string) string {
	t.Helper()
	return write(t, t.TempDir(), "config.json", fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host,
		base64.StdEncoding.EncodeToString([]byte(user+":"+password))))
}

func TestSkopeoLogsInAndTakesAPullSecret(t *testing.T) {
	skopeo := need(t, "skopeo")
	p, want := newGuarded(t)
	env := []string{"_CONTAINERS_ROOTLESS_UID=1000"}
	ref := "docker://" + p.Host() + "/library/app:1"
	inspect := func(authfile string) (string, error) {
		return try(t, env, skopeo, "--insecure-policy", "inspect", "--tls-verify=false", "--raw", "--authfile", authfile, ref)
	}
	login := filepath.Join(t.TempDir(), "auth.json")
	run(t, env, skopeo, "login", "--tls-verify=false", "--authfile", login, "-u", "alice", "-p", "wonderland", p.Host())
	if out, err := try(t, env, skopeo, "login", "--tls-verify=false", "--authfile", login+"2", "-u", "alice", "-p", "wrong", p.Host()); err == nil {
		t.Errorf("a wrong password logs in: %s", out)
	}
	for name, file := range map[string]string{
		"login": login, "pull secret": dockerConfig(t, p.Host(), "alice", "wonderland"), "pull secret with a token": dockerConfig(t, p.Host(), "robot", authToken),
	} {
		if out, err := inspect(file); err != nil || out != string(want.Bytes()) {
			t.Errorf("%s: %v, %d bytes, want %d", name, err, len(out), len(want.Bytes()))
		}
	}
	for name, file := range map[string]string{
		"nobody": write(t, t.TempDir(), "empty.json", "{}"), "a wrong password": dockerConfig(t, p.Host(), "alice", "x"),
	} {
		if out, err := inspect(file); err == nil {
			t.Errorf("%s: want it refused, got %s", name, out)
		}
	}
}

func TestPodmanLogsInAndPulls(t *testing.T) {
	needRoot(t, "podman")
	podman := need(t, "podman")
	p, _ := newGuarded(t)
	dir := shortDir(t)
	policy := write(t, dir, "policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	env := []string{"XDG_RUNTIME_DIR=" + dir, "REGISTRY_AUTH_FILE=" + filepath.Join(dir, "auth.json")}
	common := []string{
		"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
		"--storage-driver", "vfs", "--events-backend", "none", "--cgroup-manager", "cgroupfs"}
	pull := slices.Concat(common, []string{"pull", "-q", "--tls-verify=false", "--signature-policy", policy, p.Host() + "/library/app:1"})
	if out, err := try(t, env, podman, pull...); err == nil {
		t.Errorf("nobody pulls: %s", out)
	}
	run(t, env, podman, slices.Concat(common, []string{"login", "--tls-verify=false", "-u", "alice", "-p", "wonderland", p.Host()})...)
	run(t, env, podman, pull...)
}

func TestCraneTakesAPullSecret(t *testing.T) {
	crane := need(t, "crane")
	p, want := newGuarded(t)
	file := dockerConfig(t, p.Host(), "robot", authToken)
	if got := run(t, []string{"DOCKER_CONFIG=" + filepath.Dir(file)}, crane, "--insecure", "manifest", p.Host()+"/library/app:1"); got != string(want.Bytes()) {
		t.Errorf("%d bytes, want %d", len(got), len(want.Bytes()))
	}
	if out, err := try(t, nil, crane, "--insecure", "manifest", p.Host()+"/library/app:1"); err == nil {
		t.Errorf("nobody pulls: %s", out)
	}
}

func TestContainerdShowsATokenByHostsTOML(t *testing.T) {
	needRoot(t, "containerd")
	need(t, "containerd")
	p, want := newGuarded(t)
	_, ctr := startContainerd(t)
	hosts := t.TempDir()
	url := "http://" + p.Host()
	write(t, hosts, "docker.io/hosts.toml", fmt.Sprintf(`[host.%q]
  capabilities = ["pull", "resolve"]
  [host.%q.header]
    authorization = %q
`, url, url, "Bearer "+authToken))
	ctr("images", "pull", "--hosts-dir", hosts, "--all-platforms", "--snapshotter", "native", "docker.io/library/app:1")
	if got := ctr("content", "get", want.Digest.String()); got != string(want.Bytes()) {
		t.Errorf("%d bytes, want %d", len(got), len(want.Bytes()))
	}
	if !strings.Contains(p.Log(), `"caller":"token:robot"`) {
		t.Error("the pull did not come through as robot")
	}
}

// The kubelet reads a pull secret and hands its user and password to the CRI, where
// containerd answers a challenge with them; so does ctr --user.
func TestContainerdAnswersWithAPullSecretsAccount(t *testing.T) {
	ctr := need(t, "ctr")
	needRoot(t, "containerd")
	p, want := newGuarded(t)
	socket, inspect := startContainerd(t)
	fetch := func(more ...string) (string, error) {
		args := append([]string{"-a", socket, "content", "fetch", "--plain-http", "--all-platforms"}, more...)
		return try(t, nil, ctr, append(args, p.Host()+"/docker.io/library/app:1")...)
	}
	for name, user := range map[string][]string{"nobody": nil, "a wrong password": {"--user", "alice:x"}} {
		if out, err := fetch(user...); err == nil {
			t.Errorf("%s: want it refused, got %s", name, out)
		}
	}
	for _, user := range []string{"alice:wonderland", "robot:" + authToken} {
		if out, err := fetch("--user", user); err != nil {
			t.Errorf("%s: %v\n%s", user, err, out)
		}
	}
	if got := inspect("content", "get", want.Digest.String()); got != string(want.Bytes()) {
		t.Errorf("%d bytes, want %d", len(got), len(want.Bytes()))
	}
}

func TestDockerLogsInAndPulls(t *testing.T) {
	needRoot(t, "dockerd")
	need(t, "dockerd")
	p, want := newGuarded(t)
	program := need(t, "docker")
	client := append([]string{"--config", t.TempDir()}, runDockerd(t, "127.0.0.1:1")...)
	docker := func(args ...string) string { return run(t, nil, program, slices.Concat(client, args)...) }
	name := p.Host() + "/library/app:1"
	if out, err := try(t, nil, program, slices.Concat(client, []string{"pull", name})...); err == nil {
		t.Errorf("nobody pulls: %s", out)
	}
	if out, err := try(t, nil, program, slices.Concat(client, []string{"login", "-u", "alice", "-p", "wrong", p.Host()})...); err == nil {
		t.Errorf("a wrong password logs in: %s", out)
	}
	docker("login", "-u", "alice", "-p", "wonderland", p.Host())
	docker("pull", "--platform", "linux/amd64", name)
	wantDockerImage(t, docker("image", "inspect", name), "linux/amd64", want)
}
