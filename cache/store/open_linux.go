package store

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openNoLinks opens a file if no part of its name is a symbolic link; otherwise the
// error is ELOOP. openat2 (Linux 5.6) checks that in the one call. Where it is missing
// or a sandbox forbids it, the directories are looked at one by one.
func openNoLinks(name string, flag int, mode fs.FileMode) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flag | unix.O_CLOEXEC | unix.O_NOFOLLOW), Resolve: unix.RESOLVE_NO_SYMLINKS}
	if flag&os.O_CREATE != 0 {
		how.Mode = uint64(mode.Perm())
	}
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, name, &how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), name), nil
		case unix.EINTR, unix.EAGAIN:
			continue
		case unix.ENOSYS, unix.EPERM:
			return openStepwise(name, flag, mode)
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
}

// openStepwise is openNoLinks without openat2. Between its steps a directory may be
// exchanged; it refuses what stands there for longer.
func openStepwise(name string, flag int, mode fs.FileMode) (*os.File, error) {
	for dir, levels := filepath.Dir(name), 0; levels < 3 && dir != filepath.Dir(dir); dir, levels = filepath.Dir(dir), levels+1 {
		if st, err := os.Lstat(dir); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			return nil, &fs.PathError{Op: "open", Path: name, Err: unix.ELOOP}
		}
	}
	return os.OpenFile(name, flag|unix.O_NOFOLLOW, mode) // #nosec G304 -- names below the cache directory are made of verified digests
}
