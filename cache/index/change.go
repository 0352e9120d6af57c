package index

import (
	"fmt"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
)

// Change is what is put into the index together, all or nothing, by one sync of
// the disk.
type Change struct {
	Upstream, Repository string
	// Tag, where it is set, stands for Record now.
	Tag    string
	Record Tag
	// Links are digests that the repository may serve.
	Links map[digest.Digest]Link
	// Blobs is content that has been stored or verified.
	Blobs map[digest.Digest]Blob
}

// Put remembers all of c. When it returns nil that outlives a crash.
func (ix *Index) Put(c Change) error {
	tag := join(c.Upstream, c.Repository, c.Tag)
	if c.Tag != "" {
		ix.mu.Lock()
		delete(ix.touched, string(tag))
		ix.mu.Unlock()
	}
	if c.Tag != "" || len(c.Links) > 0 {
		ix.backupSoon()
	}
	return ix.batch(func(tx *bbolt.Tx) error {
		if c.Tag != "" {
			if err := putJSON(tx.Bucket(tagsBucket), tag, c.Record); err != nil {
				return err
			}
		}
		for d, l := range c.Links {
			if err := putJSON(tx.Bucket(linksBucket), join(c.Upstream, c.Repository, d.String()), l); err != nil {
				return err
			}
		}
		for d, b := range c.Blobs {
			key := blobKey(d)
			if key == nil {
				return fmt.Errorf("no digest that is stored: %q", d)
			}
			if b.Pinned {
				ix.backupSoon()
			}
			if err := ix.setBlob(tx, key, &b); err != nil {
				return err
			}
		}
		return nil
	})
}
