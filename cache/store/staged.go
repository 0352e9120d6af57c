package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// incomingSuffix follows a digest in the name of a file below ingest/ that is being
// taken in.
const incomingSuffix = ".import"

// unnamedPrefix begins the name of one whose digest is not known yet.
const unnamedPrefix = "import-"

const (
	// fewFiles is up to how many files are synced one by one; of more the whole file
	// system is, which costs about as much as one.
	fewFiles = 16
	// compareSize is how much of what is there already is compared at a time.
	compareSize = 64 << 10
	// flushIncoming is how many bytes are handed to the disk at a time.
	flushIncoming = 8 << 20
)

// Incoming is content that is being taken in together with other content, apart from
// the parts of fills. It is written once from its beginning; what an earlier process
// has left of the same is found by comparing it, and is not written again. So it needs
// no note beside it. It is for one goroutine.
type Incoming struct {
	store   *Store
	digest  digest.Digest // empty until Finish where it was not known
	file    File
	at      int64
	left    int64 // how many bytes an earlier process has left
	flushed int64
	buf     []byte
}

// incoming gives the file of d below ingest/.
func (s *Store) incoming(d digest.Digest) string {
	return filepath.Join(s.dir, ingestDir, d.Algorithm().String()+"-"+d.Encoded()+incomingSuffix)
}

// Incoming begins to take in the content of d, or goes on with what an earlier process
// has left; an empty d is not known yet. There must be one owner of a digest's at a
// time, who calls Close.
func (s *Store) Incoming(d digest.Digest) (*Incoming, error) {
	i := &Incoming{store: s, digest: d}
	var err error
	if d == "" {
		i.file, err = s.files.CreateTemp(filepath.Join(s.dir, ingestDir), unnamedPrefix+"*")
	} else if err = d.Validate(); err == nil {
		i.file, err = s.openToWrite(s.incoming(d), os.O_CREATE)
	}
	if err != nil {
		return nil, fmt.Errorf("take in %s: %w", d, err)
	}
	st, err := i.file.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take in %s: %w", d, err), i.file.Close())
	}
	i.left = st.Size()
	return i, nil
}

// Write writes what comes next.
func (i *Incoming) Write(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		next := b[n:]
		if i.at < i.left {
			next = next[:min(len(next), compareSize)]
		}
		if !i.has(next) {
			if _, err := i.file.WriteAt(next, i.at); err != nil {
				return n, err
			}
		}
		n += len(next)
		i.at += int64(len(next))
	}
	if i.at-i.flushed >= flushIncoming {
		flush(i.file, i.flushed, i.at-i.flushed)
		i.flushed = i.at
	}
	return n, nil
}

// has tells whether b is there already.
func (i *Incoming) has(b []byte) bool {
	if i.at >= i.left {
		return false
	}
	if i.buf == nil {
		i.buf = make([]byte, compareSize)
	}
	n, err := i.file.ReadAt(i.buf[:len(b)], i.at)
	return n == len(b) && (err == nil || err == io.EOF) && bytes.Equal(i.buf[:n], b)
}

// Finish ends the content, which the caller has verified to be that of d. It waits
// for no disk. Place gives it its name.
func (i *Incoming) Finish(d digest.Digest) error {
	if i.left > i.at {
		if err := i.file.Truncate(i.at); err != nil {
			return fmt.Errorf("take in %s: %w", d, err)
		}
	}
	// Small files are written together at the end, which is faster.
	if rest := i.at - i.flushed; i.at >= flushIncoming && rest > 0 {
		flush(i.file, i.flushed, rest)
	}
	if i.digest == "" {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("take in %q: %w", d, err)
		}
		if err := i.store.files.Rename(i.file.Name(), i.store.incoming(d)); err != nil {
			return fmt.Errorf("take in %s: %w", d, err)
		}
		i.digest = d
	}
	return nil
}

// Close lets go of it. What was finished, or has a digest, stays.
func (i *Incoming) Close() error {
	if i.digest == "" {
		_ = i.store.files.Remove(i.file.Name()) // the next start tries again
	}
	return i.file.Close()
}

// OpenIncoming opens what has been taken in of d and has not its name yet. The error is
// fs.ErrNotExist where that is not there. The caller closes it.
func (s *Store) OpenIncoming(d digest.Digest) (*os.File, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	return s.open(s.incoming(d))
}

// RemoveIncoming drops what has been taken in of d. That it is not there is no error.
func (s *Store) RemoveIncoming(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return err
	}
	err := s.files.Remove(s.incoming(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Place gives what was taken in of ds its final names, by few syncs of the disk: first
// those of the bytes, then the names, then those of the names. When it returns nil all
// of it outlives a power cut. With an error some may have their names, and are whole.
// in runs each change of what is stored of a digest.
func (s *Store) Place(ds []digest.Digest, in func(d digest.Digest, change func() error) error) error {
	if err := s.syncIncoming(ds); err != nil {
		return fmt.Errorf("sync what was taken in: %w", err)
	}
	dirs := map[string]bool{}
	for _, d := range ds {
		if err := in(d, func() error { return s.place(d) }); err != nil {
			return fmt.Errorf("store %s: %w", d, err)
		}
		dirs[filepath.Dir(s.path(d))] = true
	}
	err := s.syncDirs()
	if len(dirs) > s.few {
		err = errors.Join(err, s.files.SyncAll(filepath.Join(s.dir, blobsDir)))
	} else {
		for dir := range dirs {
			err = errors.Join(err, s.files.SyncDir(dir))
		}
	}
	if err != nil {
		return fmt.Errorf("sync the names of what was taken in: %w", err)
	}
	return nil
}

// place renames the file of d.
func (s *Store) place(d digest.Digest) error {
	final := s.path(d)
	s.clearWay(final)
	err := s.files.Rename(s.incoming(d), final)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, dir := range []string{filepath.Dir(filepath.Dir(final)), filepath.Dir(final)} {
		if err := s.files.Mkdir(dir, dirMode); err == nil {
			s.unsynced.Store(true)
		} else if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return s.files.Rename(s.incoming(d), final)
}

// syncIncoming syncs the bytes of what was taken in.
func (s *Store) syncIncoming(ds []digest.Digest) error {
	if len(ds) > s.few {
		return s.files.SyncAll(filepath.Join(s.dir, ingestDir))
	}
	for _, d := range ds {
		f, err := s.files.OpenFile(s.incoming(d), os.O_RDWR, fileMode)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
