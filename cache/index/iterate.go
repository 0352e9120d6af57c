package index

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// eachChunk is how many tags or links are read in one transaction, and held for the
// caller meanwhile.
const eachChunk = 2000

// scope gives the beginning of the keys of a repository, of an upstream where repo is
// empty, or of all where upstream is.
func scope(upstream, repo string) []byte {
	switch {
	case upstream == "":
		return nil
	case repo == "":
		return join(upstream, "")
	}
	return join(upstream, repo, "")
}

// Records calls fn for the record of each tag, in the order of their names, until fn
// gives false: of one repository, of all of an upstream where repo is empty, or where
// upstream is empty of all. What changes meanwhile may or may not be seen. fn may call
// the Index.
func (ix *Index) Records(upstream, repo string, fn func(upstream, repo, tag string, t Tag) bool) error {
	if err := ix.flush(); err != nil {
		return err
	}
	return each(ix, tagsBucket, scope(upstream, repo), fn)
}

// Links calls fn for each digest that a repository may serve, as Records does.
func (ix *Index) Links(upstream, repo string, fn func(upstream, repo string, d digest.Digest, l Link) bool) error {
	return each(ix, linksBucket, scope(upstream, repo), func(upstream, repo, d string, l Link) bool {
		return fn(upstream, repo, digest.Digest(d), l)
	})
}

// Manifests calls fn for each digest that a repository may serve as an index or manifest,
// as Links does, without the cost of decoding its other links. fn must not call the Index.
func (ix *Index) Manifests(upstream, repo string, fn func(d digest.Digest) bool) error {
	prefix := scope(upstream, repo)
	return ix.chunksOf(linksBucket, prefix, blobsChunk, func(key, value []byte) bool {
		if !bytes.Contains(value, isManifest) {
			return true
		}
		if l, ok := decodeLink(value); !ok || !l.Manifest {
			return true
		}
		return fn(digest.Digest(key[len(prefix):]))
	}, nil)
}

// LinksTo gives the links of a repository to several digests, in their order; nil where
// there is none. It is Link for many at the cost of about one.
func (ix *Index) LinksTo(upstream, repo string, ds []digest.Digest) []*Link {
	var list []*Link
	err := ix.view(func(tx *tx) error {
		list = make([]*Link, len(ds))
		b := tx.Bucket(linksBucket)
		for i, d := range ds {
			if l, ok := decodeLink(b.Get(join(upstream, repo, d.String()))); ok {
				list[i] = &l
			}
		}
		return nil
	})
	if err != nil {
		return make([]*Link, len(ds))
	}
	return list
}

// ReferrersOf gives the list of what refers to d, which counts as no use of it, and the
// records of some tags of the same repository, as far as they are known.
func (ix *Index) ReferrersOf(upstream, repo string, d digest.Digest, tags []string) (l List, listed bool, known map[string]Tag) {
	known = map[string]Tag{}
	err := ix.view(func(tx *tx) error {
		listed = decode(tx.Bucket(listsBucket).Get(join(Referrers, upstream, repo, d.String())), &l)
		b := tx.Bucket(tagsBucket)
		for _, tag := range tags {
			var t Tag
			if decode(b.Get(join(upstream, repo, tag)), &t) {
				known[tag] = t
			}
		}
		return nil
	})
	return l, listed && err == nil, known
}

// isManifest is in the JSON of each Link with Manifest: quotes in strings are escaped.
var isManifest = []byte(`"manifest":true`)

// lookupsChunk is in how many repositories LinksOf looks in one transaction.
const lookupsChunk = 200

// LinksOf calls fn for each link of repositories, as Repositories gives them, to one of ds,
// until fn gives false. It looks for each of these links by its name. fn must not call the
// Index, and may be called more than once for a link.
func (ix *Index) LinksOf(repos []string, ds []digest.Digest, fn func(upstream, repo string, d digest.Digest) bool) error {
	for some := range slices.Chunk(repos, lookupsChunk) {
		more := true
		err := ix.view(func(tx *tx) error {
			b := tx.Bucket(linksBucket)
			var key []byte
			for _, name := range some {
				upstream, repo, _ := strings.Cut(name, "/")
				key = append(append(append(append(key[:0], upstream...), separator...), repo...), separator...)
				own := len(key)
				for _, d := range ds {
					if key = append(key[:own], d...); b.Get(key) == nil {
						continue
					}
					if more = fn(upstream, repo, d); !more {
						return nil
					}
				}
			}
			return nil
		})
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// LinkNames calls fn for each digest that any repository may serve, as Links does, without
// the cost of decoding the links: without an allocation. The slices are valid until fn
// returns, and fn must not call the Index.
func (ix *Index) LinkNames(fn func(upstream, repo, digest []byte) bool) error {
	return ix.chunks(linksBucket, blobsChunk, func(key, _ []byte) bool {
		upstream, rest, _ := bytes.Cut(key, separator)
		repo, d, ok := bytes.Cut(rest, separator)
		return !ok || fn(upstream, repo, d)
	}, nil)
}

// TagDigests calls fn for each tag with the digest that it stands for, as Records does for
// all of its record, and at a fraction of the cost: without an allocation. The slices are
// valid until fn returns, and fn must not call the Index.
func (ix *Index) TagDigests(fn func(upstream, repo, tag, digest []byte) bool) error {
	if err := ix.flush(); err != nil {
		return err
	}
	return ix.chunks(tagsBucket, blobsChunk, func(key, value []byte) bool {
		upstream, rest, _ := bytes.Cut(key, separator)
		repo, tag, ok := bytes.Cut(rest, separator)
		if !ok {
			return true
		}
		// The digest is the first that a record says, and nothing in it is escaped.
		if d, ok := bytes.CutPrefix(value, digestFirst); ok {
			if end := bytes.IndexByte(d, '"'); end >= 0 {
				return fn(upstream, repo, tag, d[:end])
			}
		}
		var t Tag
		return json.Unmarshal(value, &t) != nil || fn(upstream, repo, tag, []byte(t.Digest))
	}, nil)
}

// digestFirst is how the JSON of a Tag begins.
var digestFirst = []byte(`{"digest":"`)

// each calls fn for the values of a bucket whose keys have three parts, until fn gives
// false. What can not be read is left out.
func each[V any](ix *Index, bucket, prefix []byte, fn func(upstream, repo, name string, v V) bool) error {
	type found struct {
		parts [3]string
		value V
	}
	var ready []found
	more := true
	return ix.chunksOf(bucket, prefix, eachChunk, func(key, value []byte) bool {
		f := found{}
		parts := bytes.Split(key, separator)
		if len(parts) == 3 && json.Unmarshal(value, &f.value) == nil {
			f.parts = [3]string{string(parts[0]), string(parts[1]), string(parts[2])}
			ready = append(ready, f)
		}
		return more
	}, func() error {
		for _, f := range ready {
			if more = more && fn(f.parts[0], f.parts[1], f.parts[2], f.value); !more {
				break
			}
		}
		ready = ready[:0]
		return nil
	})
}
