package store

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// errForeign says that something stands where the cache keeps a file of its own:
// a symbolic link, a pipe, a directory, or a file that has a second name elsewhere.
// For who looks for content that is the same as no file: errors.Is says that it is
// fs.ErrNotExist as well.
type errForeign struct{ path string }

func (e *errForeign) Error() string {
	return fmt.Sprintf("%s is not a regular file of the cache; remove it", e.path)
}

func (e *errForeign) Is(target error) bool { return target == fs.ErrNotExist }

func isForeign(err error) bool {
	var e *errForeign
	return errors.As(err, &e)
}

// openRegular opens a regular file. It follows no symbolic link, waits for nobody at
// the other end of a pipe, and accepts nothing but a regular file. A file that is
// opened to be written must have no second name, or somebody else's file would be
// overwritten. The error is errForeign for what is refused.
func openRegular(name string, flag int, mode fs.FileMode) (*os.File, error) {
	f, err := openNoLinks(name, flag|syscall.O_NONBLOCK, mode)
	if err != nil {
		if isOtherKind(err) {
			err = &errForeign{name}
		}
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !isOwn(st, flag&(os.O_RDWR|os.O_WRONLY) != 0) {
		return nil, errors.Join(&errForeign{name}, f.Close())
	}
	return f, nil
}

// OpenOwn opens a file that stands directly in the cache directory, for reading. It
// follows no symbolic link in place of the file, never waits for the other end of a pipe,
// and accepts nothing but a regular file; the error for anything else is an
// *fs.PathError. The caller closes the file.
func OpenOwn(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0) // #nosec G304 -- a name of our own in the cache directory
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// isOwn reports whether the file can be one of the cache's own.
func isOwn(st fs.FileInfo, toWrite bool) bool {
	if !st.Mode().IsRegular() {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return !toWrite || !ok || uint64(sys.Nlink) <= 1
}

// isOtherKind reports whether an open failed because something on the path is a
// symbolic link, a socket, or a directory where a file should be, or the reverse.
func isOtherKind(err error) bool {
	for _, e := range []error{syscall.ELOOP, syscall.ENXIO, syscall.EISDIR, syscall.ENOTDIR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// openDir opens a directory and follows no symbolic link to it.
func openDir(name string) (*os.File, error) {
	return openNoLinks(name, os.O_RDONLY|syscall.O_DIRECTORY, 0)
}

// createTemp is os.CreateTemp that follows no symbolic link.
func createTemp(dir, pattern string) (*os.File, error) {
	before, after, _ := strings.Cut(pattern, "*")
	for try := 1; ; try++ {
		name := filepath.Join(dir, before+strconv.FormatUint(rand.Uint64(), 36)+after) // #nosec G404 -- the name need not be secret: O_EXCL
		f, err := openNoLinks(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
		if !errors.Is(err, fs.ErrExist) || try == 100 {
			return f, err
		}
	}
}

// open opens the file at path, below the cache directory, for reading. What is no
// file of the cache is moved aside; the error is then fs.ErrNotExist, as for a file
// that is missing.
func (s *Store) open(path string) (*os.File, error) {
	f, err := openRegular(path, os.O_RDONLY, 0)
	if isForeign(err) {
		s.quarantine(path, false)
	}
	return f, Denied(s.dir, path, err)
}

// openToWrite opens the file at path, below the cache directory, for reading and
// writing. What is no file of the cache is moved aside, and a new file is begun if
// flag has os.O_CREATE.
func (s *Store) openToWrite(path string, flag int) (File, error) {
	f, err := s.files.OpenFile(path, os.O_RDWR|flag, fileMode)
	if isForeign(err) && s.quarantine(path, true) {
		f, err = s.files.OpenFile(path, os.O_RDWR|flag, fileMode)
	}
	return f, Denied(s.dir, path, err)
}

// quarantine moves the first thing on the way to path that is not the cache's own to
// the directory of damaged content: a link in place of a directory, or whatever is in
// place of the file. It reports whether it has moved something. What it moves is
// neither read nor followed.
func (s *Store) quarantine(path string, toWrite bool) bool {
	rel, err := filepath.Rel(s.dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return false
	}
	at := s.dir
	parts := strings.Split(rel, string(filepath.Separator))
	for i, part := range parts {
		at = filepath.Join(at, part)
		st, err := os.Lstat(at)
		if err != nil {
			return false
		}
		if last := i == len(parts)-1; last && isOwn(st, toWrite) || !last && st.IsDir() {
			continue
		}
		aside := filepath.Join(s.dir, damagedDir)
		if err := s.files.Mkdir(aside, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return false
		}
		if st, err := os.Lstat(aside); err != nil || !st.IsDir() {
			return false
		}
		name := fmt.Sprintf("foreign-%d-%s", time.Now().UnixNano(), part)
		if s.files.Rename(at, filepath.Join(aside, name)) != nil {
			return false
		}
		if s.foreign != nil {
			s.foreign(at)
		}
		_ = s.trim(aside) // what stays takes room, no more
		return true
	}
	return false
}

// Foreign has fn called with the path of each thing that was moved aside because it is
// no file of the cache. It is called before the Store is used.
func (s *Store) Foreign(fn func(path string)) { s.foreign = fn }

// KeepOwn moves aside what stands in the place of the cache's file of that name,
// directly below the cache directory, and is no regular file.
func (s *Store) KeepOwn(name string) { s.quarantine(filepath.Join(s.dir, name), false) }

// clearWay moves aside what would keep path from becoming the name of a file.
func (s *Store) clearWay(path string) { s.quarantine(path, false) }
