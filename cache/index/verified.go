package index

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/store"
)

// Verified remembers that the file of d's content, which looks as stamp says,
// was found to hold the digest's bytes at now. What else is known of it stays;
// what was not known counts as used when its file was written.
func (ix *Index) Verified(d digest.Digest, stamp store.Stamp, now time.Time) error {
	key := blobKey(d)
	if key == nil {
		return nil
	}
	return ix.batch(func(tx *tx) error {
		bucket := tx.Bucket(blobsBucket)
		b, ok := decodeBlob(bucket.Get(key))
		if !ok {
			b = Blob{Used: time.Unix(0, stamp.Modified), Uses: 1}
		}
		b.Stamp, b.Verified = stamp, now
		return ix.setBlob(tx, key, &b)
	})
}
