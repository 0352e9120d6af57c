//go:build !linux

package doctor

import "golang.org/x/sys/unix"

// kindOf names the kind of a file system, as the system itself calls it.
func kindOf(st *unix.Statfs_t) string { return unix.ByteSliceToString(st.Fstypename[:]) }
