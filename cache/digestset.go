package cache

import (
	"encoding/hex"

	"github.com/opencontainers/go-digest"
)

// digestSet is a set of digests, of which there may be millions: those of sha256 take
// half as much memory as in a map of strings.
type digestSet struct {
	sha256 map[[32]byte]struct{}
	others map[digest.Digest]struct{}
}

func newDigestSet() *digestSet {
	return &digestSet{sha256: map[[32]byte]struct{}{}, others: map[digest.Digest]struct{}{}}
}

// compact gives the bytes of a digest of sha256; false for another.
func compact(d digest.Digest) (b [32]byte, ok bool) {
	const prefix = "sha256:"
	if len(d) != len(prefix)+2*len(b) || d[:len(prefix)] != prefix {
		return b, false
	}
	_, err := hex.Decode(b[:], []byte(d[len(prefix):]))
	return b, err == nil
}

func (s *digestSet) add(d digest.Digest) {
	if b, ok := compact(d); ok {
		s.sha256[b] = struct{}{}
	} else {
		s.others[d] = struct{}{}
	}
}

func (s *digestSet) drop(d digest.Digest) {
	if b, ok := compact(d); ok {
		delete(s.sha256, b)
	} else {
		delete(s.others, d)
	}
}

func (s *digestSet) has(d digest.Digest) bool {
	if b, ok := compact(d); ok {
		_, ok = s.sha256[b]
		return ok
	}
	_, ok := s.others[d]
	return ok
}

// hasText is has for a digest in a buffer, without an allocation.
func (s *digestSet) hasText(d []byte) bool {
	const prefix = "sha256:"
	var b [32]byte
	if len(d) == len(prefix)+2*len(b) && string(d[:len(prefix)]) == prefix {
		if _, err := hex.Decode(b[:], d[len(prefix):]); err == nil {
			_, ok := s.sha256[b]
			return ok
		}
	}
	_, ok := s.others[digest.Digest(d)]
	return ok
}

func (s *digestSet) len() int { return len(s.sha256) + len(s.others) }

// list gives all of the set, in no particular order.
func (s *digestSet) list() []digest.Digest {
	list := make([]digest.Digest, 0, s.len())
	for b := range s.sha256 {
		list = append(list, digest.NewDigestFromBytes(digest.SHA256, b[:]))
	}
	for d := range s.others {
		list = append(list, d)
	}
	return list
}
