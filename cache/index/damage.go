package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
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

func (ix *Index) view(fn func(*bbolt.Tx) error) error {
	return ix.noticing(func(db *bbolt.DB) error { return db.View(fn) })
}

func (ix *Index) update(fn func(*bbolt.Tx) error) error {
	return ix.noticing(func(db *bbolt.DB) error { return db.Update(fn) })
}

func (ix *Index) batch(fn func(*bbolt.Tx) error) error {
	return ix.noticing(func(db *bbolt.DB) error { return db.Batch(fn) })
}

// noticing does something with the file, and begins a new one where that finds
// it damaged.
func (ix *Index) noticing(do func(*bbolt.DB) error) error {
	db := ix.db.Load()
	err := guarded(func() error { return do(db) })
	if errors.Is(err, errDamaged) {
		select {
		case ix.broken <- db:
		default: // it is known
		}
	}
	return err
}

// replaceLoop begins a new file where this one is found damaged. Close waits for
// it.
func (ix *Index) replaceLoop() {
	for {
		select {
		case db := <-ix.broken:
			if db == ix.db.Load() {
				ix.replace(db)
			}
		case <-ix.stop:
			return
		}
	}
}

// replace sets the damaged file aside and begins a new one.
func (ix *Index) replace(old *bbolt.DB) {
	aside, err := setAside(ix.path)
	if err != nil {
		return // it is tried again when it is next found damaged
	}
	db, err := open(ix.path)
	if err != nil {
		return
	}
	ix.whole.Store(false)
	ix.db.Store(db)
	blobs, bytes := ix.blobs.Swap(0), ix.bytes.Swap(0)
	if ix.counted != nil {
		ix.counted(-blobs, -bytes)
	}
	if ix.lost != nil {
		ix.lost(aside)
	}
	// It waits for those who still read.
	_ = guarded(old.Close)
}

// Lost has fn called when the index was found damaged while it was used, and has
// been begun anew, with the name of the file that was set aside. It is called
// before the Index is used. fn must not wait for long.
func (ix *Index) Lost(fn func(aside string)) { ix.lost = fn }

func setAside(path string) (aside string, err error) {
	aside = fmt.Sprintf("%s.damaged-%d", path, time.Now().Unix())
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("set the damaged index aside: %w", err)
	}
	return aside, nil
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

// checkLength gives an error where a file is shorter than it says of itself.
// bbolt trusts what it says, and a process that reads beyond the end of a mapped
// file is ended.
func checkLength(path string) error {
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
	head, err := io.ReadAll(io.LimitReader(f, maxPage+metaAt+metaLen))
	if err != nil {
		return err
	}
	order := binary.NativeEndian
	for at := 0; at <= maxPage; at = max(2*at, minPage) {
		if len(head) < at+metaAt+metaLen {
			break
		}
		meta := head[at+metaAt:][:metaLen]
		sum := fnv.New64a()
		sum.Write(meta[:metaChecksum])
		if order.Uint32(meta) != metaMagic || order.Uint64(meta[metaChecksum:]) != sum.Sum64() {
			continue
		}
		if want := order.Uint64(meta[metaPages:]) * uint64(order.Uint32(meta[metaPageSize:])); uint64(st.Size()) < want {
			return fmt.Errorf("%w: it has %d bytes of %d", errDamaged, st.Size(), want)
		}
	}
	return nil
}
