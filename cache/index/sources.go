package index

import (
	"bytes"
	"slices"

	"github.com/opencontainers/go-digest"
)

// The index remembers of each digest which upstreams have sent its bytes. A claim
// of another upstream to have the same content is worth nothing until it has sent
// them as well.
//
// Links of older versions say nothing about where content came from. AssumeSources
// goes through them once: if a single upstream has links to a digest, its content
// came from there. That doesn't hold for links that were restored after damage, because
// others may be lost; an index that is begun anew needs no AssumeSources.
//
// Sources are in metaBucket, under sourcePrefix, the key of the digest and the upstream:
// files of older versions have no bucket for them.

var (
	sourcePrefix = []byte("source\x00")
	// sourcedKey is set in metaBucket once AssumeSources has run to its end.
	sourcedKey = []byte("sourced")
)

// What a source begins with. A source that is only assumed is followed by the
// repository of the link that it is assumed from, or by nothing if there were links
// of several.
const (
	sourceSent    byte = 1
	sourceAssumed byte = 2
)

// Source is an upstream that has sent the bytes of a digest.
type Source struct {
	Upstream string
	// Assumed is set if this follows from a link of an older version alone.
	// Repository is then the only one of the upstream that had such a link; it is
	// empty if there were several.
	Assumed    bool
	Repository string
}

// Sources returns the upstreams that have sent d's bytes, as far as is known.
func (ix *Index) Sources(d digest.Digest) []Source {
	prefix := sourceKey(d, "")
	if prefix == nil {
		return nil
	}
	var list []Source
	err := ix.view(func(tx *tx) error {
		list = nil
		c := tx.Bucket(metaBucket).Cursor()
		for key, v := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, v = c.Next() {
			if len(v) == 0 {
				continue
			}
			s := Source{Upstream: string(key[len(prefix):]), Assumed: v[0] != sourceSent}
			if s.Assumed {
				s.Repository = string(v[1:])
			}
			list = append(list, s)
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return list
}

// sourceKey returns nil if d can't be stored.
func sourceKey(d digest.Digest, upstream string) []byte {
	key := blobKey(d)
	if key == nil {
		return nil
	}
	return slices.Concat(sourcePrefix, key, []byte(upstream))
}

// putSource notes that an upstream has sent d's bytes.
func putSource(tx *tx, d digest.Digest, upstream string) error {
	b, key := tx.Bucket(metaBucket), sourceKey(d, upstream)
	if key == nil {
		return nil
	}
	v := b.Get(key)
	if len(v) > 0 && v[0] == sourceSent {
		return nil
	}
	if v == nil {
		if err := countSource(tx, blobKey(d), upstream); err != nil {
			return err
		}
	}
	return b.Put(key, []byte{sourceSent})
}

// assumeSource notes that a repository has a link of an older version to d.
func assumeSource(tx *tx, d digest.Digest, upstream, repo string) error {
	b, key := tx.Bucket(metaBucket), sourceKey(d, upstream)
	if key == nil {
		return nil
	}
	v := b.Get(key)
	switch {
	case len(v) == 0:
		if err := countSource(tx, blobKey(d), upstream); err != nil {
			return err
		}
		return b.Put(key, append([]byte{sourceAssumed}, repo...))
	case v[0] == sourceAssumed && string(v[1:]) != repo:
		return b.Put(key, []byte{sourceAssumed})
	}
	return nil
}

// assumeOf is assumeSource for a link of an older version that is about to be replaced.
func assumeOf(tx *tx, upstream, repo string, d digest.Digest) error {
	if tx.Bucket(metaBucket).Get(sourcedKey) != nil {
		return nil
	}
	var was Link
	if !decode(tx.Bucket(linksBucket).Get(join(upstream, repo, d.String())), &was) || was.Proof != "" {
		return nil
	}
	return assumeSource(tx, d, upstream, repo)
}

// dropSources forgets where the content came from whose key in blobsBucket is blob.
func dropSources(tx *tx, blob []byte) error {
	b, prefix := tx.Bucket(metaBucket), slices.Concat(sourcePrefix, blob)
	var keys [][]byte
	c := b.Cursor()
	for key, _ := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = c.Next() {
		keys = append(keys, bytes.Clone(key))
	}
	for _, key := range keys {
		if err := b.Delete(key); err != nil {
			return err
		}
	}
	return nil
}

// Sourced reports whether AssumeSources has run to its end.
func (ix *Index) Sourced() bool {
	done := false
	err := ix.view(func(tx *tx) error {
		done = tx.Bucket(metaBucket).Get(sourcedKey) != nil
		return nil
	})
	return done && err == nil
}

// AssumeSources derives the sources of content from links of older versions. It runs
// beside everything else, and may be stopped and started again: until it has ended,
// Sourced is false.
func (ix *Index) AssumeSources(stop func() bool) error {
	type old struct {
		d              digest.Digest
		upstream, repo string
	}
	var some []old
	flush := func() error {
		if len(some) == 0 {
			return nil
		}
		defer func() { some = some[:0] }()
		return ix.update(func(tx *tx) error {
			for _, o := range some {
				if err := assumeSource(tx, o.d, o.upstream, o.repo); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := ix.chunks(linksBucket, backupChunk, func(key, value []byte) bool {
		var l Link
		if parts := bytes.Split(key, separator); len(parts) == 3 && decode(value, &l) && l.Proof == "" {
			some = append(some, old{digest.Digest(parts[2]), string(parts[0]), string(parts[1])})
		}
		return !stop()
	}, flush)
	if err != nil || stop() {
		return err
	}
	return ix.update(func(tx *tx) error { return tx.Bucket(metaBucket).Put(sourcedKey, []byte{1}) })
}

// BlobKey is a digest as the index keeps it: shorter, and without an allocation to compare.
type BlobKey []byte

// KeyOf gives the key of d; nil if d can't be stored.
func KeyOf(d digest.Digest) BlobKey { return blobKey(d) }

// Digest undoes KeyOf.
func (k BlobKey) Digest() digest.Digest { return blobDigest(k) }

// Stored calls fn for what is known of stored content, in the order of digests, until fn
// gives false. What changes meanwhile may or may not be seen. The key is valid until fn
// returns, and fn must not call the Index. It goes through the records once, and holds none.
func (ix *Index) Stored(fn func(key BlobKey, b Blob) bool) error {
	if err := ix.flush(); err != nil {
		return err
	}
	return ix.chunks(blobsBucket, blobsChunk, func(key, value []byte) bool {
		b, ok := decodeBlob(value)
		return !ok || fn(key, b)
	}, nil)
}
