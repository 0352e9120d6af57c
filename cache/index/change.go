package index

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
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
	// NotOlder leaves a tag as it is of which the record was checked after Record.
	NotOlder bool
	// Moved, where it is not nil, is called with what the tag stood for before,
	// where that was something else, once the change is kept.
	Moved func(from digest.Digest)
	// Links are put unless the repository has links with a stronger proof, which
	// then keep theirs. The upstream counts as a source of what is Fetched.
	Links map[digest.Digest]Link
	// Sent is content whose bytes the upstream has sent, on whichever repository's
	// account.
	Sent []digest.Digest
	// Referrers are added to those that are known of a digest of the repository. Checked
	// counts where none were known.
	Referrers map[digest.Digest]List
	// Blobs is content that has been stored or verified.
	Blobs map[digest.Digest]Blob
}

// Put remembers all of the changes, or nothing. When it returns nil that outlives a
// crash.
func (ix *Index) Put(changes ...Change) error {
	touched := make([]*Tag, len(changes))
	for i, c := range changes {
		if c.Tag != "" {
			tag := string(join(c.Upstream, c.Repository, c.Tag))
			ix.mu.Lock()
			if t, ok := ix.touched[tag]; ok {
				touched[i] = &t
			}
			delete(ix.touched, tag)
			ix.mu.Unlock()
		}
		if c.Tag != "" || len(c.Links) > 0 {
			ix.backupSoon()
		}
	}
	ix.putting.RLock()
	defer ix.putting.RUnlock()
	if w := ix.watch; w != nil {
		for _, c := range changes {
			w.note(c)
		}
	}
	for _, c := range changes {
		if len(c.Referrers) > 0 {
			defer ix.lists.forget()
			break
		}
	}
	return ix.batch(func(tx *tx) error {
		for i, c := range changes {
			if err := ix.apply(tx, c, touched[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// apply puts c. touched is the record of its tag before, where that is not written
// yet.
func (ix *Index) apply(tx *tx, c Change, touched *Tag) error {
	if c.Tag != "" {
		if err := ix.putTag(tx, join(c.Upstream, c.Repository, c.Tag), c, touched); err != nil {
			return err
		}
	}
	for d, l := range c.Links {
		if err := assumeOf(tx, c.Upstream, c.Repository, d); err != nil {
			return err
		}
		if err := putLink(tx.Bucket(linksBucket), join(c.Upstream, c.Repository, d.String()), l); err != nil {
			return err
		}
		if l.Proof == Fetched {
			if err := putSource(tx, d, c.Upstream); err != nil {
				return err
			}
		}
	}
	for _, d := range c.Sent {
		if err := putSource(tx, d, c.Upstream); err != nil {
			return err
		}
	}
	for d, l := range c.Referrers {
		if err := addReferrers(tx, join(Referrers, c.Upstream, c.Repository, d.String()), l); err != nil {
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
}

// putLink puts a link, unless it is there already. A stronger proof that is there
// stays: requests that run at the same time may put what they found in any order.
func putLink(b *bucket, key []byte, l Link) error {
	now := b.Get(key)
	if was := (Link{}); decode(now, &was) {
		l.Proof = l.Proof.Max(was.Proof)
	}
	j, err := json.Marshal(l)
	if err != nil || bytes.Equal(now, j) {
		return err
	}
	return b.Put(key, j)
}

// addReferrers adds those of more that are not in the list at key.
func addReferrers(tx *tx, key []byte, more List) error {
	b, l := tx.Bucket(listsBucket), List{}
	if j := b.Get(key); j == nil || json.Unmarshal(j, &l) != nil {
		l = List{Checked: more.Checked}
	}
	known := len(l.Referrers)
	for _, r := range more.Referrers {
		if !slices.ContainsFunc(l.Referrers, func(k v1.Descriptor) bool { return k.Digest == r.Digest }) {
			l.Referrers = append(l.Referrers, r)
		}
	}
	if known > 0 && len(l.Referrers) == known {
		return nil
	}
	return putJSON(b, key, l)
}

// putTag puts the record of a tag, and observes it. touched is the record before,
// where that is not written yet.
func (ix *Index) putTag(tx *tx, tag []byte, c Change, touched *Tag) error {
	b := tx.Bucket(tagsBucket)
	was := readTag(b, tag)
	if touched != nil {
		was = *touched
	}
	if c.NotOlder && was.Checked.After(c.Record.Checked) {
		return putJSON(b, tag, was)
	}
	from, err := ix.observe(tx, tag, was, c.Record.Digest, c.How, c.Record.Checked)
	if err != nil {
		return err
	}
	if from != "" && c.Moved != nil {
		tx.onCommit(func() { c.Moved(from) })
	}
	return putJSON(b, tag, c.Record)
}

// readTag gives the record of a tag that is written, or the zero Tag.
func readTag(b *bucket, tag []byte) (t Tag) {
	if j := b.Get(tag); j == nil || json.Unmarshal(j, &t) != nil {
		return Tag{}
	}
	return t
}
