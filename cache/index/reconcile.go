package index

import (
	"bytes"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Mend makes the records of the digests that begin with prefix agree with what
// is stored. stored are those that a look at the tree has found; look looks
// again, and gives the record for content that has none: it is called while
// nobody else changes the index, so that what comes or goes meanwhile is judged
// right as long as it is stored before its record is put, and removed before its
// record is dropped. stored is sorted by Mend. It gives how many records were
// added and dropped.
func (ix *Index) Mend(alg digest.Algorithm, prefix byte, stored []digest.Digest, look func(digest.Digest) (Blob, bool)) (added, dropped int, err error) {
	tree := make([][]byte, 0, len(stored))
	for _, d := range stored {
		if key := blobKey(d); key != nil {
			tree = append(tree, key)
		}
	}
	slices.SortFunc(tree, bytes.Compare)
	begin := blobKey(digest.NewDigestFromBytes(alg, append([]byte{prefix}, make([]byte, alg.Size()-1)...)))
	if begin == nil {
		return 0, 0, nil
	}
	var differ [][]byte
	err = ix.walk(func(tx *tx) error {
		c := tx.Bucket(blobsBucket).Cursor()
		key, v := c.Seek(begin)
		for bytes.HasPrefix(key, begin[:2]) {
			for len(tree) > 0 && bytes.Compare(tree[0], key) < 0 {
				differ, tree = append(differ, tree[0]), tree[1:]
			}
			if _, ok := decodeBlob(v); !ok || len(tree) == 0 || !bytes.Equal(tree[0], key) {
				differ = append(differ, bytes.Clone(key))
			}
			if len(tree) > 0 && bytes.Equal(tree[0], key) {
				tree = tree[1:]
			}
			key, v = c.Next()
		}
		differ = append(differ, tree...)
		return nil
	})
	if err != nil || len(differ) == 0 {
		return 0, 0, err
	}
	err = ix.update(func(tx *tx) error {
		added, dropped = 0, 0
		for _, key := range differ {
			b, there := look(blobDigest(key))
			_, known := decodeBlob(tx.Bucket(blobsBucket).Get(key))
			var err error
			switch {
			case there && !known:
				err = ix.setBlob(tx, key, &b)
				added++
			case !there && known:
				err = ix.setBlob(tx, key, nil)
				dropped++
			case !there:
				err = tx.Bucket(blobsBucket).Delete(key) // no record that we can read
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return added, dropped, err
}
