package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// typed runs a command of the program as somebody types it, with nothing in its
// environment but PATH, HOME and what is given.
func typed(t *testing.T, environ []string, args ...string) said {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, proxy.Binary(t), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, environ...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return said{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// tree lists all that is below a directory, with modes and times.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		b.WriteString(path + " " + info.Mode().String() + " " + info.ModTime().String() + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// readers are the commands that never begin a cache.
var readers = [][]string{
	{"ls"}, {"ls", "-o", "json"}, {"ls", "--pinned"}, {"stats"}, {"explain", "nginx"}, {"inspect", "nginx"}, {"inspect", "--cached", "nginx"}, {"history", "nginx"}, {"diff"},
	{"rehearse"}, {"rehearse", "nginx"}, {"scrub"}, {"gc"}, {"purge", "nginx"}, {"purge", "--older-than", "1d"},
	{"pin", "nginx"}, {"unpin", "nginx"}, {"accept", "nginx:1"},
}

// TestCommandsThatLookMakeNoCache also runs those that begin a cache where something else
// is, and wants nothing changed either.
func TestCommandsThatLookMakeNoCache(t *testing.T) {
	t.Parallel()
	off := []string{"ENTREPOT_ADMIN_LISTEN=off"}
	full, empty, missing, layout := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "missing"), t.TempDir()
	for _, path := range []string{filepath.Join(full, "hostname"), filepath.Join(full, "version"), filepath.Join(full, "sub", "file"),
		filepath.Join(layout, "oci-layout"), filepath.Join(layout, "index.json"), filepath.Join(layout, "blobs", "sha256", "file")} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bundle := filepath.Join(t.TempDir(), "bundle.tar")
	for _, dir := range []string{full, empty, layout, missing} {
		before := ""
		if dir != missing {
			before = tree(t, dir)
		}
		for _, args := range append(readers, []string{"export", "nginx", "--bundle", bundle}) {
			got := typed(t, off, append(args, "--cache-dir", dir)...)
			if got.code != 1 || got.out != "" || !strings.Contains(got.err, "no cache in "+dir) {
				t.Errorf("%s: want 1 and that there is no cache, got %+v", args, got)
			}
		}
		if dir == missing {
			if _, err := os.Lstat(dir); !os.IsNotExist(err) {
				t.Errorf("%s was made", dir)
			}
		} else if after := tree(t, dir); after != before {
			t.Errorf("a command has changed %s:\n%s\nit was\n%s", dir, after, before)
		}
	}
	if _, err := os.Lstat(bundle); !os.IsNotExist(err) {
		t.Error("export has written a bundle")
	}
	// Those that begin a cache do so only where nothing else is.
	for _, args := range [][]string{{"serve", "--listen", "127.0.0.1:0"}, {"--listen", "127.0.0.1:0"}, {"warm", "nginx"}, {"import", "bundle.tar"}} {
		for dir, others := range map[string][]string{full: {"(hostname)", "(version)", "(sub)"}, layout: {"(oci-layout)", "(index.json)"}} {
			before := tree(t, dir)
			got := typed(t, off, append(args, "--cache-dir", dir)...)
			named := false
			for _, name := range others {
				named = named || strings.Contains(got.err, name)
			}
			if got.code != 1 || !named || !strings.Contains(got.err, "no cache in "+dir) || !strings.Contains(got.err, "--init") {
				t.Errorf("%s in %s: want to be asked for --init, got %+v", args, dir, got)
			}
			if after := tree(t, dir); after != before {
				t.Errorf("%s has changed %s:\n%s\nit was\n%s", args, dir, after, before)
			}
		}
	}
}

func TestACacheBeginsInAVolumeAndOverAFirstStartThatCrashed(t *testing.T) {
	t.Parallel()
	h := hub.New(t, hub.Options{})
	img := image.New(image.Options{})
	h.Push("library/app", "1.0", img)
	for name, made := range map[string][]string{
		"a volume":                  {"lost+found/", "..data/", ".snapshot/", ".hidden"},
		"a first start, at once":    {"blobs/"},
		"a first start, locked":     {"blobs/", "ingest/", "lock"},
		"a first start, its format": {"blobs/", "ingest/", "lock", "version-abc", "admin.token"},
		"a first start, its index":  {"blobs/", "ingest/", "lock", "index.db", "index.backup-1"},
	} {
		dir := t.TempDir()
		for _, n := range made {
			var err error
			if path := filepath.Join(dir, n); strings.HasSuffix(n, "/") {
				err = os.Mkdir(path, 0o700)
			} else {
				err = os.WriteFile(path, nil, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		p := proxy.Start(t, proxy.Options{Dir: dir, Upstreams: map[string]*hub.Hub{"docker.io": h}})
		pullRaw(t, p, "library/app", img)
		p.Stop(t)
		if got := operate(t, p, "ls"); got.code != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// A cache beside other files is wanted.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	off := []string{"ENTREPOT_ADMIN_LISTEN=off"}
	typed(t, off, "warm", "--from-log", "--init", "--cache-dir", dir).want(t, 0)
	typed(t, off, "ls", "--cache-dir", dir).want(t, 0, "0 images")
	typed(t, off, "warm", "--from-log", "--cache-dir", dir).want(t, 0) // it is a cache now
}

// TestASecondStartIsToldThatTheFirstIsStillEnding keeps a transfer running, so that the first
// process drains for long.
func TestASecondStartIsToldThatTheFirstIsStillEnding(t *testing.T) {
	t.Parallel()
	h, p := start(t, "shutdown_timeout: 100s")
	_, _, path := big(h, 48<<20)
	get(t, p, "/v2/library/big/manifests/1.0", "Accept", anything)
	get(t, p, path)
	p.WaitIdle(t)
	again := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), proxy.Binary(t), append([]string{"serve", "--config", p.Config()}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
		return cmd
	}
	// While the first serves, a second start is told as ever, also if it would wait.
	for _, args := range [][]string{nil, {"--wait"}} {
		if out, err := again(args...).CombinedOutput(); err == nil || strings.Contains(string(out), "ending") || !strings.Contains(string(out), "taken by another program") {
			t.Errorf("%s beside a running one: %v, %s", args, err, out)
		}
	}
	conn, err := net.Dial("tcp", p.Host())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: "+p.Host()+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1000)); err != nil { // and no more, for now
		t.Fatal(err)
	}
	pid := p.PID()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until(t, "the first process to end its service", func() bool {
		status, _ := ready(t, p)
		return status == http.StatusServiceUnavailable
	})
	var out []byte
	until(t, "the second start to be told", func() bool {
		out, err = again().CombinedOutput()
		return err != nil && strings.Contains(string(out), "is still ending")
	})
	for _, want := range []string{fmt.Sprintf("process %d", pid), "--wait", fmt.Sprintf("kill %d", pid)} {
		if !strings.Contains(string(out), want) {
			t.Errorf("want %q in %s", want, out)
		}
	}
	// Commands still reach it.
	operate(t, p, "ls").want(t, 0)

	waiting := again("--wait")
	log := &syncBuffer{}
	waiting.Stdout, waiting.Stderr = log, log
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- waiting.Wait() }()
	until(t, "the second start to wait", func() bool { return strings.Contains(log.String(), "waiting for an entrepot that is still ending") })
	_ = conn.Close() // the transfer is over
	until(t, "the second start to serve", func() bool {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("it has ended: %v\n%s", err, log)
		default:
		}
		status, _, err := tryReady(p)
		return err == nil && status == http.StatusOK && strings.Contains(log.String(), `"serving"`)
	})
	get(t, p, path)
	_ = waiting.Process.Signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Errorf("the second process ended with %v\n%s", err, log)
	}
	// One that was killed while it was ending leaves nobody to wait for.
	if err := os.WriteFile(filepath.Join(p.Dir, "lock"), []byte("1 ending\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Stop(t)
	if err := p.Launch(); err != nil {
		t.Fatal(err)
	}
}

// tryReady is ready for a process that may not answer.
func tryReady(p *proxy.Proxy) (int, string, error) {
	res, err := http.Get(p.AdminURL() + "/readyz")
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// syncBuffer is a buffer that one goroutine writes and another reads.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// mkdirOf returns the directory of the mkdir command that an error advises.
func mkdirOf(t *testing.T, text string) string {
	t.Helper()
	_, after, found := strings.Cut(text, "mkdir -p ")
	if !found {
		t.Fatalf("no mkdir in %q", text)
	}
	return strings.Fields(after)[0]
}

// TestACacheWithoutItsBlobsIsNoNewCache takes the directory of the content away, as a disk does
// that is not mounted, and leaves an empty one there, as a mount point is.
func TestACacheWithoutItsBlobsIsNoNewCache(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	img := image.New(image.Options{})
	h.Push("library/app", "1.0", img)
	get(t, p, tagPath)
	pullRaw(t, p, "library/app", img)
	p.WaitIdle(t)
	p.Stop(t)
	off := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + p.Dir}
	blobs, disk := filepath.Join(p.Dir, "blobs"), filepath.Join(t.TempDir(), "disk")
	if err := os.Rename(blobs, disk); err != nil {
		t.Fatal(err)
	}
	commands := append([][]string{{"serve", "--listen", "127.0.0.1:0"}, {"--listen", "127.0.0.1:0"}, {"serve", "--init", "--listen", "127.0.0.1:0"},
		{"warm", "app:1.0"}, {"import", "bundle.tar"}, {"export", "app:1.0", "--bundle", filepath.Join(t.TempDir(), "bundle.tar")}}, readers...)
	refused := func(state string) (advice string) {
		for _, args := range commands {
			got := typed(t, off, args...)
			if got.code != 1 || got.out != "" || !strings.Contains(got.err, p.Dir+" has an index, but its blobs directory is "+state+" (is a disk not mounted?); mount it at "+blobs) || strings.Contains(got.err, "no cache in") {
				t.Errorf("%s, blobs %s: %+v", args, state, got)
			}
			advice = got.err
		}
		return advice
	}
	before := tree(t, p.Dir)
	refused("missing")
	if after := tree(t, p.Dir); after != before {
		t.Errorf("a command has changed the directory:\n%s\nit was\n%s", after, before)
	}
	doctor := func(state string) {
		got := typed(t, off, "doctor", "--offline")
		if got.code != 1 || !strings.Contains(strings.Join(strings.Fields(got.out), " "), "its blobs directory is "+state) {
			t.Errorf("the doctor, blobs %s: %+v", state, got)
		}
	}
	doctor("missing")
	if err := os.Mkdir(blobs, 0o700); err != nil {
		t.Fatal(err)
	}
	refused("empty")
	doctor("empty")
	if err := os.Mkdir(filepath.Join(blobs, "lost+found"), 0o700); err != nil { // a new file system
		t.Fatal(err)
	}
	advice := refused("empty")
	if err := os.Remove(filepath.Join(blobs, "lost+found")); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(blobs); err != nil || len(names) > 0 {
		t.Errorf("the mount point has %v, %v", names, err)
	}

	// It was a disk, and nothing is lost.
	if err := errors.Join(os.Remove(blobs), os.Rename(disk, blobs)); err != nil {
		t.Fatal(err)
	}
	typed(t, off, "ls").want(t, 0, "app:1.0")
	typed(t, off, "rehearse", "app:1.0", "--offline").want(t, 0)

	// The content is lost: what the error advises begins anew, with all that is known.
	if err := os.RemoveAll(blobs); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(mkdirOf(t, advice), 0o700); err != nil {
		t.Fatal(err)
	}
	typed(t, off, "history", "app:1.0").want(t, 0, "1.0")
	if err := p.Launch(); err != nil {
		t.Fatal(err)
	}
	pullRaw(t, p, "library/app", img)
}

// TestReadinessSaysAtOnceThatBlobsCannotBeRead takes the content away below a running proxy,
// to which nobody has sent a request.
func TestReadinessSaysAtOnceThatBlobsCannotBeRead(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	img := image.New(image.Options{})
	h.Push("library/app", "1.0", img)
	pullRaw(t, p, "library/app", img)
	p.WaitIdle(t)
	blobs, disk := filepath.Join(p.Dir, "blobs"), filepath.Join(t.TempDir(), "disk")
	wantReady := func(when string, degraded bool, says ...string) {
		t.Helper()
		status, body := ready(t, p)
		if status != http.StatusOK || strings.Contains(body, "degraded") != degraded {
			t.Errorf("%s: %d %s", when, status, body)
		}
		for _, s := range says {
			if !strings.Contains(body, s) {
				t.Errorf("%s: want %q in %s", when, s, body)
			}
		}
	}
	wantReady("all is well", false)
	if err := os.Rename(blobs, disk); err != nil {
		t.Fatal(err)
	}
	wantReady("blobs are gone", true, "the cache's blobs directory is missing", blobs)
	if n := p.Metrics(t).Sum("entrepot_cache_disk_degraded", "cause", "missing"); n != 1 {
		t.Errorf("entrepot_cache_disk_degraded is %g", n)
	}
	operate(t, p, "gc").want(t, 1, "its blobs directory is missing")
	if err := os.Rename(disk, blobs); err != nil {
		t.Fatal(err)
	}
	wantReady("they are back", false)
	if os.Geteuid() == 0 {
		return // root may read everything; TestReadinessSaysAtOnceThatBlobsAreDenied has another user
	}
	if err := os.Chmod(blobs, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Chmod(blobs, 0o700) }()
	wantReady("blobs are denied", true, "permission denied")
}
