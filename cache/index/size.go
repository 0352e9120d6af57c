package index

import "os"

// Bytes returns how much disk space the index takes up: the allocated size of its
// file and of its backup, in bytes. It costs two stat calls and is safe for
// concurrent use.
func (ix *Index) Bytes() int64 { return allocated(ix.path) + allocated(ix.backup) }

// allocated returns the allocated size of a file, or 0 if it can't be read.
func allocated(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return allocatedSize(st)
}
