package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// deniedFor is for how long a file that this process may not read is not tried again.
const deniedFor = 5 * time.Second

// noteDenied notes that this process may not read d's file, if err says so.
func (c *Cache) noteDenied(d digest.Digest, err error) (denied bool) {
	if !errors.Is(err, fs.ErrPermission) {
		return false
	}
	c.denied.put(string(d), err, 2*deniedFor)
	return true
}

// tellDenied returns err, or, if content that it is about is stored and this process may not
// read it, an error that says so: what is stored is never said not to be there.
func (c *Cache) tellDenied(t oci.Target, err error) error {
	d := t.Digest
	if d == "" && t.AsOf.IsZero() {
		rec, _ := c.records.Tag(t)
		d = rec.Digest
	}
	if why := c.denial(string(d)); why != nil && !errors.Is(err, fs.ErrPermission) {
		return deniedError(string(d), fmt.Errorf("%w (and instead: %w)", why, err))
	}
	return err
}

// denial returns why this process could not read d's file lately; nil if it could.
func (c *Cache) denial(d string) error {
	err, _ := c.denied.get(d)
	return err
}

// deniedError is the answer for content that is stored and cannot be read. The client is not
// told which file that is, the log is.
func deniedError(d string, why error) *oci.Error {
	return &oci.Error{
		Code: oci.CodeUnavailable, Status: 503,
		Message: d + " is cached, but the proxy has no permission to read its file: the proxy's log says whose it is and what to run",
		Err:     why,
	}
}

// lookForStrangers has the disk degraded if files of the cache belong to another user, whom
// somebody has given a command's work or the directory itself.
func (c *Cache) lookForStrangers(uid int) {
	if found, first := store.Strangers(c.store.Dir(), uid); found > 0 {
		c.disk.failed("look whose the cached files are", fmt.Errorf("%d files or directories of another user found: %w", found, first), 0)
	}
}
