package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
)

// ErrNoCache says that a directory is not a cache.
var ErrNoCache = errors.New("no cache in")

// Kind is what Inspect finds in a directory.
type Kind int

const (
	// Empty holds nothing, or is missing: a new cache can begin there.
	Empty Kind = iota
	// Begun holds only what the first start of a cache makes, which did not finish.
	Begun
	// Complete is a cache, of this version or another.
	Complete
	// Occupied holds files of somebody else and no cache.
	Occupied
)

// BlobsMissingError says that a directory holds a cache without its content: probably a disk
// is not mounted. A new cache never looks like that, because blobs is made first.
type BlobsMissingError struct {
	Dir string
	// Empty is set if the directory for the content exists and holds none.
	Empty bool
}

func (e *BlobsMissingError) Error() string {
	path, state := filepath.Join(e.Dir, blobsDir), "missing"
	if e.Empty {
		state = "empty"
	}
	// The directory of an algorithm is what tells a cache that lost its content, and may
	// begin again, from a mount point.
	return fmt.Sprintf("%s has an index, but its blobs directory is %s (is a disk not mounted?); mount it at %s, or, if the content is lost, run as the user of the cache: mkdir -p %s",
		e.Dir, state, path, filepath.Join(path, digest.SHA256.String()))
}

// own are the names of what is in a cache directory. Copies and drafts of the files have
// names that go on with a dot or a hyphen.
var own = []string{blobsDir, ingestDir, damagedDir, LockFile, versionFile, indexFile, backupFile, "admin.token", "quota.json", "missing.json"}

// maxNames bounds how many names Inspect reads.
const maxNames = 1000

// Inspect tells what dir holds, and writes nothing. other is the name of a file that is
// not a cache's own, if Kind is Occupied. Hidden files and lost+found, which volumes
// have from their beginning, do not count. The error is fs.ErrPermission, as a
// *DeniedError, if this user may not look, and a *BlobsMissingError for a cache without its
// content.
func Inspect(dir string) (kind Kind, other string, err error) {
	noted, indexed := isFile(dir, versionFile), isFile(dir, indexFile)
	_, missing := os.Lstat(filepath.Join(dir, blobsDir))
	switch {
	case missing == nil && (noted || indexed):
		return Complete, "", nil
	case errors.Is(missing, fs.ErrNotExist) && noted && indexed: // whatever else is there
		return Empty, "", &BlobsMissingError{Dir: dir}
	}
	f, err := os.Open(dir) // #nosec G304 -- the operator names it
	var names []string
	if err == nil {
		defer f.Close()
		names, err = f.Readdirnames(maxNames)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR): // who opens it learns more
		return Empty, "", nil
	case err != nil && err != io.EOF:
		return Empty, "", Denied(dir, dir, err)
	}
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, ".") || name == "lost+found":
		case isOwnName(name):
			kind = Begun
		default:
			return Occupied, name, nil
		}
	}
	if kind == Begun && errors.Is(missing, fs.ErrNotExist) && (noted || indexed || isFile(dir, backupFile)) {
		return Empty, "", &BlobsMissingError{Dir: dir}
	}
	return kind, "", nil
}

// Require returns an error that is ErrNoCache if dir is not a cache. It writes nothing.
func Require(dir string) error {
	kind, _, err := Inspect(dir)
	switch {
	case err != nil:
		return fmt.Errorf("cache directory %s: %w", dir, err)
	case kind != Complete:
		return fmt.Errorf("%w %s", ErrNoCache, dir)
	}
	return nil
}

// isFile reports whether dir has a file of that name, which is no directory.
func isFile(dir, name string) bool {
	st, err := os.Lstat(filepath.Join(dir, name))
	return err == nil && !st.IsDir()
}

// isComplete reports whether dir has what the first start of a cache makes last, or what a
// cache has that has lost that.
func isComplete(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, blobsDir))
	return err == nil && (isFile(dir, versionFile) || isFile(dir, indexFile))
}

// isOwnName reports whether a cache directory has files of that name.
func isOwnName(name string) bool {
	return slices.ContainsFunc(own, func(o string) bool {
		rest, ok := strings.CutPrefix(name, o)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '-')
	})
}
