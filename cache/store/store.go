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
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// The layout below the cache directory. formatVersion changes when the layout
// does, so that an older program never misreads a newer directory.
const (
	blobsDir      = "blobs"
	ingestDir     = "ingest"
	damagedDir    = "damaged"
	versionFile   = "version"
	indexFile     = "index.db"
	backupFile    = "index.backup"
	formatVersion = "1\n"

	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600
)

// LockFile is the name of the file in a cache directory in which the process that
// holds it has written its number.
const LockFile = "lock"

// Store is a cache directory that this process holds. All methods are safe for
// concurrent use.
type Store struct {
	dir string
	// lock is nil on a read-only file system that has no lock file.
	lock  *os.File
	files Files
	// adopter gives what root makes to the owner; nil for a process of the owner.
	adopter *Adopter
	// readOnly is set if the file system was read-only when it was opened.
	readOnly bool
	shelf    shelf
	// few is how many files are synced one by one: fewFiles, but in tests.
	few int
	// foreign is told what was moved aside; nil for nobody.
	foreign func(path string)
	// unsynced is set while a directory may have a name that a power cut would
	// take, and all below it.
	unsynced atomic.Bool
	// syncing is held while that is mended: who finds it mended may rely on it.
	syncing sync.Mutex
}

// Open makes dir if it is not there, takes its lock, and checks its format. It
// reads none of the content, so its time does not grow with the cache. The
// errors are sentences for the person who starts the program. What a crash left
// among the parts is removed. The error is a *BlobsMissingError for a cache without its content.
// Close gives the directory up.
func Open(dir string) (*Store, error) { return OpenOn(OS{}, dir) }

// OpenOn is Open with another file system to write to.
func OpenOn(files Files, dir string) (*Store, error) {
	missing := (*BlobsMissingError)(nil)
	if _, _, err := Inspect(dir); errors.As(err, &missing) {
		return nil, missing
	}
	adopter := AdopterFor(dir)
	for _, sub := range []string{"", blobsDir, ingestDir} {
		path := filepath.Join(dir, sub)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		err := os.MkdirAll(path, dirMode)
		if err == nil {
			err = adopter.Path(path)
		}
		if errors.Is(err, unix.EROFS) && isComplete(dir) {
			continue // nothing needs it there
		}
		if err != nil {
			return nil, fmt.Errorf("make cache directory: %w", Denied(dir, dir, err))
		}
	}
	// The directory itself may be reached by a link; nothing below it may.
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("open cache directory: %w", err)
	}
	for _, sub := range []string{blobsDir, ingestDir} {
		if st, err := os.Lstat(filepath.Join(dir, sub)); err == nil && !st.IsDir() {
			return nil, fmt.Errorf("%s is not a directory of the cache's own: remove it, or set cache.dir to the directory that it links to", filepath.Join(dir, sub))
		}
	}
	lock, err := acquire(filepath.Join(dir, LockFile), adopter)
	if errors.Is(err, unix.EROFS) && isComplete(dir) {
		return openReadOnly(files, dir, adopter)
	}
	if err != nil {
		return nil, Denied(dir, filepath.Join(dir, LockFile), err)
	}
	s := &Store{dir: dir, lock: lock, files: files, adopter: adopter, few: fewFiles}
	if err := s.checkVersion(); err != nil {
		lock.Close()
		return nil, err
	}
	if adopter != nil {
		// What cannot be given to the owner is better not made.
		if err := s.Check(); err != nil {
			lock.Close()
			return nil, err
		}
	}
	s.sweep(time.Now())
	s.unsynced.Store(true) // as an earlier process may have left it
	_ = s.syncDirs()       // what fails is tried again before it matters
	return s, nil
}

// openReadOnly opens a cache on a read-only file system, from which it serves and to which
// it writes nothing. Others may read it as well. A missing lock file is no error.
func openReadOnly(files Files, dir string, adopter *Adopter) (*Store, error) {
	lock, err := acquireShared(filepath.Join(dir, LockFile))
	if err != nil {
		return nil, Denied(dir, filepath.Join(dir, LockFile), err)
	}
	s := &Store{dir: dir, lock: lock, files: files, adopter: adopter, few: fewFiles, readOnly: true}
	if err := s.checkVersion(); err != nil && !errors.Is(err, unix.EROFS) { // that of a missing one, which the index stands for
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// ReadOnly reports whether the file system was read-only when the cache was opened.
func (s *Store) ReadOnly() bool { return s.readOnly }

// Close gives the directory up for another process. Files that were opened
// stay readable.
func (s *Store) Close() error {
	s.shelf.dropAll()
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// Dir gives the cache directory.
func (s *Store) Dir() string { return s.dir }

func (s *Store) checkVersion() error {
	path := filepath.Join(s.dir, versionFile)
	f, err := s.open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s.writeSynced(path, []byte(formatVersion))
	}
	var b []byte
	if err == nil {
		b, err = io.ReadAll(io.LimitReader(f, 64))
		err = errors.Join(err, f.Close())
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

// Get opens the content of d and returns its file's stamp, which holds the size.
// The error is fs.ErrNotExist if d is not stored; so it is if something else than a
// regular file has its name, which is moved aside. The caller closes the file; its
// content stays readable if it is removed meanwhile.
func (s *Store) Get(d digest.Digest) (*os.File, Stamp, error) {
	f, err := s.open(s.path(d))
	if err != nil {
		return nil, Stamp{}, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, Stamp{}, err
	}
	return f, StampOf(st), nil
}

// Has reports whether d is stored, and its size in bytes.
func (s *Store) Has(d digest.Digest) (int64, bool) {
	st, err := os.Lstat(s.path(d))
	if err != nil || !st.Mode().IsRegular() {
		return 0, false
	}
	return st.Size(), true
}

// Stamp returns the stamp of d's file. The error is fs.ErrNotExist if d is not
// stored.
func (s *Store) Stamp(d digest.Digest) (Stamp, error) {
	st, err := os.Lstat(s.path(d))
	if err != nil {
		return Stamp{}, Denied(s.dir, s.path(d), err)
	}
	if !st.Mode().IsRegular() {
		return Stamp{}, &errForeign{s.path(d)}
	}
	return StampOf(st), nil
}

// Put stores content that the caller has verified to be d's. When it returns
// nil the content outlives a power cut. Storing what is there already is no
// error.
func (s *Store) Put(d digest.Digest, content []byte) error {
	if size, ok := s.Has(d); ok && size == int64(len(content)) {
		// Its name may be there since a commit that could not sync it.
		if err := s.syncName(filepath.Dir(s.path(d))); err != nil {
			return fmt.Errorf("store %s: %w", d, err)
		}
		return nil
	}
	f, err := s.files.CreateTemp(filepath.Join(s.dir, ingestDir), "put-*")
	if err != nil {
		return fmt.Errorf("store %s: %w", d, err)
	}
	defer func() {
		f.Close()
		_ = s.files.Remove(f.Name()) // fails, as it should, once the file has its final name
	}()
	if _, err := f.Write(content); err != nil {
		return fmt.Errorf("store %s: %w", d, err)
	}
	if err := s.commit(f, f.Name(), d); err != nil {
		return fmt.Errorf("store %s: %w", d, err)
	}
	return nil
}

// Remove drops the content of d. That it is not there is no error.
func (s *Store) Remove(d digest.Digest) error {
	defer s.shelf.drop(d) // its bytes are free when the last user has closed it
	err := s.files.Remove(s.path(d))
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
		if !IsDigest(d) {
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

// List gives the digests of an algorithm that begin with prefix and are stored,
// in no particular order.
func (s *Store) List(alg digest.Algorithm, prefix byte) ([]digest.Digest, error) {
	path := filepath.Join(s.dir, blobsDir, alg.String(), fmt.Sprintf("%02x", prefix))
	dir, err := openDir(path)
	if errors.Is(err, fs.ErrNotExist) || isOtherKind(err) && s.quarantine(filepath.Join(path, "file"), false) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	list := make([]digest.Digest, 0, len(names))
	for _, name := range names {
		if d := digest.NewDigestFromEncoded(alg, name); IsDigest(d) {
			list = append(list, d)
		}
	}
	return list, nil
}

// commit gives the file of that name, which is written in full, its final one: its bytes are
// synced before, its directory entry after, so that no crash can leave the name
// without the bytes, or lose the name once commit has returned.
func (s *Store) commit(f File, name string, d digest.Digest) error {
	if err := f.Sync(); err != nil {
		return err
	}
	final := s.path(d)
	dir := filepath.Dir(final)
	s.clearWay(final)
	err := s.files.Rename(name, final)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.makeSyncedDirs(filepath.Join(s.dir, blobsDir), dir); err != nil {
			return err
		}
		err = s.files.Rename(name, final)
	}
	if err != nil {
		return err
	}
	return s.syncName(dir)
}

// syncName makes what has got a name in dir, which holds content, outlive a
// power cut.
func (s *Store) syncName(dir string) error {
	return errors.Join(s.files.SyncDir(dir), s.syncDirs())
}

// syncDirs syncs the names of the directories that hold content, where that has
// not been done.
func (s *Store) syncDirs() error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if !s.unsynced.Swap(false) {
		return nil
	}
	root := filepath.Join(s.dir, blobsDir)
	algorithms, err := os.ReadDir(root)
	err = errors.Join(err, s.files.SyncDir(root))
	for _, a := range algorithms {
		if a.IsDir() {
			err = errors.Join(err, s.files.SyncDir(filepath.Join(root, a.Name())))
		}
	}
	if err != nil {
		s.unsynced.Store(true)
	}
	return err
}

// path gives the file of d. A digest that is not valid never reaches a path:
// its encoded part could hold a separator.
func (s *Store) path(d digest.Digest) string {
	if !IsDigest(d) {
		return filepath.Join(s.dir, blobsDir, "invalid", "digest")
	}
	hex := d.Encoded()
	return filepath.Join(s.dir, blobsDir, d.Algorithm().String(), hex[:2], hex)
}

// makeSyncedDirs makes dir, which lies below base, and syncs the entry of each
// directory that it makes.
func (s *Store) makeSyncedDirs(base, dir string) error {
	if dir == base {
		return nil
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := s.makeSyncedDirs(base, parent); err != nil {
		return err
	}
	if err := s.files.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	err := s.files.SyncDir(parent)
	if err != nil {
		s.unsynced.Store(true)
	}
	return err
}

// writeSynced replaces the file at path by content, all or nothing.
func (s *Store) writeSynced(path string, content []byte) error {
	f, err := s.files.CreateTemp(filepath.Dir(path), filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		_ = s.files.Remove(f.Name()) // fails, as it should, once the file has another name
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := s.files.Rename(f.Name(), path); err != nil {
		return err
	}
	return s.files.SyncDir(filepath.Dir(path))
}

// Check tells whether content can be stored now, by writing a few bytes.
func (s *Store) Check() error {
	if s.readOnly {
		return fmt.Errorf("cache directory %s: %w when entrepot started: restart it once it can be written", s.dir, unix.EROFS)
	}
	f, err := s.files.CreateTemp(filepath.Join(s.dir, ingestDir), "check-*")
	if err != nil {
		return fmt.Errorf("cache directory %s: %w", s.dir, err)
	}
	defer func() {
		f.Close()
		_ = s.files.Remove(f.Name()) // the next one has another name
	}()
	if _, err := f.Write([]byte("entrepot")); err != nil {
		return fmt.Errorf("cache directory %s: %w", s.dir, err)
	}
	return nil
}

// Readable returns why stored content cannot be read: a *BlobsMissingError if its directories
// are gone, and a *DeniedError if this process may not use them. indexed says that the index
// counts content, so that an empty directory has lost it.
func (s *Store) Readable(indexed bool) error { return Readable(s.dir, indexed) }

// Readable is the method of the same name, of the store in dir.
func Readable(dir string, indexed bool) error {
	root := filepath.Join(dir, blobsDir)
	algorithms, err := os.ReadDir(root)
	// A new file system has lost+found.
	algorithms = slices.DeleteFunc(algorithms, func(e fs.DirEntry) bool { return !digest.Algorithm(e.Name()).Available() })
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &BlobsMissingError{Dir: dir}
	case err != nil:
		return Denied(dir, root, err)
	case len(algorithms) == 0 && indexed:
		return &BlobsMissingError{Dir: dir, Empty: true}
	}
	for _, a := range algorithms {
		path := filepath.Join(root, a.Name())
		// Access also fails on a directory that can be listed and not entered.
		if err := unix.Access(path, unix.R_OK|unix.X_OK); err != nil && a.IsDir() {
			return Denied(dir, path, &fs.PathError{Op: "access", Path: path, Err: err})
		}
	}
	return nil
}

// Inodes returns how many files the file system has room for, for this user, and how many
// in all; zero in all if it has no such bound.
func (s *Store) Inodes() (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, 0, fmt.Errorf("cache directory %s: %w", s.dir, err)
	}
	return int64(st.Ffree), int64(st.Files), nil
}

// Room gives how many bytes the file system has for this user, and how many in
// all.
func (s *Store) Room() (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, 0, fmt.Errorf("cache directory %s: %w", s.dir, err)
	}
	size := int64(st.Bsize)
	return int64(st.Bavail) * size, int64(st.Blocks) * size, nil
}
