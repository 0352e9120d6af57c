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
	return filepath.WalkDir(name, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.IsDir() && !e.Type().IsRegular() {
			return nil // no file of the cache
		}
		f, err := openNoLinks(path, os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
