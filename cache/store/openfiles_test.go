package store

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
)

func put(t *testing.T, s *Store, content string) digest.Digest {
	t.Helper()
	d := digest.FromString(content)
	if err := s.Put(d, []byte(content)); err != nil {
		t.Fatal(err)
	}
	return d
}

func share(t *testing.T, s *Store, d digest.Digest) *Content {
	t.Helper()
	c, _, err := s.Share(d)
	if err != nil {
		t.Fatalf("share %s: %v", d, err)
	}
	return c
}

func isOpen(c *Content) bool {
	_, err := c.file.Stat()
	return err == nil
}

func TestSharedFileIsOpenedOnceAndClosedOnceItsContentIsRemoved(t *testing.T) {
	s := open(t, t.TempDir())
	d := put(t, s, "a layer")
	first, second := share(t, s, d), share(t, s, d)
	if first != second {
		t.Error("the second user has a file of its own")
	}
	first.Close()
	second.Close()
	if third := share(t, s, d); third != first || !isOpen(third) {
		t.Error("the file did not stay open for the third user")
	}
	if err := s.Remove(d); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.NewSectionReader(first, 0, 1<<20)); err != nil || b.String() != "a layer" {
		t.Errorf("who reads it while it is removed gets %q, %v", b.String(), err)
	}
	if _, _, err := s.Share(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed content is shared: %v", err)
	}
	first.Close()
	if isOpen(first) {
		t.Error("removed content still takes up room: its file is open")
	}
}

func TestSharedFileThatWasTouchedOrReplacedIsOpenedAnew(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"written to": func(path string) error { return os.WriteFile(path, []byte("a lAyer"), 0o600) },
		"removed by somebody": func(path string) error {
			return errors.Join(os.Remove(path), os.WriteFile(path, []byte("a lAyer"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			d := put(t, s, "a layer")
			before, stamp, err := s.Share(d)
			if err != nil {
				t.Fatal(err)
			}
			before.Close()
			if err := change(s.path(d)); err != nil {
				t.Fatal(err)
			}
			after, now, err := s.Share(d)
			if err != nil {
				t.Fatal(err)
			}
			defer after.Close()
			if now == stamp {
				t.Error("the stamp is that of before")
			}
			b := make([]byte, 7)
			if _, err := after.ReadAt(b, 0); err != nil || string(b) != "a lAyer" {
				t.Errorf("read %q, %v, want what is there now", b, err)
			}
			if isOpen(before) && before != after {
				t.Error("the file of before is still open")
			}
		})
	}
}

func TestFewFilesStayOpen(t *testing.T) {
	s := open(t, t.TempDir())
	var all []*Content
	for i := range MaxShared + 5 {
		c := share(t, s, put(t, s, string(rune('a'+i))))
		c.Close()
		all = append(all, c)
	}
	for i, c := range all {
		if isOpen(c) != (i >= 5) {
			t.Errorf("file %d of %d: open is %t", i, len(all), isOpen(c))
		}
	}
	s.CloseIdle()
	if isOpen(all[len(all)-1]) {
		t.Error("the last is still open")
	}
}

// A hit opens nothing and allocates nothing.
func TestShareOfAnOpenFileAllocatesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	d := put(t, s, "a layer")
	n := testing.AllocsPerRun(100, func() {
		c, _, err := s.Share(d)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
	if n != 0 {
		t.Errorf("%g allocations, want none", n)
	}
}

func TestSharedFileThatNobodyAsksForIsClosed(t *testing.T) {
	s := open(t, t.TempDir())
	unused, used, read := put(t, s, "unused"), put(t, s, "used"), put(t, s, "being read")
	first := share(t, s, unused)
	first.Close()
	second := share(t, s, used)
	second.Close()
	third := share(t, s, read)
	s.CloseUnused()
	for _, c := range []*Content{first, second, third} {
		if !isOpen(c) {
			t.Errorf("%s was asked for since the last time, and is closed", c.digest)
		}
	}
	share(t, s, used).Close()
	s.CloseUnused()
	if isOpen(first) || !isOpen(second) || !isOpen(third) {
		t.Errorf("open are: unused %v, used %v, being read %v; want all but the unused", isOpen(first), isOpen(second), isOpen(third))
	}
	third.Close()
	s.CloseUnused()
	if isOpen(second) || isOpen(third) {
		t.Error("what nobody has asked for twice is still open")
	}
}
