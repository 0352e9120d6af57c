//go:build !linux

package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Flush is advice that this system does not take.
func (p *Part) Flush(int64, int64) {}

func flush(File, int64, int64) {}

// SyncAll syncs all that is below a directory: this system has no way to do that at
// once.
func (OS) SyncAll(name string) error {
	return filepath.WalkDir(name, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path) // #nosec G304 -- below the cache directory
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
