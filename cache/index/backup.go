package index

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/store"
)

// The backup is a file beside the index that holds what no look at the tree can
// tell: the pins, the tags, their ledger, the links and what clients asked for. The
// records of content and the lists are not in it; they are made or asked for again.
//
// It is written aside and renamed: a first line, and packed by gzip, which has a
// checksum, entries of a byte for the bucket, key and value with their lengths,
// and at the end a zero byte and the number of the entries.

const (
	// backupEvery is how soon after a change the backup is written.
	backupEvery = 10 * time.Second
	// backupShare bounds the time that backups take, one part in so many: a small index is written
	// soon, one of a million blobs every quarter of an hour.
	backupShare = 500
	// backupChunk is how many entries are read or written in one transaction,
	// so that no writer waits long for its turn.
	backupChunk = 2000
	// maxEntry bounds a key or value that is read back: it comes from a disk.
	maxEntry    = 1 << 20
	backupMagic = "entrepot index backup 1\n"
)

// backedUp are the buckets that are in the backup, by their byte.
var backedUp = map[byte][]byte{'t': tagsBucket, 'h': ledgerBucket, 'l': linksBucket, 'p': pinsBucket, 'a': askedBucket}

// The pins are first: what they protect may be evicted until they are back.
var backupOrder = []byte{'p', 't', 'h', 'l', 'a'}

// wholeKey is set in an index that holds what its backup held.
var wholeKey = []byte("whole")

// Whole tells whether all is here that the backup held: not in an index that has
// been begun anew, until Restore has run to its end.
func (ix *Index) Whole() bool {
	d := ix.db.Load()
	select {
	case <-d.dead:
		return false
	default:
		return d.whole.Load()
	}
}

// AwaitWhole waits until the index is Whole. Its error is ctx's cause.
func (ix *Index) AwaitWhole(ctx context.Context) error {
	for {
		d := ix.db.Load()
		select {
		case <-d.restored:
			if ix.Whole() {
				return nil
			}
		case <-d.dead:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		select {
		case <-time.After(replaceSoon): // its successor is being begun
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// replaceSoon is how often AwaitWhole looks for the successor of a damaged file.
const replaceSoon = 10 * time.Millisecond

func backupPath(index string) string { return strings.TrimSuffix(index, ".db") + ".backup" }

// Restore brings back what a lost index held: from the file that was quarantined, as far as
// that is intact, then from the backup what is still missing. It returns how many entries that
// were. Call it for an index that isn't Whole; the index may be used meanwhile, and what was
// learned since stays. A missing backup is no error; of a damaged one all is brought back that
// precedes the damage. If the index is lost again meanwhile, that is the error, and Restore is
// to be called again.
func (ix *Index) Restore() (restored int, err error) {
	d := ix.db.Load()
	restored, err = ix.salvage(d)
	f, failed := store.OpenOwn(ix.backup)
	if failed == nil {
		defer f.Close()
		var more int
		more, failed = d.restore(f)
		restored += more
	}
	if failed != nil && !errors.Is(failed, fs.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("restore the index from %s: %w", ix.backup, failed))
	}
	done := d.write(func(tx *tx) error {
		return errors.Join(tx.Bucket(metaBucket).Put(wholeKey, []byte{1}), tx.Bucket(metaBucket).Delete(asideKey))
	}, true)
	if done == nil {
		d.markWhole()
		ix.backupSoon()
	}
	if errors.Is(done, errDamaged) {
		done = errors.Join(done, ix.replace(d))
	}
	return restored, errors.Join(err, done)
}

type entry struct {
	bucket     byte
	key, value []byte
}

var errBackup = errors.New("the backup is damaged")

// restore brings back the entries of a backup that are missing.
func (d *db) restore(f io.Reader) (restored int, err error) {
	r := bufio.NewReader(f)
	magic := make([]byte, len(backupMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != backupMagic {
		return 0, errBackup
	}
	gz, err := gzip.NewReader(r)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errBackup, err)
	}
	in := bufio.NewReader(gz)
	var chunk []entry
	flush := func() error {
		n, err := d.putMissing(chunk)
		restored += n
		chunk = chunk[:0]
		return err
	}
	for read := uint64(0); ; read++ {
		e, end, err := readEntry(in)
		switch {
		case err != nil:
			return restored, errors.Join(flush(), fmt.Errorf("%w after %d entries: %w", errBackup, read, err))
		case end:
			n, err := binary.ReadUvarint(in)
			if err == nil {
				_, err = io.Copy(io.Discard, in) // to the checksum
			}
			if err != nil || n != read {
				return restored, errors.Join(flush(), fmt.Errorf("%w: it ends after %d entries", errBackup, read))
			}
			return restored, flush()
		}
		if chunk = append(chunk, e); len(chunk) == backupChunk {
			if err := flush(); err != nil {
				return restored, err
			}
		}
	}
}

// readEntry reads one entry, or the zero byte that ends them.
func readEntry(in *bufio.Reader) (e entry, end bool, err error) {
	if e.bucket, err = in.ReadByte(); err != nil {
		return e, false, err
	}
	if e.bucket == 0 {
		return e, true, nil
	}
	if backedUp[e.bucket] == nil {
		return e, false, fmt.Errorf("no kind of entry: %q", e.bucket)
	}
	for _, b := range []*[]byte{&e.key, &e.value} {
		n, err := binary.ReadUvarint(in)
		if err != nil {
			return e, false, err
		}
		if n > maxEntry {
			return e, false, fmt.Errorf("an entry of %d bytes", n)
		}
		*b = make([]byte, n)
		if _, err := io.ReadFull(in, *b); err != nil {
			return e, false, err
		}
	}
	return e, false, nil
}

// putMissing puts what is not there.
func (d *db) putMissing(list []entry) (put int, err error) {
	if len(list) == 0 {
		return 0, nil
	}
	err = d.write(func(tx *tx) error {
		put = 0
		for _, e := range list {
			bucket := tx.Bucket(backedUp[e.bucket])
			if len(e.key) == 0 || bucket.Get(e.key) != nil {
				continue
			}
			var err error
			switch e.bucket {
			case 'h':
				err = errors.Join(bucket.Put(e.key, e.value), countObservations(tx, countOf(e.value)))
			case 'l':
				err = bucket.Put(e.key, e.value)
				var l Link
				if parts := bytes.Split(e.key, separator); len(parts) == 3 && decode(e.value, &l) && l.Proof == Fetched {
					err = errors.Join(err, putSource(tx, digest.Digest(parts[2]), string(parts[0])))
				}
			default:
				err = bucket.Put(e.key, e.value)
			}
			if err != nil {
				return err
			}
			put++
		}
		return nil
	}, true)
	return put, err
}

// backupSoon has the backup written some time.
func (ix *Index) backupSoon() {
	select {
	case ix.changed <- struct{}{}:
	default: // it will be written anyway
	}
}

// backupLoop writes the backup when it is not what the index is. Close waits for
// it.
func (ix *Index) backupLoop() {
	pause := time.Duration(backupEvery)
	for {
		select {
		case <-ix.changed:
		case <-ix.stop:
			return
		}
		select {
		case <-time.After(pause):
			begun := time.Now()
			if err := ix.writeBackup(); err != nil {
				ix.backupSoon() // and try again
			}
			pause = max(backupEvery, backupShare*time.Since(begun))
		case <-ix.stop:
			ix.backupSoon() // for Close
			return
		}
	}
}

// writeBackup writes the backup as of now, all or nothing. What changes while it
// is written may or may not be in it.
func (ix *Index) writeBackup() error {
	if !ix.Whole() {
		return nil // there is more in the backup that is there
	}
	f, err := os.CreateTemp(filepath.Dir(ix.backup), filepath.Base(ix.backup)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails, as it should, once it has its name
	defer f.Close()
	if ix.options.Adopt != nil {
		if err := ix.options.Adopt(f); err != nil {
			return err
		}
	}
	out := bufio.NewWriterSize(f, 1<<20)
	if _, err := out.WriteString(backupMagic); err != nil {
		return err
	}
	gz, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := ix.writeEntries(gz); err != nil {
		return err
	}
	if err := errors.Join(gz.Close(), out.Flush(), f.Sync()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), ix.backup); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(ix.backup))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func (ix *Index) writeEntries(w io.Writer) error {
	var n uint64
	var buf []byte
	for _, kind := range backupOrder {
		err := ix.chunks(backedUp[kind], backupChunk, func(key, value []byte) bool {
			n++
			buf = append(buf, kind)
			buf = append(binary.AppendUvarint(buf, uint64(len(key))), key...)
			buf = append(binary.AppendUvarint(buf, uint64(len(value))), value...)
			return true
		}, func() error {
			_, err := w.Write(buf)
			buf = buf[:0]
			return err
		})
		if err != nil {
			return err
		}
	}
	_, err := w.Write(binary.AppendUvarint([]byte{0}, n))
	return err
}

// chunks calls fn for the entries of a bucket in order, until it gives false,
// and between after each n at most, while no transaction runs: one that runs
// long keeps writers waiting.
func (ix *Index) chunks(bucket []byte, n int, fn func(key, value []byte) bool, between func() error) error {
	return ix.chunksOf(bucket, nil, n, fn, between)
}

// chunksOf is chunks for the keys that begin with prefix.
func (ix *Index) chunksOf(bucket, prefix []byte, n int, fn func(key, value []byte) bool, between func() error) error {
	next := prefix
	for more := true; more; {
		err := ix.view(func(tx *tx) error {
			i := 0
			// Who reads little touches few pages, and letting go of all costs more than those.
			defer func() {
				if i >= letGoAfter {
					letGo(tx)
				}
			}()
			c := tx.Bucket(bucket).Cursor()
			key, value := c.Seek(next)
			for ; key != nil && bytes.HasPrefix(key, prefix) && i < n; i++ {
				if !fn(key, value) {
					more = false
					return nil
				}
				key, value = c.Next()
			}
			more = key != nil && bytes.HasPrefix(key, prefix)
			next = bytes.Clone(key)
			return nil
		})
		if err != nil {
			return err
		}
		if between != nil {
			if err := between(); err != nil {
				return err
			}
		}
	}
	return nil
}
