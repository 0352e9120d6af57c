package index

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

func opened(t *testing.T, path string) *Index {
	t.Helper()
	ix, aside, err := Open(path)
	if err != nil || aside != "" {
		t.Fatalf("%v, aside %q", err, aside)
	}
	return ix
}

func closed(t *testing.T, ix *Index) {
	t.Helper()
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
}

var (
	one = Tag{Digest: digest.FromString("one"), MediaType: v1.MediaTypeImageIndex, Size: 1, Checked: time.Unix(100, 0).UTC()}
	two = Tag{Digest: digest.FromString("two"), MediaType: v1.MediaTypeImageIndex, Size: 2, Checked: time.Unix(200, 0).UTC()}
)

func wantTag(t *testing.T, ix *Index, want Tag, known bool) {
	t.Helper()
	got, ok := ix.Tag("docker.io", "library/nginx", "latest")
	if ok != known || known && !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v, %v", got, ok, want, known)
	}
}

func TestWhatIsPutIsThereAfterReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	if err := ix.PutTag("docker.io", "library/nginx", "latest", one); err != nil {
		t.Fatal(err)
	}
	link := Link{MediaType: v1.MediaTypeImageManifest, Size: 7, Manifest: true}
	if err := ix.PutLinks("docker.io", "library/nginx", map[digest.Digest]Link{one.Digest: link}); err != nil {
		t.Fatal(err)
	}
	list := List{Tags: []string{"a", "b"}, Checked: one.Checked}
	if err := ix.PutList(Tags, "docker.io", "library/nginx", "", list); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		wantTag(t, ix, one, true)
		if got, ok := ix.Link("docker.io", "library/nginx", one.Digest); !ok || got != link {
			t.Errorf("link %+v, %v", got, ok)
		}
		if got, ok := ix.List(Tags, "docker.io", "library/nginx", ""); !ok || !reflect.DeepEqual(got, list) {
			t.Errorf("list %+v, %v", got, ok)
		}
		// Nothing of it belongs to another name.
		if _, ok := ix.Tag("docker.io", "library/nginx2", "latest"); ok {
			t.Error("another repository has the tag")
		}
		if _, ok := ix.Link("ghcr.io", "library/nginx", one.Digest); ok {
			t.Error("another upstream has the link")
		}
		if _, ok := ix.List(Referrers, "docker.io", "library/nginx", ""); ok {
			t.Error("another kind has the list")
		}
		closed(t, ix)
		ix = opened(t, path)
	}
	closed(t, ix)
}

func TestTouchIsSeenAtOnceAndWrittenBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ix := opened(t, filepath.Join(dir, "index.db"))
		if err := ix.PutTag("docker.io", "library/nginx", "latest", one); err != nil {
			t.Fatal(err)
		}
		ix.Touch("docker.io", "library/nginx", "latest", two)
		wantTag(t, ix, two, true)
		time.Sleep(2 * flushEvery)
		synctest.Wait()
		// A copy of the file is what a crash now would leave.
		b, err := os.ReadFile(filepath.Join(dir, "index.db"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "crashed.db"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		crashed := opened(t, filepath.Join(dir, "crashed.db"))
		wantTag(t, crashed, two, true)
		closed(t, crashed)
		closed(t, ix)
	})
}

func TestTouchIsWrittenByClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	if err := ix.PutTag("docker.io", "library/nginx", "latest", one); err != nil {
		t.Fatal(err)
	}
	ix.Touch("docker.io", "library/nginx", "latest", two)
	closed(t, ix)
	ix = opened(t, path)
	wantTag(t, ix, two, true)
	closed(t, ix)
}

func TestDropIsNotUndoneByAnEarlierTouch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	if err := ix.PutTag("docker.io", "library/nginx", "latest", one); err != nil {
		t.Fatal(err)
	}
	ix.Touch("docker.io", "library/nginx", "latest", one)
	if _, err := ix.DropTags("docker.io", "library/nginx", []string{"latest"}, nil); err != nil {
		t.Fatal(err)
	}
	wantTag(t, ix, Tag{}, false)
	closed(t, ix)
	ix = opened(t, path)
	wantTag(t, ix, Tag{}, false)
	closed(t, ix)
}

func TestRepositoriesAreListedOnceSorted(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	for _, r := range [][2]string{{"ghcr.io", "a/b"}, {"docker.io", "library/nginx"}, {"docker.io", "library/nginx-x"}, {"docker.io", "library/a"}} {
		for _, tag := range []string{"1", "2", "3"} {
			if err := ix.PutTag(r[0], r[1], tag, one); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := ix.PutLinks("quay.io", "only/links", map[digest.Digest]Link{one.Digest: {}, two.Digest: {}}); err != nil {
		t.Fatal(err)
	}
	got, err := ix.Repositories()
	want := []string{"docker.io/library/a", "docker.io/library/nginx", "docker.io/library/nginx-x", "ghcr.io/a/b", "quay.io/only/links"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

func TestDamagedFileIsSetAside(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"no index":  func([]byte) []byte { return []byte("this is no index, and never was; it is only long enough") },
		"cut short": func(b []byte) []byte { return b[:4096+100] },
		"empty meta": func(b []byte) []byte {
			clear(b[:2*4096])
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "index.db")
			ix := opened(t, path)
			if err := ix.PutTag("docker.io", "library/nginx", "latest", one); err != nil {
				t.Fatal(err)
			}
			closed(t, ix)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			ix, aside, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer closed(t, ix)
			if _, err := os.Stat(aside); err != nil {
				t.Errorf("set aside as %q: %v", aside, err)
			}
			wantTag(t, ix, Tag{}, false)
			if err := ix.PutTag("docker.io", "library/nginx", "latest", two); err != nil {
				t.Fatal(err)
			}
			wantTag(t, ix, two, true)
		})
	}
}

// A flush that fails must not bring back what was put meanwhile over what it was
// to write.
func TestFlushThatFailsBringsNoOldTagBack(t *testing.T) {
	ix, _, err := Open(filepath.Join(t.TempDir(), "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	now := time.Now()
	older, newer := Tag{Digest: digest.FromString("old"), Checked: now}, Tag{Digest: digest.FromString("new"), Checked: now.Add(time.Second)}
	for _, tag := range []string{"1", "broken"} {
		if err := ix.PutTag("up", "repo", tag, older); err != nil {
			t.Fatal(err)
		}
	}
	ix.Touch("up", "repo", "1", older)
	// JSON can not hold this one: the flush fails.
	ix.Touch("up", "repo", "broken", Tag{Checked: time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)})

	writer, err := ix.db.Load().bolt.Begin(true) // both wait for it
	if err != nil {
		t.Fatal(err)
	}
	flushed, put := make(chan error, 1), make(chan error, 1)
	go func() { flushed <- ix.flush() }()
	deadline := time.Now().Add(time.Minute)
	for pending := 1; pending > 0; runtime.Gosched() { // until the flush has taken what is touched
		if time.Now().After(deadline) {
			t.Fatal("the flush takes nothing")
		}
		ix.mu.Lock()
		pending = len(ix.touched)
		ix.mu.Unlock()
	}
	go func() { put <- ix.PutTag("up", "repo", "1", newer) }()
	if err := writer.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-flushed; err == nil {
		t.Fatal("the flush did not fail")
	}
	if err := <-put; err != nil {
		t.Fatal(err)
	}
	if got, _ := ix.Tag("up", "repo", "1"); got.Digest != newer.Digest {
		t.Errorf("the tag stands for %s, want %s, which was put last", got.Digest, newer.Digest)
	}
}
