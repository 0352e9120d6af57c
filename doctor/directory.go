package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/operator"
)

const (
	// scarceRoom is what is hardly enough for one large layer, in bytes.
	scarceRoom = 1 << 30
	// scarceFiles is the share of a file system's inodes, in hundredths, below which
	// they run out soon.
	scarceFiles = 5
)

// Directory checks the directory of a cache.
type Directory struct {
	Cache configs.Cache
	// Client asks the proxy that runs on it; nil where none does.
	Client *operator.Client
	// Lock is the path of the file in it that names the process that holds it.
	Lock string
	// Inspect reports whether the directory is a cache. Its error says why serve refuses the
	// directory, and after a semicolon what to do. Nil inspects nothing.
	Inspect func() (complete bool, err error)
	// Strangers looks for files in the directory that a user may not use; a negative uid stands
	// for the owner of the cache. It returns how many there are, and an error about the first,
	// which says after a semicolon what to do. Nil looks for nothing.
	Strangers func(uid int) (found int, first error)
}

// Name is "cache directory".
func (Directory) Name() string { return "cache directory" }

// Look looks at the directory itself, and at its file system.
func (d Directory) Look(ctx context.Context) []Finding {
	dir := d.Cache.Dir
	var running *operator.Process
	if d.Client != nil {
		running = &operator.Process{}
		if err := d.Client.Get(ctx, "process", nil, running); err != nil {
			return []Finding{{Status: Failure, Seen: "the running entrepot does not tell of it: " + err.Error()}}
		}
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && running == nil:
		return []Finding{d.unmade()}
	case err != nil:
		return []Finding{{Status: Failure, Seen: fmt.Sprintf("%s can not be looked at: %v", dir, err), Advice: "run this command as the user that the proxy runs as, or as root"}}
	case !info.IsDir():
		return []Finding{{Status: Failure, Seen: dir + " is no directory", Advice: "set cache.dir to a directory"}}
	}
	complete, refused := false, error(nil)
	if running == nil && d.Inspect != nil {
		complete, refused = d.Inspect()
	}
	var found []Finding
	if refused != nil {
		seen, advice := cause(refused)
		found = append(found, Finding{Status: Failure, Seen: seen, Advice: advice})
	} else {
		found = append(found, d.held(info, running, complete))
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return append(found, Finding{Status: Warning, Seen: fmt.Sprintf("the file system of %s can not be looked at: %v", dir, err)})
	}
	if d.Strangers != nil && refused == nil {
		found = append(found, d.owners(running)...)
	}
	found = append(found, kindFinding(kindOf(&st)))
	found = append(found, d.room(&st, running), files(&st))
	return found
}

// cause splits an error that says after its last semicolon what to do.
func cause(err error) (seen, advice string) {
	text := err.Error()
	if i := strings.LastIndex(text, "; "); i >= 0 {
		return text[:i], text[i+2:]
	}
	return text, ""
}

// unmade returns a finding about a directory that the first start creates.
func (d Directory) unmade() Finding {
	parent := filepath.Dir(d.Cache.Dir)
	for parent != filepath.Dir(parent) {
		if _, err := os.Stat(parent); err == nil {
			break
		}
		parent = filepath.Dir(parent)
	}
	if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
		return Finding{Status: Failure, Seen: fmt.Sprintf("%s does not exist, and this user cannot create it in %s: %v", d.Cache.Dir, parent, err),
			Advice: "create it and give it to the user that the proxy runs as, or set cache.dir to another"}
	}
	return Finding{Status: OK, Seen: d.Cache.Dir + " is not there yet: the first start makes it"}
}

// held returns who owns the directory, which process holds it, and whether this user can write
// to it. complete says that it is a cache, which is served from a read-only file system too.
func (d Directory) held(info fs.FileInfo, running *operator.Process, complete bool) Finding {
	owner := -1
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(st.Uid)
	}
	f := Finding{Status: OK, Seen: fmt.Sprintf("%s belongs to %s", d.Cache.Dir, UserName(owner))}
	switch {
	case running != nil && running.Degraded != "":
		f.Status, f.Advice = Failure, "mend the disk; what is cached is served meanwhile, and nothing new is kept"
		f.Seen += "; " + running.Degraded
		return f
	case running != nil:
		f.Seen += fmt.Sprintf(", is held by the running entrepot (process %d of %s), and holds %d blobs in %s",
			running.PID, UserName(running.UID), running.Blobs, units.BytesSize(float64(running.Bytes)))
		return f
	}
	holder, err := d.holder()
	switch {
	case holder != 0:
		f.Status, f.Advice = Warning, "give this command the settings of that one, or its admin listener (--admin-listen)"
		f.Seen += fmt.Sprintf("; process %d holds it, and is not the one that answers to these settings", holder)
		return f
	case err != nil:
		f.Status, f.Advice = Failure, "run this command as "+UserName(owner)+" or as root"
		f.Seen += "; this user may not see which process holds it"
	default:
		f.Seen += ", and nobody holds it"
	}
	switch err := unix.Access(d.Cache.Dir, unix.W_OK|unix.X_OK); {
	case errors.Is(err, unix.EROFS) && complete:
		f.Status, f.Advice = Warning, "mount it writable; meanwhile serve serves what is cached and stores nothing new"
		f.Seen += "; its file system is read-only"
	case errors.Is(err, unix.EROFS):
		f.Status, f.Advice = Failure, "mount it writable, or set cache.dir to another directory: a new cache cannot begin there"
		f.Seen += "; its file system is read-only"
	case err != nil:
		f.Status, f.Advice = Failure, "run this command as the user that the proxy runs as; if that is this one, give it the directory (chown)"
		f.Seen += fmt.Sprintf("; this user cannot write to it: %v", err)
	}
	return f
}

// owners looks for files that the user of the cache may not use: the running proxy's user, or
// this one, or the owner of the cache if this user is root. It returns nothing if there are none.
func (d Directory) owners(running *operator.Process) []Finding {
	uid := -1
	switch me := os.Geteuid(); {
	case running != nil && running.UID > 0:
		uid = running.UID
	case running == nil && me != 0:
		uid = me
	}
	found, first := d.Strangers(uid)
	if found == 0 {
		return nil
	}
	seen, advice := cause(first)
	return []Finding{{Status: Failure, Seen: fmt.Sprintf("%d files or directories in %s belong to another user: %s", found, d.Cache.Dir, seen), Advice: advice}}
}

// holder returns the process that the lock names, if it lives; else zero. Its error is
// fs.ErrPermission if this user may not read the lock.
func (d Directory) holder() (pid int, err error) {
	text, err := os.ReadFile(d.Lock)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return 0, err
	case err != nil || len(text) > 64:
		return 0, nil
	}
	number, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	pid, err = strconv.Atoi(number)
	if err != nil || pid <= 0 || errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return 0, nil
	}
	return pid, nil
}

// UserName names a user for people.
func UserName(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "user " + id
}

// kindFinding judges the kind of a file system.
func kindFinding(kind string) Finding {
	switch kind {
	case "nfs", "cifs", "smb", "smbfs", "9p", "ceph", "afs", "fuse", "macfuse":
		return Finding{Status: Warning, Seen: "it is on a network or user-space file system (" + kind + ")",
			Advice: "put it on a disk of this host: locks, renames and syncs of such a file system are slow, and not always what they promise"}
	case "overlay":
		return Finding{Status: Warning, Seen: "it is on an overlay file system, which is that of a container",
			Advice: "mount a volume there: what is cached goes with the container"}
	case "tmpfs", "ramfs":
		return Finding{Status: Warning, Seen: "it is in memory (" + kind + ")", Advice: "put it on a disk: what is cached goes with the next boot, and takes memory until then"}
	}
	return Finding{Status: OK, Seen: "it is on a file system of this host"}
}

// room judges how much is free.
func (d Directory) room(st *unix.Statfs_t, running *operator.Process) Finding {
	size := int64(st.Bsize)
	free, total := int64(st.Bavail)*size, int64(st.Blocks)*size
	var stored int64
	if running != nil {
		stored = running.Bytes
	}
	limit, least := of(d.Cache.MaxSize, total), of(d.Cache.MinFree, total)
	f := Finding{Check: "disk", Status: OK, Seen: fmt.Sprintf("%s are free of %s; cache.max_size is %s", units.BytesSize(float64(free)), units.BytesSize(float64(total)), d.Cache.MaxSize)}
	_, share := d.Cache.MaxSize.Share()
	if share {
		f.Seen += " (" + units.BytesSize(float64(limit)) + ")"
	}
	switch {
	case free < scarceRoom:
		f.Status, f.Advice = Failure, "make room: a layer that finds none is passed on without being kept"
	case free < least:
		f.Status, f.Seen, f.Advice = Warning, f.Seen+"; that is less than cache.min_free ("+units.BytesSize(float64(least))+")", "make room: content is evicted to keep that free, whatever cache.max_size says"
	case limit > total:
		f.Status, f.Seen, f.Advice = Warning, f.Seen+", which the file system has not", "lower cache.max_size, or make the file system larger"
	case running != nil && !share && limit-stored > max(0, free-least): // a share is the most, whoever fills the rest
		f.Status = Warning
		f.Seen += fmt.Sprintf(", of which %s are used, and others leave no more than %s for the rest", units.BytesSize(float64(stored)), units.BytesSize(float64(max(0, free-least))))
		f.Advice = "the cache stays smaller than it may be: that is kept free by eviction; make room, or lower cache.max_size"
	}
	return f
}

// of gives how much of a file system of total bytes r is.
func of(r configs.Room, total int64) int64 {
	if percent, ok := r.Share(); ok {
		return total / 100 * int64(percent)
	}
	return int64(r.Size())
}

// files judges how many more files there can be.
func files(st *unix.Statfs_t) Finding {
	total, free := uint64(st.Files), uint64(st.Ffree)
	switch {
	case total == 0:
		return Finding{Check: "inodes", Status: OK, Seen: "the file system makes as many as are needed"}
	case free == 0:
		return Finding{Check: "inodes", Status: Failure, Seen: fmt.Sprintf("all %d are taken", total), Advice: "remove files, or make the file system anew with more"}
	case free < total/100*scarceFiles:
		return Finding{Check: "inodes", Status: Warning, Seen: fmt.Sprintf("%d are free of %d", free, total), Advice: "remove files, or make the file system anew with more"}
	}
	return Finding{Check: "inodes", Status: OK, Seen: fmt.Sprintf("%d are free of %d", free, total)}
}
