package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// want checks that d is stored as content, or not at all where it is nil.
func want(t *testing.T, s *Store, d digest.Digest, content []byte) {
	t.Helper()
	f, stamp, err := s.Get(d)
	if content == nil {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want %v", d, err, fs.ErrNotExist)
		}
		if _, ok := s.Has(d); ok {
			t.Errorf("%s is there", d)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, content) || stamp.Size != int64(len(content)) {
		t.Errorf("%s: %d bytes of %d, %v; want %d", d, len(got), stamp.Size, err, len(content))
	}
	if size, ok := s.Has(d); !ok || size != int64(len(content)) {
		t.Errorf("Has(%s) = %d, %v", d, size, ok)
	}
}

func TestContentIsKeptUnderItsDigest(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	content := []byte("a manifest")
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		d := alg.FromBytes(content)
		want(t, s, d, nil)
		for range 2 {
			if err := s.Put(d, content); err != nil {
				t.Fatal(err)
			}
			want(t, s, d, content)
		}
		path := filepath.Join(dir, "blobs", alg.String(), d.Encoded()[:2], d.Encoded())
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, content) {
			t.Errorf("%s: %q, %v", path, b, err)
		}
		if err := s.Remove(d); err != nil {
			t.Fatal(err)
		}
		want(t, s, d, nil)
		if err := s.Remove(d); err != nil {
			t.Errorf("removing what is not there: %v", err)
		}
	}
}

func TestPutReplacesContentOfAnotherSize(t *testing.T) {
	s := open(t, t.TempDir())
	d := digest.FromString("right")
	if err := s.Put(d, []byte("cut sho")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(d, []byte("right")); err != nil {
		t.Fatal(err)
	}
	want(t, s, d, []byte("right"))
}

func TestDigestThatIsNoneNeverReachesAPath(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "cache"))
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []digest.Digest{"", "sha256:", "sha256:../../../secret", "../../secret", "sha256:" + digest.Digest(strings.Repeat("/", 64))} {
		if _, _, err := s.Get(d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Get(%q): %v", d, err)
		}
		if _, _, _, err := s.Part(d, ""); err == nil {
			t.Errorf("Part(%q) is given", d)
		}
	}
}

func TestRemovedContentIsReadToItsEndByWhoHasItOpen(t *testing.T) {
	s := open(t, t.TempDir())
	d := digest.FromString("content")
	if err := s.Put(d, []byte("content")); err != nil {
		t.Fatal(err)
	}
	f, _, err := s.Get(d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Remove(d); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestWalkSeesAllContentAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	stored := map[digest.Digest]int64{}
	for i := range 20 {
		content := []byte(strings.Repeat("x", i))
		d := digest.SHA256.FromBytes(content)
		if i%3 == 0 {
			d = digest.SHA512.FromBytes(content)
		}
		if err := s.Put(d, content); err != nil {
			t.Fatal(err)
		}
		stored[d] = int64(i)
	}
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p, _, _, err := s.Part(digest.FromString("not there yet"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	err = s.Walk(func(d digest.Digest, size int64) error {
		if want, ok := stored[d]; !ok || want != size {
			t.Errorf("%s of %d bytes, want %d, %v", d, size, want, ok)
		}
		delete(stored, d)
		return nil
	})
	if err != nil || len(stored) > 0 {
		t.Errorf("%v; not seen: %v", err, stored)
	}
	stop := errors.New("stop")
	if err := s.Walk(func(digest.Digest, int64) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want %v", err, stop)
	}
}

func TestPartIsSeenOnlyOnceItIsCommitted(t *testing.T) {
	s := open(t, t.TempDir())
	content := []byte("0123456789")
	d := digest.FromBytes(content)
	p, have, size, err := s.Part(d, "")
	if err != nil || have.Len() != 0 || size != -1 {
		t.Fatalf("a new part has %v of %d, %v", have.Runs(), size, err)
	}
	before, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	for _, at := range []int64{5, 0} {
		if _, err := p.WriteAt(content[at:at+5], at); err != nil {
			t.Fatal(err)
		}
		want(t, s, d, nil)
	}
	if _, err := p.WriteAt([]byte("and more than there is"), 10); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(10); err != nil {
		t.Fatal(err)
	}
	want(t, s, d, content)
	after, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	for _, r := range []io.ReaderAt{before, after} {
		if got, err := io.ReadAll(io.NewSectionReader(r, 0, 1<<20)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("a reader gets %q, %v", got, err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	wantIngest(t, s, 0)
}

// wantIngest checks how many files of parts there are.
func wantIngest(t *testing.T, s *Store, n int) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(s.Dir(), ingestDir))
	if err != nil || len(files) != n {
		t.Errorf("ingest holds %v, %v; want %d files", files, err, n)
	}
}

func TestPartCanBeOpenedAtAnyMomentOfItsCommit(t *testing.T) {
	s := open(t, t.TempDir())
	for n := range 50 {
		content := fmt.Appendf(nil, "layer %d", n)
		p, _, _, err := s.Part(digest.FromBytes(content), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
		committed := make(chan error)
		go func() { committed <- p.Commit(int64(len(content))) }()
		for done := false; !done; {
			select {
			case err := <-committed:
				if err != nil {
					t.Fatal(err)
				}
				done = true
			default:
			}
			f, err := p.Open()
			if err != nil {
				t.Fatalf("part %d, committed: %v: %v", n, done, err)
			}
			f.Close()
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestPartIsFoundAgainWithWhatWasSaved(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	d := digest.FromString("0123456789")
	p, _, _, err := s.Part(d, "")
	if err != nil {
		t.Fatal(err)
	}
	var have Spans
	for _, at := range []int64{0, 6} {
		if _, err := p.WriteAt([]byte("0123456789")[at:at+3], at); err != nil {
			t.Fatal(err)
		}
		have.Add(at, at+3)
	}
	if err := p.Save(have, 10); err != nil {
		t.Fatal(err)
	}
	p.Close()
	s.Close()

	s = open(t, dir)
	p, got, size, err := s.Part(d, "")
	if err != nil || size != 10 || fmt.Sprint(got.Runs()) != fmt.Sprint(have.Runs()) {
		t.Fatalf("found %v of %d, %v; want %v of 10", got.Runs(), size, err, have.Runs())
	}
	if err := p.Reset(); err != nil {
		t.Fatal(err)
	}
	p.Close()
	p, got, size, err = s.Part(d, "")
	if err != nil || got.Len() != 0 || size != -1 {
		t.Errorf("after Reset: %v of %d, %v", got.Runs(), size, err)
	}
	if err := p.Discard(); err != nil {
		t.Fatal(err)
	}
	wantIngest(t, s, 0)
}

// A Save that runs at the same time and knows less must not have the last word.
func TestPartThatIsMarkedAsWholeIsFoundWhole(t *testing.T) {
	dir := t.TempDir()
	d := digest.FromString("whole")
	s := open(t, dir)
	p, _, _, err := s.Part(d, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteAt([]byte("whole"), 0); err != nil {
		t.Fatal(err)
	}
	var have Spans
	have.Add(0, 2)
	if err := errors.Join(p.MarkWhole(5), p.Save(have, 5), p.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	p, have, size, err := s.Part(d, "")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if size != 5 || have.Reach(0) != 5 {
		t.Errorf("found %d bytes of %d, want 5 of 5", have.Reach(0), size)
	}
}

func TestNoteThatMakesNoSenseSaysNothing(t *testing.T) {
	s := open(t, t.TempDir())
	d := digest.FromString("0123456789")
	for note, left := range map[string]int64{
		``:                       0,
		`{`:                      0,
		`{"size":-7,"spans":[]}`: 0,
		`{"size":10,"spans":[{"From":-1,"To":3}]}`:                        0,
		`{"size":10,"spans":[{"From":3,"To":1}]}`:                         0,
		`{"size":10,"spans":[{"From":0,"To":999}]}`:                       0,
		`{"size":2,"spans":[{"From":0,"To":4}]}`:                          0,
		`{"size":10,"spans":[{"From":0,"To":4}]}`:                         4,
		`{"size":10,"spans":[{"From":0,"To":2},{"From":1,"To":4}]}`:       4,
		`{"size":-1,"spans":[{"From":2,"To":4}],"a later version":"key"}`: 2,
		strings.Repeat(" ", maxNote) + `{"size":10}`:                      0,
	} {
		p, _, _, err := s.Part(d, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.WriteAt([]byte("0123"), 0); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.note, []byte(note), 0o600); err != nil {
			t.Fatal(err)
		}
		p.Close()
		p, have, _, err := s.Part(d, "")
		if err != nil || have.Len() != left {
			t.Errorf("note %.60q: %v, %v; want %d bytes", note, have.Runs(), err, left)
		}
		p.Discard()
	}
}

// crashEnv names the directory in which a child process works until it dies.
const crashEnv = "ENTREPOT_TEST_CRASH_DIR"

// TestNothingHalfWrittenIsSeenAfterAKill runs a process that stores content
// without end, kills it at random moments, and looks at what is there.
func TestNothingHalfWrittenIsSeenAfterAKill(t *testing.T) {
	if dir := os.Getenv(crashEnv); dir != "" {
		writeForEver(dir)
	}
	dir := t.TempDir()
	for i := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNothingHalfWrittenIsSeenAfterAKill$")
		cmd.Env = append(os.Environ(), crashEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Each digest that it prints has been stored.
		var printed bytes.Buffer
		if _, err := io.CopyN(&printed, out, rand.Int64N(40)*72+1); err != nil {
			t.Fatalf("the writer ended by itself: %v", err)
		}
		cmd.Process.Kill()
		io.Copy(&printed, out)
		cmd.Wait()

		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		stored := map[string]bool{}
		err = s.Walk(func(d digest.Digest, size int64) error {
			f, _, err := s.Get(d)
			if err != nil {
				return err
			}
			defer f.Close()
			b, err := io.ReadAll(f)
			if err != nil {
				return err
			}
			if got := digest.FromBytes(b); got != d {
				t.Errorf("kill %d: %s holds %d bytes of %s", i, d, size, got)
			}
			stored[d.String()] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.SplitAfter(printed.String(), "\n") {
			if d, ok := strings.CutSuffix(line, "\n"); ok && !stored[d] {
				t.Errorf("kill %d: %q was stored and is gone", i, d)
			}
		}
		s.Close()
	}
}

// writeForEver stores random content, by Put and by parts, and prints the
// digest of each once it is stored.
func writeForEver(dir string) {
	s, err := Open(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		b := make([]byte, 1+rand.IntN(200_000))
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		d := digest.FromBytes(b)
		if len(b)%2 == 0 {
			err = s.Put(d, b)
		} else {
			err = writePart(s, d, b)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(d)
	}
}

func writePart(s *Store, d digest.Digest, b []byte) error {
	p, _, _, err := s.Part(d, "")
	if err != nil {
		return err
	}
	defer p.Close()
	half := len(b) / 2
	if _, err := p.WriteAt(b[half:], int64(half)); err != nil {
		return err
	}
	var have Spans
	have.Add(int64(half), int64(len(b)))
	if err := p.Save(have, int64(len(b))); err != nil {
		return err
	}
	if _, err := p.WriteAt(b[:half], 0); err != nil {
		return err
	}
	return p.Commit(int64(len(b)))
}

func TestDirectoryOfAnotherFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.Close()
	if err := os.WriteFile(filepath.Join(dir, versionFile), []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), `"99"`) {
		t.Errorf("%v", err)
	}
}

func TestCheckSeesADirectoryThatCanNotBeWritten(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	wantIngest(t, s, 0)
	if err := os.RemoveAll(filepath.Join(s.Dir(), ingestDir)); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err == nil {
		t.Error("a directory without a place for parts is found good")
	}
}

func TestAPartThatHasEndedNeverOpensAnother(t *testing.T) {
	s := open(t, t.TempDir())
	b := []byte("content")
	d := digest.FromBytes(b)
	begin := func() *Part {
		t.Helper()
		p, _, _, err := s.Part(d, "")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := begin()
	if _, err := first.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Commit(int64(len(b))), first.Close()); err != nil {
		t.Fatal(err)
	}
	reads := func(p *Part, want error) {
		t.Helper()
		r, err := p.Open()
		if err != nil || want != nil {
			if !errors.Is(err, want) {
				t.Errorf("open: %v, want %v", err, want)
			}
			return
		}
		defer r.Close()
		got := make([]byte, len(b))
		if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, b) {
			t.Errorf("it reads %q, %v", got, err)
		}
	}
	reads(first, nil)
	// It is removed, and fetched anew by another, which has nothing yet, or holes.
	if err := s.Remove(d); err != nil {
		t.Fatal(err)
	}
	second := begin()
	reads(first, fs.ErrNotExist)
	if _, err := second.WriteAt(b[3:], 3); err != nil {
		t.Fatal(err)
	}
	reads(first, fs.ErrNotExist)
	if err := second.MarkWhole(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	reads(first, fs.ErrNotExist)
	if _, err := second.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	reads(second, nil)
	if err := errors.Join(second.Commit(int64(len(b))), second.Close()); err != nil {
		t.Fatal(err)
	}
	// What has its final name is right, whoever has fetched it.
	reads(first, nil)
	reads(second, nil)
	third := begin()
	if err := third.Discard(); err != nil {
		t.Fatal(err)
	}
	reads(third, nil)
}
