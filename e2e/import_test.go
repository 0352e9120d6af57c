package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/bundle"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// made is a bundle of images that are made up: each has a config and some layers.
type made struct {
	path  string
	refs  []string
	tops  []digest.Digest
	bytes int64
	blobs int
}

// stream is content of so many bytes that follows from a seed.
func stream(seed uint64, size int64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return io.LimitReader(bufio.NewReaderSize(rand.NewChaCha8(key), 1<<20), size)
}

// makeBundle writes a bundle of so many images, each with so many layers of size bytes.
func makeBundle(t testing.TB, path string, images, layers int, size int64) made {
	t.Helper()
	m := made{path: path}
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	contents := &bundle.Contents{Version: bundle.Version, Created: at}
	bodies, index := map[digest.Digest]func() io.Reader{}, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	add := func(repo, mediaType string, size int64, body func() io.Reader) v1.Descriptor {
		h := sha256.New()
		if _, err := io.Copy(h, body()); err != nil {
			t.Fatal(err)
		}
		d := digest.NewDigest(digest.SHA256, h)
		bodies[d] = body
		c := bundle.Content{Digest: d, Size: size, In: []string{"docker.io/" + repo}, Present: true}
		if mediaType == v1.MediaTypeImageManifest {
			c.MediaType = mediaType
		}
		contents.Contents = append(contents.Contents, c)
		m.bytes += size
		m.blobs++
		return v1.Descriptor{MediaType: mediaType, Digest: d, Size: size}
	}
	document := func(repo, mediaType string, v any) v1.Descriptor {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return add(repo, mediaType, int64(len(b)), func() io.Reader { return bytes.NewReader(b) })
	}
	for n := range images {
		repo := fmt.Sprintf("org/app%d", n)
		manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
		manifest.Config = document(repo, v1.MediaTypeImageConfig, map[string]any{"os": "linux", "architecture": "amd64", "n": n})
		for l := range layers {
			seed := uint64(n)<<32 | uint64(l)
			manifest.Layers = append(manifest.Layers, add(repo, v1.MediaTypeImageLayerGzip, size, func() io.Reader { return stream(seed, size) }))
		}
		top := document(repo, v1.MediaTypeImageManifest, manifest)
		index.Manifests = append(index.Manifests, top)
		contents.Images = append(contents.Images, bundle.Image{Upstream: "docker.io", Repository: repo, Tag: "1", Digest: top.Digest, MediaType: top.MediaType, Fetched: at})
		m.refs, m.tops = append(m.refs, repo), append(m.tops, top.Digest)
	}
	var err error
	if contents.Digest, err = contents.Sum(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(buffered)
	put := func(name string, size int64, body io.Reader) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, body); err != nil {
			t.Fatal(err)
		}
	}
	putJSON := func(name string, v any) {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		put(name, int64(len(b)), bytes.NewReader(b))
	}
	putJSON(bundle.LayoutName, v1.ImageLayout{Version: v1.ImageLayoutVersion})
	putJSON(bundle.ContentsName, contents)
	putJSON(bundle.IndexName, index)
	for _, c := range contents.Contents {
		put(bundle.BlobName(c.Digest), c.Size, bodies[c.Digest]())
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := buffered.Flush(); err != nil {
		t.Fatal(err)
	}
	return m
}

// importing is the command on a directory that no process holds.
func importing(t testing.TB, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), append([]string{"import"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + dir, "TMPDIR=" + t.TempDir()}
	return cmd
}

// fed is an import that is given its archive bit by bit.
type fed struct {
	*exec.Cmd
	t      *testing.T
	file   *os.File
	stdin  io.WriteCloser
	stderr bytes.Buffer
}

// feed begins an import of m from standard input, and gives it a share of the archive
// until so many blobs have begun to come into dir.
func feed(t *testing.T, dir string, m made, share float64, blobs int, args ...string) *fed {
	t.Helper()
	f := &fed{Cmd: importing(t, dir, append(args, "-")...), t: t}
	f.Cmd.Stderr = &f.stderr
	var err error
	if f.stdin, err = f.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if f.file, err = os.Open(m.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.file.Close() })
	st, err := f.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(f.stdin, f.file, int64(float64(st.Size())*share)); err != nil {
		t.Fatalf("%v: %s", err, f.stderr.String())
	}
	until(t, "the blobs that were given", func() bool { return len(incoming(t, dir)) >= blobs })
	return f
}

// signal sends a signal and gives the exit code, which is -1 where the signal has ended
// it.
func (f *fed) signal(s syscall.Signal) int {
	f.t.Helper()
	if err := f.Process.Signal(s); err != nil {
		f.t.Fatal(err)
	}
	_ = f.Wait() // the exit code says it
	f.stdin.Close()
	return f.ProcessState.ExitCode()
}

// incoming lists what is below ingest/ of an import, with the times when it was written.
func incoming(t *testing.T, dir string) map[string]time.Time {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "ingest", "*.import"))
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]time.Time{}
	for _, path := range found {
		if st, err := os.Stat(path); err == nil { // else it has got its name
			list[strings.TrimSuffix(filepath.Base(path), ".import")] = st.ModTime()
		}
	}
	return list
}

// TestAnImportGoesOnWhereItWasInterrupted sends real signals, to the command on a
// directory and to the one that a running proxy does the work for: what is visible then
// is nothing, and what was written is not written again.
func TestAnImportGoesOnWhereItWasInterrupted(t *testing.T) {
	t.Parallel()
	m := makeBundle(t, filepath.Join(t.TempDir(), "bundle.tar"), 8, 4, 1<<20)
	for _, c := range []struct {
		name    string
		running bool
		signal  syscall.Signal
		code    int
	}{
		{"by SIGINT", false, syscall.SIGINT, 130},
		{"by SIGTERM", false, syscall.SIGTERM, 130},
		{"by SIGKILL", false, syscall.SIGKILL, -1},
		{"by SIGINT into a running proxy", true, syscall.SIGINT, 130},
		{"by SIGKILL into a running proxy", true, syscall.SIGKILL, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, args := filepath.Join(t.TempDir(), "cache"), []string(nil)
			if c.running {
				p := proxy.Start(t, proxy.Options{Dir: dir, Config: "cache: {offline: true}"})
				args = []string{"--admin-listen", strings.TrimPrefix(p.AdminURL(), "http://")}
			}
			f := feed(t, dir, m, 0.6, m.blobs/2, args...)
			if code := f.signal(c.signal); code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, f.stderr.String())
			}
			if c.code == 130 && !strings.Contains(f.stderr.String(), "interrupted: what was done until now is kept") {
				t.Errorf("it says %q", f.stderr.String())
			}
			written := incoming(t, dir)
			if len(written) < m.blobs/2 || len(written) == m.blobs {
				t.Fatalf("%d of %d blobs are left", len(written), m.blobs)
			}
			if blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "*", "*", "*")); err != nil || len(blobs) > 0 {
				t.Errorf("%d blobs have their names, %v", len(blobs), err)
			}
			var done struct{ Blobs, BlobsThere int }
			out, err := retried(func() ([]byte, error) {
				return importing(t, dir, append(args, "--output", "json", m.path)...).Output()
			})
			if err != nil || json.Unmarshal(out, &done) != nil || done.Blobs != m.blobs || done.BlobsThere != 0 {
				t.Fatalf("%s, %v", out, err)
			}
			same := 0
			for name, at := range written {
				alg, hex, _ := strings.Cut(name, "-")
				st, err := os.Stat(filepath.Join(dir, "blobs", alg, hex[:2], hex))
				if err != nil {
					t.Fatal(err)
				}
				if st.ModTime().Equal(at) {
					same++
				}
			}
			// But for the last, which may have come in half.
			if same < len(written)-1 {
				t.Errorf("%d of %d blobs were not written again", same, len(written))
			}
			if !c.running {
				p := proxy.Start(t, proxy.Options{Dir: dir, Config: "cache: {offline: true}"})
				wantMade(t, p, m)
			}
		})
	}
}

// TestAProxyThatStopsDoesNotWaitForAnImport whose archive comes no further.
func TestAProxyThatStopsDoesNotWaitForAnImport(t *testing.T) {
	t.Parallel()
	m := makeBundle(t, filepath.Join(t.TempDir(), "bundle.tar"), 8, 4, 1<<20)
	p := proxy.Start(t, proxy.Options{Config: "cache: {offline: true}"})
	f := feed(t, p.Dir, m, 0.5, m.blobs/2-6, "--admin-listen", strings.TrimPrefix(p.AdminURL(), "http://"))
	p.Stop(t)
	if err := f.Wait(); err == nil || f.ProcessState.ExitCode() != 1 {
		t.Errorf("the command ends with %v: %s", err, f.stderr.String())
	}
	f.stdin.Close()
	if strings.Contains(p.Log(), "do not end") {
		t.Errorf("the proxy could not close its cache:\n%s", p.Log())
	}
	if len(incoming(t, p.Dir)) == 0 {
		t.Error("nothing is left of what was written")
	}
}

// TestImportPrintsTheSameEitherWay into a running proxy and into a directory.
func TestImportPrintsTheSameEitherWay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := makeBundle(t, filepath.Join(dir, "bundle.tar"), 2, 2, 1<<10)
	wrong := filepath.Join(dir, "wrong.tar")
	b, err := os.ReadFile(m.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(wrong, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	p := proxy.Start(t, proxy.Options{Config: "cache: {offline: true}"})
	empty := filepath.Join(dir, "cache")
	for _, args := range [][]string{{wrong}, {m.path}, {m.path}, {"--output", "json", m.path}, {"--name", "app:1", m.path}, {filepath.Join(dir, "none")}} {
		running := operate(t, p, append([]string{"import"}, args...)...)
		var stdout, stderr bytes.Buffer
		cmd := importing(t, empty, args...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		_ = cmd.Run() // the exit code says it
		if stopped := (said{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}); stopped != running {
			t.Errorf("import %v says of a running proxy\n%+v\nand of a directory\n%+v", args, running, stopped)
		}
	}
	wantMade(t, p, m)
}

func TestAnImportThatDoesNotFitLeavesNothing(t *testing.T) {
	t.Parallel()
	m := makeBundle(t, filepath.Join(t.TempDir(), "bundle.tar"), 8, 4, 1<<20)
	p := proxy.Start(t, proxy.Options{Config: "cache: {offline: true, max_size: 16MiB, min_free: 0}"})
	operate(t, p, "import", m.path).want(t, 1, "nothing of it is taken in", "there is no room for it: it needs 32")
	if left := incoming(t, p.Dir); len(left) > 0 {
		t.Errorf("%d files are left", len(left))
	}
	operate(t, p, "ls").want(t, 0, "0 images")
}

// retried tries again what another import, which has not ended yet, is in the way of.
func retried(do func() ([]byte, error)) ([]byte, error) {
	for begun := time.Now(); ; {
		out, err := do()
		var e *exec.ExitError
		if err == nil || time.Since(begun) > limit || !errors.As(err, &e) || !strings.Contains(string(e.Stderr), "runs already") {
			return out, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// wantMade checks that all of m is served, by tag and by digest.
func wantMade(t *testing.T, p *proxy.Proxy, m made) {
	t.Helper()
	for n, repo := range m.refs {
		get(t, p, "/v2/"+repo+"/manifests/1").wantHeader(t, "Docker-Content-Digest", m.tops[n].String())
		a := get(t, p, "/v2/"+repo+"/manifests/"+m.tops[n].String())
		var manifest v1.Manifest
		if err := json.Unmarshal(a.body, &manifest); err != nil {
			t.Fatal(err)
		}
		for _, l := range append(manifest.Layers, manifest.Config) {
			if got := digest.FromBytes(get(t, p, "/v2/"+repo+"/blobs/"+l.Digest.String()).body); got != l.Digest {
				t.Errorf("%s: got the bytes of %s", l.Digest, got)
			}
		}
	}
}

// TestAProxyThatIsKilledDuringAnImportShowsNothingOfIt kills it at several places.
func TestAProxyThatIsKilledDuringAnImportShowsNothingOfIt(t *testing.T) {
	t.Parallel()
	m := makeBundle(t, filepath.Join(t.TempDir(), "bundle.tar"), 8, 4, 1<<20)
	p := proxy.Start(t, proxy.Options{Config: "cache: {offline: true}"})
	args := []string{"--admin-listen", strings.TrimPrefix(p.AdminURL(), "http://")}
	before := 0
	for _, share := range []float64{0.2, 0.5, 0.9} {
		f := feed(t, p.Dir, m, share, int(share*float64(m.blobs))-6, args...)
		p.Kill(t)
		if err := f.Wait(); err == nil || f.ProcessState.ExitCode() != 1 {
			t.Errorf("the command ends with %v: %s", err, f.stderr.String())
		}
		f.stdin.Close()
		p.Restart(t)
		if a := ask(t, p, "GET", "/v2/"+m.refs[0]+"/manifests/1"); a.status == 200 {
			t.Errorf("an image is visible: %s", a)
		}
		now := len(incoming(t, p.Dir))
		if now < before {
			t.Errorf("of %d blobs that were written %d are left", before, now)
		}
		before = now
	}
	if out, err := importing(t, p.Dir, append(args, m.path)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	wantMade(t, p, m)
	if left := incoming(t, p.Dir); len(left) > 0 {
		t.Errorf("%d files are left", len(left))
	}
}

// BenchmarkImport takes in many small blobs, and one large layer, by the command on a
// directory, and into a running proxy, and tells how much memory that took; beside
// that how long the disk takes for the same files from tar.
func BenchmarkImport(b *testing.B) {
	for _, c := range []struct {
		name           string
		images, layers int
		size           int64
	}{
		{"10000blobs", 1000, 8, 32 << 10},
		{"2GiBlayer", 1, 1, 2 << 30},
	} {
		path := filepath.Join(b.TempDir(), "bundle.tar")
		var m made
		b.Run(c.name+"/directory", func(b *testing.B) {
			if m.path == "" {
				m = makeBundle(b, path, c.images, c.layers, c.size)
			}
			b.SetBytes(m.bytes)
			b.ResetTimer()
			for range b.N {
				peak := runWatched(b, importing(b, filepath.Join(b.TempDir(), "cache"), m.path))
				b.ReportMetric(float64(peak)/(1<<20), "MiB-peak")
			}
		})
		b.Run(c.name+"/tar", func(b *testing.B) {
			if m.path == "" {
				m = makeBundle(b, path, c.images, c.layers, c.size)
			}
			b.SetBytes(m.bytes)
			b.ResetTimer()
			for range b.N {
				dir := b.TempDir()
				if out, err := exec.CommandContext(b.Context(), "sh", "-c", `tar -xf "$0" -C "$1" && sync -f "$1"`, m.path, dir).CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
			}
		})
		b.Run(c.name+"/running", func(b *testing.B) {
			if m.path == "" {
				m = makeBundle(b, path, c.images, c.layers, c.size)
			}
			b.SetBytes(m.bytes)
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				p := proxy.Start(b, proxy.Options{})
				b.StartTimer()
				cmd := importing(b, p.Dir, "--admin-listen", strings.TrimPrefix(p.AdminURL(), "http://"), m.path)
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				b.StopTimer()
				b.ReportMetric(float64(residentPeak(b, p.PID()))/(1<<20), "MiB-peak")
				p.Stop(b)
				b.StartTimer()
			}
		})
	}
}

// runWatched runs a command and gives the most memory that it has had, in bytes, as far
// as that was seen. What the kernel says of a child that has ended counts the parent's
// memory before exec, too.
func runWatched(t testing.TB, cmd *exec.Cmd) (peak int64) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("%v: %s", err, out.String())
			}
			return peak
		case <-time.After(5 * time.Millisecond):
			peak = max(peak, residentPeak(t, cmd.Process.Pid))
		}
	}
}

// residentPeak gives the most memory that a process has had, in bytes; zero where that
// can not be told.
func residentPeak(t testing.TB, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			if err == nil {
				return kib << 10
			}
		}
	}
	return 0
}
