package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// cannot skips a test, unless what it needs is required.
func cannot(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("ENTREPOT_REQUIRE_CLIENTS") == "1" {
		t.Fatal(why + ", and ENTREPOT_REQUIRE_CLIENTS=1")
	}
	t.Skip(why)
}

// smallDisk mounts a file system of some bytes in memory, until the test ends.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		cannot(t, "a small file system is mounted as root only: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// ready gives what /readyz says.
func ready(t *testing.T, p *proxy.Proxy) (int, string) {
	t.Helper()
	res, err := http.Get(p.AdminURL() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// wantDegraded checks that the process is ready and says what is wrong.
func wantDegraded(t *testing.T, p *proxy.Proxy, cause, sentence string) {
	t.Helper()
	if status, body := ready(t, p); status != http.StatusOK || !strings.Contains(body, "degraded: "+sentence) {
		t.Errorf("/readyz: %d %q, want 200 and %q", status, body, sentence)
	}
	if p.Metrics(t).Sum("entrepot_cache_disk_degraded", "cause", cause) != 1 {
		t.Errorf("entrepot_cache_disk_degraded{cause=%q} is not 1", cause)
	}
}

// fill takes all of a disk but for about left bytes, and gives it back by the
// function.
func fill(t *testing.T, dir string, left int64) (empty func()) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, int64(st.Bavail)*st.Bsize-left), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

// unbounded is a cache that evicts nothing because others fill its disk.
const unbounded = `cache: {max_size: 100%, min_free: 0, scrub_rate: 0}`

func TestAFullDiskServesWhatIsCachedPassesTheRestOnAndRecovers(t *testing.T) {
	disk := smallDisk(t, "24m")
	h := hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Dir: filepath.Join(disk, "cache"), Config: unbounded + "\n" + doubting})
	kept, keptContent, keptPath := big(h, 3<<20)
	get(t, p, keptPath)
	p.WaitIdle(t)

	// Room for nothing, and room for a part of it as far as can be told.
	for i, left := range []int64{0, 1 << 20} {
		empty := fill(t, disk, left)
		layer, content, path := big(h, 5<<20+i)
		get(t, p, "/v2/library/big/manifests/1.0", "Accept", anything) // which tells the size
		for range 2 {
			wantBytes(t, "a miss", content, get(t, p, path).body)
			p.WaitIdle(t)
		}
		a := ask(t, p, http.MethodGet, path, "Range", "bytes=1000-2000")
		wantBytes(t, "a range of a miss", content[1000:2001], a.body)
		wantBytes(t, "a hit", keptContent, get(t, p, keptPath).body)
		wantDegraded(t, p, "full", "the cache's disk is full")
		if got := h.Sent(kept.Digest); got != kept.Size {
			t.Errorf("the upstream sent %d bytes of what is cached, want %d", got, kept.Size)
		}
		if times := float64(h.Sent(layer.Digest)) / float64(layer.Size); times > 2.1 {
			t.Errorf("with %d bytes left the upstream sent %.2f times a blob that was asked for twice", left, times)
		}

		empty()
		until(t, "the disk to be well again", func() bool {
			_, body := ready(t, p)
			return body == "ok\n"
		})
		get(t, p, path)
		p.WaitIdle(t)
		before := h.Sent(layer.Digest)
		wantBytes(t, "kept again", content, get(t, p, path).body)
		if h.Sent(layer.Digest) != before {
			t.Error("with room again it is not kept")
		}
	}
	if got := strings.Count(p.Log(), "the cache's disk is full: what is cached"); got > 4 {
		t.Errorf("it was said %d times that the disk is full", got)
	}
}

func TestADiskThatFillsUpHalfWayCutsNobody(t *testing.T) {
	disk := smallDisk(t, "24m")
	h := hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Dir: filepath.Join(disk, "cache"), Config: unbounded})
	layer, content, path := big(h, 10<<20)
	gate := make(chan struct{})
	h.Inject(hub.StallAfter(2<<20, gate).Times(1))
	res, err := open(t.Context(), p, http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got := make([]byte, len(content))
	if _, err := io.ReadFull(res.Body, got[:1<<20]); err != nil {
		t.Fatal(err)
	}
	fill(t, disk, 1<<20)
	close(gate)
	if _, err := io.ReadFull(res.Body, got[1<<20:]); err != nil {
		t.Fatalf("the rest, with the disk full: %v", err)
	}
	wantBytes(t, "layer", content, got)
	t.Logf("the upstream sent %.2f times the blob", float64(h.Sent(layer.Digest))/float64(layer.Size))
	// Whether it still is, with what was fetched of the layer dropped, is open.
	until(t, "the log says it", func() bool { return strings.Contains(p.Log(), "the cache's disk is full: what is cached is served") })
}

func TestAFileSystemThatTurnsReadOnlyServesOn(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	disk := t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, disk}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			cannot(t, "a file system in a file needs mkfs.ext4, loop devices and root: "+string(out)+err.Error())
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", disk, err)
		}
	})
	h := hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Dir: filepath.Join(disk, "cache"), Config: unbounded})
	_, keptContent, keptPath := big(h, 3<<20)
	get(t, p, keptPath)
	p.WaitIdle(t)
	// What the kernel does when a disk gives errors.
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,abort", disk).CombinedOutput(); err != nil {
		t.Logf("remount: %v %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(disk, "x"), nil, 0o600); err == nil {
		cannot(t, "this kernel does not let a file system be made read-only while it is in use")
	}
	_, content, path := big(h, 5<<20)
	wantBytes(t, "a miss", content, get(t, p, path).body)
	wantBytes(t, "a hit", keptContent, get(t, p, keptPath).body)
	status, body := ready(t, p)
	if status != http.StatusOK || !strings.Contains(body, "degraded") {
		t.Errorf("/readyz: %d %q", status, body)
	}
	t.Logf("/readyz: %s", body)
	p.Kill(t) // it could write nothing at its end
}

// readOnly makes a directory a file system that cannot be written, until the function or
// the end of the test makes it as it was.
func readOnly(t *testing.T, dir string) (writable func()) {
	t.Helper()
	for _, flags := range []uintptr{unix.MS_BIND, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY} {
		if err := unix.Mount(dir, dir, "", flags, ""); err != nil {
			cannot(t, "only root can make a file system read-only: "+err.Error())
		}
	}
	writable = sync.OnceFunc(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	t.Cleanup(writable)
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Fatalf("the directory is not read-only: %v", err)
	}
	return writable
}

// TestAReadOnlyDirectoryIsServed starts on a disk that went read-only, offline and not, runs
// commands there, and starts again once it can be written.
func TestAReadOnlyDirectoryIsServed(t *testing.T) {
	t.Parallel()
	h, p := start(t, doubting)
	img := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", img)
	_, keptContent, keptPath := big(h, 3<<20)
	pullRaw(t, p, "library/app", img)
	get(t, p, tagPath)
	get(t, p, "/v2/library/big/manifests/1.0", "Accept", anything)
	get(t, p, keptPath)
	p.WaitIdle(t)
	p.Stop(t)
	writable := readOnly(t, p.Dir)
	before := tree(t, p.Dir)

	operate(t, p, "ls").want(t, 0, "docker.io/library/app:1.0")
	operate(t, p, "stats").want(t, 0)
	operate(t, p, "rehearse", "app:1.0", "--offline").want(t, 0, "0 would fail")
	operate(t, p, "export", "app:1.0", "--bundle", filepath.Join(t.TempDir(), "bundle.tar")).want(t, 0)
	for _, args := range [][]string{{"pin", "app:1.0"}, {"gc"}, {"purge", "app:1.0"}, {"warm", "big:1.0"}} {
		if got := operate(t, p, args...); !strings.Contains(got.err, "read-only file system") || got.code != 1 && args[0] != "gc" {
			t.Errorf("%s: want to be told that the file system is read-only, got %+v", args, got)
		}
	}

	if err := p.Launch(); err != nil {
		t.Fatal(err)
	}
	wantDegraded(t, p, "read-only", "the cache's file system is read-only")
	pullRaw(t, p, "library/app", img)
	get(t, p, tagPath)
	wantBytes(t, "a hit", keptContent, get(t, p, keptPath).body)
	operate(t, p, "ls").want(t, 0, "docker.io/library/app:1.0")
	operate(t, p, "doctor", "--output", "json").want(t, 1, "read-only")
	// What is not cached comes from the upstream, and goes nowhere.
	other := image.New(image.Options{Seed: 2})
	h.Push("library/app", "2.0", other)
	_, content, path := big(h, 5<<20)
	for range 2 {
		pullRaw(t, p, "library/app", other)
		get(t, p, "/v2/library/app/manifests/2.0", "Accept", anything)
		wantBytes(t, "a miss", content, get(t, p, path).body)
	}
	// A tag that moves is served as it is now.
	h.Push("library/app", "1.0", other)
	if a := get(t, p, tagPath, "Accept", anything); a.header.Get("Docker-Content-Digest") != other.Digest.String() {
		t.Errorf("the tag moved to %s, and is served as %s", other.Digest, a.header.Get("Docker-Content-Digest"))
	}
	wantDegraded(t, p, "read-only", "the cache's file system is read-only")
	p.Stop(t)
	if after := tree(t, p.Dir); after != before {
		t.Errorf("the directory has changed:\n%s\nit was\n%s", after, before)
	}
	writable()
	if err := p.Launch(); err != nil {
		t.Fatal(err)
	}
	if status, body := ready(t, p); status != http.StatusOK || body != "ok\n" {
		t.Errorf("/readyz once it can be written: %d %q", status, body)
	}
	pullRaw(t, p, "library/app", img)

	// Offline.
	p.Stop(t)
	writable = readOnly(t, p.Dir)
	offline := proxy.Start(t, proxy.Options{Dir: p.Dir, Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: "cache: {offline: true}"})
	asked := h.Counts()
	pullRaw(t, offline, "library/app", img)
	wantUnmoved(t, asked, h.Counts())
	wantDegraded(t, offline, "read-only", "the cache's file system is read-only")
	offline.Stop(t)

	// Without its index nobody can tell what is cached, and it cannot be restored there.
	writable()
	if err := os.Rename(filepath.Join(p.Dir, "index.db"), filepath.Join(p.Dir, "index.db.lost")); err != nil {
		t.Fatal(err)
	}
	readOnly(t, p.Dir)
	operate(t, p, "ls").want(t, 1, "is missing or damaged", "make it writable and start entrepot once")
}

func TestAFileSystemWithoutInodesIsEvictedFromLikeOneWithoutBytes(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=256m,nr_inodes=1000"); err != nil {
		cannot(t, "a file system with few inodes is mounted as root only: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", disk, err)
		}
	})
	h := hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Dir: filepath.Join(disk, "cache"), Config: believing})
	var last *image.Image
	for i := range 500 {
		last = image.New(image.Options{Seed: uint64(i)})
		h.Push("library/app", fmt.Sprint(i), last)
		pullRaw(t, p, "library/app", last)
	}
	p.WaitIdle(t)
	if p.Metrics(t).Sum("entrepot_cache_evictions_total") == 0 {
		t.Error("nothing was evicted")
	}
	// What is new is kept. Some of it may have gone with what was used in the same second.
	until(t, "the last image to be cached", func() bool {
		before := h.Counts()
		pullRaw(t, p, "library/app", last)
		return before == h.Counts()
	})
	if n := p.Metrics(t).Sum("entrepot_cache_blobs"); n < 300 {
		t.Errorf("only %g blobs are cached", n)
	}
	if strings.Contains(p.Log(), "the cache's disk is full") {
		t.Error("the inodes ran out")
	}
	if status, body := ready(t, p); status != http.StatusOK || strings.Contains(body, "degraded") {
		t.Errorf("/readyz: %d %q", status, body)
	}
}
