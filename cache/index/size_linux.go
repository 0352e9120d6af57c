package index

import (
	"io/fs"
	"syscall"
)

// allocatedSize returns how much of the disk a file takes up, holes excluded.
func allocatedSize(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}
