package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/operator"
)

func TestDirectoryTellsWhatIsThere(t *testing.T) {
	cfg := configs.Default().Cache
	look := func(dir string) []Finding {
		t.Helper()
		cfg.Dir = dir
		return Directory{Cache: cfg, Lock: filepath.Join(dir, "lock")}.Look(t.Context())
	}
	dir := t.TempDir()
	want(t, look(filepath.Join(dir, "a", "b")), OK, "the first start makes it")
	found := look(dir)
	want(t, found, OK, "nobody holds it")
	for _, check := range []string{"disk", "inodes"} {
		if !strings.Contains(fmt.Sprint(found), check) {
			t.Errorf("want a word on %s in %+v", check, found)
		}
	}
	lock := filepath.Join(dir, "lock")
	if err := os.WriteFile(lock, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, look(dir), Warning, fmt.Sprintf("process %d holds it", os.Getpid()))
	want(t, look(lock), Failure, "is no directory")
	if err := os.WriteFile(lock, []byte("4194305\n"), 0o600); err != nil { // more than there are
		t.Fatal(err)
	}
	want(t, look(dir), OK, "nobody holds it")
}

func TestFileSystemsThatAreNoDisksAreNamed(t *testing.T) {
	for kind, seen := range map[string]string{"nfs": "network", "overlay": "container", "tmpfs": "memory"} {
		want(t, []Finding{kindFinding(kind)}, Warning, seen)
	}
	want(t, []Finding{kindFinding("")}, OK, "of this host")
}

func TestRoomIsComparedWithTheLimits(t *testing.T) {
	const gib = 1 << 30
	disk := func(free, total int64) *unix.Statfs_t {
		st := &unix.Statfs_t{Bsize: 4096}
		st.Bavail, st.Blocks = uint64(free/4096), uint64(total/4096)
		return st
	}
	size := func(n int64) configs.Room { return configs.Room(n) }
	for name, c := range map[string]struct {
		cache   configs.Cache
		st      *unix.Statfs_t
		running *operator.Process
		status  Status
		seen    string
	}{
		"plenty":          {configs.Cache{MaxSize: configs.Percent(80), MinFree: configs.Percent(5)}, disk(90*gib, 100*gib), &operator.Process{}, OK, "90GiB are free of 100GiB; cache.max_size is 80% (80GiB)"},
		"full of our own": {configs.Cache{MaxSize: configs.Percent(80), MinFree: configs.Percent(5)}, disk(20*gib, 100*gib), &operator.Process{Bytes: 79 * gib}, OK, "20GiB"},
		"full of others":  {configs.Cache{MaxSize: size(80 * gib), MinFree: configs.Percent(5)}, disk(20*gib, 100*gib), &operator.Process{Bytes: gib}, Warning, "others leave no more than 15GiB"},
		"a share of it":   {configs.Cache{MaxSize: configs.Percent(80), MinFree: configs.Percent(5)}, disk(20*gib, 100*gib), &operator.Process{Bytes: gib}, OK, "20GiB"},
		"too little":      {configs.Cache{MaxSize: size(10 * gib), MinFree: size(5 * gib)}, disk(2*gib, 100*gib), nil, Warning, "less than cache.min_free (5GiB)"},
		"none":            {configs.Cache{MaxSize: size(10 * gib)}, disk(gib/2, 100*gib), nil, Failure, "512MiB are free"},
		"too large":       {configs.Cache{MaxSize: size(200 * gib)}, disk(90*gib, 100*gib), nil, Warning, "which the file system has not"},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, []Finding{Directory{Cache: c.cache}.room(c.st, c.running)}, c.status, c.seen)
		})
	}
	for free, s := range map[uint64]Status{0: Failure, 10: Warning, 500: OK} {
		if f := files(&unix.Statfs_t{Files: 1000, Ffree: free}); f.Status != s {
			t.Errorf("%d of 1000 inodes: want %s, got %+v", free, s, f)
		}
	}
}
