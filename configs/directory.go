package configs

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// systemDir is where a service keeps its cache.
const systemDir = "/var/lib/entrepot"

// defaultDir gives the directory of a cache whose directory nobody set: system
// where this user can write to it (or make it), else one in the user's own
// cache directory. It makes none.
func defaultDir(system string, userCache func() (string, error)) (string, error) {
	if writable(system) {
		return system, nil
	}
	dir, err := userCache()
	if err != nil {
		return "", fmt.Errorf("%s is not writable and this user has no cache directory (%w); set cache.dir or ENTREPOT_CACHE_DIR to a directory that is", system, err)
	}
	return filepath.Join(dir, "entrepot"), nil
}

// HasDefaultDir tells whether Dir is the one that this user's caches have where
// nobody names another.
func (c *Cache) HasDefaultDir() bool {
	dir, err := defaultDir(systemDir, os.UserCacheDir)
	return err == nil && dir == c.Dir
}

// writable tells whether this process may write to dir, or make it.
func writable(dir string) bool {
	err := unix.Access(dir, unix.W_OK|unix.X_OK)
	if err == unix.ENOENT {
		err = unix.Access(filepath.Dir(dir), unix.W_OK|unix.X_OK)
	}
	return err == nil
}
