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

// own are the names of what is in a cache directory. Copies and drafts of the files have
// names that go on with a dot or a hyphen.
var own = []string{blobsDir, ingestDir, damagedDir, LockFile, versionFile, "index.db", "index.backup", "admin.token", "quota.json", "missing.json"}

// maxNames bounds how many names Inspect reads.
const maxNames = 1000

// Inspect tells what dir holds, and writes nothing. other is the name of a file that is
// not a cache's own, if Kind is Occupied. Hidden files and lost+found, which volumes
// have from their beginning, do not count. The error is fs.ErrPermission, as a
// *DeniedError, if this user may not look.
func Inspect(dir string) (kind Kind, other string, err error) {
	if isComplete(dir) {
		return Complete, "", nil
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

// isComplete reports whether dir has what the first start of a cache makes last, or what a
// cache has that has lost that.
func isComplete(dir string) bool {
	if _, err := os.Lstat(filepath.Join(dir, blobsDir)); err != nil {
		return false
	}
	for _, name := range []string{versionFile, "index.db"} {
		if st, err := os.Lstat(filepath.Join(dir, name)); err == nil && !st.IsDir() {
			return true
		}
	}
	return false
}

// isOwnName reports whether a cache directory has files of that name.
func isOwnName(name string) bool {
	return slices.ContainsFunc(own, func(o string) bool {
		rest, ok := strings.CutPrefix(name, o)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '-')
	})
}
