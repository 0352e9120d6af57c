package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

func TestMain(m *testing.M) {
	flag.Parse()
	code := proxy.Main(m)
	if code == 0 && (*update || isWhole()) {
		if err := checkPage(); err != nil {
			fmt.Println("FAIL:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// limit bounds one command of a client.
const limit = 2 * time.Minute

// need gives the path of a client's program. Where it is not installed the test
// is skipped, or fails where clients are required.
func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		missing(t, program+" is not installed")
	}
	noteProgram(t, program, path)
	return path
}

// needRoot skips a test of what mounts file systems, where it may not.
func needRoot(t *testing.T, what string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		missing(t, what+" needs Linux")
	}
	if os.Geteuid() != 0 {
		missing(t, what+" needs root")
	}
}

// needBuilt is need for a Go program that few have: where clients are required
// it is built, for this test.
func needBuilt(t *testing.T, program, pkg string) string {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil || !required() {
		return need(t, program)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "install", pkg)
	cmd.Dir = dir // out of this module
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go install %s: %v\n%s", pkg, err, out)
	}
	return filepath.Join(dir, program)
}

// newest gives the path of a program of the newest clients, which e2e/clients/tools names and
// NEWEST_CLIENTS has. It is need for those whose older versions are in PATH.
func newest(t *testing.T, program string) string {
	t.Helper()
	dir := os.Getenv("NEWEST_CLIENTS")
	if dir == "" {
		missing(t, "the newest "+program+" is not there: NEWEST_CLIENTS is not set")
	}
	path := filepath.Join(dir, program)
	if _, err := os.Stat(path); err != nil {
		missing(t, fmt.Sprintf("the newest %s: %v", program, err))
	}
	noteProgram(t, program, path)
	return path
}

func required() bool { return os.Getenv("ENTREPOT_REQUIRE_CLIENTS") == "1" }

func missing(t *testing.T, why string) {
	t.Helper()
	if required() {
		t.Fatal(why + ", and ENTREPOT_REQUIRE_CLIENTS=1")
	}
	t.Skip(why)
}

// world is two registries with images, and the program as their mirror.
type world struct {
	// hub is Docker Hub, other is ghcr.io.
	hub, other *hub.Hub
	proxy      *proxy.Proxy
	// list is a Docker manifest list, index an OCI index: docker.io/library/app
	// and ghcr.io/org/app have them, with the tags "list" and "index".
	list, index *image.Image
	// cutsShort says that the client closes connections before their end: it is sent other
	// amounts each time.
	cutsShort bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	// gzip, which the oldest of the clients unpacks too.
	layers := []image.Layer{{Size: 300 << 10}, {Size: 5000}}
	w := &world{
		hub:   hub.New(t, hub.Options{}),
		other: hub.New(t, hub.Options{Service: "ghcr.io"}),
		list:  image.Index(image.Options{Seed: 1, Flavour: image.Docker, Layers: layers}),
		index: image.Index(image.Options{Seed: 2, Layers: layers}),
	}
	for tag, i := range map[string]*image.Image{"list": w.list, "index": w.index} {
		w.hub.Push("library/app", tag, i)
		w.other.Push("org/app", tag, i)
	}
	w.proxy = proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": w.hub, "ghcr.io": w.other},
		// Fresh for as long as a test may take.
		Config: `upstreams: {docker.io: {tags: [{match: "*", ttl: 1h}]}, ghcr.io: {tags: [{match: "*", ttl: 1h}]}}`,
	})
	return w
}

// twice runs pull, and then once more with the upstreams shut down: it must
// succeed without them having been asked for anything. pull leaves nothing in
// the client, so that it is sent all blobs both times.
func (w *world) twice(t *testing.T, pull func(t *testing.T)) {
	t.Helper()
	t.Run("first", pull)
	w.proxy.WaitIdle(t)
	sent := w.blobBytes(t)
	if sent == 0 && !t.Failed() {
		t.Error("the first pull was sent no blobs")
	}
	before := [2]hub.Counts{w.hub.Counts(), w.other.Counts()}
	if before[0].Leaks+before[1].Leaks > 0 {
		t.Error("an Authorization header went where it does not belong")
	}
	w.hub.Down()
	w.other.Down()
	t.Run("with the upstreams shut down", pull)
	if again := w.blobBytes(t) - sent; again != sent && !w.cutsShort && !t.Failed() {
		t.Errorf("the second pull was sent %.0f bytes of blobs, the first %.0f", again, sent)
	}
	if after := [2]hub.Counts{w.hub.Counts(), w.other.Counts()}; after != before {
		t.Errorf("the upstreams were asked again: %+v, before %+v", after, before)
	}
}

// unpacked gives what a client calls an image's platform once it is unpacked:
// the digests of its config and of its layers' tars.
func unpacked(t *testing.T, i *image.Image, platform string) (config digest.Digest, diffIDs []digest.Digest) {
	t.Helper()
	config = i.Parsed(i.Platforms[platform]).Config.Digest
	var parsed v1.Image
	if err := json.Unmarshal(i.Blobs[config], &parsed); err != nil {
		t.Fatal(err)
	}
	return config, parsed.RootFS.DiffIDs
}

// blobBytes is how much of blobs the clients have been sent.
func (w *world) blobBytes(t *testing.T) float64 {
	t.Helper()
	return w.proxy.Metrics(t).Sum("entrepot_client_bytes_total", "kind", "blob")
}

// environment is what a client has. The proxy that it names is nobody: what is
// not on this machine is refused at once, where a client falls back to the real
// registry.
func environment(t *testing.T, more ...string) []string {
	t.Helper()
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(),
		"HTTP_PROXY=http://127.0.0.1:1", "HTTPS_PROXY=http://127.0.0.1:1", "NO_PROXY=127.0.0.1,0.0.0.0,localhost",
	}, more...)
}

// run runs a client's command and gives what it prints. A failure ends the test.
func run(t *testing.T, env []string, program string, args ...string) string {
	t.Helper()
	out, err := try(t, env, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v", filepath.Base(program), strings.Join(args, " "), err)
	}
	return out
}

func try(t *testing.T, env []string, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = environment(t, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w\n%s%s", err, out.String(), errs.String())
	}
	return out.String(), nil
}

// shortDir gives a directory with a path short enough for a unix socket, which
// goes with the test, whatever is still mounted in it.
func shortDir(t *testing.T) string {
	t.Helper()
	parent := ""
	if len(os.TempDir()) > 50 {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}

// daemon starts a daemon that ends with the test, and waits until ready gives
// true; it is given what the daemon has written so far, which is printed when
// the test fails.
func daemon(t *testing.T, cmd *exec.Cmd, ready func(log string) bool) {
	t.Helper()
	name := filepath.Base(cmd.Path)
	if name == "unshare" {
		name = "dockerd" // in a mount namespace of its own
	}
	logPath := filepath.Join(t.TempDir(), "log")
	log, err := os.Create(logPath)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = environment(t, cmd.Env...)
	// A group of its own, so that its children end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Errorf("%s has not ended", name)
			_ = cmd.Process.Kill()
			<-ended
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its group, which is empty as a rule
		if t.Failed() {
			b, _ := os.ReadFile(logPath)
			t.Logf("%s wrote:\n%s", name, b[max(0, len(b)-20_000):])
		}
	})
	proxy.Until(t, name+" is ready", func() bool {
		select {
		case err := <-ended:
			ended <- err
			b, _ := os.ReadFile(logPath)
			if why := lacking(string(b)); why != "" {
				missing(t, name+" cannot start on this machine: "+why)
			}
			t.Fatalf("%s ended: %v", name, err)
		default:
		}
		b, err := os.ReadFile(logPath)
		if err != nil {
			t.Fatal(err)
		}
		return ready(string(b))
	})
}

// machine matches what daemons say before they end because the machine, or the container that the
// tests run in, does not have or allow what they need.
var machine = regexp.MustCompile(`(?im)(?:failed to start daemon: |unshare: )(.*(?:cgroup|not permitted|permission denied|iptables|no such device|read-only file system|not supported)[^"\n]*)`)

// lacking returns what a daemon that has ended lacks on this machine, by its log; "" if it ended
// for another reason.
func lacking(log string) string {
	if m := machine.FindStringSubmatch(log); m != nil {
		return strings.TrimSpace(m[1])
	}
	return ""
}

func TestDaemonsThatCannotStartHereAreSkipped(t *testing.T) {
	for log, want := range map[string]string{
		"time=now level=info msg=Starting\nfailed to start daemon: Devices cgroup isn't mounted\n":                                      "Devices cgroup isn't mounted",
		"unshare: unshare failed: Operation not permitted\n":                                                                            "unshare failed: Operation not permitted",
		"failed to start daemon: Error initializing network controller: error obtaining controller instance: iptables not found\n":      "Error initializing network controller: error obtaining controller instance: iptables not found",
		"unable to configure the Docker daemon with file daemon.json: the following directives don't match any configuration option: x": "",
		"failed to start daemon: invalid mirror: \"ftp://x\" is not a valid URI":                                                        "",
	} {
		if got := lacking(log); got != want {
			t.Errorf("%q: got %q, want %q", log, got, want)
		}
	}
}

// wantFile checks that a file holds the wanted bytes.
func wantFile(t *testing.T, path string, want []byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v; they are not the %d bytes of the upstream", path, len(got), err, len(want))
	}
}

// write puts a configuration file under dir.
func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

// readyFile gives one of the configuration files that are offered to users,
// under configs/clients, for the program at host.
func readyFile(t *testing.T, name, host string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "configs", "clients", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte("cache:5000")) {
		t.Fatalf("%s does not name the cache as cache:5000", name)
	}
	return strings.ReplaceAll(string(b), "cache:5000", host)
}
