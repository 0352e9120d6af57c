package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// bounds is what a process has of the machine, to be compared with what it has
// after an attack.
type bounds struct {
	rss, goroutines, files int64
	// around lists what lies beside the cache directory, in the directory that
	// holds it.
	around []string
}

func boundsOf(t *testing.T, p *proxy.Proxy) bounds {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		t.Skipf("there is no /proc to count the open files from: %v", err)
	}
	return bounds{residentBytes(t, p.PID()), int64(p.Metrics(t).Sum("go_goroutines")), int64(len(open)), listing(t, filepath.Dir(p.Dir), p.Dir)}
}

// listing gives the paths below dir, that of but and what is in it left out.
func listing(t *testing.T, dir, but string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path == but {
			return fs.SkipDir
		}
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// wantKept waits until the process has hardly more goroutines and open files than
// before, and checks that it has at most room bytes of memory more, that nothing
// was written beside the cache directory, and that what is in it is nobody else's
// to read.
func (b bounds) wantKept(t *testing.T, p *proxy.Proxy, room int64) {
	t.Helper()
	const few = 24 // connections that the test keeps, and those to the hub
	raw.CloseIdleConnections()
	var now bounds
	until(t, "goroutines and files to be given back", func() bool {
		now = boundsOf(t, p)
		return now.goroutines <= b.goroutines+few && now.files <= b.files+few
	})
	t.Logf("before and after: memory %d and %d MiB, goroutines %d and %d, files %d and %d",
		b.rss>>20, now.rss>>20, b.goroutines, now.goroutines, b.files, now.files)
	if now.rss > b.rss+room && !proxy.Raced {
		t.Errorf("the process has %d MiB more memory than before, want at most %d", (now.rss-b.rss)>>20, room>>20)
	}
	if !slices.Equal(b.around, now.around) {
		t.Errorf("beside the cache directory there was\n%q\nand is\n%q", b.around, now.around)
	}
	wantPrivate(t, p.Dir)
}

// wantPrivate checks that every file below dir is 0600 and every directory 0700.
func wantPrivate(t *testing.T, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // a part that has just become a blob
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		} else {
			files++
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
		if info.Mode()&(fs.ModeSymlink|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSetuid|fs.ModeSetgid) != 0 {
			t.Errorf("%s is a %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Errorf("there is no file in %s: the test shows nothing", dir)
	}
}

// nested gives a cache directory in a directory that is otherwise empty.
func nested(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "parent", "cache")
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// wantOneLineEach checks that the log holds nothing but lines of JSON, each of
// printable characters.
func wantOneLineEach(t *testing.T, log string) {
	t.Helper()
	for line := range strings.Lines(log) {
		if !strings.HasPrefix(line, "{") || !strings.HasSuffix(line, "}\n") {
			t.Errorf("the log has a line that is not its own: %q", line)
		}
		if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e }) {
			t.Errorf("the log has a control character: %q", line)
		}
	}
}
