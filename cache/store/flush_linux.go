package store

import "golang.org/x/sys/unix"

// Flush begins to write what the part holds in [off, off+n) to the disk and does
// not wait for it, so that the sync at the end has little left to do. It is
// advice: what goes wrong, Save and Commit will meet too.
func (p *Part) Flush(off, n int64) {
	_ = unix.SyncFileRange(int(p.file.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}
