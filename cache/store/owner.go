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

// Denied returns err as a *DeniedError if it says that path, which is in the cache
// directory dir or is that itself, may not be used.
func Denied(dir, path string, err error) error {
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

// Adopter gives files that root makes in a cache to the cache's owner, who could not read
// them otherwise. A nil Adopter gives nothing away. It is safe for concurrent use.
type Adopter struct {
	owner Owner
	dir   string
	// guessed is set if the cache's own files are root's: then its owner is perhaps root.
	guessed bool
}

// AdopterFor returns the Adopter for the cache in dir, before anything is made there: nil
// if this process is not root's, or the cache is root's or missing.
func AdopterFor(dir string) *Adopter {
	owner := OwnerOf(dir)
	if os.Geteuid() != 0 || owner.UID <= 0 {
		return nil
	}
	uid, _ := ownerOf(filepath.Join(dir, versionFile))
	return &Adopter{owner: owner, dir: dir, guessed: uid == 0}
}

// File gives f to the owner, unless it is theirs.
func (a *Adopter) File(f *os.File) error {
	if a == nil {
		return nil
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return a.give(f.Name(), st, func() error { return f.Chown(a.owner.UID, a.owner.GID) })
}

// Path gives the file or directory at path to the owner, unless it is theirs. It follows no
// symbolic link.
func (a *Adopter) Path(path string) error {
	if a == nil {
		return nil
	}
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	return a.give(path, st, func() error { return os.Lchown(path, a.owner.UID, a.owner.GID) })
}

func (a *Adopter) give(path string, st fs.FileInfo, chown func() error) error {
	if uid, _ := ownerIn(st); uid == a.owner.UID {
		return nil
	}
	err := chown()
	switch {
	case err == nil, a.guessed && errors.Is(err, fs.ErrPermission):
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("root cannot give %s to the owner of %s, %s, who could not read it: run entrepot as that user (docker exec --user %d, sudo -u '#%d'), or allow it CAP_CHOWN: %w",
			path, a.dir, userName(a.owner.UID), a.owner.UID, a.owner.UID, err)
	}
	return err
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
