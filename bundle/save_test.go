package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var errCut = errors.New("cut")

// cutAfter makes the fetch of a Save end with an error after n bytes.
func cutAfter(s Save, n int64) Save {
	fetch := s.Fetch
	s.Fetch = func(ctx context.Context, c *Contents, from int64) (io.ReadCloser, error) {
		r, err := fetch(ctx, c, from)
		return &cutReader{ReadCloser: r, left: n}, err
	}
	return s
}

type cutReader struct {
	io.ReadCloser
	left int64
}

func (c *cutReader) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, errCut
	}
	n, err := c.ReadCloser.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

func mustSave(t *testing.T, s Save, p *Plan) Saved {
	t.Helper()
	saved, err := s.Write(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return saved
}

// TestSaveGoesOnWhereItWasCut cuts it at every few bytes, after which tags were confirmed
// again.
func TestSaveGoesOnWhereItWasCut(t *testing.T) {
	w := newWorld(t)
	_, _, p := sample(w)
	want := w.tar(p)
	later := *p
	contents := *p.Contents
	contents.Images = append([]Image{}, contents.Images...)
	contents.Images[0].Fetched = contents.Images[0].Fetched.Add(time.Hour)
	if err := contents.seal(); err != nil {
		t.Fatal(err)
	}
	later.Contents = &contents
	files, err := Lay(p.Contents, p.Docker)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for at := int64(1); at < int64(len(want)); at += 4001 {
		path := filepath.Join(dir, fmt.Sprintf("%d.tar", at))
		if _, err := cutAfter(w.saving(path, p), at).Write(t.Context(), p); !errors.Is(err, errCut) {
			t.Fatalf("at %d: want it to be cut, got %v", at, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("at %d: the file is there: %v", at, err)
		}
		saved := mustSave(t, w.saving(path, &later), &later)
		got := readFile(t, path)
		switch {
		case at < files.List[1].Begin+files.List[1].Size:
			// The contents were not there in full: they are the new ones.
			if saved.Digest != contents.Digest || len(got) != len(want) {
				t.Errorf("at %d: want the new times, got %+v", at, saved)
			}
		case !bytes.Equal(got, want) || saved.Resumed < at-2<<10 || saved.Resumed > at || saved.Digest != p.Contents.Digest:
			t.Errorf("at %d: got %d bytes, %+v", at, len(got), saved)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSaveBeginsAnewWhereSomethingElseIsWanted(t *testing.T) {
	w := newWorld(t)
	_, _, p := sample(w)
	path := filepath.Join(t.TempDir(), "bundle.tar")
	if _, err := cutAfter(w.saving(path, p), 50_000).Write(t.Context(), p); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	other := w.plan(Choice{All: true, Since: &Since{Time: time.Unix(1, 0)}})
	if saved := mustSave(t, w.saving(path, other), other); saved.Resumed != 0 || !bytes.Equal(readFile(t, path), w.tar(other)) {
		t.Errorf("got %+v", saved)
	}
}

// TestSaveTakesNoDamagedBytesOver flips a byte of what is there, at every few.
func TestSaveTakesNoDamagedBytesOver(t *testing.T) {
	w := newWorld(t)
	_, _, p := sample(w)
	want := w.tar(p)
	dir := t.TempDir()
	for at := 700; at < 90_000; at += 4001 {
		path := filepath.Join(dir, fmt.Sprintf("%d.tar", at))
		if _, err := cutAfter(w.saving(path, p), 90_001).Write(t.Context(), p); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		b := readFile(t, path+partialSuffix)
		b[at] ^= 1
		if err := os.WriteFile(path+partialSuffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := w.saving(path, p)
		saved, err := s.Write(t.Context(), p)
		if err != nil && strings.Contains(err.Error(), "is damaged, and has been taken away") {
			saved, err = s.Write(t.Context(), p) // it was in the middle of a blob
		}
		if err != nil || !bytes.Equal(readFile(t, path), want) || saved.Resumed > int64(at) {
			t.Errorf("at %d: %+v, %v", at, saved, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSaveSplitsIntoVolumesWithTheirSums(t *testing.T) {
	w := newWorld(t)
	w.pullLarge()
	p := w.plan(Choice{All: true})
	want := w.tar(p)
	for _, cut := range []int64{0, 100, MinVolume - 1, MinVolume, MinVolume + 1, 2*MinVolume + 7} {
		path := filepath.Join(t.TempDir(), "bundle.tar")
		s := w.saving(path, p)
		s.Volume = MinVolume
		if cut > 0 {
			if _, err := cutAfter(s, cut).Write(t.Context(), p); !errors.Is(err, errCut) {
				t.Fatal(err)
			}
		}
		saved := mustSave(t, s, p)
		if saved.Resumed > cut || cut >= MinVolume && saved.Resumed < MinVolume/2 {
			t.Errorf("cut at %d: went on at %d", cut, saved.Resumed)
		}
		n := (len(want) + MinVolume - 1) / MinVolume
		if len(saved.Paths) != n+1 || saved.Paths[n] != path+".sha256" || n < 3 {
			t.Fatalf("want %d volumes and the sums, got %q", n, saved.Paths)
		}
		var all []byte
		var sums strings.Builder
		for i, name := range saved.Paths[:n] {
			b := readFile(t, name)
			if i < n-1 && len(b) != MinVolume {
				t.Errorf("volume %d has %d bytes", i+1, len(b))
			}
			all = append(all, b...)
			fmt.Fprintf(&sums, "%x  bundle.tar.%03d\n", sha256.Sum256(b), i+1)
		}
		if !bytes.Equal(all, want) {
			t.Errorf("cut at %d: together they are not the tar", cut)
		}
		if got := string(readFile(t, path+".sha256")); got != sums.String() {
			t.Errorf("cut at %d: sums: want\n%s\ngot\n%s", cut, &sums, got)
		}
		for _, name := range []string{path, path + ".001"} {
			if c, err := Peek(name); err != nil || c.Digest != p.Contents.Digest {
				t.Errorf("peek at %s: %v", name, err)
			}
		}
		if _, err := s.Write(t.Context(), p); !errors.Is(err, ErrExists) {
			t.Errorf("want ErrExists, got %v", err)
		}
		// A process that was killed as it gave them their names.
		for _, i := range []int{0, 1} {
			if err := os.Rename(saved.Paths[i], saved.Paths[i]+partialSuffix); err != nil {
				t.Fatal(err)
			}
		}
		if again := mustSave(t, s, p); again.Resumed < again.Size-endOfTar {
			t.Errorf("want all of it to be found, got %+v", again)
		}
	}
}

func TestSaveWritesADirectory(t *testing.T) {
	w := newWorld(t)
	_, _, p := sample(w)
	_, want := entries(t, w.tar(p))
	for _, cut := range []int64{0, 9000, 60_000} {
		path := filepath.Join(t.TempDir(), "layout")
		s := w.saving(path+"/", p)
		if cut > 0 {
			if _, err := cutAfter(s, cut).Write(t.Context(), p); !errors.Is(err, errCut) {
				t.Fatal(err)
			}
		}
		saved := mustSave(t, s, p)
		if (saved.Resumed > 0) != (cut > 0) || saved.Paths[0] != path {
			t.Errorf("cut at %d: got %+v", cut, saved)
		}
		got := map[string][]byte{}
		err := filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				short, _ := filepath.Rel(path, name)
				got[filepath.ToSlash(short)] = readFile(t, name)
			}
			return err
		})
		if err != nil || len(got) != len(want) {
			t.Errorf("cut at %d: %v, %d files, want %d", cut, err, len(got), len(want))
		}
		for name, b := range want {
			if !bytes.Equal(got[name], b) {
				t.Errorf("cut at %d: %s: %d bytes, want %d", cut, name, len(got[name]), len(b))
			}
		}
		if c, err := Peek(path); err != nil || c.Digest != p.Contents.Digest {
			t.Errorf("peek: %v", err)
		}
		if _, err := s.Write(t.Context(), p); !errors.Is(err, ErrExists) {
			t.Errorf("want ErrExists, got %v", err)
		}
	}
}

func TestSaveRefusesWhatWouldTakeSomethingAway(t *testing.T) {
	w := newWorld(t)
	_, _, p := sample(w)
	dir := t.TempDir()
	file := filepath.Join(dir, "there.tar")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                              "it is there already: remove it, or name another",
		dir:                               "it is there already: remove it, or name another",
		filepath.Join(file, "x.tar"):      "not a directory",
		filepath.Join(dir, "no", "b.tar"): "no such file or directory",
	} {
		if _, err := w.saving(path, p).Write(t.Context(), p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", path, want, err)
		}
	}
	if got := readFile(t, file); string(got) != "mine" {
		t.Errorf("it has been written to: %q", got)
	}
	s := w.saving(filepath.Join(dir, "empty")+"/", p)
	s.Volume = MinVolume
	if _, err := s.Write(t.Context(), p); err == nil || !strings.Contains(err.Error(), "only a tar can be split") {
		t.Errorf("want that it can not be split, got %v", err)
	}
}

func TestPeekTellsWhatIsNoBundle(t *testing.T) {
	w := newWorld(t)
	_, _, p := sample(w)
	dir := t.TempDir()
	good := w.tar(p)
	newer, damaged := bytes.Replace(good, []byte(`{"version":1`), []byte(`{"version":9`), 1), bytes.Replace(good, []byte(`"tag":"1"`), []byte(`"tag":"2"`), 1)
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"text.tar":    {[]byte("hello"), "it is no bundle"},
		"empty.tar":   {nil, "it is no bundle"},
		"cut.tar":     {good[:1500], "it is no bundle"},
		"newer.tar":   {newer, "it has version 9, and this entrepot knows 1: use a newer one"},
		"damaged.tar": {damaged, "it is damaged"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Peek(path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want %q, got %v", name, c.want, err)
		}
	}
	if _, err := Peek(t.TempDir()); !errors.Is(err, ErrNoBundle) {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := Peek(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

func TestSaveIsAloneWithWhatItWrites(t *testing.T) {
	w := newWorld(t)
	_, _, p := sample(w)
	dir := t.TempDir()
	for _, name := range []string{"bundle.tar", "layout/"} {
		s := w.saving(filepath.Join(dir, name), p)
		fetch := s.Fetch
		s.Fetch = func(ctx context.Context, c *Contents, from int64) (io.ReadCloser, error) {
			if _, err := w.saving(filepath.Join(dir, name), p).Write(ctx, p); !errors.Is(err, ErrBusy) {
				t.Errorf("%s: want ErrBusy, got %v", name, err)
			}
			return fetch(ctx, c, from)
		}
		mustSave(t, s, p)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("want the two bundles and nothing else, got %v, %v", left, err)
	}
}

// TestSaveWritesForItsOwnerAlone looks at the modes of what is written, and of what is
// resumed: an earlier version left its partial files readable to everybody.
func TestSaveWritesForItsOwnerAlone(t *testing.T) {
	w := newWorld(t)
	w.pullLarge()
	p := w.plan(Choice{All: true})
	dir := t.TempDir()
	check := func(when string) {
		t.Helper()
		files := 0
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || path == dir {
				return err
			}
			files++
			info, err := e.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %s has mode %v", when, path, info.Mode())
			}
			return err
		})
		if err != nil || files < 3 {
			t.Fatalf("%s: %d files, %v", when, files, err)
		}
	}
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	volumes := w.saving(filepath.Join(dir, "volumes.tar"), p)
	volumes.Volume = MinVolume
	saves := []Save{w.saving(filepath.Join(dir, "bundle.tar"), p), w.saving(filepath.Join(dir, "layout")+"/", p), volumes}
	for _, s := range saves {
		if _, err := cutAfter(s, MinVolume+9000).Write(t.Context(), p); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
	}
	check("partial")
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		mode := fs.FileMode(0o644)
		if e.IsDir() {
			mode = 0o755
		}
		return os.Chmod(path, mode)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range saves {
		if saved := mustSave(t, s, p); saved.Resumed == 0 {
			t.Errorf("%s was not resumed", s.Path)
		}
	}
	check("complete")
}

func TestSaveFollowsNoLink(t *testing.T) {
	w := newWorld(t)
	_, _, p := sample(w)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bundle.tar")
	if err := os.Symlink(victim, path+partialSuffix); err != nil {
		t.Fatal(err)
	}
	_, err := w.saving(path, p).Write(t.Context(), p)
	if b := readFile(t, victim); string(b) != "mine" {
		t.Errorf("the link was followed (%v): %d bytes", err, len(b))
	}
}
