package e2e

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// blobFile is the file of stored content.
func blobFile(p *proxy.Proxy, d digest.Digest) string {
	return filepath.Join(p.Dir, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// flip changes a bit of a file and restores its mtime.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

var damages = map[string]func(t *testing.T, path string) error{
	"missing":   func(_ *testing.T, path string) error { return os.Remove(path) },
	"truncated": func(_ *testing.T, path string) error { return os.Truncate(path, 1<<20) },
	"longer": func(_ *testing.T, path string) error {
		return os.Truncate(path, 4<<20)
	},
	"flipped, its mtime restored": func(t *testing.T, path string) error { flip(t, path, 1<<20); return nil },
}

func TestADamagedBlobIsMendedWithinTheRequest(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			h, p := start(t, "")
			layer, content, path := big(h, 3<<20)
			get(t, p, path)
			p.WaitIdle(t)
			if err := damage(t, blobFile(p, layer.Digest)); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, name, content, get(t, p, path).body)
			p.WaitIdle(t)
			if got := h.Sent(layer.Digest); got != 2*layer.Size {
				t.Errorf("the upstream sent %d bytes, want twice %d", got, layer.Size)
			}
			wantBytes(t, "after "+name, content, get(t, p, path).body)
		})
	}
}

func TestADamagedBlobIsAClearErrorOffline(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			h, p := start(t, "")
			layer, _, path := big(h, 3<<20)
			get(t, p, path)
			p.WaitIdle(t)
			p.Stop(t)
			if err := damage(t, blobFile(p, layer.Digest)); err != nil {
				t.Fatal(err)
			}
			p = restartWith(t, p, h, `cache: {offline: true}`)
			before := h.Counts()
			a := ask(t, p, http.MethodGet, path)
			message := a.wantError(t, http.StatusServiceUnavailable, "UNAVAILABLE")
			if !strings.Contains(message, "offline") {
				t.Errorf("%s: the message does not tell: %q", name, message)
			}
			wantUnmoved(t, before, h.Counts())
		})
	}
}

func TestAnOldBlobIsVerifiedWhileItIsServed(t *testing.T) {
	h, p := start(t, `cache: {reverify_after: 1s}`)
	layer, content, path := big(h, 3<<20)
	get(t, p, path)
	p.WaitIdle(t)
	time.Sleep(2100 * time.Millisecond) // records are kept to the second
	a := get(t, p, path)
	wantBytes(t, "verified", content, a.body)
	if got := h.Sent(layer.Digest); got != layer.Size {
		t.Errorf("the upstream sent %d bytes, want %d", got, layer.Size)
	}
}

// scrub runs the command on a proxy's configuration.
func scrub(t *testing.T, p *proxy.Proxy) (code int, last map[string]any, out string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), "scrub", "--output", "json", "--config", p.Config())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(stdout.Bytes(), &last); err != nil {
		t.Errorf("stdout is no JSON: %v\n%s\n%s", err, stdout.String(), stderr.String())
	}
	return cmd.ProcessState.ExitCode(), last, stdout.String() + stderr.String()
}

func TestScrubHealsThroughTheProcessThatHoldsTheDirectoryAndWithoutOne(t *testing.T) {
	for _, running := range []bool{true, false} {
		h, p := start(t, "")
		layer, content, path := big(h, 3<<20)
		get(t, p, path)
		p.WaitIdle(t)
		flip(t, blobFile(p, layer.Digest), 1000)
		if !running {
			p.Stop(t)
		}
		code, last, out := scrub(t, p)
		if code != 0 || last["damaged"] != 1.0 || last["healed"] != 1.0 {
			t.Errorf("running %v: exit code %d\n%s", running, code, out)
		}
		if b, err := os.ReadFile(blobFile(p, layer.Digest)); err != nil || !bytes.Equal(b, content) {
			t.Errorf("running %v: the file is not mended: %d bytes, %v", running, len(b), err)
		}
		// And what can not be had is told by the exit code.
		flip(t, blobFile(p, layer.Digest), 2000)
		h.Down()
		if code, last, out := scrub(t, p); code != 1 || last["damaged"] != 1.0 || last["healed"] != 0.0 {
			t.Errorf("running %v, with the upstream down: exit code %d\n%s", running, code, out)
		}
	}
}
