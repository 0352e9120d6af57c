package clients

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

const password = "a-password-that-must-not-show"

// privateWorld is a registry at which alice and bob have accounts, alice/app is
// hers alone and library/app is everyone's, and the program in front, to which
// clients bring their own accounts.
func privateWorld(t *testing.T) (*hub.Hub, *proxy.Proxy, *image.Image) {
	t.Helper()
	h := hub.New(t, hub.Options{Users: map[string]string{"alice": password, "bob": password + "-of-bob"}})
	i := image.Index(image.Options{Seed: 1, Layers: []image.Layer{{Size: 300 << 10}, {Size: 5000}}})
	h.Push("alice/app", "1.0", i)
	h.MakePrivate("alice/app", "alice")
	h.Push("library/app", "1.0", i)
	p := proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h},
		Config:    `upstreams: {docker.io: {access: passthrough, tags: [{match: "*", ttl: 1h}]}}`,
	})
	t.Cleanup(func() {
		if strings.Contains(p.Log(), password) {
			t.Error("a password is in the log")
		}
		if h.Counts().Leaks != 0 {
			t.Error("an Authorization header went where it does not belong")
		}
	})
	return h, p, i
}

// wantRefused checks that a client was told that it may not pull.
func wantRefused(t *testing.T, who, out string, err error) {
	t.Helper()
	words := []string{"unauthorized", "denied", "authentication required", "forbidden"}
	if err == nil || !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(strings.ToLower(err.Error()), w) }) {
		t.Errorf("%s: want a refusal, got %v, %s", who, err, out)
	}
}

// privately lets each pull what it may and may not: alice her own, bob and nobody
// not hers, and all what is everyone's. pull pulls a reference ("alice/app:1.0")
// of the cache as a user, "" for nobody, and fails as the client does.
func privately(t *testing.T, pull func(user, password, ref string) (string, error)) {
	t.Helper()
	for _, ref := range []string{"docker.io/alice/app:1.0", "alice/app:1.0"} {
		if out, err := pull("alice", password, ref); err != nil {
			t.Errorf("Alice pulls %s: %v\n%s", ref, err, out)
		}
		for who, secret := range map[string]string{"bob": password + "-of-bob", "alice": "a guess", "": ""} {
			out, err := pull(who, secret, ref)
			wantRefused(t, fmt.Sprintf("%q pulls %s", who, ref), out, err)
		}
	}
	for who, secret := range map[string]string{"alice": password, "bob": password + "-of-bob", "": ""} {
		if out, err := pull(who, secret, "library/app:1.0"); err != nil {
			t.Errorf("%q pulls what is everyone's: %v\n%s", who, err, out)
		}
	}
}

func TestSkopeoPullsAPrivateImageWithItsOwnAccount(t *testing.T) {
	skopeo := need(t, "skopeo")
	_, p, i := privateWorld(t)
	conf := write(t, t.TempDir(), "registries.conf", "")
	env := []string{"_CONTAINERS_ROOTLESS_UID=1000"}
	privately(t, func(user, secret, ref string) (string, error) {
		dir := t.TempDir()
		args := []string{"--registries-conf", conf, "--insecure-policy", "copy", "--all", "--src-tls-verify=false"}
		if user != "" {
			args = append(args, "--src-creds", user+":"+secret)
		}
		out, err := try(t, env, skopeo, append(args, "docker://"+p.Host()+"/"+ref, "dir:"+dir)...)
		if err == nil {
			wantFile(t, filepath.Join(dir, "manifest.json"), i.Bytes())
			for d, b := range i.Blobs {
				wantFile(t, filepath.Join(dir, d.Encoded()), b)
			}
		}
		return out, err
	})
}

func TestPodmanLogsInAndPullsAPrivateImage(t *testing.T) {
	needRoot(t, "podman")
	podman := need(t, "podman")
	_, p, _ := privateWorld(t)
	dir := shortDir(t)
	policy := write(t, dir, "policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	conf := write(t, dir, "registries.conf", "[[registry]]\nlocation = \""+p.Host()+"\"\ninsecure = true\n")
	privately(t, func(user, secret, ref string) (string, error) {
		auth := filepath.Join(t.TempDir(), "auth.json")
		env := []string{"CONTAINERS_REGISTRIES_CONF=" + conf, "XDG_RUNTIME_DIR=" + dir, "REGISTRY_AUTH_FILE=" + auth}
		common := []string{
			"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
			"--storage-driver", "vfs", "--events-backend", "none", "--cgroup-manager", "cgroupfs"}
		if user == "" {
			if err := os.WriteFile(auth, []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
		} else {
			run(t, env, podman, slices.Concat(common, []string{"login", "--tls-verify=false", "-u", user, "-p", secret, p.Host()})...)
		}
		out, err := try(t, env, podman, slices.Concat(common, []string{"pull", "-q", "--tls-verify=false", "--signature-policy", policy, p.Host() + "/" + ref})...)
		if err == nil {
			run(t, env, podman, slices.Concat(common, []string{"image", "rm", "-f", strings.TrimSpace(out)})...)
		}
		return out, err
	})
}

func TestDockerLogsInAndPullsAPrivateImage(t *testing.T) {
	needRoot(t, "dockerd")
	need(t, "dockerd")
	docker := need(t, "docker")
	_, p, i := privateWorld(t)
	// The daemon takes plain http from the loopback as it is.
	daemon := runDockerd(t, "127.0.0.1:1")
	privately(t, func(user, secret, ref string) (string, error) {
		client := append([]string{"--config", t.TempDir()}, daemon...)
		command := func(args ...string) string { return run(t, nil, docker, slices.Concat(client, args)...) }
		if user != "" {
			command("login", "-u", user, "-p", secret, p.Host())
		}
		name := p.Host() + "/" + ref
		out, err := try(t, nil, docker, slices.Concat(client, []string{"pull", "--platform", "linux/amd64", name})...)
		if err == nil {
			wantDockerImage(t, command("image", "inspect", name), "linux/amd64", i)
			command("image", "rm", "-f", strings.TrimSpace(command("image", "inspect", "-f", "{{.Id}}", name)))
		}
		return out, err
	})
}

// A daemon offers its account of Docker Hub to its mirror; one that has none must be
// able to pull what is everyone's all the same.
func TestDockerDaemonPullsAPrivateImageThroughItsMirror(t *testing.T) {
	needRoot(t, "dockerd")
	need(t, "dockerd")
	docker := need(t, "docker")
	_, p, i := privateWorld(t)
	daemon := runDockerd(t, p.Host())
	auth := base64.StdEncoding.EncodeToString([]byte("alice:" + password))
	for account, refs := range map[string][]string{
		`{}`: {"app:1.0"},
		`{"auths":{"https://index.docker.io/v1/":{"auth":"` + auth + `"}}}`: {"app:1.0", "alice/app:1.0"},
	} {
		dir := t.TempDir()
		write(t, dir, "config.json", account)
		command := func(args ...string) string {
			return run(t, nil, docker, slices.Concat([]string{"--config", dir}, daemon, args)...)
		}
		for _, ref := range refs {
			command("pull", "--platform", "linux/amd64", ref)
			wantDockerImage(t, command("image", "inspect", ref), "linux/amd64", i)
			command("image", "rm", "-f", strings.TrimSpace(command("image", "inspect", "-f", "{{.Id}}", ref)))
		}
	}
	out, err := try(t, nil, docker, slices.Concat([]string{"--config", t.TempDir()}, daemon, []string{"pull", "alice/app:1.0"})...)
	if err == nil {
		t.Errorf("a daemon without an account has pulled hers: %s", out)
	}
}

func TestContainerdPullsAPrivateImageWithItsOwnAccount(t *testing.T) {
	ctr := need(t, "ctr")
	needRoot(t, "containerd")
	_, p, _ := privateWorld(t)
	socket, _ := startContainerd(t)
	privately(t, func(user, secret, ref string) (string, error) {
		args := []string{"-a", socket, "content", "fetch", "--plain-http", "--all-platforms"}
		if user != "" {
			args = append(args, "-u", user+":"+secret)
		}
		return try(t, nil, ctr, append(args, p.Host()+"/"+ref)...)
	})
}
