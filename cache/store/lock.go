package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process holds the cache directory.
var ErrInUse = errors.New("in use by another entrepot")

// acquire takes the lock at path for as long as the file it gives is open: the
// kernel drops it with the process, so a crash leaves none behind. Who holds it
// is written in it, for the sentence that the next one reads.
func acquire(path string, adopter *Adopter) (*os.File, error) {
	f, err := openRegular(path, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, fmt.Errorf("lock cache directory: %w", err)
	}
	if err := adopter.File(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		defer f.Close()
		return nil, inUse(f, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return f, nil
}

// acquireShared takes the lock at path for reading, on a file system that cannot be written.
// It returns nil if there is no such file.
func acquireShared(path string) (*os.File, error) {
	f, err := openRegular(path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock cache directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		defer f.Close()
		return nil, inUse(f, err)
	}
	return f, nil
}

// inUse returns the error for a lock file that could not be locked because of err.
func inUse(f *os.File, err error) error {
	dir := filepath.Dir(f.Name())
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lock cache directory %s: %w", dir, err)
	}
	holder, _ := io.ReadAll(io.LimitReader(f, 64))
	who := strings.TrimSpace(string(holder))
	if who == "" {
		who = "unknown"
	}
	return fmt.Errorf("cache directory %s is %w (process %s): stop that one, or give this one its own directory", dir, ErrInUse, who)
}
