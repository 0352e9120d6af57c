// Package store keeps content on disk under the name of its digest, and the
// parts of content that is still on its way.
//
// It promises that a file under its final name is complete, has been synced,
// and was handed over as verified: nothing is ever written under that name. It
// does not verify, does not know where content comes from or who may read it,
// and holds no index: the tree is the truth.
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// The layout below the cache directory. formatVersion changes when the layout
// does, so that an older program never misreads a newer directory.
const (
	blobsDir      = "blobs"
	ingestDir     = "ingest"
	lockFile      = "lock"
	versionFile   = "version"
	formatVersion = "1\n"

	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600
)

// Store is a cache directory that this process holds. All methods are safe for
// concurrent use.
type Store struct {
	dir  string
	lock *os.File
}

// Open makes dir if it is not there, takes its lock, and checks its format. It
// reads none of the content, so its time does not grow with the cache. The
// errors are sentences for the person who starts the program. Close gives the
// directory up.
func Open(dir string) (*Store, error) {
	for _, sub := range []string{"", blobsDir, ingestDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), dirMode); err != nil {
			return nil, fmt.Errorf("make cache directory: %w", err)
		}
	}
	lock, err := acquire(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, lock: lock}
	if err := s.checkVersion(); err != nil {
		lock.Close()
		return nil, err
	}
	return s, nil
}

// Close gives the directory up for another process. Files that were opened
// stay readable.
func (s *Store) Close() error { return s.lock.Close() }

// Dir gives the cache directory.
func (s *Store) Dir() string { return s.dir }

func (s *Store) checkVersion() error {
	path := filepath.Join(s.dir, versionFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return writeSynced(path, []byte(formatVersion))
	}
	if err != nil {
		return fmt.Errorf("read the cache directory's format: %w", err)
	}
	if string(b) != formatVersion {
		return fmt.Errorf("cache directory %s has format %q and this version of entrepot knows %q only: "+
			"use the version that wrote it, or another directory", s.dir, strings.TrimSpace(string(b)), strings.TrimSpace(formatVersion))
	}
	return nil
}

// Get opens the content of d and gives its size in bytes. The error is
// fs.ErrNotExist where it is not stored. The caller closes the file; its
// content stays readable when it is removed meanwhile.
func (s *Store) Get(d digest.Digest) (*os.File, int64, error) {
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// Has tells whether d is stored, and its size in bytes.
func (s *Store) Has(d digest.Digest) (int64, bool) {
	st, err := os.Stat(s.path(d))
	if err != nil {
		return 0, false
	}
	return st.Size(), true
}

// Stamp gives the stamp of d's file. The error is fs.ErrNotExist where it is not
// stored.
func (s *Store) Stamp(d digest.Digest) (Stamp, error) {
	st, err := os.Stat(s.path(d))
	if err != nil {
		return Stamp{}, err
	}
	return StampOf(st), nil
}

// Put stores content that the caller has verified to be d's. When it returns
// nil the content outlives a power cut. Storing what is there already is no
// error.
func (s *Store) Put(d digest.Digest, content []byte) error {
	if size, ok := s.Has(d); ok && size == int64(len(content)) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, ingestDir), "put-*")
	if err != nil {
		return fmt.Errorf("store %s: %w", d, err)
	}
	defer func() {
		f.Close()
		os.Remove(f.Name()) // fails, as it should, once the file has its final name
	}()
	if _, err := f.Write(content); err != nil {
		return fmt.Errorf("store %s: %w", d, err)
	}
	if err := s.commit(f, d); err != nil {
		return fmt.Errorf("store %s: %w", d, err)
	}
	return nil
}

// Remove drops the content of d. That it is not there is no error.
func (s *Store) Remove(d digest.Digest) error {
	err := os.Remove(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Walk calls fn for every stored digest with its size in bytes, in no
// particular order, until fn gives an error, which it returns. Content that
// comes or goes meanwhile may or may not be seen.
func (s *Store) Walk(fn func(d digest.Digest, size int64) error) error {
	root := filepath.Join(s.dir, blobsDir)
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !e.Type().IsRegular() {
			return nil
		}
		alg := filepath.Base(filepath.Dir(filepath.Dir(path)))
		d := digest.NewDigestFromEncoded(digest.Algorithm(alg), e.Name())
		if d.Validate() != nil {
			return nil
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return fn(d, st.Size())
	})
}

// commit gives a file that is written in full its final name: its bytes are
// synced before, its directory entry after, so that no crash can leave the name
// without the bytes, or lose the name once commit has returned.
func (s *Store) commit(f *os.File, d digest.Digest) error {
	if err := f.Sync(); err != nil {
		return err
	}
	final := s.path(d)
	dir := filepath.Dir(final)
	err := os.Rename(f.Name(), final)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeSyncedDirs(filepath.Join(s.dir, blobsDir), dir); err != nil {
			return err
		}
		err = os.Rename(f.Name(), final)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// path gives the file of d. A digest that is not valid never reaches a path:
// its encoded part could hold a separator.
func (s *Store) path(d digest.Digest) string {
	if d.Validate() != nil {
		return filepath.Join(s.dir, blobsDir, "invalid", "digest")
	}
	hex := d.Encoded()
	return filepath.Join(s.dir, blobsDir, d.Algorithm().String(), hex[:2], hex)
}

// makeSyncedDirs makes dir, which lies below base, and syncs the entry of each
// directory that it makes.
func makeSyncedDirs(base, dir string) error {
	if dir == base {
		return nil
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := makeSyncedDirs(base, parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// writeSynced replaces the file at path by content, all or nothing.
func writeSynced(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Check tells whether content can be stored now, by writing a few bytes.
func (s *Store) Check() error {
	f, err := os.CreateTemp(filepath.Join(s.dir, ingestDir), "check-*")
	if err != nil {
		return fmt.Errorf("cache directory %s: %w", s.dir, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write([]byte("entrepot")); err != nil {
		return fmt.Errorf("cache directory %s: %w", s.dir, err)
	}
	return nil
}
