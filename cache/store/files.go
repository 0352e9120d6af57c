package store

import (
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

// OS is the machine's file system.
type OS struct{}

// OpenFile is os.OpenFile for regular files, see openRegular.
func (OS) OpenFile(name string, flag int, mode fs.FileMode) (File, error) {
	return file(openRegular(name, flag, mode))
}

// CreateTemp is os.CreateTemp and follows no symbolic link. Mkdir, Rename and Remove
// are those of package os.
func (OS) CreateTemp(dir, pattern string) (File, error) { return file(createTemp(dir, pattern)) }

func (OS) Mkdir(name string, mode fs.FileMode) error { return os.Mkdir(name, mode) }

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
