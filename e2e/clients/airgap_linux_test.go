package clients

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// gap is what is carried across, in the order in which the page brings it.
type gap struct {
	// images are what the page lists, by reference. signed is the one that signature
	// refers to.
	images            map[string]*image.Image
	signed, signature *image.Image
}

const signedReference = "ghcr.io/org/base:stable"

// carried makes what the builds need; moved is after the tag node:20 has moved.
func carried(moved bool) gap {
	layers := []image.Layer{{Size: 300 << 10}, {Size: 5000}}
	g := gap{images: map[string]*image.Image{
		"docker.io/library/node:20":     image.Index(image.Options{Seed: 1, Layers: layers}),
		"docker.io/library/postgres:16": image.Index(image.Options{Seed: 2, Flavour: image.Docker, Layers: layers}),
		signedReference:                 image.Index(image.Options{Seed: 3, Layers: layers}),
	}}
	if moved {
		g.images["docker.io/library/node:20"] = image.Index(image.Options{Seed: 5, Layers: layers})
	}
	g.signed = g.images[signedReference]
	subject := g.signed.Descriptor()
	g.signature = image.Artifact(4, "application/vnd.example.signature.v1", 500, &subject)
	return g
}

// The platforms that are carried, of those that the images have.
var carriedPlatforms = []string{"linux/amd64", "linux/arm64"}

// TestAcrossTheAirGap is the page's story. What it says of outside is done with the
// registries; what it says of inside by this program again, in a network namespace that
// has nothing but loopback, and in a directory with no more than was carried there.
func TestAcrossTheAirGap(t *testing.T) {
	if story := os.Getenv(insideVariable); story != "" {
		insideTheAirGap(t, story)
		return
	}
	needRoot(t, "a network namespace")
	for _, program := range []string{"docker", "dockerd", "containerd", "ctr", "skopeo", "crane"} {
		need(t, program)
	}
	before, after := carried(false), carried(true)
	hubs := map[string]*hub.Hub{"docker.io": hub.New(t, hub.Options{}), "ghcr.io": hub.New(t, hub.Options{Service: "ghcr.io"})}
	push := func(g gap) {
		for ref, i := range g.images {
			upstream, repo, tag := parts(ref)
			hubs[upstream].Push(repo, tag, i)
		}
	}
	push(before)
	hubs["ghcr.io"].Push("org/base", "", before.signature)
	there, here := shortDir(t), shortDir(t)
	env := append(storyEnvironment(t), "ENTREPOT_CONFIG="+outsideConfig(t, hubs), "ENTREPOT_ADMIN_LISTEN=off")

	commands := pageCommands(t)
	outside := func(commands ...string) {
		t.Helper()
		for _, c := range commands {
			shell(t, there, env, c)
		}
	}
	carry := func(name string) string {
		t.Helper()
		path := filepath.Join(there, name)
		run(t, nil, "cp", path, here)
		return path
	}
	outside(commands.outside...)
	carry("images.txt")
	bundle := carry("bundle.tar")
	othersReadTheBundle(t, bundle, before)
	goInside(t, insideStory{"first", here, commands.inside, hubs["docker.io"].Host()})
	if t.Failed() {
		return
	}

	push(after)
	outside(commands.outsideAgain...)
	wantSmaller(t, carry("next.tar"), bundle)
	goInside(t, insideStory{"next", here, commands.insideAgain, hubs["docker.io"].Host()})

	outside(
		"entrepot warm --cache-dir ./outside --file images.txt --platform all --with-referrers",
		"entrepot export --cache-dir ./outside --bundle all.tar --file images.txt --platform all",
	)
	craneReadsTheLayout(t, filepath.Join(there, "all.tar"), after)
}

// insideStory is what is done inside. It comes in a variable of the environment.
type insideStory struct {
	Phase    string
	Dir      string
	Commands []string
	// Hub is where the registry is that can not be reached.
	Hub string
}

const insideVariable = "ENTREPOT_TEST_INSIDE"

// goInside runs this test again where there is no network.
func goInside(t *testing.T, s insideStory) {
	t.Helper()
	story, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAcrossTheAirGap$", "-test.v", "-test.timeout=9m")
	cmd.Env = append(os.Environ(), insideVariable+"="+string(story), binaryVariable+"="+proxy.Binary(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		missing(t, "a network namespace cannot be made here: "+err.Error())
	}
	if why := regexp.MustCompile(`\S+ cannot start on this machine: .*`).Find(out); why != nil {
		missing(t, string(why))
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestAcrossTheAirGap")) {
		t.Errorf("inside: %v\n%s", err, out)
	}
}

// binaryVariable tells where the program is that has been built outside.
const binaryVariable = "ENTREPOT_TEST_BINARY"

// storyEnvironment is what the page's commands have: the program as entrepot, and a
// cache that whoever else fills the disk leaves alone.
func storyEnvironment(t *testing.T) []string {
	t.Helper()
	binary := os.Getenv(binaryVariable)
	if binary == "" {
		binary = proxy.Binary(t)
	}
	return []string{
		"PATH=" + filepath.Dir(binary) + ":" + os.Getenv("PATH"),
		"ENTREPOT_CACHE_MAX_SIZE=1TiB", "ENTREPOT_CACHE_MIN_FREE=0", "_CONTAINERS_ROOTLESS_UID=1000",
	}
}

// outsideConfig writes the configuration that has hubs as the registries.
func outsideConfig(t *testing.T, hubs map[string]*hub.Hub) string {
	t.Helper()
	upstreams := map[string]any{}
	for name, h := range hubs {
		u := h.Upstream("")
		u["tags"] = []any{map[string]any{"match": "*", "ttl": "0s"}} // a tag that has moved is seen at once
		upstreams[name] = u
	}
	b, err := json.Marshal(map[string]any{"upstreams": upstreams}) // YAML as well
	if err != nil {
		t.Fatal(err)
	}
	return write(t, t.TempDir(), "entrepot.yml", string(b))
}

// othersReadTheBundle has skopeo and crane read it.
func othersReadTheBundle(t *testing.T, bundle string, g gap) {
	t.Helper()
	for ref, want := range g.images {
		if want.MediaType() == v1.MediaTypeImageIndex { // of Docker's types it finds none in a layout
			skopeoReads(t, nil, "oci-archive:"+bundle+":"+ref, want)
		}
	}
	for ref := range g.images {
		run(t, nil, need(t, "crane"), "digest", "--tarball", bundle, ref)
	}
}

// craneReadsTheLayout has crane push a bundle, unpacked, that has all platforms: crane
// wants every manifest that an index names.
func craneReadsTheLayout(t *testing.T, bundle string, g gap) {
	t.Helper()
	layout, elsewhere := t.TempDir(), httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer elsewhere.Close()
	run(t, nil, need(t, "tar"), "-xf", bundle, "-C", layout)
	run(t, nil, need(t, "crane"), "--insecure", "push", "--index", layout, strings.TrimPrefix(elsewhere.URL, "http://")+"/library/all:bundle")
	for ref, want := range g.images {
		for d, m := range want.Manifests {
			if got := fetch(t, elsewhere.URL+"/v2/library/all/manifests/"+d.String()); !bytes.Equal(got, m.Bytes) {
				t.Errorf("crane has pushed %s of %s as %d bytes, want %d", d, ref, len(got), len(m.Bytes))
			}
		}
	}
}

// skopeoReads copies what is carried of an image, and looks at every byte of it.
func skopeoReads(t *testing.T, flags []string, name string, want *image.Image) {
	t.Helper()
	skopeo, env := need(t, "skopeo"), []string{"_CONTAINERS_ROOTLESS_UID=1000"}
	if got := run(t, env, skopeo, slices.Concat(flags, []string{"--insecure-policy", "inspect", "--raw", name})...); got != string(want.Bytes()) {
		t.Errorf("%s: %d bytes, want %d", name, len(got), len(want.Bytes()))
	}
	for _, platform := range carriedPlatforms {
		os, arch, _ := strings.Cut(platform, "/")
		dir := t.TempDir()
		run(t, env, skopeo, slices.Concat(flags, []string{"--insecure-policy", "--override-os", os, "--override-arch", arch, "copy", name, "dir:" + dir})...)
		wantFile(t, filepath.Join(dir, "manifest.json"), want.Manifests[want.Platforms[platform]].Bytes)
		for _, l := range want.Layers(platform) {
			wantFile(t, filepath.Join(dir, l.Digest.Encoded()), want.Blobs[l.Digest])
		}
	}
}

// parts cuts a reference.
func parts(ref string) (upstream, repo, tag string) {
	upstream, rest, _ := strings.Cut(ref, "/")
	repo, tag, _ = strings.Cut(rest, ":")
	return upstream, repo, tag
}

// byDigest gives the reference with the digest in the place of the tag.
func byDigest(ref string, i *image.Image) string {
	upstream, repo, _ := parts(ref)
	return upstream + "/" + repo + "@" + i.Digest.String()
}

func wantSmaller(t *testing.T, path, than string) {
	t.Helper()
	small, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	large, err := os.Stat(than)
	if err != nil {
		t.Fatal(err)
	}
	if small.Size() >= large.Size() {
		t.Errorf("%s has %d bytes, and %s %d", path, small.Size(), than, large.Size())
	}
}
