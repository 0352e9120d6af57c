package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// Flush begins to write what the part holds in [off, off+n) to the disk and does
// not wait for it, so that the sync at the end has little left to do. It is
// advice: what goes wrong, Save and Commit will meet too.
func (p *Part) Flush(off, n int64) { flush(p.file, off, n) }

func flush(f File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// SyncAll syncs all that the file system of a directory holds: bytes and names.
// Linux 5.8 and newer tell of bytes that could not be written.
func (OS) SyncAll(name string) error {
	f, err := openDir(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}
