package store

import (
	"io/fs"
	"syscall"
)

// Stamp is what the file system says of a file. Content is written once, so a
// stamp that differs from the one at its commit tells that something else has
// touched the file.
type Stamp struct {
	// Size is in bytes.
	Size int64
	// Modified and Changed are the file's mtime and ctime in nanoseconds since
	// 1970.
	Modified, Changed int64
	Inode             uint64
}

// allocated gives the bytes that a file has on disk, holes aside.
func allocated(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

// StampOf reads the stamp from what Stat gives.
func StampOf(st fs.FileInfo) Stamp {
	s := Stamp{Size: st.Size(), Modified: st.ModTime().UnixNano()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		s.Changed, s.Inode = changed(sys), sys.Ino
	}
	return s
}
