package index

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestNoDamageEndsTheProcess cuts and scribbles over an index file at random. It
// opens and is used all the same: what is read is either not known or right, and
// what is found damaged is set aside and begun anew, at the start or in use.
func TestNoDamageEndsTheProcess(t *testing.T) {
	const links = 3000
	dir := t.TempDir()
	path := filepath.Join(dir, "good", "index.db")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	filled(t, path, links)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	asides := 0
	for i := range 60 {
		path := filepath.Join(dir, fmt.Sprint(i, ".db"))
		b := bytes.Clone(good)
		what := "scribbled over"
		if i%3 == 0 {
			what = "cut short"
			b = b[:rnd.IntN(len(b))]
		} else {
			for range 1 + i%7 {
				at := rnd.IntN(len(b) / 4096)
				page := b[at*4096:][:4096]
				if i%2 == 0 {
					page = page[:32] // its header and first element
				}
				for k := range page {
					page[k] = byte(rnd.Uint32())
				}
			}
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		ix, aside, err := Open(path)
		if err != nil {
			t.Fatalf("%d, %s: %v", i, what, err)
		}
		lost := make(chan string, 10)
		ix.Lost(func(aside string, _ error) { lost <- aside })
		if got, ok := ix.Tag("docker.io", "library/nginx", "latest"); ok && got.Digest != one.Digest {
			t.Errorf("%d, %s: a tag is known as %+v", i, what, got)
		}
		for k := range links {
			ix.Link("docker.io", "library/nginx", digest.FromString(fmt.Sprint(k)))
		}
		ix.Repositories()
		ix.Blobs(func(digest.Digest, Blob) bool { return true })
		if len(ix.broken) > 0 || len(lost) > 0 {
			select {
			case aside = <-lost:
			case <-time.After(time.Minute):
				t.Fatalf("%d, %s: it was found damaged and is not replaced", i, what)
			}
			if err := ix.PutTag("docker.io", "library/nginx", "latest", two); err != nil {
				t.Errorf("%d, %s: %v", i, what, err)
			}
			wantTag(t, ix, two, true)
		}
		if aside != "" {
			asides++
			if got, err := os.ReadFile(aside); err != nil || !alike(got, b) {
				t.Errorf("%d, %s: set aside as %q: %v", i, what, aside, err)
			}
		}
		ix.Close()
	}
	if asides < 20 {
		t.Errorf("%d of 60 damaged files were set aside; want 20 at least", asides)
	}
}

// alike tells whether most pages of two files are the same: to open one writes a few.
func alike(a, b []byte) bool {
	same, pages := 0, min(len(a), len(b))/4096
	for i := range pages {
		if bytes.Equal(a[i*4096:][:4096], b[i*4096:][:4096]) {
			same++
		}
	}
	return 2*same >= pages
}

func TestFileThatIsCutShortIsFoundAtTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	filled(t, path, 3000)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkFile(path); err != nil {
		t.Errorf("of a file that is whole: %v", err)
	}
	if err := os.Truncate(path, st.Size()/3); err != nil {
		t.Fatal(err)
	}
	// Before anything of it is mapped.
	if err := checkFile(path); !errors.Is(err, errDamaged) {
		t.Errorf("of a file that was cut short: %v, want %v", err, errDamaged)
	}
	ix, aside, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, ix)
	if aside == "" || ix.Whole() {
		t.Errorf("set aside as %q, whole %v", aside, ix.Whole())
	}
	if _, err := ix.Restore(); err != nil {
		t.Fatal(err)
	}
	wantFilled(t, ix, 3000)
}

// The disk may lose pages of a quarantined file too, in the moment in which they are read:
// what is mapped of it is then no memory.
func TestQuarantinedFileThatCannotBeReadEndsNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	filled(t, path, 3000)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Munmap(data) }()
	if whole, _ := leavesOf(data); len(whole) == 0 {
		t.Fatal("the file has no leaves")
	}
	for _, left := range []int64{st.Size() / 2, 0} {
		if err := f.Truncate(left); err != nil {
			t.Fatal(err)
		}
		if found, _ := leavesOf(data); left == 0 && len(found) > 0 {
			t.Errorf("found %d leaves in an empty file", len(found))
		}
	}
}

func TestIndexThatTheDiskHasLostIsQuarantined(t *testing.T) {
	for cause, want := range map[error]bool{syscall.EIO: true, syscall.EBADMSG: true, syscall.EACCES: false, syscall.EROFS: false, syscall.ENOSPC: false} {
		if got := damaged(&fs.PathError{Op: "read", Path: "index.db", Err: cause}); got != want {
			t.Errorf("%v counts as damage: %v, want %v", cause, got, want)
		}
	}
}

// A pipe in the place of the backup has no other end to wait for.
func TestStrangeBackupHoldsUpNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	filled(t, path, 10)
	if err := errors.Join(os.Remove(path), os.Remove(backupPath(path)), syscall.Mkfifo(backupPath(path), 0o600)); err != nil {
		t.Fatal(err)
	}
	ix, _, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, ix)
	done := make(chan error, 1)
	go func() {
		_, err := ix.Restore()
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !ix.Whole() {
			t.Errorf("restored from a pipe: %v, whole %v", err, ix.Whole())
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the restore waits for the other end of a pipe")
	}
}
