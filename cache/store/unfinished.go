package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Unfinished is a file below ingest/: the part of a digest with its note, or
// what a crash has left of something else.
type Unfinished struct {
	// Digest is the part's; empty where it is none.
	Digest digest.Digest
	// Bytes are those that it has on disk: a part has holes.
	Bytes int64
	// Touched is when it was last written.
	Touched time.Time
	// Incoming is set where it is no part of a fill and is being taken in, or was; it has
	// no digest while that is not known.
	Incoming bool

	name string
}

// Unfinished lists what is below ingest/.
func (s *Store) Unfinished() ([]Unfinished, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, ingestDir))
	if err != nil {
		return nil, err
	}
	var list []Unfinished
	for _, e := range entries {
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return nil, err
		}
		u := Unfinished{Bytes: allocated(st), Touched: st.ModTime(), name: e.Name()}
		if base, ok := cutPart(e.Name()); ok {
			u.Digest = digestOf(base)
		} else if base, ok := strings.CutSuffix(e.Name(), incomingSuffix); ok {
			u.Digest, u.Incoming = digestOf(base), true
		} else if strings.HasPrefix(e.Name(), unnamedPrefix) {
			u.Incoming = true
		} else if base, ok := strings.CutSuffix(e.Name(), noteSuffix); ok {
			if s.hasPart(base) {
				continue // it belongs to its part
			}
		}
		list = append(list, u)
	}
	return list, nil
}

// digestOf gives the digest that the name of a file below ingest/ begins with; empty
// where that is none.
func digestOf(base string) digest.Digest {
	alg, rest, _ := strings.Cut(base, "-")
	hex, _, _ := strings.Cut(rest, sourceMark)
	if d := digest.NewDigestFromEncoded(digest.Algorithm(alg), hex); d.Validate() == nil {
		return d
	}
	return ""
}

// RemoveUnfinished drops a file that Unfinished gave. Nobody may be writing it.
func (s *Store) RemoveUnfinished(u Unfinished) error {
	path := filepath.Join(s.dir, ingestDir, u.name)
	if base, ok := cutPart(path); ok {
		_ = os.Remove(base + noteSuffix) // a note without a part says nothing
	}
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// cutPart cuts a part's extension off a name; false where it has none.
func cutPart(name string) (base string, ok bool) {
	if base, ok = strings.CutSuffix(name, partSuffix); ok {
		return base, true
	}
	return strings.CutSuffix(name, wholeSuffix)
}

// hasPart tells whether there is the part of that base below ingest/.
func (s *Store) hasPart(base string) bool {
	for _, suffix := range []string{partSuffix, wholeSuffix} {
		if _, err := os.Lstat(filepath.Join(s.dir, ingestDir, base+suffix)); err == nil {
			return true
		}
	}
	return false
}
