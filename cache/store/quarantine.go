package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Damaged content is kept for whoever wants to know what became of it: the
// newest of it, within these bounds. None of it is ever served.
const (
	maxDamaged      = 8
	maxDamagedBytes = 256 << 20
)

// ErrChanged says that a file is not the one that was meant any more.
var ErrChanged = errors.New("the file has been changed")

// SetAside takes the content of d, which is not d's, out of the store: it is
// moved to the directory of damaged content, or removed where it is too large
// for that. seen is the stamp of the file that was found damaged; another one is
// left alone, with ErrChanged. The error is fs.ErrNotExist where it is not
// stored.
func (s *Store) SetAside(d digest.Digest, seen Stamp) error {
	now, err := s.Stamp(d)
	if err != nil {
		return err
	}
	if now != seen {
		return fmt.Errorf("set %s aside: %w", d, ErrChanged)
	}
	defer s.shelf.drop(d)
	path := s.path(d)
	aside := filepath.Join(s.dir, damagedDir)
	if seen.Size > maxDamagedBytes {
		return s.files.Remove(path)
	}
	err = s.files.Mkdir(aside, dirMode)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = s.files.Rename(path, filepath.Join(aside, d.Algorithm().String()+"-"+d.Encoded()))
	}
	if err != nil {
		// On a disk that is full there may be no room for a name.
		return s.files.Remove(path)
	}
	return s.trim(aside)
}

// trim removes the oldest damaged content that is beyond the bounds.
func (s *Store) trim(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type old struct {
		name  string
		stamp Stamp
	}
	var list []old
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			continue // gone
		}
		list = append(list, old{e.Name(), StampOf(st)})
	}
	// A rename is a change of the inode: the newest is the one set aside last.
	slices.SortFunc(list, func(a, b old) int { return cmp.Compare(b.stamp.Changed, a.stamp.Changed) })
	var errs []error
	var bytes int64
	for i, o := range list {
		if bytes += o.stamp.Size; i >= maxDamaged || bytes > maxDamagedBytes {
			errs = append(errs, s.files.Remove(filepath.Join(dir, o.name)))
		}
	}
	return errors.Join(errs...)
}
