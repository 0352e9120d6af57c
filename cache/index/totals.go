package index

import (
	"encoding/binary"
	"errors"
)

// totals are how many blobs there are records of, and their bytes. They are
// written with the records, so that a start need not count.
type totals struct{ blobs, bytes int64 }

var totalsKey = []byte("blobs")

// totalsLen is the length of totals that are written.
const totalsLen = 16

// readTotals gives what is written; false where nothing is.
func readTotals(tx *tx) (totals, bool) {
	v := tx.Bucket(metaBucket).Get(totalsKey)
	if len(v) != totalsLen {
		return totals{}, false
	}
	return totals{int64(binary.BigEndian.Uint64(v)), int64(binary.BigEndian.Uint64(v[8:]))}, true
}

func (t totals) encode() []byte {
	v := binary.BigEndian.AppendUint64(nil, uint64(t.blobs))
	return binary.BigEndian.AppendUint64(v, uint64(t.bytes))
}

func writeTotals(tx *tx, t totals) error { return tx.Bucket(metaBucket).Put(totalsKey, t.encode()) }

// setBlob puts a record, or deletes it where b is nil, and counts that.
func (ix *Index) setBlob(tx *tx, key []byte, b *Blob) error {
	var change totals
	bucket := tx.Bucket(blobsBucket)
	if old, ok := decodeBlob(bucket.Get(key)); ok {
		change = totals{-1, -old.Stamp.Size}
	}
	var err error
	if b != nil {
		change.blobs++
		change.bytes += b.Stamp.Size
	}
	if change != (totals{}) {
		err = countUse(tx, key, change)
	}
	if b == nil {
		err = errors.Join(err, bucket.Delete(key), dropSources(tx, key))
	} else {
		err = errors.Join(err, bucket.Put(key, b.encode()))
	}
	if err != nil || change == (totals{}) {
		return err
	}
	now, _ := readTotals(tx)
	if err := writeTotals(tx, totals{now.blobs + change.blobs, now.bytes + change.bytes}); err != nil {
		return err
	}
	// What several transactions add up to does not depend on whose turn is
	// first.
	tx.onCommit(func() {
		ix.blobs.Add(change.blobs)
		ix.bytes.Add(change.bytes)
		if ix.counted != nil {
			ix.counted(change.blobs, change.bytes)
		}
	})
	return nil
}

// Totals gives how many blobs there are records of, and their bytes. It reads
// nothing from the disk.
func (ix *Index) Totals() (blobs, bytes int64) { return ix.blobs.Load(), ix.bytes.Load() }

// Counted has fn called after each change of the totals, with the change, from
// whichever goroutine made it. It is called before the Index is used.
func (ix *Index) Counted(fn func(blobs, bytes int64)) { ix.counted = fn }
