package index

import (
	"encoding/json"
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
	// How it was seen, for the ledger.
	How Seen
	// Moved, where it is not nil, is called with what the tag stood for before,
	// where that was something else, once the change is kept.
	Moved func(from digest.Digest)
	// Links are digests that the repository may serve.
	Links map[digest.Digest]Link
	// Blobs is content that has been stored or verified.
	Blobs map[digest.Digest]Blob
}

// Put remembers all of c. When it returns nil that outlives a crash.
func (ix *Index) Put(c Change) error {
	tag := join(c.Upstream, c.Repository, c.Tag)
	var touched *Tag
	if c.Tag != "" {
		ix.mu.Lock()
		if t, ok := ix.touched[string(tag)]; ok {
			touched = &t
		}
		delete(ix.touched, string(tag))
		ix.mu.Unlock()
	}
	if c.Tag != "" || len(c.Links) > 0 {
		ix.backupSoon()
	}
	return ix.batch(func(tx *bbolt.Tx) error {
		if c.Tag != "" {
			if err := ix.putTag(tx, tag, c, touched); err != nil {
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
			if err := ix.setBlob(tx, key, &b); err != nil {
				return err
			}
		}
		return nil
	})
}

// putTag puts the record of a tag, and observes it. touched is the record before,
// where that is not written yet.
func (ix *Index) putTag(tx *bbolt.Tx, tag []byte, c Change, touched *Tag) error {
	b := tx.Bucket(tagsBucket)
	was := readTag(b, tag)
	if touched != nil {
		was = *touched
	}
	from, err := ix.observe(tx, tag, was, c.Record.Digest, c.How, c.Record.Checked)
	if err != nil {
		return err
	}
	if from != "" && c.Moved != nil {
		tx.OnCommit(func() { c.Moved(from) })
	}
	return putJSON(b, tag, c.Record)
}

// readTag gives the record of a tag that is written, or the zero Tag.
func readTag(b *bbolt.Bucket, tag []byte) (t Tag) {
	if j := b.Get(tag); j == nil || json.Unmarshal(j, &t) != nil {
		return Tag{}
	}
	return t
}
