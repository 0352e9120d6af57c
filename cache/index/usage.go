package index

import (
	"bytes"
	"encoding/json"
)

// Usage is how much stored content came from an upstream.
type Usage struct{ Blobs, Bytes int64 }

// usageKey is, in metaBucket, where the usage of all upstreams is kept. It changes with the
// records and sources that it counts, in the same transaction.
var usageKey = []byte("usage")

// usage is the usage of each upstream. What came from several counts for each.
type usage struct {
	// Of is by upstream.
	Of map[string]Usage `json:"of"`
	// Counted is set if all content is counted. Else Upto is the last key of blobsBucket that
	// is: a file of an older version is counted a part at a time.
	Counted bool   `json:"counted,omitempty"`
	Upto    []byte `json:"upto,omitempty"`
}

func readUsage(tx *tx) usage {
	var u usage
	if v := tx.Bucket(metaBucket).Get(usageKey); v != nil {
		_ = json.Unmarshal(v, &u) // it is sealed: else it is an older version's, and counted anew
	}
	if u.Of == nil {
		u.Of = map[string]Usage{}
	}
	return u
}

func writeUsage(tx *tx, u usage) error {
	v, err := json.Marshal(u)
	if err != nil {
		return err
	}
	return tx.Bucket(metaBucket).Put(usageKey, v)
}

// counts reports whether the content with this key counts already.
func (u *usage) counts(blob []byte) bool {
	return u.Counted || len(u.Upto) > 0 && bytes.Compare(blob, u.Upto) <= 0
}

func (u *usage) add(upstream string, blobs, size int64) {
	n := u.Of[upstream]
	n.Blobs += blobs
	n.Bytes += size
	if n == (Usage{}) {
		delete(u.Of, upstream)
		return
	}
	u.Of[upstream] = n
}

// countUse notes that the number and the size of the content with this key have changed.
// Sources are those that it has.
func countUse(tx *tx, blob []byte, change totals) error {
	sources := sourcesOf(tx, blob)
	if len(sources) == 0 {
		return nil
	}
	u := readUsage(tx)
	if !u.counts(blob) {
		return nil
	}
	for _, upstream := range sources {
		u.add(upstream, change.blobs, change.bytes)
	}
	return writeUsage(tx, u)
}

// countSource notes that the content with this key, if it is stored, has one source more.
func countSource(tx *tx, blob []byte, upstream string) error {
	b, stored := decodeBlob(tx.Bucket(blobsBucket).Get(blob))
	if !stored {
		return nil
	}
	u := readUsage(tx)
	if !u.counts(blob) {
		return nil
	}
	u.add(upstream, 1, b.Stamp.Size)
	return writeUsage(tx, u)
}

// sourcesOf returns the upstreams that the content with this key came from.
func sourcesOf(tx *tx, blob []byte) (list []string) {
	prefix := append(bytes.Clone(sourcePrefix), blob...)
	c := tx.Bucket(metaBucket).Cursor()
	for key, _ := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = c.Next() {
		list = append(list, string(key[len(prefix):]))
	}
	return list
}

// Usage returns how much stored content came from each upstream; what came from several counts
// for each. It counts first what is not counted yet, which is so once in files of older
// versions. stop ends that early.
func (ix *Index) Usage(stop func() bool) (map[string]Usage, error) {
	if ix.options.ReadOnly {
		return ix.countedNow(stop)
	}
	for {
		var u usage
		if err := ix.view(func(tx *tx) error {
			u = readUsage(tx)
			return nil
		}); err != nil {
			return nil, err
		}
		if u.Counted || stop() {
			return u.Of, nil
		}
		if err := ix.update(func(tx *tx) error {
			u := readUsage(tx)
			u.countMore(tx, namesChunk)
			return writeUsage(tx, u)
		}); err != nil {
			return nil, err
		}
	}
}

// countedNow is Usage of a file that can't be written.
func (ix *Index) countedNow(stop func() bool) (map[string]Usage, error) {
	var u usage
	err := ix.view(func(tx *tx) error {
		for u = readUsage(tx); !u.Counted && !stop(); {
			u.countMore(tx, namesChunk)
		}
		return nil
	})
	return u.Of, err
}

// countMore counts the next n contents that are not counted.
func (u *usage) countMore(tx *tx, n int) {
	c := tx.Bucket(blobsBucket).Cursor()
	key, value := c.Seek(u.Upto)
	if bytes.Equal(key, u.Upto) {
		key, value = c.Next()
	}
	for ; key != nil && n > 0; n-- {
		if b, ok := decodeBlob(value); ok {
			for _, upstream := range sourcesOf(tx, key) {
				u.add(upstream, 1, b.Stamp.Size)
			}
		}
		u.Upto = bytes.Clone(key)
		key, value = c.Next()
	}
	if key == nil {
		u.Counted, u.Upto = true, nil
	}
}
