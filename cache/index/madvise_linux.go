package index

import (
	"golang.org/x/sys/unix"
)

// letGo takes the file's pages out of this process's memory. While tx runs the file
// stays mapped where it is; nothing of a mapping that is only read is lost.
func letGo(tx *tx) {
	// What fails costs memory only, and was not asked for by anybody.
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, tx.b.DB().Info().Data, uintptr(tx.b.Size()), unix.MADV_DONTNEED) // #nosec G115 -- a file's size is not negative
}
