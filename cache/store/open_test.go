package store

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// impostors put something at path that is no file of the cache. outside is a file with
// content beyond the cache directory.
var impostors = map[string]func(path, outside string) error{
	"a pipe":          func(path, _ string) error { return unix.Mkfifo(path, 0o600) },
	"a symbolic link": func(path, outside string) error { return os.Symlink(outside, path) },
	"a dangling link": func(path, outside string) error { return os.Symlink(outside+"-new", path) },
	"a directory":     func(path, _ string) error { return os.Mkdir(path, 0o700) },
	"a full directory": func(path, _ string) error {
		return os.MkdirAll(filepath.Join(path, "in", "it"), 0o700)
	},
}

// promptly fails the test if fn takes so long that it must be waiting for something.
func promptly(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("it hangs")
	}
}

// wantUntouched checks the file outside of the cache.
func wantUntouched(t *testing.T, outside string) {
	t.Helper()
	if b, err := os.ReadFile(outside); err != nil || string(b) != "precious" {
		t.Errorf("the file outside of the cache: %q %v, want it untouched", b, err)
	}
	if _, err := os.Lstat(outside + "-new"); err == nil {
		t.Error("a file was made outside of the cache")
	}
}

func precious(t *testing.T) string {
	t.Helper()
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	return outside
}

func TestWhatStandsInTheWayOfAFileIsMovedAsideAndNeverFollowed(t *testing.T) {
	content := []byte("a blob's bytes")
	d := digest.FromBytes(content)
	kinds := map[string]func(path, outside string) error{
		"a hard link": os.Link, // to whatever is written; what is only read may have several names
	}
	for kind, make := range impostors {
		kinds[kind] = make
	}
	for kind, put := range kinds {
		t.Run(kind, func(t *testing.T) {
			outside := precious(t)
			// replace puts an impostor at path.
			replace := func(path string) {
				t.Helper()
				if err := errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Dir(path), 0o700)); err != nil {
					t.Fatal(err)
				}
				var err error
				if kind == "a hard link" {
					err = os.Link(outside, path)
				} else {
					err = put(path, outside)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			s, err := Open(filepath.Join(t.TempDir(), "cache"))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if kind != "a hard link" {
				promptly(t, func() {
					replace(s.path(d))
					if _, ok := s.Has(d); ok {
						t.Error("Has: it counts as stored")
					}
					for name, open := range map[string]func() error{
						"Get":   func() error { _, _, err := s.Get(d); return err },
						"Share": func() error { _, _, err := s.Share(d); return err },
						"Stamp": func() error { _, err := s.Stamp(d); return err },
					} {
						replace(s.path(d))
						if err := open(); !errors.Is(err, fs.ErrNotExist) {
							t.Errorf("%s: %v, want that it is not stored", name, err)
						}
					}
					replace(s.path(d))
					if err := s.Put(d, content); err != nil {
						t.Errorf("Put in its place: %v", err)
					}
					f, _, err := s.Get(d)
					if err != nil {
						t.Fatalf("what was put: %v", err)
					}
					defer f.Close()
					if b, err := io.ReadAll(f); err != nil || !bytes.Equal(b, content) {
						t.Errorf("what was put: %q %v", b, err)
					}
				})
			}
			for _, suffix := range []string{partSuffix, wholeSuffix, noteSuffix} {
				promptly(t, func() {
					if err := s.Remove(d); err != nil {
						t.Fatal(err)
					}
					base := filepath.Join(s.dir, ingestDir, d.Algorithm().String()+"-"+d.Encoded())
					if suffix == noteSuffix {
						if err := os.WriteFile(base+partSuffix, nil, 0o600); err != nil {
							t.Fatal(err)
						}
					}
					replace(base + suffix)
					p, have, _, err := s.Part(d, "")
					if err != nil {
						t.Fatalf("%s: %v", suffix, err)
					}
					if have.Len() != 0 {
						t.Errorf("%s: a part of %d bytes was found", suffix, have.Len())
					}
					if _, err := p.WriteAt(content, 0); err != nil {
						t.Fatal(err)
					}
					if err := errors.Join(p.MarkWhole(int64(len(content))), p.Commit(int64(len(content))), p.Close()); err != nil {
						t.Errorf("%s: %v", suffix, err)
					}
					if n, ok := s.Has(d); !ok || n != int64(len(content)) {
						t.Errorf("%s: stored %v, %d bytes", suffix, ok, n)
					}
				})
			}
			promptly(t, func() {
				replace(s.incoming(d))
				in, err := s.Incoming(d)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := in.Write(content); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(in.Finish(d), in.Close()); err != nil {
					t.Error(err)
				}
			})
			wantUntouched(t, outside)
			if left, err := os.ReadDir(filepath.Join(s.dir, damagedDir)); err != nil || len(left) == 0 {
				t.Errorf("nothing was set aside: %v", err)
			}
		})
	}
}

func TestADirectoryThatIsALinkIsMovedAside(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	content := []byte("a blob's bytes")
	d := digest.FromBytes(content)
	for _, level := range []string{filepath.Dir(s.path(d)), filepath.Dir(filepath.Dir(s.path(d)))} {
		elsewhere := t.TempDir()
		if err := errors.Join(os.RemoveAll(level), os.MkdirAll(filepath.Dir(level), 0o700), os.Symlink(elsewhere, level)); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(d, content); err != nil {
			t.Errorf("%s: %v", level, err)
		}
		if st, err := os.Lstat(level); err != nil || !st.IsDir() {
			t.Errorf("%s is no directory: %v", level, err)
		}
		if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
			t.Errorf("%d files were written where the link leads", len(left))
		}
		// A link that comes later is not followed to what is there.
		if err := errors.Join(os.RemoveAll(level), os.Symlink(elsewhere, level), os.MkdirAll(filepath.Join(elsewhere, d.Encoded()[:2]), 0o700),
			os.WriteFile(filepath.Join(elsewhere, d.Encoded()), content, 0o600),
			os.WriteFile(filepath.Join(elsewhere, d.Encoded()[:2], d.Encoded()), content, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Get(d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("content beyond a link: %v, want that it is not stored", err)
		}
	}
}

func TestACacheDirectoryMayBeReachedByALinkButNotItsParts(t *testing.T) {
	real := filepath.Join(t.TempDir(), "real")
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.Mkdir(real, 0o700), os.Symlink(real, link)); err != nil {
		t.Fatal(err)
	}
	s, err := Open(link)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Put(digest.FromString("x"), []byte("x")), s.Close()); err != nil {
		t.Fatal(err)
	}
	ingest := filepath.Join(real, ingestDir)
	if err := errors.Join(os.RemoveAll(ingest), os.Symlink(t.TempDir(), ingest)); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(link); err == nil {
		t.Error("a directory of parts that is a link was accepted")
		s.Close()
	}
}
