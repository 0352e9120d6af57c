package e2e

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestStrangeFilesInTheCacheDirectoryHangNothingAndAreNotFollowed puts pipes, links and
// directories in the places of blobs, manifests and partial files, before and while the
// program runs.
func TestStrangeFilesInTheCacheDirectoryHangNothingAndAreNotFollowed(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for kind, put := range map[string]func(path string) error{
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link":      func(path string) error { return os.Symlink(outside, path) },
		"directory": func(path string) error { return os.MkdirAll(filepath.Join(path, "in"), 0o700) },
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h := hub.New(t, hub.Options{})
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Dir: nested(t),
				Config: "cache: {scrub_rate: 0}\n" + believing})
			replace := func(path string) {
				t.Helper()
				if err := errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Dir(path), 0o700), put(path)); err != nil {
					t.Fatal(err)
				}
			}
			blobs := map[string][]byte{}
			for i, size := range []int{10_000, 100_000, 3 << 20} {
				d, content, path := blobOf(h, "library/app", uint64(i), size)
				blobs[path] = content
				get(t, p, path)
				p.WaitIdle(t)
				replace(stored(p, d))
				// The partial file of a blob that is not cached yet.
				d, content, path = blobOf(h, "library/app", uint64(100+i), size)
				blobs[path] = content
				replace(filepath.Join(p.Dir, "ingest", d.Algorithm().String()+"-"+d.Encoded()+".part"))
			}
			ask := func() {
				t.Helper()
				c := http.Client{Timeout: 30 * time.Second}
				for path, content := range blobs {
					res, err := c.Get(p.URL() + path)
					if err != nil {
						t.Fatalf("%s: %v", path, err)
					}
					var b bytes.Buffer
					_, err = b.ReadFrom(res.Body)
					res.Body.Close()
					if err != nil || res.StatusCode != http.StatusOK || !bytes.Equal(b.Bytes(), content) {
						t.Errorf("%s: status %d, %d bytes, %v", path, res.StatusCode, b.Len(), err)
					}
				}
			}
			ask()
			p.WaitIdle(t)
			begun := time.Now()
			p.Stop(t)
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("the shutdown took %s", took)
			}
			for path := range blobs {
				hex := path[len(path)-64:]
				replace(filepath.Join(p.Dir, "blobs", "sha256", hex[:2], hex))
			}
			p.Restart(t)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			// It may say that something is damaged; it must end.
			if out, err := exec.CommandContext(ctx, proxy.Binary(t), "scrub", "--config", p.Config()).CombinedOutput(); ctx.Err() != nil {
				t.Errorf("scrub: %v\n%s", err, out)
			}
			ask()
			if b, err := os.ReadFile(outside); err != nil || string(b) != "precious" {
				t.Errorf("the file outside of the cache is now %q (%v)", b, err)
			}
			if left, err := os.ReadDir(filepath.Join(p.Dir, "damaged")); err != nil || len(left) == 0 {
				t.Errorf("nothing was set aside: %v", err)
			}
			err := filepath.WalkDir(filepath.Join(p.Dir, "blobs"), func(path string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() && !e.Type().IsRegular() {
					t.Errorf("%s is still there", path)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// What stands in the place of the quota's history is neither waited for nor followed.
func TestStrangeFilesBesideTheCacheHoldUpNoStart(t *testing.T) {
	t.Parallel()
	p := proxy.New(t, hub.New(t, hub.Options{}))
	p.Stop(t)
	outside := filepath.Join(t.TempDir(), "precious")
	if err := errors.Join(os.WriteFile(outside, []byte("precious"), 0o600),
		unix.Mkfifo(filepath.Join(p.Dir, "quota.json"), 0o600), os.Symlink(outside, filepath.Join(p.Dir, "quota.json.new"))); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := p.Launch(); err != nil {
		t.Fatalf("after %s: %v", time.Since(begun), err)
	}
	p.Stop(t)
	if b, err := os.ReadFile(outside); err != nil || string(b) != "precious" {
		t.Errorf("the file outside of the cache is now %q (%v)", b, err)
	}
}
