package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// counting counts what is written, and what is synced.
type counting struct {
	OS
	written int64
	syncs   int
}

func (c *counting) OpenFile(name string, flag int, mode fs.FileMode) (File, error) {
	f, err := c.OS.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err
	}
	return &countingFile{f, c}, nil
}

func (c *counting) SyncDir(name string) error {
	c.syncs++
	return c.OS.SyncDir(name)
}

func (c *counting) SyncAll(name string) error {
	c.syncs++
	return c.OS.SyncAll(name)
}

type countingFile struct {
	File
	c *counting
}

func (f *countingFile) WriteAt(b []byte, off int64) (int, error) {
	f.c.written += int64(len(b))
	return f.File.WriteAt(b, off)
}

func (f *countingFile) Sync() error {
	f.c.syncs++
	return f.File.Sync()
}

// takeIn writes content to the incoming file of d.
func takeIn(t *testing.T, s *Store, d digest.Digest, content []byte) {
	t.Helper()
	in, err := s.Incoming(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(in, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(in.Finish(digest.FromBytes(content)), in.Close()); err != nil {
		t.Fatal(err)
	}
}

func at(_ digest.Digest, change func() error) error { return change() }

// TestWhatIsTakenInAgainIsWrittenOnce also takes in anew what an earlier process has
// left a half of, what is longer than it should be, and what is wrong in the middle.
func TestWhatIsTakenInAgainIsWrittenOnce(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	d := digest.FromBytes(content)
	wrong := bytes.Clone(content)
	wrong[len(wrong)/2] ^= 1
	for name, c := range map[string]struct {
		left []byte
		want int64
	}{
		"nothing": {nil, int64(len(content))},
		"all":     {content, 0},
		"half":    {content[:compareSize*2], int64(len(content)) - compareSize*2},
		"longer":  {append(bytes.Clone(content), "more"...), 0},
		"wrong":   {wrong, compareSize},
	} {
		t.Run(name, func(t *testing.T) {
			dir, files := t.TempDir(), &counting{}
			s, err := OpenOn(files, dir)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if c.left != nil {
				if err := os.WriteFile(s.incoming(d), c.left, fileMode); err != nil {
					t.Fatal(err)
				}
			}
			takeIn(t, s, d, content)
			if files.written != c.want {
				t.Errorf("%d bytes were written, want %d", files.written, c.want)
			}
			if _, ok := s.Has(d); ok {
				t.Error("it is stored before it was placed")
			}
			if err := s.Place([]digest.Digest{d}, at); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(s.path(d))
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestManyFilesAreSyncedTogether(t *testing.T) {
	files := &counting{}
	s, err := OpenOn(files, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var ds []digest.Digest
	for i := range 300 {
		content := fmt.Appendf(nil, "content %d", i)
		name := digest.FromBytes(content)
		ds = append(ds, name)
		if i%2 == 0 {
			name = ""
		}
		takeIn(t, s, name, content)
	}
	files.syncs = 0
	if err := s.Place(ds, at); err != nil {
		t.Fatal(err)
	}
	if files.syncs > 5 {
		t.Errorf("%d syncs for %d files", files.syncs, len(ds))
	}
	for i, d := range ds {
		if size, ok := s.Has(d); !ok || size != int64(len(fmt.Sprintf("content %d", i))) {
			t.Fatalf("%s: %d bytes, %v", d, size, ok)
		}
	}
}

// TestWhatWasTakenInWaitsForTheNextRun for a week, and knows a part of a fill from it.
func TestWhatWasTakenInWaitsForTheNextRun(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	kept, old := []byte("kept"), []byte("old")
	takeIn(t, s, digest.FromBytes(kept), kept)
	takeIn(t, s, digest.FromBytes(old), old)
	p, _, _, err := s.Part(digest.FromBytes(kept), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteAt(kept[:2], 0); err != nil {
		t.Fatal(err)
	}
	var have Spans
	have.Add(0, 2)
	if err := errors.Join(p.Save(have, 4), p.Close()); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-partKept - time.Hour)
	if err := os.Chtimes(s.incoming(digest.FromBytes(old)), long, long); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"import-123", "sha256-zz" + incomingSuffix} {
		if err := os.WriteFile(filepath.Join(dir, ingestDir, name), nil, fileMode); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	list, err := s.Unfinished()
	if err != nil || len(list) != 2 {
		t.Fatalf("want what is kept and the part of it, got %+v, %v", list, err)
	}
	for _, u := range list {
		if u.Digest != digest.FromBytes(kept) {
			t.Errorf("got %+v", u)
		}
		if u.Incoming {
			if err := s.RemoveUnfinished(u); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, have, size, err := s.Part(digest.FromBytes(kept), ""); err != nil || size != 4 || have.Len() != 2 {
		t.Errorf("the part lost its note: %v of %d, %v", have, size, err)
	}
}
