package store

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// openNoLinks opens a file if no part of its name is a symbolic link; otherwise the
// error is ELOOP.
func openNoLinks(name string, flag int, mode fs.FileMode) (*os.File, error) {
	return os.OpenFile(name, flag|unix.O_NOFOLLOW_ANY, mode) // #nosec G304 -- names below the cache directory are made of verified digests
}
