package bundle

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrBusy says that another process writes the same bundle.
var ErrBusy = errors.New("another process is writing it: wait for it to end, or name another")

// lock keeps other processes from writing to what is called path and .partial. The
// caller calls unlock.
func lock(path string) (unlock func() error, err error) {
	name := path + partialSuffix + ".lock"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600) // #nosec G304 -- the operator names it
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOLCK) {
		err = nil // the file system has none, as that of another machine may
	}
	if err == nil && !isAt(f, name) || errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrBusy
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return func() error { return errors.Join(os.Remove(name), f.Close()) }, nil
}

// isAt tells whether f is still called name: who had it before may have removed it.
func isAt(f *os.File, name string) bool {
	is, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(name)
	return err == nil && os.SameFile(is, there)
}
