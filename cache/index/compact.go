package index

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// bbolt's files never shrink. A file that is large and mostly free is copied while it is used,
// and the copy takes its place: the writer notes the keys that change meanwhile, and in its last
// turn brings the copy up to date and moves it into place. Files of older versions, whose values
// have no checksums, are copied in the same way.
const (
	// compactFrom is the smallest file that is worth it, in bytes; of an index that has a share
	// of a small cache, a quarter of that share, but never less than leastCompact.
	compactFrom  = 4 << 20
	leastCompact = 512 << 10
	// compactApart is how long two compactions are apart at least.
	compactApart = time.Minute
	// compactSpare is what the copy must leave free on the disk, in bytes; less if the copy is
	// small.
	compactSpare = 64 << 20
	// compactChunk is how many entries are copied in one transaction.
	compactChunk = 5000
	// compactRounds bounds how often the copy is brought up to date before the last turn, and
	// fewChanges is how few changes are left for that.
	compactRounds = 20
	fewChanges    = 1000
)

// errSwapped ends the transaction in which the copy took the file's place.
var errSwapped = errors.New("the index was compacted")

func compactPath(index string) string { return index + ".compact" }

// shrinkSoon has the file compacted some time, if it is worth it.
func (ix *Index) shrinkSoon() {
	select {
	case ix.dropped <- struct{}{}:
	default: // it is looked at anyway
	}
}

// compactLoop compacts the file after entries were dropped. Close waits for it.
func (ix *Index) compactLoop() {
	pause := flushEvery
	for {
		select {
		case <-ix.dropped:
		case <-ix.stop:
			return
		}
		select {
		case <-time.After(pause):
		case <-ix.stop:
			return
		}
		if ix.wasteful() {
			// What fails leaves the file as it was, and is tried again after the next drop.
			_ = ix.compact()
			pause = compactApart
		}
	}
}

// wasteful tells whether the file is to be compacted: it is large and more than half free, or
// of an older version, and the disk has room for the copy.
func (ix *Index) wasteful() bool {
	if !ix.Whole() {
		return false
	}
	sealed := ix.db.Load().sealed
	size, live, err := ix.inUse()
	if err != nil || sealed && (size < ix.worthCompacting() || 2*live > size) {
		return false
	}
	return ix.roomToCompact(live)
}

// worthCompacting returns the size of the smallest file that is worth it.
func (ix *Index) worthCompacting() int64 {
	if share := ix.share.Load(); share > 0 {
		return min(compactFrom, max(leastCompact, share/4))
	}
	return compactFrom
}

// roomToCompact reports whether the disk has room for a copy of live bytes.
func (ix *Index) roomToCompact(live int64) bool {
	var st syscall.Statfs_t
	if syscall.Statfs(filepath.Dir(ix.path), &st) != nil {
		return false
	}
	return int64(st.Bavail)*int64(st.Bsize) > 2*live+min(compactSpare, 16*live) // #nosec G115 -- sizes of a disk
}

// compact puts a copy without free pages in the file's place. Readers and writers go on
// meanwhile. If it fails, or the process ends before, the file is as it was.
func (ix *Index) compact() (err error) {
	ix.compacting.Lock()
	defer ix.compacting.Unlock()
	d, path := ix.db.Load(), compactPath(ix.path)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Nothing of the copy needs to be on the disk until all of it is.
	o := ix.options.bolt()
	o.NoSync = true
	copied, err := bbolt.Open(path, 0o600, o)
	if err != nil {
		return err
	}
	swapped := false
	defer func() {
		if !swapped {
			_ = d.write(func(*tx) error { d.changed = nil; return nil }, true)
			err = errors.Join(err, copied.Close(), os.Remove(path))
		}
	}()
	err = copied.Update(func(b *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := b.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = d.write(func(*tx) error { d.changed = map[changedKey]struct{}{}; return nil }, true)
	}
	for _, name := range buckets {
		if err == nil {
			err = ix.copyBucket(d, copied, name)
		}
	}
	for round, few := 0, false; err == nil && !few && round < compactRounds; round++ {
		err = d.write(func(tx *tx) error {
			n := len(d.changed)
			few = n < fewChanges
			return catchUp(tx, copied)
		}, true)
	}
	if err != nil {
		return err
	}
	err = d.write(func(tx *tx) error {
		if err := catchUp(tx, copied); err != nil {
			return err
		}
		next, err := ix.swap(d, copied, path)
		if err != nil {
			return err
		}
		d.retired, swapped = true, true
		ix.db.Store(next)
		return errSwapped
	}, true)
	if !errors.Is(err, errSwapped) {
		return err
	}
	return d.close()
}

// copyBucket copies a bucket, chunk by chunk. It ends early if the index is closed.
func (ix *Index) copyBucket(d *db, to *bbolt.DB, name []byte) error {
	var next []byte
	for more := true; more; {
		select {
		case <-ix.stop:
			return errClosed
		default:
		}
		err := d.view(func(tx *tx) error {
			c := tx.Bucket(name).Cursor()
			defer letGo(tx)
			return to.Update(func(b *bbolt.Tx) error {
				bucket := b.Bucket(name)
				bucket.FillPercent = 0.9
				key, value := c.Seek(next)
				if next == nil {
					key, value = c.First()
				}
				for i := 0; key != nil && i < compactChunk; i++ {
					if err := bucket.Put(key, sealed(name, key, value)); err != nil {
						return err
					}
					key, value = c.Next()
				}
				more = key != nil
				next = append([]byte(nil), key...)
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// catchUp copies the entries that have changed since it did so last. It runs in the writer.
func catchUp(tx *tx, to *bbolt.DB) error {
	changed := tx.d.changed
	tx.d.changed = map[changedKey]struct{}{}
	if len(changed) == 0 {
		return nil
	}
	return to.Update(func(b *bbolt.Tx) error {
		for k := range changed {
			key, err := []byte(k.key), error(nil)
			if value := tx.Bucket([]byte(k.bucket)).Get(key); value != nil {
				err = b.Bucket([]byte(k.bucket)).Put(key, sealed([]byte(k.bucket), key, value))
			} else {
				err = b.Bucket([]byte(k.bucket)).Delete(key)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// swap moves the copy into the file's place, once it is on the disk, and begins a db on it.
func (ix *Index) swap(d *db, copied *bbolt.DB, path string) (*db, error) {
	if err := copied.Sync(); err != nil {
		return nil, err
	}
	copied.NoSync = false
	f, err := formatOf(copied)
	if err != nil {
		return nil, err
	}
	ix.replacing.Lock()
	defer ix.replacing.Unlock()
	select {
	case <-d.dead:
		return nil, d.cause
	default:
	}
	if ix.db.Load() != d {
		return nil, fmt.Errorf("the index was replaced while it was compacted")
	}
	if err := os.Rename(path, ix.path); err != nil {
		return nil, err
	}
	next := start(copied, true, f.last)
	if f.whole {
		next.markWhole()
	}
	// From here on the copy is the file. A crash before its name is on the disk finds the file as
	// it was when the copy was complete, or the copy.
	_ = syncDir(filepath.Dir(ix.path))
	return next, nil
}

// syncDir makes a rename in a directory outlive a crash.
func syncDir(path string) error {
	dir, err := os.Open(path) // #nosec G304 -- the cache directory
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// outlived tells whether err says that a db was closed because another took its place.
func (ix *Index) outlived(d *db, err error) bool {
	return (errors.Is(err, errClosed) || errors.Is(err, berrors.ErrDatabaseNotOpen)) && ix.db.Load() != d
}
