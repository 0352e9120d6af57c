package doctor

import "golang.org/x/sys/unix"

// kinds are the file systems that are worth a word, by their magic number (statfs(2)).
var kinds = map[uint32]string{
	unix.NFS_SUPER_MAGIC: "nfs", unix.CIFS_SUPER_MAGIC: "cifs", unix.SMB_SUPER_MAGIC: "smb", unix.SMB2_SUPER_MAGIC: "smb",
	unix.V9FS_MAGIC: "9p", unix.CEPH_SUPER_MAGIC: "ceph", unix.AFS_SUPER_MAGIC: "afs", unix.FUSE_SUPER_MAGIC: "fuse",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs",
}

// kindOf names the kind of a file system; empty where that is nothing special.
func kindOf(st *unix.Statfs_t) string { return kinds[uint32(st.Type)] }
