package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// DeniedError says that this process may not use a file of the cache, whose it is, and
// what to do about it. It is fs.ErrPermission as well.
type DeniedError struct {
	// Path is the file or directory, and Dir the cache directory that it is in.
	Path, Dir string
	// Owner is whose Path is; -1 if that cannot be seen. User is who may not use it.
	Owner, User int
	Err         error
}

// Denied returns err as a *DeniedError if it says that path, which is in the cache
// directory dir or is that itself, may not be used.
func Denied(dir, path string, err error) error {
	var d *DeniedError
	if !errors.Is(err, fs.ErrPermission) || errors.As(err, &d) {
		return err
	}
	uid, _ := ownerOf(path)
	return &DeniedError{Path: path, Dir: dir, Owner: uid, User: os.Geteuid(), Err: err}
}

func (e *DeniedError) Unwrap() error { return e.Err }

func (e *DeniedError) Error() string {
	whose := ""
	if e.Owner >= 0 {
		whose = fmt.Sprintf(" belongs to %s and", userName(e.Owner))
	}
	return fmt.Sprintf("permission denied: %s%s cannot be used by %s, as which entrepot runs; %s", e.Path, whose, userName(e.User), e.remedy(os.Geteuid()))
}

// remedy says what the user me can do: name another directory if there is none to give away,
// give the file to its service, or run as the service's user.
func (e *DeniedError) remedy(me int) string {
	owner := OwnerOf(e.Dir)
	_, err := os.Lstat(e.Dir)
	switch {
	case me == 0 && e.User == 0:
		return "root lacks a privilege here: add CAP_DAC_OVERRIDE, or run entrepot as the owner"
	case errors.Is(err, fs.ErrNotExist):
		return "the directory does not exist; name one that this user can write to: --cache-dir DIR"
	case e.User != me: // root looks for its service
		return "run: " + ChownCommand(e.Dir, owner.UID, owner.GID)
	case owner.UID != me && owner.UID == 0:
		return "run it as root"
	case owner.UID != me && owner.UID > 0:
		return fmt.Sprintf("run entrepot as %s or as root", userName(owner.UID))
	default:
		return "run as root: " + ChownCommand(e.Dir, me, os.Getegid())
	}
}

// StillDenied reports whether this process may not use the file of e still.
func (e *DeniedError) StillDenied() bool {
	f, err := os.OpenFile(e.Path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0) // #nosec G304 -- a name in the cache directory
	if err == nil {
		_ = f.Close() // nothing was written
	}
	return errors.Is(err, fs.ErrPermission)
}

// Denial returns a *DeniedError if the content of d is stored and the cache's user may not
// read it: this process's, or the owner if this process is root's. Else it is nil.
func (s *Store) Denial(d digest.Digest) error {
	path := s.path(d)
	if s.adopter != nil {
		return s.adopter.strange(path)
	}
	f, err := openRegular(path, os.O_RDONLY, 0)
	if err == nil {
		return f.Close()
	}
	if err = Denied(s.dir, path, err); errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// strange returns a *DeniedError if path is there and its owner's others may not use it.
func (a *Adopter) strange(path string) error {
	st, err := os.Lstat(path)
	if err != nil || a.guessed {
		return nil
	}
	uid, _ := ownerIn(st)
	if !isStrange(st, a.owner.UID) {
		return nil
	}
	return &DeniedError{Path: path, Dir: a.dir, Owner: uid, User: a.owner.UID, Err: fs.ErrPermission}
}

// isStrange reports whether a file of the cache belongs to another user than uid, who can
// neither read it nor, if it is a directory, use it.
func isStrange(st fs.FileInfo, uid int) bool {
	open := fs.FileMode(0o004)
	if st.IsDir() {
		open = 0o003
	}
	is, _ := ownerIn(st)
	return is >= 0 && is != uid && st.Mode().Perm()&open != open
}

// writtenFiles are those that serve opens for writing.
var writtenFiles = []string{LockFile, indexFile}

// isDenied reports whether path, of which st is, belongs to another user than me, who runs this
// process and may not use it. A file on a read-only file system is not denied.
func isDenied(path string, st fs.FileInfo, me int) bool {
	mode := uint32(unix.R_OK)
	switch {
	case st.IsDir():
		mode = unix.R_OK | unix.W_OK | unix.X_OK
	case slices.Contains(writtenFiles, filepath.Base(path)):
		mode = unix.R_OK | unix.W_OK
	}
	is, _ := ownerIn(st)
	return is >= 0 && is != me && errors.Is(unix.Access(path, mode), unix.EACCES)
}

// maxPerDir bounds how many files of each directory Strangers looks at: there are 256
// directories of content.
const maxPerDir = 200

// Strangers looks for what is in the cache in dir and its user uid may not use, because it
// belongs to somebody else: if uid is negative, whose the cache is. It looks at the files of
// the index, at all directories, and at up to maxPerDir files of each. For this process's user
// it asks the system, which knows the user's groups. It returns how many it
// has found, and for the first of them a *DeniedError; nil for none.
func Strangers(dir string, uid int) (found int, first error) {
	if uid < 0 {
		uid = OwnerOf(dir).UID
	}
	if uid <= 0 { // root may use everything
		return 0, nil
	}
	me := os.Geteuid()
	look := func(path string, e fs.DirEntry) {
		st, err := e.Info()
		if err != nil || st.Mode()&fs.ModeSymlink != 0 {
			return
		}
		if uid == me && !isDenied(path, st, me) || uid != me && !isStrange(st, uid) {
			return
		}
		if found++; first == nil {
			is, _ := ownerIn(st)
			first = &DeniedError{Path: path, Dir: dir, Owner: is, User: uid, Err: fs.ErrPermission}
		}
	}
	each := func(dir string, most int, fn func(path string, e fs.DirEntry)) {
		f, err := os.Open(dir) // #nosec G304 -- a directory of the cache
		if err != nil {
			return // it has been found itself
		}
		defer f.Close()
		entries, _ := f.ReadDir(most)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			look(path, e)
			if fn != nil && e.IsDir() {
				fn(path, e)
			}
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return 0, nil
	}
	for _, e := range names {
		path := filepath.Join(dir, e.Name())
		if !isOwnName(e.Name()) { // a cache may stand beside other files
			continue
		}
		look(path, e)
		switch e.Name() {
		case ingestDir:
			each(path, maxNames, nil)
		case blobsDir:
			each(path, maxNames, func(path string, _ fs.DirEntry) {
				each(path, maxNames, func(path string, _ fs.DirEntry) { each(path, maxPerDir, nil) })
			})
		}
	}
	return found, first
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

// Listable returns the error that keeps this process from listing one of the directories of
// content: a *DeniedError if it may not, a *BlobsMissingError if all are gone. What lies in such
// a directory is not known to be gone.
func (s *Store) Listable() error { return Listable(s.dir) }

// Listable is Store.Listable for the cache in dir, which nobody needs to have opened.
func Listable(dir string) error {
	root := filepath.Join(dir, blobsDir)
	list := func(path string) ([]fs.DirEntry, error) {
		entries, err := os.ReadDir(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return entries, Denied(dir, path, err)
	}
	if _, err := os.Lstat(root); errors.Is(err, fs.ErrNotExist) {
		return &BlobsMissingError{Dir: dir}
	}
	algorithms, err := list(root)
	if err != nil {
		return err
	}
	for _, a := range algorithms {
		if !a.IsDir() {
			continue
		}
		prefixes, err := list(filepath.Join(root, a.Name()))
		if err != nil {
			return err
		}
		for _, p := range prefixes {
			if !p.IsDir() {
				continue
			}
			path := filepath.Join(root, a.Name(), p.Name())
			f, err := openDir(path)
			if err == nil {
				_, err = f.Readdirnames(1)
				err = errors.Join(err, f.Close())
			}
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, fs.ErrNotExist) {
				return Denied(dir, path, err)
			}
		}
	}
	return nil
}
