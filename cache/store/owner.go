package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// DeniedError says that this process may not use a file of the cache, whose it is, and
// what to do about it. It is fs.ErrPermission as well.
type DeniedError struct {
	// Path is the file or directory, and Dir the cache directory that it is in.
	Path, Dir string
	// Owner is whose Path is; -1 if that cannot be seen.
	Owner int
	Err   error
}

// denied returns err as a *DeniedError if it says that path, which is in the cache
// directory dir or is that itself, may not be used.
func denied(dir, path string, err error) error {
	var d *DeniedError
	if !errors.Is(err, fs.ErrPermission) || errors.As(err, &d) {
		return err
	}
	uid, _ := ownerOf(path)
	return &DeniedError{Path: path, Dir: dir, Owner: uid, Err: err}
}

func (e *DeniedError) Unwrap() error { return e.Err }

func (e *DeniedError) Error() string {
	whose := ""
	if e.Owner >= 0 {
		whose = fmt.Sprintf(" belongs to %s and", userName(e.Owner))
	}
	me := os.Geteuid()
	return fmt.Sprintf("permission denied: %s%s cannot be used by %s, as which entrepot runs; %s", e.Path, whose, userName(me), e.remedy(me))
}

// remedy says what to do: give the file to its service, or run as the service's user.
func (e *DeniedError) remedy(me int) string {
	if me == 0 {
		return "root lacks a privilege here: add CAP_DAC_OVERRIDE, or run entrepot as the owner"
	}
	owner := OwnerOf(e.Dir)
	if owner.UID != me && owner.UID >= 0 {
		return fmt.Sprintf("run entrepot as %s or as root", userName(owner.UID))
	}
	return "run as root: " + ChownCommand(e.Dir, me, os.Getegid())
}

// ChownCommand is what gives all of dir to a user.
func ChownCommand(dir string, uid, gid int) string {
	return fmt.Sprintf("chown -R %d:%d %s", uid, gid, dir)
}

// userName names a user for people.
func userName(uid int) string {
	if uid == 0 {
		return "root"
	}
	return fmt.Sprintf("uid %d", uid)
}

// Owner is a user and a group.
type Owner struct{ UID, GID int }

// OwnerOf returns whose the cache in dir is: the user that has made it, whom only root
// may have made it for. If there is none it is whose the directory is. Both are -1 if
// nobody can tell.
func OwnerOf(dir string) Owner {
	uid, gid := ownerOf(filepath.Join(dir, versionFile))
	if uid <= 0 {
		if u, g := ownerOf(dir); u >= 0 && (uid < 0 || u > 0) {
			uid, gid = u, g
		}
	}
	return Owner{uid, gid}
}

// ownerOf returns whose a file is; -1 if that cannot be seen.
func ownerOf(path string) (uid, gid int) {
	st, err := os.Lstat(path)
	if err != nil {
		return -1, -1
	}
	return ownerIn(st)
}

func ownerIn(st fs.FileInfo) (uid, gid int) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, -1
	}
	return int(sys.Uid), int(sys.Gid)
}
