//go:build !linux

package index

import "io/fs"

// allocatedSize returns a file's length: other systems are not asked for holes.
func allocatedSize(st fs.FileInfo) int64 { return st.Size() }
