package store

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheRemedyOfADeniedFileCanBeFollowed looks at what a user is told to do.
func TestTheRemedyOfADeniedFileCanBeFollowed(t *testing.T) {
	const me = 4321
	dir := t.TempDir()
	missing := filepath.Join(dir, "home", "cache")
	err := &DeniedError{Path: missing, Dir: missing, Owner: -1, User: me, Err: fs.ErrPermission}
	if got := err.remedy(me); !strings.Contains(got, "--cache-dir") || strings.Contains(got, "chown") {
		t.Errorf("a directory that does not exist: %q", got)
	}
	uid := os.Geteuid()
	want := "run it as root"
	if uid != 0 {
		want = "run entrepot as " + userName(uid) + " or as root"
	}
	err = &DeniedError{Path: dir, Dir: dir, Owner: uid, User: me, Err: fs.ErrPermission}
	if got := err.remedy(me); got != want {
		t.Errorf("a directory of %s: want %q, got %q", userName(uid), want, got)
	}
}
