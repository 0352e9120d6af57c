package index

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
)

// Scrub is how far the pass over all stored content has come.
type Scrub struct {
	// Started and Finished are of the pass; Finished is zero while it runs.
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished,omitzero"`
	// After is the last digest that was looked at.
	After digest.Digest `json:"after,omitempty"`
	// Blobs and Bytes have been read. Damaged is how many of them were not
	// their digest's, and Healed how many of those were fetched again.
	Blobs   int64 `json:"blobs"`
	Bytes   int64 `json:"bytes"`
	Damaged int   `json:"damaged"`
	Healed  int   `json:"healed"`
	// Denied is how many files the cache's user may not read, and DeniedFile says of the
	// first whose it is and what to do.
	Denied     int    `json:"denied,omitempty"`
	DeniedFile string `json:"deniedFile,omitempty"`
}

var scrubKey = []byte("scrub")

// Scrub gives what PutScrub remembered last; the zero Scrub for nothing.
func (ix *Index) Scrub() Scrub {
	var s Scrub
	ix.get(metaBucket, scrubKey, &s)
	return s
}

// PutScrub remembers how far a pass has come.
func (ix *Index) PutScrub(s Scrub) error { return ix.put(metaBucket, scrubKey, s) }

// Holder is a repository that may serve a digest.
type Holder struct {
	Upstream, Repository string
	Link                 Link
}

// Holders gives up to most of the repositories that may serve d. It reads all
// links: it is for what is rare.
func (ix *Index) Holders(d digest.Digest, most int) []Holder {
	var list []Holder
	suffix := append([]byte{0}, d.String()...)
	_ = ix.view(func(tx *tx) error { // what can not be read is no holder
		c := tx.Bucket(linksBucket).Cursor()
		for key, v := c.First(); key != nil && len(list) < most; key, v = c.Next() {
			parts := bytes.SplitN(key, separator, 3)
			if len(parts) != 3 || !bytes.HasSuffix(key, suffix) {
				continue
			}
			h := Holder{Upstream: string(parts[0]), Repository: string(parts[1])}
			if json.Unmarshal(v, &h.Link) == nil {
				list = append(list, h)
			}
		}
		return nil
	})
	return list
}
