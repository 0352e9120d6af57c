package clients

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/e2e/image"
)

// insideTheAirGap does what the page says of inside, and then has every client pull
// all that was carried.
func insideTheAirGap(t *testing.T, text string) {
	var s insideStory
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	loopbackUp(t)
	wantNoNetwork(t, s.Hub)
	g, env := carried(s.Phase == "next"), storyEnvironment(t)
	serving := false
	serve := func(command string) {
		cmd := exec.Command("sh", "-ec", "exec "+command)
		cmd.Dir, cmd.Env = s.Dir, env
		daemon(t, cmd, func(string) bool {
			resp, err := http.Get("http://127.0.0.1:5001/readyz")
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
		serving = true
	}
	if s.Phase == "next" {
		serve("entrepot serve --cache-dir ./inside --offline")
	}
	docker := sync.OnceValue(func() []string { return runDockerd(t, insideHost) })
	for _, c := range s.Commands {
		switch {
		case strings.HasPrefix(c, "entrepot serve "):
			serve(c)
		case strings.HasPrefix(c, "docker "), strings.HasPrefix(c, "entrepot doctor "):
			shell(t, s.Dir, append(env, "DOCKER_HOST="+docker()[1]), c)
		default:
			shell(t, s.Dir, env, c)
		}
	}
	if !serving {
		t.Fatal("the page does not serve")
	}
	t.Run("rehearse", func(t *testing.T) { rehearsed(t, s.Dir, env) })
	t.Run("dockerd", func(t *testing.T) {
		client := docker()
		docker := func(args ...string) string {
			t.Helper()
			return run(t, nil, need(t, "docker"), slices.Concat([]string{"--config", t.TempDir()}, client, args)...)
		}
		remove := func(name string) {
			docker("image", "rm", "-f", strings.TrimSpace(docker("image", "inspect", "-f", "{{.Id}}", name)))
		}
		if s.Phase == "first" {
			// The page has pulled it.
			wantDockerImage(t, docker("image", "inspect", "node:20"), "linux/"+runtime.GOARCH, g.images["docker.io/library/node:20"])
			remove("node:20")
		}
		for ref, want := range g.images {
			upstream, repo, tag := parts(ref)
			if upstream != "docker.io" {
				continue // a daemon has mirrors for Docker Hub alone
			}
			short := strings.TrimPrefix(repo, "library/")
			for _, name := range []string{short + ":" + tag, short + "@" + want.Digest.String()} {
				docker("pull", "--platform", "linux/arm64", name)
				wantDockerImage(t, docker("image", "inspect", name), "linux/arm64", want)
				remove(name)
			}
		}
	})
	t.Run("Docker Engine 29", func(t *testing.T) {
		d := startDocker29(t)
		write(t, d.root, "etc/docker/certs.d/_default/hosts.toml", pageHosts(t))
		for _, c := range s.Commands {
			if strings.HasPrefix(c, "docker ") || strings.HasPrefix(c, "entrepot doctor ") {
				// Where /etc/docker is the daemon's.
				shell(t, s.Dir, append(env, "DOCKER_HOST="+d.host, "COMMANDS="+c, "ETC="+filepath.Join(d.root, "etc/docker")),
					`exec unshare --mount sh -ec 'mkdir -p /etc/docker && mount --bind "$ETC" /etc/docker && exec sh -ec "$COMMANDS"'`)
			}
		}
		for ref, want := range g.images { // of every registry
			for _, name := range []string{ref, byDigest(ref, want)} {
				for _, platform := range carriedPlatforms {
					d.run(t, "pull", "--platform", platform, name)
					d.want(t, name, platform, want)
				}
			}
		}
	})
	if s.Phase == "first" {
		t.Run("docker load", func(t *testing.T) {
			docker := startDockerd(t, insideHost)
			docker("load", "--input", filepath.Join(s.Dir, "bundle.tar"))
			for ref, want := range g.images {
				config, _ := unpacked(t, want, carriedPlatforms[0])
				if got := strings.TrimSpace(docker("image", "inspect", "-f", "{{.Id}}", ref)); got != config.String() {
					t.Errorf("%s: image ID %s, want %s", ref, got, config)
				}
			}
		})
	}
	t.Run("containerd", func(t *testing.T) {
		_, ctr := startContainerd(t)
		hosts := t.TempDir()
		write(t, hosts, "_default/hosts.toml", readyFile(t, "containerd/_default/hosts.toml", insideHost))
		for ref, want := range g.images {
			for _, name := range []string{ref, byDigest(ref, want)} {
				for _, platform := range carriedPlatforms {
					ctr("images", "pull", "--hosts-dir", hosts, "--platform", platform, "--snapshotter", "native", name)
					m := want.Parsed(want.Platforms[platform])
					for _, l := range append(m.Layers, m.Config) {
						if got := ctr("content", "get", l.Digest.String()); got != string(want.Blobs[l.Digest]) {
							t.Errorf("%s: blob %s: %d bytes, want %d", name, l.Digest, len(got), len(want.Blobs[l.Digest]))
						}
					}
				}
				if got := ctr("content", "get", want.Digest.String()); got != string(want.Bytes()) {
					t.Errorf("%s: index %s: %d bytes, want %d", name, want.Digest, len(got), len(want.Bytes()))
				}
				ctr("images", "rm", "--sync", name)
			}
		}
	})
	t.Run("skopeo", func(t *testing.T) {
		conf := registriesConf(t, insideHost)
		for ref, want := range g.images {
			for _, name := range []string{ref, byDigest(ref, want)} {
				skopeoReads(t, []string{"--registries-conf", conf}, "docker://"+name, want)
			}
		}
	})
	t.Run("crane", func(t *testing.T) {
		crane := need(t, "crane")
		for ref, want := range g.images {
			for _, name := range []string{ref, byDigest(ref, want)} {
				name = insideHost + "/" + name
				if got := run(t, nil, crane, "--insecure", "manifest", name); got != string(want.Bytes()) {
					t.Errorf("crane manifest %s: %d bytes, want %d", name, len(got), len(want.Bytes()))
				}
				for _, platform := range carriedPlatforms {
					out := filepath.Join(t.TempDir(), "layout")
					run(t, nil, crane, "--insecure", "pull", "--platform", platform, "--format", "oci", name, out)
					wantPlatform(t, filepath.Join(out, "blobs", "sha256"), want, platform)
				}
			}
		}
	})
	t.Run("the signature", func(t *testing.T) {
		var found v1.Index
		base := "http://" + insideHost + "/v2/ghcr.io/org/base/"
		b := fetch(t, base+"referrers/"+g.signed.Digest.String())
		if err := json.Unmarshal(b, &found); err != nil || len(found.Manifests) != 1 || found.Manifests[0].Digest != g.signature.Digest {
			t.Fatalf("want %s, got %v\n%s", g.signature.Digest, err, b)
		}
		if got := fetch(t, base+"manifests/"+g.signature.Digest.String()); !bytes.Equal(got, g.signature.Bytes()) {
			t.Errorf("its manifest: %d bytes, want %d", len(got), len(g.signature.Bytes()))
		}
		for d, want := range g.signature.Blobs {
			if got := fetch(t, base+"blobs/"+d.String()); !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, want %d", d, len(got), len(want))
			}
		}
	})
	if s.Phase == "next" {
		t.Run("what the tag stood for", func(t *testing.T) {
			was := carried(false).images["docker.io/library/node:20"]
			if got := fetch(t, "http://"+insideHost+"/v2/docker.io/library/node/manifests/"+was.Digest.String()); !bytes.Equal(got, was.Bytes()) {
				t.Errorf("%d bytes, want %d", len(got), len(was.Bytes()))
			}
		})
	}
	t.Run("what is not there", func(t *testing.T) {
		resp, err := http.Get("http://" + insideHost + "/v2/library/mysql/manifests/8")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		said := "the proxy is offline and docker.io/library/mysql 8 is not in its cache"
		if resp.StatusCode != http.StatusServiceUnavailable || !bytes.Contains(b, []byte(said)) {
			t.Errorf("want 503 and what the page says, got %s %s", resp.Status, b)
		}
		page, err := os.ReadFile(airGapPage)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(strings.ReplaceAll(string(page), "\n", " "), said) {
			t.Errorf("the page does not say %q", said)
		}
	})
}

// leftOut is wanted inside as well, and nobody has put it on the list.
const leftOut = "docker.io/library/forgotten:1.0"

// rehearsed has the one image found that was left out, and no other.
func rehearsed(t *testing.T, dir string, env []string) {
	t.Helper()
	list, err := os.ReadFile(filepath.Join(dir, "images.txt"))
	if err != nil {
		t.Fatal(err)
	}
	more := write(t, t.TempDir(), "more.txt", string(list)+leftOut+"\n")
	out, err := try(t, env, "sh", "-ec", `exec entrepot rehearse --cache-dir "$0" --file "$1" --platform "$2" --with-referrers --offline --output json`,
		filepath.Join(dir, "inside"), more, strings.Join(carriedPlatforms, ","))
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("want 1, got %v\n%s", err, out)
	}
	var said cache.Rehearsal
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if said.Failed != 1 || len(said.Images) != 4 {
		t.Errorf("want one of four to fail, got %+v", said)
	}
	for _, i := range said.Images {
		if failed := i.Status == cache.RehearsedFailed; failed != (i.Reference == leftOut) {
			t.Errorf("%+v", i)
		}
	}
}

// insideHost is where the page's proxy listens.
const insideHost = "127.0.0.1:5000"

// wantPlatform checks that a layout's directory of blobs has all of a platform.
func wantPlatform(t *testing.T, blobs string, want *image.Image, platform string) {
	t.Helper()
	d := want.Platforms[platform]
	wantFile(t, filepath.Join(blobs, d.Encoded()), want.Manifests[d].Bytes)
	for _, l := range want.Layers(platform) {
		wantFile(t, filepath.Join(blobs, l.Digest.Encoded()), want.Blobs[l.Digest])
	}
}

// fetch gives the body of an answer, which must be 200.
func fetch(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v\n%s", url, resp.Status, err, b)
	}
	return b
}

// wantNoNetwork checks that there is no way to anywhere, and to the hub.
func wantNoNetwork(t *testing.T, hub string) {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil || len(links) != 1 || links[0].Flags&net.FlagLoopback == 0 {
		t.Fatalf("want no network but loopback, got %v, %v", links, err)
	}
	for _, address := range []string{hub, "192.0.2.1:443"} {
		if conn, err := net.DialTimeout("tcp", address, 5*time.Second); err == nil {
			conn.Close()
			t.Fatalf("%s can be reached", address)
		}
	}
}

// loopbackUp brings up the one interface of a new network namespace.
func loopbackUp(t *testing.T) {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatalf("bring up lo: %v", err)
	}
}
