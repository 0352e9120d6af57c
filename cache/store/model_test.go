package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
)

// errCrash is what every operation gives once the process is dead.
var errCrash = errors.New("crashed")

// inode is a file as the kernel has it, and as the disk has it.
type inode struct {
	data   []byte
	synced []byte
}

// crashing is a file system that ends, or fails, before any operation that a test
// chooses, and knows what a power cut would leave. It works on a real directory,
// so that the store can read it, and syncs nothing really.
type crashing struct {
	OS
	rnd   *rand.Rand
	steps int
	// crashAt is the step before which the process dies; 0 is never.
	crashAt int
	// failEvery makes one in so many operations fail; 0 is none.
	failEvery int

	root         string
	now, durable map[string]*inode // by path; directories have a nil inode
}

func newCrashing(root string, rnd *rand.Rand) *crashing {
	c := &crashing{rnd: rnd, root: root, now: map[string]*inode{}, durable: map[string]*inode{}}
	// What Open makes by itself.
	for _, dir := range []string{"", blobsDir, ingestDir} {
		c.now[filepath.Join(root, dir)], c.durable[filepath.Join(root, dir)] = nil, nil
	}
	return c
}

func (c *crashing) dead() bool { return c.crashAt > 0 && c.steps >= c.crashAt }

// step is called before each operation.
func (c *crashing) step() error {
	if !c.dead() {
		c.steps++
	}
	if c.dead() {
		return errCrash
	}
	if c.failEvery > 0 && c.rnd.IntN(c.failEvery) == 0 {
		return []error{syscall.ENOSPC, syscall.EIO, syscall.EROFS, syscall.EMFILE}[c.rnd.IntN(4)]
	}
	return nil
}

func (c *crashing) OpenFile(name string, flag int, mode fs.FileMode) (File, error) {
	if err := c.step(); err != nil {
		return nil, err
	}
	return c.track(c.OS.OpenFile(name, flag, mode))
}

func (c *crashing) CreateTemp(dir, pattern string) (File, error) {
	if err := c.step(); err != nil {
		return nil, err
	}
	return c.track(c.OS.CreateTemp(dir, pattern))
}

func (c *crashing) track(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	ino := c.now[f.Name()]
	if ino == nil {
		ino = &inode{}
		c.now[f.Name()] = ino
	}
	return &crashingFile{File: f, c: c, ino: ino}, nil
}

func (c *crashing) Mkdir(name string, mode fs.FileMode) error {
	if err := c.step(); err != nil {
		return err
	}
	err := c.OS.Mkdir(name, mode)
	if err == nil {
		c.now[name] = nil
	}
	return err
}

func (c *crashing) Rename(from, to string) error {
	if err := c.step(); err != nil {
		return err
	}
	err := c.OS.Rename(from, to)
	if err == nil {
		c.now[to] = c.now[from]
		delete(c.now, from)
	}
	return err
}

func (c *crashing) Remove(name string) error {
	if err := c.step(); err != nil {
		return err
	}
	err := c.OS.Remove(name)
	if err == nil {
		delete(c.now, name)
	}
	return err
}

func (c *crashing) SyncDir(name string) error {
	if err := c.step(); err != nil {
		return err
	}
	for path := range c.durable {
		if _, there := c.now[path]; !there && filepath.Dir(path) == name {
			delete(c.durable, path)
		}
	}
	for path, ino := range c.now {
		if filepath.Dir(path) == name {
			c.durable[path] = ino
		}
	}
	return nil
}

func (c *crashing) SyncAll(name string) error {
	if err := c.step(); err != nil {
		return err
	}
	below := func(path string) bool { return strings.HasPrefix(path, name+string(filepath.Separator)) }
	for path := range c.durable {
		if _, there := c.now[path]; !there && below(path) {
			delete(c.durable, path)
		}
	}
	for path, ino := range c.now {
		if !below(path) {
			continue
		}
		c.durable[path] = ino
		if ino != nil {
			ino.synced = slices.Clone(ino.data)
		}
	}
	return nil
}

type crashingFile struct {
	File
	c   *crashing
	ino *inode
}

func (f *crashingFile) Write(b []byte) (int, error) {
	return f.write(b, int64(len(f.ino.data)), func(b []byte) (int, error) { return f.File.Write(b) })
}

func (f *crashingFile) WriteAt(b []byte, off int64) (int, error) {
	return f.write(b, off, func(b []byte) (int, error) { return f.File.WriteAt(b, off) })
}

// write dies or fails in the middle, too.
func (f *crashingFile) write(b []byte, off int64, write func([]byte) (int, error)) (int, error) {
	err := f.c.step()
	if err != nil {
		if f.c.steps != f.c.crashAt && errors.Is(err, errCrash) {
			return 0, err
		}
		b = b[:len(b)/2]
	}
	n, werr := write(b)
	if need := off + int64(n); need > int64(len(f.ino.data)) {
		f.ino.data = append(f.ino.data, make([]byte, need-int64(len(f.ino.data)))...)
	}
	copy(f.ino.data[off:], b[:n])
	return n, errors.Join(err, werr)
}

func (f *crashingFile) Truncate(size int64) error {
	if err := f.c.step(); err != nil {
		return err
	}
	if size < int64(len(f.ino.data)) {
		f.ino.data = slices.Clone(f.ino.data[:size])
	} else {
		f.ino.data = append(f.ino.data, make([]byte, size-int64(len(f.ino.data)))...)
	}
	return f.File.Truncate(size)
}

func (f *crashingFile) Sync() error {
	if err := f.c.step(); err != nil {
		return err
	}
	f.ino.synced = slices.Clone(f.ino.data)
	return nil
}

// powerCut makes in dir what a power cut may leave: each name and each byte that
// was not synced may be there or not.
func (c *crashing) powerCut(t *testing.T, dir string) {
	t.Helper()
	paths := map[string]bool{}
	for p := range c.now {
		paths[p] = true
	}
	for p := range c.durable {
		paths[p] = true
	}
	sorted := []string{}
	for p := range paths {
		sorted = append(sorted, p)
	}
	slices.Sort(sorted) // a directory before what is in it, and the same on each run
	for _, p := range sorted {
		ino, there := c.durable[p]
		if c.rnd.IntN(2) == 0 {
			ino, there = c.now[p]
		}
		to := dir + strings.TrimPrefix(p, c.root)
		if _, err := os.Stat(filepath.Dir(to)); !there || p != c.root && err != nil {
			continue
		}
		var err error
		if ino == nil {
			err = os.MkdirAll(to, dirMode)
		} else {
			err = os.WriteFile(to, c.left(ino), fileMode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// left gives what a power cut may leave of a file's content.
func (c *crashing) left(ino *inode) []byte {
	if bytes.Equal(ino.data, ino.synced) {
		return ino.synced
	}
	switch c.rnd.IntN(3) {
	case 0:
		return ino.synced
	case 1:
		return ino.data
	}
	// Its size came, and not all of its blocks.
	b := slices.Clone(ino.data)
	for i := range b {
		if i >= len(ino.synced) && c.rnd.IntN(4) == 0 {
			b[i] = 0
		}
	}
	return b
}

// expected is what a map says of one digest.
type expected struct {
	content []byte
	// must and may say whether it has to be and whether it can be stored.
	must, may bool
	// saved are the bytes of its part that have to be found again.
	saved Spans
	part  *Part
}

// story does random operations and keeps the map beside them.
type story struct {
	t     *testing.T
	rnd   *rand.Rand
	store *Store
	all   []*expected
	steps []string // what was done, for who reads a failure
}

func newStory(t *testing.T, s *Store, rnd *rand.Rand) *story {
	st := &story{t: t, rnd: rnd, store: s}
	for i := range 6 {
		b := make([]byte, 100+rnd.IntN(400))
		for j := range b {
			b[j] = byte(rnd.IntN(255) + 1) // never what a hole reads as
		}
		b[0] = byte(i + 1)
		st.all = append(st.all, &expected{content: b})
	}
	return st
}

func (e *expected) digest() digest.Digest { return digest.FromBytes(e.content) }

// act does one operation on one digest, and notes what follows from its result.
func (st *story) act() {
	e := st.all[st.rnd.IntN(len(st.all))]
	d := e.digest()
	op := st.rnd.IntN(9)
	from := st.rnd.IntN(len(e.content))
	to := from + 1 + st.rnd.IntN(len(e.content)-from)
	var err error
	switch {
	case op == 0 && e.part == nil:
		err = st.store.Put(d, e.content)
		e.may = true
		e.must = e.must || err == nil
	case op == 1:
		e.must = false // even where it fails, it may be gone
		err = st.store.Remove(d)
	case op == 2:
		stamp, serr := st.store.Stamp(d)
		if serr == nil {
			e.must = false
			err = st.store.SetAside(d, stamp)
		}
	case op == 3:
		err = st.store.Check()
	case op == 8:
		err = st.takeIn()
	case e.part == nil:
		var have Spans
		e.part, have, _, err = st.store.Part(d, "")
		st.checkPart(e, have)
		if e.part == nil {
			e.part = nil
		}
	case op == 4:
		// What is not saved yet is written, all of it, and committed.
		gap := e.saved.Gap(0, int64(len(e.content)))
		for gap.From < gap.To && err == nil {
			_, err = e.part.WriteAt(e.content[gap.From:gap.To], gap.From)
			gap = e.saved.Gap(gap.To, int64(len(e.content)))
		}
		if err == nil && st.rnd.IntN(2) == 0 {
			err = e.part.MarkWhole(int64(len(e.content)))
		}
		if err == nil {
			e.may = true
			err = e.part.Commit(int64(len(e.content)))
			e.must = e.must || err == nil
		}
		if err == nil {
			err = e.part.Close()
		} else {
			e.part.Discard()
		}
		e.part, e.saved = nil, Spans{}
	case op == 5:
		err = e.part.Discard()
		e.part, e.saved = nil, Spans{}
	case op == 6:
		err = e.part.Close()
		e.part = nil
	default:
		if _, err = e.part.WriteAt(e.content[from:to], int64(from)); err == nil {
			have := e.saved.Clone()
			have.Add(int64(from), int64(to))
			if err = e.part.Save(have, int64(len(e.content))); err == nil {
				e.saved = have
			} else {
				// The note may be the old one or the new one.
				e.part.Discard()
				e.part, e.saved = nil, Spans{}
			}
		}
	}
	st.steps = append(st.steps, fmt.Sprintf("%d on %.15s: %v", op, d, err))
}

// takeIn takes some digests in together, and sometimes ends before they have names.
func (st *story) takeIn() error {
	var ds []digest.Digest
	group := st.all[:1+st.rnd.IntN(len(st.all))]
	for _, e := range group {
		name := e.digest()
		if st.rnd.IntN(4) == 0 {
			name = "" // not known yet
		}
		in, err := st.store.Incoming(name)
		if err != nil {
			return err
		}
		_, err = in.Write(e.content[:len(e.content)/2])
		if err == nil && st.rnd.IntN(8) == 0 {
			return errors.Join(in.Close(), errors.New("ended in the middle"))
		}
		if err == nil {
			_, err = in.Write(e.content[len(e.content)/2:])
		}
		if err == nil {
			err = in.Finish(e.digest())
		}
		if err := errors.Join(err, in.Close()); err != nil {
			return err
		}
		ds = append(ds, e.digest())
	}
	if st.rnd.IntN(4) == 0 {
		for _, d := range ds {
			if err := st.store.RemoveIncoming(d); err != nil {
				return err
			}
		}
		return nil
	}
	for _, e := range group {
		e.may = true
	}
	err := st.store.Place(ds, func(_ digest.Digest, change func() error) error { return change() })
	for _, e := range group {
		e.must = e.must || err == nil
	}
	return err
}

// checkPart checks that what was saved of a part is found again.
func (st *story) checkPart(e *expected, have Spans) {
	if e.part == nil {
		return
	}
	for _, run := range e.saved.Runs() {
		if gap := have.Gap(run.From, run.To); gap.From < gap.To {
			st.t.Errorf("bytes %d to %d of a part were saved and are not there\n%s", gap.From, gap.To, strings.Join(st.steps, "\n"))
			return
		}
		b := make([]byte, run.To-run.From)
		if _, err := e.part.ReadAt(b, run.From); err != nil || !bytes.Equal(b, e.content[run.From:run.To]) {
			st.t.Errorf("bytes %d to %d of a part are not those that were saved (%v)\n%s", run.From, run.To, err, strings.Join(st.steps, "\n"))
			return
		}
	}
}

// check compares what a store holds with the map. gone says that what was removed
// must be gone: a power cut may bring it back, whole.
func (st *story) check(s *Store, what string, gone bool) {
	t := st.t
	t.Helper()
	seen := map[digest.Digest]bool{}
	err := s.Walk(func(d digest.Digest, _ int64) error {
		seen[d] = true
		f, _, err := s.Get(d)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		if err == nil && digest.FromBytes(b) != d {
			err = fmt.Errorf("%s has %d bytes of %s", d, len(b), digest.FromBytes(b))
		}
		return err
	})
	if err != nil {
		t.Errorf("%s: %v\n%s", what, err, strings.Join(st.steps, "\n"))
	}
	for _, e := range st.all {
		d := e.digest()
		if e.must && !seen[d] {
			t.Errorf("%s: %s was stored and is lost\n%s", what, d, strings.Join(st.steps, "\n"))
		}
		if gone && !e.may && seen[d] {
			t.Errorf("%s: %s is there and was never stored\n%s", what, d, strings.Join(st.steps, "\n"))
		}
	}
}

// finish drops the parts that are open, as the end of a process does.
func (st *story) finish() {
	for _, e := range st.all {
		if e.part != nil {
			e.part.file.Close()
			e.part = nil
		}
	}
	st.store.Close()
}

// resume opens all parts again, which must hold what was saved of them.
func (st *story) resume(s *Store) {
	for _, e := range st.all {
		var have Spans
		var err error
		if e.part, have, _, err = s.Part(e.digest(), ""); err != nil {
			st.t.Error(err)
			continue
		}
		st.checkPart(e, have)
		e.part.Close()
		e.part = nil
	}
}

// TestStoreIsWhatAMapSaysAfterACrashAtAnyPoint kills a process, and cuts the
// power, before each file operation of a random story: nothing incomplete is
// visible then, nothing complete is lost, and parts are found again.
func TestStoreIsWhatAMapSaysAfterACrashAtAnyPoint(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	crashes := 0
	for seed := range seeds {
		for crashAt := 1; ; crashAt++ {
			if !tell(t, seed, crashAt, 0) || t.Failed() {
				break
			}
			crashes++
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d crashes", crashes)
	if crashes < 100 {
		t.Errorf("only %d crashes: the story is too short", crashes)
	}
}

// TestStoreIsWhatAMapSaysWhileTheDiskFails lets one in so many operations fail,
// and then ends by a crash.
func TestStoreIsWhatAMapSaysWhileTheDiskFails(t *testing.T) {
	for seed := range uint64(150) {
		for _, every := range []int{3, 10, 40} {
			tell(t, seed, 150, every)
			if t.Failed() {
				t.Fatalf("seed %d, one failure in %d", seed, every)
			}
		}
	}
}

// tell tells a story until the crash, and looks at what it leaves. It gives
// whether the crash came before the story's end.
func tell(t *testing.T, seed uint64, crashAt, failEvery int) bool {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 7))
	dir, after := scratch(t), filepath.Join(scratch(t), "cache")
	files := newCrashing(dir, rand.New(rand.NewPCG(seed, uint64(crashAt))))
	s, err := OpenOn(files, dir)
	if err != nil {
		t.Fatal(err)
	}
	s.few = 2
	files.steps, files.crashAt, files.failEvery = 0, crashAt, failEvery
	st := newStory(t, s, rnd)
	for i := 0; i < 40 && !files.dead(); i++ {
		st.act()
		if !files.dead() {
			st.check(s, "before the crash", true)
		}
	}
	st.finish()
	files.powerCut(t, after)

	killed, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	st.check(killed, fmt.Sprintf("killed before operation %d", crashAt), true)
	st.resume(killed)
	killed.Close()

	cut, err := Open(after)
	if err != nil {
		t.Fatal(err)
	}
	st.check(cut, fmt.Sprintf("power cut before operation %d", crashAt), false)
	st.resume(cut)
	cut.Close()
	return files.dead()
}

// scratch gives a directory in memory where there is one: nothing here asks the
// disk for anything.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "entrepot-store-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
