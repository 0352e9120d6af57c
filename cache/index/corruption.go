package index

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	berrors "go.etcd.io/bbolt/errors"
)

// errDamaged says that the file does not hold what was written to it.
var errDamaged = errors.New("the index is damaged")

// damaged tells whether an error of Open says that the file is not what was
// written.
func damaged(err error) bool {
	if err == nil || errors.Is(err, berrors.ErrTimeout) || errors.Is(err, fs.ErrPermission) {
		return false
	}
	for _, lost := range []error{syscall.EIO, syscall.EBADMSG} {
		if errors.Is(err, lost) {
			return true // the disk has lost a part of it
		}
	}
	var path *fs.PathError
	return !errors.As(err, &path)
}

// guarded makes an error of what bbolt does when its pages are not what they
// should be: it panics, or reads where nothing is mapped.
func guarded(do func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errDamaged, r)
		}
	}()
	return do()
}

// view runs fn on the state that was committed last. If it finds damage, another file is
// begun soon; the error is errDamaged.
func (ix *Index) view(fn func(*tx) error) error {
	d := ix.db.Load()
	err := d.view(fn)
	for ix.outlived(d, err) {
		d = ix.db.Load()
		err = d.view(fn)
	}
	if errors.Is(err, errDamaged) {
		select {
		case ix.broken <- d:
		default: // it is known
		}
	}
	return err
}

// update runs fn alone in a transaction, and returns when that is on the disk.
func (ix *Index) update(fn func(*tx) error) error { return ix.write(fn, true) }

// batch runs fn, perhaps more than once, in a transaction that others share, and returns
// when that is on the disk.
func (ix *Index) batch(fn func(*tx) error) error { return ix.write(fn, false) }

// write runs fn in a transaction. If the file is found damaged, or was replaced by a smaller
// copy, fn runs again on its successor.
func (ix *Index) write(fn func(*tx) error, alone bool) error {
	if ix.options.ReadOnly {
		return errReadOnly
	}
	for tries := 0; ; tries++ {
		d := ix.db.Load()
		size := int64(0)
		err := d.write(func(tx *tx) error {
			err := fn(tx)
			if tx.deleted {
				ix.shrinkSoon()
			}
			size = int64(len(tx.data))
			return err
		}, alone)
		if err == nil {
			ix.noticeSize(size)
		}
		switch {
		case errors.Is(err, errDamaged) && tries < maxTries:
			if failed := ix.replace(d); failed != nil {
				return errors.Join(err, failed)
			}
		case ix.outlived(d, err):
		default:
			return err
		}
	}
}

// maxTries bounds how often a write is tried again on a file that was begun anew.
const maxTries = 3

// replaceLoop begins a new file when a reader has found this one damaged. Close waits for
// it.
func (ix *Index) replaceLoop() {
	for {
		select {
		case d := <-ix.broken:
			_ = ix.replace(d) // tried again when it is next read
		case <-ix.stop:
			return
		}
	}
}

// replace quarantines the damaged file and begins a new one, unless somebody has. What
// waits for old is released, and old abandoned: its file stays mapped until the process ends.
func (ix *Index) replace(old *db) error {
	old.settle()
	ix.replacing.Lock()
	defer ix.replacing.Unlock()
	if ix.db.Load() != old {
		return nil
	}
	aside, err := setAside(ix.path)
	if err != nil {
		return err
	}
	d, _, err := open(ix.path, aside, ix.options)
	if err != nil {
		return err
	}
	ix.db.Store(d)
	blobs, bytes := ix.blobs.Swap(0), ix.bytes.Swap(0)
	if ix.counted != nil {
		ix.counted(-blobs, -bytes)
	}
	if ix.lost != nil {
		ix.lost(aside, old.cause)
	}
	return nil
}

// Lost has fn called when the index was found damaged in use and was begun anew, with the
// name of the quarantined file and what was wrong with it. Set it before the Index is used.
// fn must not wait for long.
func (ix *Index) Lost(fn func(aside string, cause error)) { ix.lost = fn }

// maxAsides is how many quarantined files are kept, the latest.
const maxAsides = 3

// setAside quarantines the file at path, and removes the oldest that were before. aside is
// empty if there is no file.
func setAside(path string) (aside string, err error) {
	aside = fmt.Sprintf("%s.damaged-%d", path, time.Now().UnixNano())
	switch err := os.Rename(path, aside); {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("quarantine the damaged index: %w", err)
	}
	if others, err := filepath.Glob(path + ".damaged-*"); err == nil && len(others) > maxAsides {
		slices.SortFunc(others, func(a, b string) int { return modified(a).Compare(modified(b)) })
		for _, name := range others[:len(others)-maxAsides] {
			if name != aside {
				_ = os.Remove(name)
			}
		}
	}
	return aside, nil
}

// modified returns when a file was written last; the zero time if it can't be read.
func modified(path string) time.Time {
	st, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

// Where a meta page of bbolt holds what it is checked by: two of them begin the
// file, each with a header of 16 bytes before.
const (
	metaAt       = 16
	metaLen      = 64
	metaMagic    = 0xED0CDAED
	metaPageSize = 8
	metaPages    = 40
	metaChecksum = 56
	// Page sizes that there are; the second meta page is one page in.
	minPage, maxPage = 1 << 10, 1 << 16
)

// metaIntact tells whether a meta page is as bbolt wrote it.
func metaIntact(b []byte) bool {
	sum := fnv.New64a()
	sum.Write(b[:metaChecksum])
	return pageOrder.Uint32(b) == metaMagic && pageOrder.Uint64(b[metaChecksum:]) == sum.Sum64()
}

// checkFile returns an error if a file is shorter than it says, or its list of free pages
// can't be. bbolt trusts both when it opens the file, before anything can guard it.
func checkFile(path string) error {
	f, err := os.Open(path) // #nosec G304 -- the path is the cache directory's and our own name
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return damage("%s is no regular file", path)
	}
	if st.Size() == 0 {
		return nil // bbolt begins it
	}
	head, err := io.ReadAll(io.LimitReader(f, maxPage+metaAt+metaLen))
	if err != nil {
		return err
	}
	// The second meta page is one page in: the first says how large a page is, if it is intact.
	for at := 0; at <= maxPage; at = max(2*at, minPage) {
		if len(head) < at+metaAt+metaLen || !metaIntact(head[at+metaAt:][:metaLen]) {
			continue
		}
		size := int(pageOrder.Uint32(head[at+metaAt+metaPageSize:]))
		if size < minPage || size > maxPage {
			return damage("its pages have %d bytes", size)
		}
		m, _ := metaOf(head, size)
		if want := m.pages * uint64(size); uint64(st.Size()) < want {
			return damage("it has %d bytes of %d", st.Size(), want)
		}
		return checkFreePages(f, size, m)
	}
	return damage("no meta page is intact")
}

// checkFreePages returns an error if the list of free pages can't be.
func checkFreePages(f io.ReaderAt, size int, m meta) error {
	if m.freeList < 2 || m.freeList >= m.pages {
		return damage("the list of free pages is at page %d of %d", m.freeList, m.pages)
	}
	at := int64(m.freeList) * int64(size) // #nosec G115 -- within the file
	head := make([]byte, pageHeader)
	if _, err := f.ReadAt(head, at); err != nil {
		return err
	}
	more := uint64(pageOrder.Uint32(head[12:]))
	if more >= m.pages-m.freeList {
		return damage("the list of free pages covers %d more of %d", more, m.pages)
	}
	b := make([]byte, (more+1)*uint64(size))
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	_, err := freeIDs(b, size, m)
	return err
}
