package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// serviceUser is the user of the service in the tests of whose files are whose: that of the
// container image.
const serviceUser = 65532

// needsRoot skips a test if it does not run as root, who alone may become another user.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		cannot(t, "only root can run commands as another user")
	}
}

// openTemp returns a directory of the test that every user may pass through, below which a
// service of another user finds its files.
func openTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "entrepot-owner-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// userBinary copies the program to where every user can run it.
func userBinary(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "entrepot")
	// Another process writes the file: a child that this one starts meanwhile would inherit a
	// descriptor of ours, and the file could not be run ("text file busy").
	if out, err := exec.Command("cp", proxy.Binary(t), path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// as runs a command of the program as a user.
func as(t *testing.T, uid uint32, binary string, environ []string, args ...string) said {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}, environ...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return said{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// strangers lists what is in a directory, itself included, and belongs to another user.
func strangers(t *testing.T, dir string, uid uint32) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != uid {
			list = append(list, fmt.Sprintf("%s of %d:%d", path, st.Uid, st.Gid))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestWhatRootWritesBelongsToTheService runs the commands as root on the directory of a
// service of another user, new and in use, and then that service.
func TestWhatRootWritesBelongsToTheService(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	h := hub.New(t, hub.Options{})
	img, other := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	h.Push("library/app", "1.0", img)
	h.Push("library/app", "2.0", other)
	outside := proxy.New(t, h)
	for _, name := range []string{"app:1.0", "app:2.0"} {
		operate(t, outside, "warm", name).want(t, 0)
	}
	dir := openTemp(t)
	binary, private := userBinary(t, dir), t.TempDir() // root's alone
	one, two := filepath.Join(private, "one.tar"), filepath.Join(private, "two.tar")
	operate(t, outside, "export", "app:1.0", "--bundle", one).want(t, 0)
	operate(t, outside, "export", "app:2.0", "--bundle", two).want(t, 0)

	cache := filepath.Join(dir, "cache")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(cache, serviceUser, serviceUser); err != nil {
		t.Fatal(err)
	}
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + cache, "ENTREPOT_CACHE_OFFLINE=true"}
	wantOwned := func(after string) {
		t.Helper()
		if list := strangers(t, cache, serviceUser); len(list) > 0 {
			t.Fatalf("after %s:\n%s", after, strings.Join(list, "\n"))
		}
	}
	for _, args := range [][]string{
		{"import", one}, {"pin", "app:1.0"}, {"import", two}, {"warm", "app:1.0"}, {"scrub"}, {"gc"}, {"ls"}, {"rehearse", "app:1.0", "app:2.0", "--offline"}, {"purge", "app:2.0"}, {"import", two},
	} {
		as(t, 0, binary, environ, args...).want(t, 0)
		wantOwned(strings.Join(args, " "))
	}
	// A command of the service's user, and one of somebody else.
	as(t, serviceUser, binary, environ, "rehearse", "app:1.0", "app:2.0", "--verify", "--offline").want(t, 0, "0 would fail")
	as(t, serviceUser+1, binary, environ, "ls").want(t, 1, "permission denied", "uid 65532", "run entrepot as uid 65532 or as root")
	as(t, serviceUser+1, binary, environ, "warm", "app:1.0").want(t, 1, "permission denied", "run entrepot as uid 65532 or as root")
	// The home directory of this user does not exist, so that nothing can be given away.
	as(t, serviceUser+1, binary, nil, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "off").want(t, 1, "--cache-dir")
	wantOwned("another user's commands")

	// The service itself, started by root by mistake, and then as it should.
	for _, uid := range []uint32{0, serviceUser} {
		served := serveAs(t, uid, binary, cache, "--offline")
		served.wantImage(t, "library/app", img)
		served.wantImage(t, "library/app", other)
		wantOwned(fmt.Sprintf("serve by %d", uid))
		if _, body, _ := fetch(t, http.DefaultClient, served.admin+"/readyz"); body != "ok\n" {
			t.Errorf("/readyz: %q", body)
		}
		served.stop(t)
		wantOwned(fmt.Sprintf("the end of serve by %d", uid))
	}
}

// TestFilesThatTheServiceMayNotReadAreCalledSo gives content of a service to root, as an older
// version's commands did, and follows what is advised.
func TestFilesThatTheServiceMayNotReadAreCalledSo(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	h := hub.New(t, hub.Options{})
	img, whole := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	h.Push("library/app", "1.0", img)
	h.Push("library/whole", "1.0", whole)
	outside := proxy.New(t, h)
	dir := openTemp(t)
	binary, bundle := userBinary(t, dir), filepath.Join(t.TempDir(), "bundle.tar")
	operate(t, outside, "warm", "app:1.0", "whole:1.0").want(t, 0)
	operate(t, outside, "export", "app:1.0", "whole:1.0", "--bundle", bundle).want(t, 0)
	cache := filepath.Join(dir, "cache")
	if err := errors.Join(os.Mkdir(cache, 0o700), os.Chown(cache, serviceUser, serviceUser)); err != nil {
		t.Fatal(err)
	}
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + cache, "ENTREPOT_CACHE_OFFLINE=true"}
	as(t, 0, binary, environ, "import", bundle).want(t, 0)
	var denied []digest.Digest
	for d := range img.Manifests {
		denied = append(denied, d)
	}
	for d := range img.Blobs {
		denied = append(denied, d)
	}
	path := func(d digest.Digest) string {
		return filepath.Join(cache, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
	}
	for _, d := range denied {
		if err := os.Chown(path(d), 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	advice := fmt.Sprintf("chown -R %d:%d %s", serviceUser, serviceUser, cache)

	// On the directory, whoever looks.
	for _, uid := range []uint32{0, serviceUser} {
		as(t, uid, binary, environ, "rehearse", "app:1.0", "whole:1.0", "--offline").want(t, 1, "permission denied", "belongs to root", advice, "1 would fail")
		as(t, uid, binary, environ, "scrub").want(t, 1, fmt.Sprintf("%d stored files could not be read", len(denied)), "permission denied", advice)
		as(t, uid, binary, environ, "doctor").want(t, 1, fmt.Sprintf("%d files or directories in %s belong to another user", len(denied), cache), "permission denied", advice)
	}
	s := serveAs(t, serviceUser, binary, cache, "--offline")
	s.wantImage(t, "library/whole", whole)
	readyz := func() string {
		_, body, _ := fetch(t, http.DefaultClient, s.admin+"/readyz")
		return body
	}
	until(t, "/readyz to say it", func() bool { return strings.Contains(readyz(), "degraded: files of the cache belong to another user") })
	if body := readyz(); !strings.Contains(body, advice) {
		t.Errorf("/readyz: want %q in %q", advice, body)
	}
	paths := []string{"/v2/library/app/manifests/1.0"}
	for d := range img.Manifests {
		paths = append(paths, "/v2/library/app/manifests/"+d.String())
	}
	for d := range img.Blobs {
		paths = append(paths, "/v2/library/app/blobs/"+d.String())
	}
	for range 2 { // also once it is known
		for _, path := range paths {
			status, body, _ := fetch(t, http.DefaultClient, s.url+path, "Accept", anything)
			if status != http.StatusServiceUnavailable || !strings.Contains(body, "no permission to read") || strings.Contains(body, "not in its cache") || strings.Contains(body, cache) {
				t.Errorf("%s: want 503 and why, got %d %s", path, status, body)
			}
		}
	}
	for d := range img.Blobs {
		until(t, "the log to name the file", func() bool {
			return strings.Contains(s.out.String(), path(d)+" belongs to root and cannot be used by uid 65532")
		})
	}
	environ = []string{"ENTREPOT_ADMIN_LISTEN=" + strings.TrimPrefix(s.admin, "http://"), "ENTREPOT_CACHE_DIR=" + cache}
	as(t, serviceUser, binary, environ, "rehearse", "app:1.0").want(t, 1, "permission denied", advice)
	as(t, 0, binary, environ, "doctor").want(t, 1, "belong to another user", advice)

	// What is advised works, without a restart.
	if out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", advice).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v %s", advice, err, out)
	}
	until(t, "the image to be served", func() bool {
		for _, path := range paths {
			if status, _, _ := fetch(t, http.DefaultClient, s.url+path, "Accept", anything); status != http.StatusOK {
				return false
			}
		}
		return readyz() == "ok\n"
	})
	as(t, serviceUser, binary, environ, "scrub").want(t, 0)
	s.stop(t)
}

// served is a proxy that somebody has started by hand.
type served struct {
	url, admin string
	cmd        *exec.Cmd
	out        *syncBuffer
	ended      chan error
}

// TestWhatCannotBeListedIsNotGone takes the right to list content from the service: no command
// works as if nothing were cached, and a garbage collection above all forgets nothing.
func TestWhatCannotBeListedIsNotGone(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	h := hub.New(t, hub.Options{})
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
	outside := proxy.New(t, h)
	dir := openTemp(t)
	binary, bundle := userBinary(t, dir), filepath.Join(t.TempDir(), "bundle.tar")
	operate(t, outside, "warm", "app:1.0").want(t, 0)
	operate(t, outside, "export", "app:1.0", "--bundle", bundle).want(t, 0)
	cache := filepath.Join(dir, "cache")
	if err := errors.Join(os.Mkdir(cache, 0o700), os.Chown(cache, serviceUser, serviceUser)); err != nil {
		t.Fatal(err)
	}
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + cache, "ENTREPOT_CACHE_OFFLINE=true"}
	as(t, 0, binary, environ, "import", bundle).want(t, 0)
	before := as(t, serviceUser, binary, environ, "ls", "-o", "json")
	before.want(t, 0, "library/app")
	for _, denied := range []string{"blobs", "blobs/sha256"} {
		path := filepath.Join(cache, denied)
		if err := errors.Join(os.Chown(path, 0, 0), os.Chmod(path, 0o700)); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"gc"}, {"gc", "--dry-run"}, {"purge", "app:1.0"}, {"ls"}, {"explain", "app:1.0"}, {"inspect", "--cached", "app:1.0"},
			{"export", "--all", "--bundle", filepath.Join(openTemp(t), "out.tar")}} {
			as(t, serviceUser, binary, environ, args...).want(t, 1, "permission denied", path+" belongs to root", "chown -R")
		}
		if err := os.Chown(path, serviceUser, serviceUser); err != nil {
			t.Fatal(err)
		}
		as(t, serviceUser, binary, environ, "ls", "-o", "json").want(t, 0, "library/app")
		as(t, serviceUser, binary, environ, "rehearse", "app:1.0", "--offline").want(t, 0)
	}
}

// TestReadinessSaysAtOnceThatBlobsAreDenied takes directories of the content from the user of a
// running proxy, to which nobody has sent a request.
func TestReadinessSaysAtOnceThatBlobsAreDenied(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	dir := openTemp(t)
	binary, cache := userBinary(t, dir), filepath.Join(dir, "cache")
	if err := errors.Join(os.MkdirAll(filepath.Join(cache, "blobs", "sha256"), 0o700), os.Chown(cache, serviceUser, serviceUser)); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"blobs", "blobs/sha256"} {
		if err := os.Chown(filepath.Join(cache, sub), serviceUser, serviceUser); err != nil {
			t.Fatal(err)
		}
	}
	s := serveAs(t, serviceUser, binary, cache)
	for _, sub := range []string{"blobs", "blobs/sha256"} {
		path := filepath.Join(cache, sub)
		for _, mode := range []fs.FileMode{0, 0o600} {
			if err := errors.Join(os.Chown(path, 0, 0), os.Chmod(path, mode)); err != nil {
				t.Fatal(err)
			}
			status, body, _ := fetch(t, http.DefaultClient, s.admin+"/readyz")
			if status != http.StatusOK || !strings.Contains(body, "degraded: ") || !strings.Contains(body, path+" belongs to root") || !strings.Contains(body, "chown -R") {
				t.Errorf("%s with mode %s: %d %s", sub, mode, status, body)
			}
			if err := errors.Join(os.Chown(path, serviceUser, serviceUser), os.Chmod(path, 0o700)); err != nil {
				t.Fatal(err)
			}
			if status, body, _ := fetch(t, http.DefaultClient, s.admin+"/readyz"); status != http.StatusOK || strings.Contains(body, "degraded") {
				t.Errorf("%s is the service's again: %d %s", sub, status, body)
			}
		}
	}
}

// serveAs starts the program as a user and waits until it answers. It ends with the test at
// the latest.
func serveAs(t *testing.T, uid uint32, binary, cache string, args ...string) *served {
	t.Helper()
	var at [2]string
	for i := range at {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		at[i] = ln.Addr().String()
		_ = ln.Close()
	}
	s := &served{url: "http://" + at[0], admin: "http://" + at[1], out: &syncBuffer{}, ended: make(chan error, 1)}
	s.cmd = exec.Command(binary, append([]string{"serve", "--listen", at[0], "--admin-listen", at[1], "--cache-dir", cache}, args...)...)
	s.cmd.Dir = "/"
	s.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "ENTREPOT_LOG_FORMAT=json"}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.ended <- s.cmd.Wait() }()
	t.Cleanup(func() {
		if s.cmd != nil {
			s.stop(t)
		}
	})
	proxy.Until(t, "the proxy to answer", func() bool {
		select {
		case err := <-s.ended:
			s.ended <- err
			t.Fatalf("it has ended: %v\n%s", err, s.out)
		default:
		}
		res, err := http.Get(s.admin + "/readyz")
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return s
}

// stop ends the process and wants it to end in order.
func (s *served) stop(t *testing.T) {
	t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended, which Wait tells
	if err := <-s.ended; err != nil {
		t.Errorf("it ended with %v\n%s", err, s.out)
	}
	s.cmd = nil
}

// wantImage pulls all of an image.
func (s *served) wantImage(t *testing.T, repo string, i *image.Image) {
	t.Helper()
	from := func(kind string) func(d digest.Digest) ([]byte, error) {
		return func(d digest.Digest) ([]byte, error) {
			status, body, _ := fetch(t, http.DefaultClient, s.url+"/v2/"+repo+"/"+kind+"/"+d.String())
			if status != http.StatusOK {
				t.Errorf("%s %s: %d %s", kind, d, status, body)
			}
			return []byte(body), nil
		}
	}
	pullAll(t, i, from("manifests"), from("blobs"))
}

// TestDoctorFailsForDirectoriesThatServeRefuses has directories of others, and what serve and
// the doctor of one user say about them.
func TestDoctorFailsForDirectoriesThatServeRefuses(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	dir := openTemp(t)
	binary := userBinary(t, dir)
	own := func(uid int) func(path string, mode fs.FileMode) error {
		return func(path string, mode fs.FileMode) error {
			return errors.Join(os.Chown(path, uid, uid), os.Chmod(path, mode))
		}
	}
	toRoot, toService := own(0), own(serviceUser)
	all := func(cache string, uid int) error {
		return filepath.WalkDir(cache, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, uid, uid))
		})
	}
	for i, c := range []struct {
		name  string
		begun bool // a cache of the service
		spoil func(cache string) error
		want  []string
	}{
		{"root's directory", false, func(cache string) error { return toRoot(cache, 0o700) }, []string{"permission denied", "run it as root"}},
		{"root's directory, to be seen", false, func(cache string) error { return toRoot(cache, 0o755) }, []string{"belongs to root", "this user cannot write to it: permission denied"}},
		{"root's cache", true, func(cache string) error { return errors.Join(all(cache, 0), os.Chmod(cache, 0o755)) }, []string{"belong to another user", "run it as root"}},
		{"root's index", true, func(cache string) error { return toRoot(filepath.Join(cache, "index.db"), 0o600) }, []string{"1 files or directories", "index.db belongs to root", "chown -R 65532:65532"}},
		{"an index that root alone writes", true, func(cache string) error { return toRoot(filepath.Join(cache, "index.db"), 0o644) }, []string{"index.db belongs to root", "chown -R 65532:65532"}},
		{"root's index in root's directory", true, func(cache string) error {
			return errors.Join(toRoot(cache, 0o755), toRoot(filepath.Join(cache, "index.db"), 0o600))
		}, []string{"index.db belongs to root"}},
		{"root's lock", true, func(cache string) error { return toRoot(filepath.Join(cache, "lock"), 0o600) }, []string{"this user may not see which process holds it"}},
		{"other files", false, func(cache string) error {
			return errors.Join(toService(cache, 0o755), os.WriteFile(filepath.Join(cache, "letter.txt"), nil, 0o644))
		}, []string{"which holds other files (letter.txt)", "--init"}},
	} {
		cache := filepath.Join(dir, fmt.Sprint("cache", i))
		if err := errors.Join(os.Mkdir(cache, 0o700), toService(cache, 0o700)); err != nil {
			t.Fatal(err)
		}
		environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_LISTEN=127.0.0.1:0", "ENTREPOT_CACHE_DIR=" + cache, "ENTREPOT_CACHE_OFFLINE=true"}
		if c.begun {
			as(t, serviceUser, binary, environ, "warm", "--from-log").want(t, 0)
			if found := cacheFindings(t, as(t, serviceUser, binary, environ, "doctor", "-o", "json")); strings.Contains(found, "failure") {
				t.Errorf("%s: want none before, got\n%s", c.name, found)
			}
		}
		if err := c.spoil(cache); err != nil {
			t.Fatal(err)
		}
		if got := as(t, serviceUser, binary, environ, "serve"); got.code != 1 {
			t.Errorf("%s: serve: %+v", c.name, got)
		}
		found := cacheFindings(t, as(t, serviceUser, binary, environ, "doctor", "-o", "json"))
		for _, w := range append(c.want, "failure: ") {
			if !strings.Contains(found, w) {
				t.Errorf("%s: want %q, got\n%s", c.name, w, found)
			}
		}
		if strings.Contains(found, "nobody holds it") && c.name == "root's directory" {
			t.Errorf("%s: the doctor cannot know who holds it:\n%s", c.name, found)
		}
	}

	// What serve serves is a warning.
	cache := filepath.Join(dir, "read-only")
	if err := errors.Join(os.Mkdir(cache, 0o700), toService(cache, 0o700)); err != nil {
		t.Fatal(err)
	}
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + cache, "ENTREPOT_CACHE_OFFLINE=true"}
	as(t, serviceUser, binary, environ, "warm", "--from-log").want(t, 0)
	readOnly(t, cache)
	for _, uid := range []uint32{0, serviceUser} {
		found := cacheFindings(t, as(t, uid, binary, environ, "doctor", "-o", "json"))
		if !strings.Contains(found, "warning: ") || !strings.Contains(found, "its file system is read-only") || strings.Contains(found, "failure") || strings.Contains(found, "chown") {
			t.Errorf("uid %d on a read-only file system:\n%s", uid, found)
		}
	}
}

// cacheFindings returns what a doctor found of the cache directory, a finding on each line.
func cacheFindings(t *testing.T, got said) string {
	t.Helper()
	var d struct {
		Findings []struct{ Check, Status, Seen, Advice string }
	}
	if err := json.Unmarshal([]byte(got.out), &d); err != nil {
		t.Fatalf("%v: %+v", err, got)
	}
	var b strings.Builder
	for _, f := range d.Findings {
		if f.Check == "cache directory" {
			fmt.Fprintf(&b, "%s: %s → %s\n", f.Status, f.Seen, f.Advice)
		}
	}
	return b.String()
}
