package index

import (
	"bytes"
	"encoding/json"

	"github.com/opencontainers/go-digest"
)

// Tags calls fn for every tag that is known, in the order of names, until it gives
// false. What changes meanwhile may or may not be seen. fn must not call the Index.
func (ix *Index) Tags(fn func(upstream, repo, tag string) bool) error {
	return ix.chunks(tagsBucket, blobsChunk, func(key, _ []byte) bool {
		parts := bytes.Split(key, separator)
		return len(parts) != 3 || fn(string(parts[0]), string(parts[1]), string(parts[2]))
	}, nil)
}

// Manifests calls fn for every link of a manifest or index, in the order of names,
// until it gives false. It reads all links. What changes meanwhile may or may not be
// seen. fn must not call the Index.
func (ix *Index) Manifests(fn func(upstream, repo string, d digest.Digest, l Link) bool) error {
	return ix.chunks(linksBucket, blobsChunk, func(key, value []byte) bool {
		parts := bytes.Split(key, separator)
		var l Link
		if len(parts) != 3 || json.Unmarshal(value, &l) != nil || !l.Manifest {
			return true
		}
		return fn(string(parts[0]), string(parts[1]), digest.Digest(parts[2]), l)
	}, nil)
}
