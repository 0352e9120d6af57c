package index

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/store"
)

var pin = Pin{Digest: digest.FromString("pinned"), Since: time.Unix(100, 0)}

// filled makes an index at path with tags, links, a pin and a blob, and closes it.
func filled(t *testing.T, path string, n int) {
	t.Helper()
	ix := opened(t, path)
	if _, err := ix.Restore(); err != nil {
		t.Fatal(err)
	}
	links := map[digest.Digest]Link{}
	for i := range n {
		links[digest.FromString(fmt.Sprint(i))] = Link{Size: int64(i)}
	}
	if err := ix.Put(Change{
		Upstream: "docker.io", Repository: "library/nginx", Tag: "latest", Record: one, Links: links,
		Blobs: map[digest.Digest]Blob{digest.FromString("other"): {Stamp: store.Stamp{Size: 7}}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := ix.PutPin("docker.io", "library/nginx", "latest", pin); err != nil {
		t.Fatal(err)
	}
	closed(t, ix)
}

// wantFilled checks what filled has put, as far as it is in the backup.
func wantFilled(t *testing.T, ix *Index, n int) {
	t.Helper()
	wantTag(t, ix, one, true)
	for i := range n {
		if l, ok := ix.Link("docker.io", "library/nginx", digest.FromString(fmt.Sprint(i))); !ok || l.Size != int64(i) {
			t.Fatalf("link %d: %+v, %v", i, l, ok)
		}
	}
	if p, ok := ix.Pin("docker.io", "library/nginx", "latest"); !ok || p.Digest != pin.Digest || !p.Since.Equal(pin.Since) {
		t.Errorf("pin: %+v, %v", p, ok)
	}
}

func TestLostIndexIsRestoredFromItsBackup(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"missing": os.Remove,
		"damaged": func(path string) error { return os.WriteFile(path, []byte("this is no index"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			const n = 2*backupChunk + 3
			path := filepath.Join(t.TempDir(), "index.db")
			filled(t, path, n)
			if err := lose(path); err != nil {
				t.Fatal(err)
			}
			ix, _, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			if ix.Whole() {
				t.Error("an index that was begun anew says that it is whole")
			}
			// What was learned since is newer than the backup.
			if err := ix.PutLinks("docker.io", "library/nginx", map[digest.Digest]Link{digest.FromString("new"): {}}); err != nil {
				t.Fatal(err)
			}
			restored, err := ix.Restore()
			if want := 1 + 1 + n + 1; err != nil || restored != want {
				t.Errorf("%d entries restored, %v; want %d", restored, err, want)
			}
			wantFilled(t, ix, n)
			if _, ok := ix.Blob(digest.FromString("other")); ok {
				t.Error("a record that the tree will give is in the backup")
			}
			if blobs, size := ix.Totals(); blobs != 0 || size != 0 {
				t.Errorf("%d blobs of %d bytes are counted; want none", blobs, size)
			}
			closed(t, ix)
			if ix = opened(t, path); !ix.Whole() {
				t.Error("an index that was restored says that it is not whole")
			}
			closed(t, ix)
		})
	}
}

func TestRestoreKeepsWhatIsKnownSince(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	filled(t, path, 1)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	ix := opened(t, path)
	defer closed(t, ix)
	if err := ix.PutTag("docker.io", "library/nginx", "latest", two); err != nil {
		t.Fatal(err)
	}
	if _, err := ix.Restore(); err != nil {
		t.Fatal(err)
	}
	wantTag(t, ix, two, true)
}

// TestCrashBeforeTheEndOfARestoreLosesNothing has the process end after an index
// has been begun anew, and before it was restored.
func TestCrashBeforeTheEndOfARestoreLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	filled(t, path, 10)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	ix := opened(t, path)
	if err := ix.PutTag("docker.io", "library/other", "latest", two); err != nil {
		t.Fatal(err)
	}
	closed(t, ix) // it must not write a backup of the little that is known
	ix = opened(t, path)
	defer closed(t, ix)
	if ix.Whole() {
		t.Fatal("it says that it is whole")
	}
	if _, err := ix.Restore(); err != nil {
		t.Fatal(err)
	}
	wantFilled(t, ix, 10)
}

func TestOfADamagedBackupAllIsRestoredBeforeTheDamage(t *testing.T) {
	const n = 5 * backupChunk
	for name, damage := range map[string]func([]byte) []byte{
		"cut short": func(b []byte) []byte { return b[:len(b)*9/10] },
		"one byte is another": func(b []byte) []byte {
			b[len(b)*9/10] ^= 1
			return b
		},
		"no backup": func([]byte) []byte { return []byte("no backup") },
		"empty":     func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "index.db")
			filled(t, path, n)
			b, err := os.ReadFile(backupPath(path))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(backupPath(path), damage(bytes.Clone(b)), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			ix := opened(t, path)
			defer closed(t, ix)
			restored, err := ix.Restore()
			if err == nil {
				t.Error("nothing is said of the damage")
			}
			if len(damage(bytes.Clone(b))) > len(b)/2 && restored < n/2 {
				t.Errorf("%d entries of %d restored", restored, n)
			}
			if !ix.Whole() {
				t.Error("it would be tried again for ever")
			}
		})
	}
}

func TestBackupIsWrittenNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "index.db")
		filled(t, path, 1)
		ix := opened(t, path)
		defer closed(t, ix)
		before, err := os.ReadFile(backupPath(path))
		if err != nil {
			t.Fatal(err)
		}
		same := func() bool {
			now, err := os.ReadFile(backupPath(path))
			return err == nil && bytes.Equal(now, before)
		}
		time.Sleep(3 * backupEvery)
		if !same() {
			t.Error("it was written although nothing has changed")
		}
		if err := ix.PutLinks("docker.io", "library/nginx", map[digest.Digest]Link{digest.FromString("new"): {}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(backupEvery + time.Second)
		synctest.Wait()
		if same() {
			t.Error("it was not written after a change")
		}
	})
}
