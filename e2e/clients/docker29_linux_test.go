package clients

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// docker29 is a daemon of Docker Engine 29 or newer with the containerd image store.
type docker29 struct {
	// host is the daemon's DOCKER_HOST.
	host string
	// root is the directory whose etc/docker the daemon finds as /etc/docker. It is empty at first.
	root string
	// ctr runs ctr for the content of the daemon's images.
	ctr func(args ...string) string
}

// startDocker29 starts a daemon that has no configuration but its image store.
func startDocker29(t *testing.T) *docker29 {
	t.Helper()
	needRoot(t, "dockerd")
	dockerd, unshare := newest(t, "dockerd"), need(t, "unshare")
	containerd, ctr := startContainerd(t)
	dir := shortDir(t)
	d := &docker29{host: "unix://" + filepath.Join(dir, "s"), root: t.TempDir()}
	d.ctr = func(args ...string) string { return ctr(append([]string{"-n", "moby"}, args...)...) }
	etc := filepath.Join(d.root, "etc/docker")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	config := write(t, dir, "daemon.json", `{"features": {"containerd-snapshotter": true}}`)
	// In a mount namespace of its own, which ends with it.
	daemon(t, exec.Command(unshare, "--mount", "sh", "-c", `mkdir -p /etc/docker && mount --bind "$0" /etc/docker && exec "$@"`, etc, dockerd,
		"--config-file", config, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--containerd", containerd, "--pidfile", filepath.Join(dir, "pid"), "-H", d.host,
		// native works on every file system.
		"--storage-driver=native", "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false"),
		func(log string) bool { return strings.Contains(log, "API listen on") })
	return d
}

// try runs docker.
func (d *docker29) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return try(t, []string{"DOCKER_HOST=" + d.host, "DOCKER_BUILDKIT=0"}, need(t, "docker"), append([]string{"--config", t.TempDir()}, args...)...)
}

// run is try for what must not fail.
func (d *docker29) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.try(t, args...)
	if err != nil {
		t.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// want checks the image of a platform that the daemon has under ref, in full.
func (d *docker29) want(t *testing.T, ref, platform string, want *image.Image) {
	t.Helper()
	if digests := d.run(t, "image", "inspect", "-f", "{{.RepoDigests}}", ref); !strings.Contains(digests, want.Digest.String()) {
		t.Errorf("%s: digests %s, want %s", ref, digests, want.Digest)
	}
	single := want.Platforms[platform]
	for _, manifest := range []digest.Digest{want.Digest, single} {
		if got := d.ctr("content", "get", manifest.String()); got != string(want.Manifests[manifest].Bytes) {
			t.Errorf("%s: manifest %s: %d bytes, want %d", ref, manifest, len(got), len(want.Manifests[manifest].Bytes))
		}
	}
	for _, blob := range append(want.Layers(platform), want.Parsed(single).Config) {
		if got := d.ctr("content", "get", blob.Digest.String()); got != string(want.Blobs[blob.Digest]) {
			t.Errorf("%s: blob %s: %d bytes, want %d", ref, blob.Digest, len(got), blob.Size)
		}
	}
}

// attested returns i with an attestation of its linux/amd64, as BuildKit makes it, and a signature of the
// attestation. Docker pulls both with the image.
func attested(t *testing.T, i *image.Image) (*image.Image, *image.Image) {
	t.Helper()
	var index v1.Index
	if err := json.Unmarshal(i.Bytes(), &index); err != nil {
		t.Fatal(err)
	}
	attestation := image.New(image.Options{Seed: 77, Platform: "unknown/unknown"})
	of := attestation.Descriptor()
	of.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	of.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": i.Platforms["linux/amd64"].String()}
	index.Manifests = append(index.Manifests, of)
	b, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	all := &image.Image{Digest: digest.FromBytes(b), Manifests: map[digest.Digest]image.Manifest{}, Blobs: map[digest.Digest][]byte{}, Platforms: i.Platforms}
	for _, part := range []*image.Image{i, attestation} {
		for d, m := range part.Manifests {
			if d != i.Digest {
				all.Manifests[d] = m
			}
		}
		for d, blob := range part.Blobs {
			all.Blobs[d] = blob
		}
	}
	all.Manifests[all.Digest] = image.Manifest{MediaType: index.MediaType, Bytes: b}
	subject := attestation.Descriptor()
	return all, image.Artifact(78, "application/vnd.dev.sigstore.bundle.v0.3+json", 500, &subject)
}

// TestDockerEngine29PullsFromEveryRegistryThroughTheCache has the doctor write the configuration of a running
// daemon, which is never restarted. The cache speaks plain http on an address that Docker does not take for
// the loopback, and daemon.json names no insecure registry.
func TestDockerEngine29PullsFromEveryRegistryThroughTheCache(t *testing.T) {
	layers := []image.Layer{{Size: 300 << 10}, {Size: 5000}}
	plain := image.Index(image.Options{Seed: 1, Flavour: image.Docker, Layers: layers})
	signed, signature := attested(t, image.Index(image.Options{Seed: 2, Layers: layers}))
	hubs := map[string]*hub.Hub{
		"docker.io": hub.New(t, hub.Options{}),
		"ghcr.io":   hub.New(t, hub.Options{Service: "ghcr.io"}),
		"quay.io":   hub.New(t, hub.Options{Service: "quay.io", TLS: true}),
	}
	repositories := map[string]string{"docker.io": "library/app", "ghcr.io": "org/app", "quay.io": "org/team/app"}
	refs := map[string]*image.Image{}
	for registry, h := range hubs {
		repository := repositories[registry]
		h.Push(repository, "plain", plain)
		h.Push(repository, "signed", signed)
		h.Push(repository, "", signature)
		name := registry + "/" + repository
		refs[name+":plain"], refs[name+":signed"], refs[name+"@"+signed.Digest.String()] = plain, signed, signed
	}
	refs["app:plain"] = plain // Docker Hub's by its short name
	d := startDocker29(t)
	w := &world{hub: hubs["docker.io"], other: hubs["ghcr.io"], proxy: proxy.Start(t, proxy.Options{Upstreams: hubs,
		Config: `upstreams: {docker.io: {tags: [{match: "*", ttl: 1h}]}, ghcr.io: {tags: [{match: "*", ttl: 1h}]}, quay.io: {tags: [{match: "*", ttl: 1h}]}}`})}
	host := strings.Replace(w.proxy.Host(), "127.0.0.1", "0.0.0.0", 1)
	doctor := func(args ...string) diagnosis {
		t.Helper()
		return w.doctor(t, []string{"DOCKER_HOST=" + d.host}, "docker", d.root, append([]string{"--url", "http://" + host}, args...)...)
	}
	// It hides the default from quay.io.
	certificate := write(t, d.root, "etc/docker/certs.d/quay.io/ca.crt", string(hubs["quay.io"].CA()))

	if out, err := d.try(t, "pull", "ghcr.io/org/app:plain"); err == nil {
		t.Fatalf("without a configuration it was pulled: %s", out)
	}
	unwritten := doctor("--image", "ghcr.io/org/app:plain")
	unwritten.want(t, "docker pull", "warning", "_default/hosts.toml is not there")
	written := doctor("--write", "--image", "ghcr.io/org/app:plain")
	written.want(t, "docker configuration", "ok", "_default/hosts.toml has been written")
	written.want(t, "docker configuration", "ok", "quay.io/hosts.toml has been written")
	written.want(t, "docker pull", "ok", "came through the cache")
	if _, err := os.Stat(filepath.Join(d.root, "etc/docker/daemon.json")); err == nil {
		t.Error("daemon.json was written, which this Docker does not need")
	}

	pull := func(t *testing.T) {
		for ref, want := range refs {
			platforms := []string{"linux/amd64"}
			if want == signed {
				platforms = append(platforms, "linux/arm64")
			}
			for _, platform := range platforms {
				d.run(t, "pull", "--platform", platform, ref)
				d.want(t, ref, platform, want)
				d.run(t, "image", "rm", "-f", ref)
			}
		}
		if left := d.run(t, "image", "ls", "-qa"); left != "" {
			t.Fatalf("all images were removed, and there are still %s", left)
		}
	}
	asked := func() map[string]hub.Counts {
		counts := map[string]hub.Counts{}
		for registry, h := range hubs {
			counts[registry] = h.Counts()
		}
		return counts
	}
	t.Run("cold", pull)
	w.proxy.WaitIdle(t)
	before := asked()
	for registry, counts := range before {
		if counts.Referrers == 0 {
			t.Errorf("%s was not asked for signatures: the cache or the client has lost them", registry)
		}
		if counts.Leaks > 0 {
			t.Errorf("%s: an Authorization header went where it does not belong", registry)
		}
	}
	sent := w.blobBytes(t)
	t.Run("warm", pull)
	if w.blobBytes(t) == sent {
		t.Error("the second pull was sent no blobs: the daemon has kept them")
	}
	for _, h := range hubs {
		h.Down()
	}
	t.Run("with the registries gone", pull)
	for builder, kit := range map[string]string{"the classic builder": "0", "BuildKit": "1"} {
		t.Run(builder+" with the registries gone", func(t *testing.T) {
			docker := need(t, "docker")
			if _, err := os.Stat("/usr/bin/docker"); err == nil {
				docker = "/usr/bin/docker" // Debian's, which has BuildKit's client built in
			}
			// So that the next builder finds nothing there.
			defer d.run(t, "image", "prune", "--all", "--force")
			for registry, repository := range repositories {
				dir := t.TempDir()
				write(t, dir, "Dockerfile", "FROM "+registry+"/"+repository+":signed\nLABEL made=here\n")
				out, err := try(t, []string{"DOCKER_HOST=" + d.host, "DOCKER_BUILDKIT=" + kit}, docker, "--config", t.TempDir(), "build", "--tag", "made", dir)
				if err != nil && strings.Contains(err.Error(), "buildx component is missing") {
					t.Skip("this docker command builds by its plugin buildx alone, which is not there")
				}
				if err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			}
		})
	}
	t.Run("by the cache's name", func(t *testing.T) {
		d.run(t, "pull", host+"/ghcr.io/org/app:plain")
		d.want(t, host+"/ghcr.io/org/app:plain", "linux/amd64", plain)
	})
	t.Run("signatures need their capability", func(t *testing.T) {
		path := filepath.Join(d.root, "etc/docker/certs.d/_default/hosts.toml")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		without := strings.Replace(string(b), `, "referrers"]`, "]", 1)
		write(t, filepath.Dir(path), "hosts.toml", without)
		if out, err := d.try(t, "pull", "ghcr.io/org/app:signed"); err == nil || without == string(b) {
			t.Errorf("Docker no longer asks the registry for them, and the comment in the ready file is wrong: %s", out)
		}
		write(t, filepath.Dir(path), "hosts.toml", string(b))
		d.run(t, "pull", "ghcr.io/org/app:signed")
	})
	if after := asked(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the registries were asked again: %+v, before %+v", after, before)
	}
	if b, err := os.ReadFile(certificate); err != nil || string(b) != string(hubs["quay.io"].CA()) {
		t.Errorf("the certificate has changed: %v", err)
	}
}

// TestDoctorSeesDockerEngine29GoPastTheCache has a registry with a file of its own, which names another host.
func TestDoctorSeesDockerEngine29GoPastTheCache(t *testing.T) {
	d := startDocker29(t)
	w := newWorld(t)
	env := []string{"DOCKER_HOST=" + d.host}
	direct := fmt.Sprintf("server = %[1]q\n\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", w.hub.URL())
	path := write(t, d.root, "etc/docker/certs.d/docker.io/hosts.toml", direct)
	past := w.doctor(t, env, "docker", d.root)
	past.want(t, "docker pull", "failure", "silent bypass")
	past.want(t, "docker pull", "warning", path+" does not say that the cache is to be asked first")
	w.doctor(t, env, "docker", d.root, "--write").want(t, "docker pull", "ok", "came through the cache")
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), w.hub.URL()) {
		t.Errorf("what was there is gone: %s, %v", b, err)
	}
}

// TestDockerEngine29PullsWhatWasWarmed has a cache that serves what was warmed and asks no registry, as behind
// an air gap. Docker pulls attestations and their signatures with an image, and fails if they cannot be had.
func TestDockerEngine29PullsWhatWasWarmed(t *testing.T) {
	signed, signature := attested(t, image.Index(image.Options{Seed: 2}))
	hubs := map[string]*hub.Hub{"docker.io": hub.New(t, hub.Options{}), "ghcr.io": hub.New(t, hub.Options{Service: "ghcr.io"})}
	d := startDocker29(t)
	outside := proxy.Start(t, proxy.Options{Upstreams: hubs})
	for ref, h := range map[string]*hub.Hub{"docker.io/library/app:signed": hubs["docker.io"], "ghcr.io/org/app:signed": hubs["ghcr.io"]} {
		upstream, repository, tag := parts(ref)
		h.Push(repository, tag, signed)
		if upstream == "ghcr.io" { // Docker Hub's image is attested, and nobody has signed that
			h.Push(repository, "", signature)
		}
		run(t, nil, proxy.Binary(t), "warm", "--admin-listen", strings.TrimPrefix(outside.AdminURL(), "http://"), "--config", outside.Config(),
			"--platform", "linux/amd64", "--with-referrers", ref)
	}
	outside.Stop(t)
	for _, h := range hubs {
		h.Down()
	}
	inside := proxy.Start(t, proxy.Options{Upstreams: hubs, Dir: outside.Dir, Config: "cache: {offline: true}"})
	// As docs/air-gap.md has it: nothing is asked but the cache.
	write(t, d.root, "etc/docker/certs.d/_default/hosts.toml", fmt.Sprintf("server = %q\n", inside.URL())+readyFile(t, "docker/_default/hosts.toml", inside.Host()))
	for _, ref := range []string{"docker.io/library/app:signed", "ghcr.io/org/app:signed"} {
		d.run(t, "pull", "--platform", "linux/amd64", ref)
		d.want(t, ref, "linux/amd64", signed)
	}
}
