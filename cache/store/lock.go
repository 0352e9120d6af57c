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
	who, ending := readHolder(f)
	if ending {
		return &EndingError{Dir: dir, Process: who}
	}
	if who == "" {
		who = "unknown"
	}
	return fmt.Errorf("cache directory %s is %w (process %s): stop that one, or give this one its own directory", dir, ErrInUse, who)
}

// endingMark follows the process number in the lock file of a process that is ending.
const endingMark = " ending"

// readHolder returns the number of the process that a lock file names, and whether that has
// said that it is ending.
func readHolder(f *os.File) (process string, ending bool) {
	text, _ := io.ReadAll(io.NewSectionReader(f, 0, 64))
	return strings.CutSuffix(strings.TrimSpace(string(text)), endingMark)
}

// EndingError says that the process that holds a cache directory is ending: it lets running
// transfers finish first. It is ErrInUse as well.
type EndingError struct{ Dir, Process string }

func (e *EndingError) Error() string {
	return fmt.Sprintf("cache directory %s: the entrepot that ran here before (process %s) is still ending: it lets running transfers finish, for as long as its shutdown_timeout; "+
		"try again in a moment, wait for it with serve --wait, or cut its transfers with a second signal (kill %s)", e.Dir, e.Process, e.Process)
}

func (e *EndingError) Is(target error) bool { return target == ErrInUse }

// StillEnding returns an *EndingError if a process holds dir and has said that it is ending;
// else nil. It writes nothing.
func StillEnding(dir string) error {
	f, err := OpenOwn(filepath.Join(dir, LockFile))
	if err != nil {
		return nil // who opens the directory learns more
	}
	defer f.Close()
	who, ending := readHolder(f)
	if !ending || !errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK) {
		return nil
	}
	return &EndingError{Dir: dir, Process: who}
}

// Ending notes in the lock file that this process is ending, for who starts another.
func (s *Store) Ending() {
	if s.lock != nil && !s.readOnly {
		_, _ = s.lock.WriteAt(fmt.Appendf(nil, "%d%s\n", os.Getpid(), endingMark), 0)
	}
}
