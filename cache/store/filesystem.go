package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// Files is the file system as a Store changes it. A test puts one in its place
// that fails, or ends, between any two operations. What is read to be sent is not
// opened through it, for that has to be an *os.File.
type Files interface {
	OpenFile(name string, flag int, mode fs.FileMode) (File, error)
	// CreateTemp and the others are those of package os.
	CreateTemp(dir, pattern string) (File, error)
	Mkdir(name string, mode fs.FileMode) error
	Rename(from, to string) error
	Remove(name string) error
	// SyncDir makes the names in a directory outlive a power cut.
	SyncDir(name string) error
	// SyncAll makes all that is below a directory, bytes and names, outlive a power
	// cut.
	SyncAll(name string) error
}

// File is a file that is being written.
type File interface {
	io.Writer
	io.WriterAt
	io.ReaderAt
	io.Closer
	Name() string
	Fd() uintptr
	Stat() (fs.FileInfo, error)
	Sync() error
	Truncate(size int64) error
}

// OS is the machine's file system. What it makes belongs to the owner that Adopter knows.
type OS struct{ Adopter *Adopter }

// OpenFile is os.OpenFile for regular files, see openRegular.
func (o OS) OpenFile(name string, flag int, mode fs.FileMode) (File, error) {
	return file(o.adopted(openRegular(name, flag, mode)))
}

// CreateTemp is os.CreateTemp and follows no symbolic link. Mkdir, Rename and Remove
// are those of package os.
func (o OS) CreateTemp(dir, pattern string) (File, error) {
	return file(o.adopted(createTemp(dir, pattern)))
}

// adopted gives an open file to its owner. If that fails it closes the file, and removes it
// if it is empty: nobody else could use it.
func (o OS) adopted(f *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	if err := o.Adopter.File(f); err != nil {
		if st, failed := f.Stat(); failed == nil && st.Size() == 0 {
			_ = os.Remove(f.Name())
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Mkdir is os.Mkdir.
func (o OS) Mkdir(name string, mode fs.FileMode) error {
	if err := os.Mkdir(name, mode); err != nil {
		return err
	}
	return o.Adopter.Path(name)
}

func (OS) Rename(from, to string) error { return os.Rename(from, to) }

func (OS) Remove(name string) error { return os.Remove(name) }

// SyncDir syncs the directory of that name.
func (OS) SyncDir(name string) error {
	f, err := openDir(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// file keeps a nil *os.File from becoming a File that is not nil.
func file(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}
