package index

import (
	"path/filepath"
	"testing"
)

func TestBytesCountsTheIndexAndItsBackup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix, _, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, ix)
	begun := ix.Bytes()
	if begun <= 0 || begun != allocated(path) {
		t.Fatalf("%d bytes, want the %d of the file", begun, allocated(path))
	}
	if err := ix.PutTag("docker.io", "library/nginx", "latest", one); err != nil {
		t.Fatal(err)
	}
	ix.db.Load().markWhole()
	if err := ix.writeBackup(); err != nil {
		t.Fatal(err)
	}
	if got, want := ix.Bytes(), allocated(path)+allocated(ix.backup); got != want || allocated(ix.backup) <= 0 {
		t.Errorf("%d bytes with a backup, want %d", got, want)
	}
}
