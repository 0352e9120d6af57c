package client

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Write puts the file in place at once: whoever reads it finds the old one or the new
// one. What was there is kept beside it; backup is where, empty where nothing was. A file
// that says already what it is to say is left alone.
func (f *File) Write(now time.Time) (backup string, err error) {
	if !f.Changes() {
		return "", nil
	}
	path, mode, owner := f.Path, fs.FileMode(0o644), (*syscall.Stat_t)(nil)
	if now, err := read(path); f.Exists && !bytes.Equal(now, f.Old) || !f.Exists && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s has changed since it was read; run this again", path)
	}
	if f.Exists {
		// A link stays one.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return "", err
		}
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		mode = info.Mode().Perm()
		owner, _ = info.Sys().(*syscall.Stat_t)
		// Two in a second differ by their fraction.
		backup = path + "." + now.UTC().Format("20060102T150405.000Z") + ".bak"
		if err := create(backup, f.Old, mode, owner); err != nil {
			return "", fmt.Errorf("keep what is there: %w", err)
		}
	} else if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { // #nosec G301 -- as the directories of configurations are, which all users read
		return "", err
	}
	part := path + ".entrepot"
	_ = os.Remove(part) // of a run that was killed
	if err := create(part, f.New, mode, owner); err != nil {
		return backup, err
	}
	if err := os.Rename(part, path); err != nil {
		return backup, errors.Join(err, os.Remove(part))
	}
	return backup, syncDir(filepath.Dir(path))
}

// create writes a file down to the disk, with the mode and the owner of the one that it
// is for.
func create(path string, content []byte, mode fs.FileMode, owner *syscall.Stat_t) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) // #nosec G304 -- beside a file that the operator has asked for
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if owner != nil && os.Geteuid() == 0 {
		if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) (err error) {
	d, err := os.Open(dir) // #nosec G304 -- as above
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Sync()
}
