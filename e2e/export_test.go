package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// exportedJSON is what export prints for programs, as far as tests look.
type exportedJSON struct {
	Size, Resumed int64
	Images        []struct {
		Reference      string
		Platforms      []string
		Blobs, LeftOut int
		Referrer       bool
	}
	LeftOut []struct {
		Reference, Reason string
		Missing           []string
	}
}

func (s said) exported(t *testing.T, code int) (e exportedJSON) {
	t.Helper()
	s.want(t, code)
	if err := json.Unmarshal([]byte(s.out), &e); err != nil {
		t.Fatalf("%v in:\n%s%s", err, s.out, s.err)
	}
	return e
}

// tagAndPull gives the hub an image and has the proxy fetch all of it by its tag.
func tagAndPull(t *testing.T, h *hub.Hub, p *proxy.Proxy, repo, tag string, i *image.Image) {
	t.Helper()
	h.Push(repo, tag, i)
	get(t, p, "/v2/"+repo+"/manifests/"+tag, "Accept", anything)
	pullRaw(t, p, repo, i)
}

func readWhole(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExportWritesTheSameBundleFromARunningProxyAndADirectory(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	app := image.Index(image.Options{Seed: 1})
	tagAndPull(t, h, p, "library/app", "1.0", app)
	signed := referring(h, "org/signed")
	get(t, p, "/v2/org/signed/manifests/1.0", "Accept", anything)
	pullRaw(t, p, "org/signed", signed)
	var list struct {
		Manifests []struct{ Digest digest.Digest }
	}
	if err := json.Unmarshal(get(t, p, "/v2/org/signed/referrers/"+signed.Digest.String()).body, &list); err != nil || len(list.Manifests) != 3 {
		t.Fatalf("%v, %d referrers", err, len(list.Manifests))
	}
	subject := signed.Descriptor()
	for n, kind := range []string{"application/x.sbom", "application/x.sig"} { // as referring makes them
		pullRaw(t, p, "org/signed", image.Artifact(uint64(30+n), kind, 100, &subject))
	}
	p.WaitIdle(t)
	before := h.Counts()
	dir := t.TempDir()
	var bundles [][]byte
	bothWays(t, p, func() []string {
		file := filepath.Join(dir, "bundle.tar")
		table := operate(t, p, "export", "--bundle", file, "app:1.0", "docker.io/org/signed:1.0")
		table.want(t, 0, "IMAGE", "docker.io/library/app:1.0 ", app.Digest.String()[:19], "linux/amd64,linux/arm64,linux/arm/v7", "4 images", "sha256:")
		if table.err != "" {
			t.Errorf("want nothing on stderr, got %q", table.err)
		}
		bundles = append(bundles, readWhole(t, file))
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		all := operate(t, p, "export", "--output", "json", "--bundle", file, "--all")
		if e := all.exported(t, 0); len(e.Images) != 4 || e.Size != int64(len(bundles[0])) || !bytes.Equal(readWhole(t, file), bundles[0]) {
			t.Errorf("--all: want the same, got %s", all.out)
		} else if e.Images[0].Blobs != 10 || e.Images[0].LeftOut != 0 || !e.Images[1].Referrer || e.Images[3].Referrer {
			t.Errorf("got %+v", e.Images)
		}
		some := operate(t, p, "export", "--output", "json", "--bundle", filepath.Join(dir, "layout")+"/", "--platform", "linux/arm64", "--since", file, "app:1.0")
		if e := some.exported(t, 0); e.Images[0].Platforms[0] != "linux/arm64" || e.Images[0].Blobs != 4 || e.Images[0].LeftOut != 2 {
			t.Errorf("--platform, --since: got %s", some.out)
		}
		for _, name := range []string{file, filepath.Join(dir, "layout")} {
			if err := os.RemoveAll(name); err != nil {
				t.Fatal(err)
			}
		}
		return []string{table.out, all.out, some.out}
	})
	if !bytes.Equal(bundles[0], bundles[1]) {
		t.Error("the directory gives another bundle than the running proxy")
	}
	wantUnmoved(t, before, h.Counts())
}

func TestExportTellsWhatIsMissing(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	whole, part := image.New(image.Options{Seed: 1}), image.Index(image.Options{Seed: 2})
	tagAndPull(t, h, p, "library/whole", "1", whole)
	h.Push("library/part", "1", part)
	amd64 := part.Platforms["linux/amd64"]
	get(t, p, "/v2/library/part/manifests/1", "Accept", anything)
	get(t, p, "/v2/library/part/manifests/"+amd64.String())
	p.WaitIdle(t)
	config := part.Parsed(amd64).Config.Digest.String()
	list := filepath.Join(t.TempDir(), "compose.yml")
	if err := os.WriteFile(list, []byte("services: {a: {image: 'whole:1'}, b: {image: '${NOBODY_SETS_THIS}/b:1'}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	bothWays(t, p, func() []string {
		dir := t.TempDir()
		file := filepath.Join(dir, "bundle.tar")
		missing := operate(t, p, "export", "--bundle", file, "whole:1", "part:1")
		missing.want(t, 1, "an image is not cached completely, so no bundle was written:",
			"  docker.io/library/part:1: missing: config for linux/amd64 "+config, "fetch them first: entrepot warm --platform linux/amd64 docker.io/library/part:1", "--platform")
		named := operate(t, p, "export", "--bundle", file, "--platform", "linux/arm64", "part:1")
		named.want(t, 1, "manifest for linux/arm64 "+part.Platforms["linux/arm64"].String(), "entrepot warm --platform linux/arm64 docker.io/library/part:1")
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("something was written: %v, %v", left, err)
		}
		all := operate(t, p, "export", "--output", "json", "--bundle", file, "--all")
		if e := all.exported(t, 1); len(e.Images) != 1 || len(e.LeftOut) != 1 || e.LeftOut[0].Reference != "docker.io/library/part:1" || len(e.LeftOut[0].Missing) != 2 {
			t.Errorf("--all: got %s", all.out)
		}
		all.want(t, 1, "left out: docker.io/library/part:1: missing: config for linux/amd64 "+config, "an image was left out of the bundle")
		again := operate(t, p, "export", "--bundle", file, "whole:1")
		again.want(t, 1, file+": it is there already: remove it, or name another")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		unread := operate(t, p, "export", "--bundle", file, "--file", list)
		unread.want(t, 1, "docker.io/library/whole:1", "left out: ${NOBODY_SETS_THIS}/b:1: "+list+":1: ")
		said := []string{missing.err, named.err, strings.ReplaceAll(all.out, dir, ""), strings.ReplaceAll(unread.out, dir, "")}
		for _, c := range []struct {
			args []string
			code int
			want string
		}{
			{[]string{"whole:1"}, 2, "name the bundle: --bundle bundle.tar"},
			{[]string{"--bundle", file}, 2, "name the images to export, a --file that names them, or --all"},
			{[]string{"--bundle", file, "--all", "whole:1"}, 2, "--all is of all images: name none beside it"},
			{[]string{"--bundle", file, "--platform", "arm", "whole:1"}, 2, `"arm" is no platform, such as linux/amd64`},
			{[]string{"--bundle", file, "--since", "yesterday", "whole:1"}, 2, "there is no bundle yesterday, and"},
			{[]string{"--bundle", file, "--since", list, "whole:1"}, 1, "it is no bundle that entrepot export has written"},
			{[]string{"--bundle", file, "--volume-size", "1KiB", "whole:1"}, 2, "a volume has 1MiB at least"},
			{[]string{"--bundle", file, "No Such Name"}, 2, "is no reference of an image"},
			{[]string{"--bundle", file, "--file", filepath.Join(dir, "none"), "whole:1"}, 1, "no such file"},
			{[]string{"--bundle", file, "never:1"}, 1, "nothing is known of docker.io/library/never:1"},
			{[]string{"--bundle", file, "quay.example.test/app:1"}, 1, "is not configured here"},
			{[]string{"--bundle", filepath.Join(dir, "none", "b.tar"), "whole:1"}, 1, "no such file or directory"},
		} {
			got := operate(t, p, append([]string{"export"}, c.args...)...)
			got.want(t, c.code, c.want)
			if got.out != "" {
				t.Errorf("%q: want nothing on stdout, got %s", c.args, got.out)
			}
		}
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		return said
	})
}

// TestExportOfDamagedContentFails damages a layer behind the back of the cache.
func TestExportOfDamagedContentFails(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 3 << 20}, {Size: 3 << 20}}})
	tagAndPull(t, h, p, "library/app", "1", i)
	p.WaitIdle(t)
	layer := max(i.Layers("")[0].Digest, i.Layers("")[1].Digest) // the later one in the bundle
	path := filepath.Join(p.Dir, "blobs", "sha256", layer.Encoded()[:2], layer.Encoded())
	b := readWhole(t, path)
	b[2<<20] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bundle.tar")
	operate(t, p, "export", "--bundle", file, "app:1").want(t, 1, "the bundle was broken off at "+layer.String(), "the stored bytes are not the digest's", "entrepot warm")
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("there is a bundle: %v", err)
	}
	operate(t, p, "export", "--bundle", file, "app:1").want(t, 1, "docker.io/library/app:1: missing: layer "+layer.String())
	get(t, p, "/v2/library/app/blobs/"+layer.String())
	p.WaitIdle(t)
	if e := operate(t, p, "export", "--output", "json", "--bundle", file, "app:1").exported(t, 0); e.Resumed < 3<<20 {
		t.Errorf("want it gone on with, got %+v", e)
	}
}

// throttle stands before an admin listener, and holds back the bytes of bundles after the
// first few until it is opened.
type throttle struct {
	*httptest.Server
	open chan struct{}
}

func newThrottle(t *testing.T, admin string, most int64) *throttle {
	t.Helper()
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	th := &throttle{open: make(chan struct{})}
	front := httputil.NewSingleHostReverseProxy(u)
	front.FlushInterval = -1
	front.ErrorLog = log.New(io.Discard, "", 0) // it tells of clients that go away
	front.ModifyResponse = func(r *http.Response) error {
		if r.Header.Get("Content-Type") == "application/octet-stream" {
			r.Body = &throttled{r.Body, r.Request.Context(), th, most}
		}
		return nil
	}
	th.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Read first: it would be closed under who sends it on when the answer begins.
		sent, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client is gone
		}
		r.Body = io.NopCloser(bytes.NewReader(sent))
		front.ServeHTTP(w, r)
	}))
	t.Cleanup(th.Close)
	return th
}

type throttled struct {
	io.ReadCloser
	ctx  context.Context
	th   *throttle
	left int64
}

func (r *throttled) Read(b []byte) (int, error) {
	if r.left == 0 {
		select {
		case <-r.th.open:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
		return r.ReadCloser.Read(b)
	}
	n, err := r.ReadCloser.Read(b[:min(int64(len(b)), r.left)])
	r.left -= int64(n)
	return n, err
}

func TestExportIsInterruptedAndGoneOnWith(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 2 << 20}, {Size: 2 << 20}}})
	tagAndPull(t, h, p, "library/app", "1", i)
	p.WaitIdle(t)
	dir := t.TempDir()
	want := filepath.Join(dir, "want.tar")
	operate(t, p, "export", "--bundle", want, "app:1").want(t, 0)
	const most = 3 << 20
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		for _, c := range []struct{ name, partial string }{{"bundle.tar", "bundle.tar.partial"}, {"layout/", "layout.partial"}} {
			path := filepath.Join(dir, signal.String()) + "-" + c.name
			th := newThrottle(t, p.AdminURL(), most)
			args := []string{"export", "--config", p.Config(), "--admin-listen", strings.TrimPrefix(th.URL, "http://"), "--bundle", path, "app:1"}
			cmd := exec.CommandContext(t.Context(), proxy.Binary(t), args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			// It ends with the command, which the test's end kills at the latest.
			go func() {
				_ = cmd.Wait() // the code says how it ended
				close(ended)
			}()
			until(t, "the first bytes of a bundle", func() bool {
				select {
				case <-ended:
					t.Fatalf("it ended before: %s", &stderr)
				default:
				}
				return sizeBelow(path) > most-64<<10 // without the headers of the tar
			})
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ended:
			case <-time.After(limit):
				t.Fatalf("%v does not end it", signal)
			}
			if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(stderr.String(), "interrupted: what was done until now is kept") {
				t.Errorf("%v: exit code %d, want 130: %s", signal, code, &stderr)
			}
			if _, err := os.Stat(strings.TrimSuffix(path, "/")); !os.IsNotExist(err) {
				t.Errorf("%v: %s is there: %v", signal, path, err)
			}
			close(th.open)
			e := operate(t, p, "export", "--output", "json", "--bundle", path, "app:1").exported(t, 0)
			if e.Resumed < 2<<20 || e.Resumed > most {
				t.Errorf("%v: %s went on at %d", signal, c.name, e.Resumed)
			}
			if c.name == "bundle.tar" && !bytes.Equal(readWhole(t, path), readWhole(t, want)) {
				t.Errorf("%v: it is another bundle than without the signal", signal)
			}
		}
	}
}

// sizeBelow gives how many bytes are in the partial file or directory of a path.
func sizeBelow(path string) (n int64) {
	_ = filepath.WalkDir(strings.TrimSuffix(path, "/")+".partial", func(name string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if st, err := e.Info(); err == nil {
				n += st.Size()
			}
		}
		return nil // what is not there yet will be
	})
	return n
}

// imported makes a cache directory with these images.
func imported(t testing.TB, images, layers int, size int64) (m made, dir string) {
	t.Helper()
	m, dir = makeBundle(t, filepath.Join(t.TempDir(), "made.tar"), images, layers, size), filepath.Join(t.TempDir(), "cache")
	if out, err := importing(t, dir, m.path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return m, dir
}

// exporting gives the command that exports all.
func exporting(t testing.TB, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), append([]string{"export", "--all"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	return cmd
}

// runPeak runs a command that must do what it is for, and gives the most memory that it
// has had, in bytes, as far as that is seen by looking often. What the kernel tells of a
// process that has ended counts that of its parent, too, of which it is a fork.
func runPeak(t testing.TB, cmd *exec.Cmd) (peak int64) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // it ends with the command
	for {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("%v: %s", err, &out)
			}
			return peak
		case <-time.After(2 * time.Millisecond):
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)) // there is none where it has ended
			if _, rest, ok := strings.Cut(string(status), "VmHWM:"); ok {
				var kib int64
				_, _ = fmt.Sscan(rest, &kib)
				peak = max(peak, kib<<10)
			}
		}
	}
}

// TestAnExportIsTheBundleThatWasImported but for the times at which its tags were
// confirmed.
func TestAnExportIsTheBundleThatWasImported(t *testing.T) {
	t.Parallel()
	m, dir := imported(t, 5, 3, 10_000)
	file := filepath.Join(t.TempDir(), "bundle.tar")
	if out, err := exporting(t, "--cache-dir", dir, "--bundle", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	again := filepath.Join(t.TempDir(), "cache")
	if out, err := importing(t, again, file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	second := filepath.Join(t.TempDir(), "bundle.tar")
	if out, err := exporting(t, "--cache-dir", again, "--bundle", second).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !bytes.Equal(readWhole(t, file), readWhole(t, second)) {
		t.Errorf("the bundle of %d images is another one once it has been carried over", len(m.refs))
	}
}

// BenchmarkExport writes bundles of many small blobs, and of one large layer, by the
// command on a directory, and from a running proxy, and tells how much memory that took.
// For comparison it copies a bundle as a file.
func BenchmarkExport(b *testing.B) {
	for _, c := range []struct {
		name           string
		images, layers int
		size           int64
	}{
		{"10000blobs", 1000, 8, 32 << 10},
		{"2GiBlayer", 1, 1, 2 << 30},
	} {
		b.Run(c.name, func(b *testing.B) {
			m, dir := imported(b, c.images, c.layers, c.size)
			b.Run("copy", func(b *testing.B) {
				b.SetBytes(m.bytes)
				for range b.N {
					to := filepath.Join(b.TempDir(), "bundle.tar")
					if out, err := exec.CommandContext(b.Context(), "sh", "-c", `cp "$0" "$1" && sync "$1"`, m.path, to).CombinedOutput(); err != nil {
						b.Fatalf("%v: %s", err, out)
					}
				}
			})
			b.Run("directory", func(b *testing.B) {
				b.SetBytes(m.bytes)
				for range b.N {
					cmd := exporting(b, "--cache-dir", dir, "--bundle", filepath.Join(b.TempDir(), "bundle.tar"))
					b.ReportMetric(float64(runPeak(b, cmd))/(1<<20), "MiB-peak")
				}
			})
			b.Run("running", func(b *testing.B) {
				p := proxy.Start(b, proxy.Options{Dir: dir})
				b.SetBytes(m.bytes)
				b.ResetTimer()
				for range b.N {
					cmd := exporting(b, "--admin-listen", strings.TrimPrefix(p.AdminURL(), "http://"), "--bundle", filepath.Join(b.TempDir(), "bundle.tar"))
					if out, err := cmd.CombinedOutput(); err != nil {
						b.Fatalf("%v: %s", err, out)
					}
				}
				b.StopTimer()
				b.ReportMetric(float64(residentPeak(b, p.PID()))/(1<<20), "MiB-peak")
				p.Stop(b)
			})
		})
	}
}
