package index

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"sync"
)

// The cached lists are bounded: in number, in bytes each, and in bytes in all, see
// BoundLists. The least recently used are dropped first.
const (
	maxLists       = 10_000
	maxListBytes   = maxListsBytes / listShare
	maxListsBytes  = 64 << 20
	leastListBytes = 1 << 20
	// listShare is the part of the bytes in all that one list may take.
	listShare = 4
)

// listUses knows the sizes and last uses of the lists in a file. It is read from the
// file when it is first needed; uses before that are not known, so those lists go
// first.
type listUses struct {
	mu    sync.Mutex
	db    *db // that it was read from; nil if it has to be read again
	of    map[string]listUse
	bytes int64
	most  int64 // bytes in all; zero is maxListsBytes
	clock uint64
}

type listUse struct {
	bytes int64
	used  uint64
}

// BoundLists sets how many bytes all lists together may take up, within limits of its
// own.
func (ix *Index) BoundLists(bytes int64) {
	ix.lists.mu.Lock()
	defer ix.lists.mu.Unlock()
	ix.lists.most = max(leastListBytes, min(bytes, maxListsBytes))
}

// largest returns the bytes that one list may take.
func (u *listUses) largest() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return cmp.Or(u.most, maxListsBytes) / listShare
}

// List returns the list of a kind that was kept of a repository. of is the
// subject's digest for Referrers and empty for Tags.
func (ix *Index) List(kind, upstream, repo, of string) (List, bool) {
	var l List
	key := join(kind, upstream, repo, of)
	ok := ix.get(listsBucket, key, &l)
	if ok {
		ix.lists.use(string(key))
	}
	return l, ok
}

// PutList keeps a list. Others are dropped if there are too many; a list that is too
// large to be kept is dropped itself, which is no error.
func (ix *Index) PutList(kind, upstream, repo, of string, l List) error {
	key := join(kind, upstream, repo, of)
	largest := ix.lists.largest()
	var value []byte
	if int64(l.size()) <= largest {
		var err error
		if value, err = json.Marshal(l); err != nil {
			return err
		}
	}
	if int64(len(value)) > largest {
		value = nil
	}
	going, err := ix.makeRoomForList(string(key), int64(len(value)))
	if err != nil {
		return err
	}
	err = ix.batch(func(tx *tx) error {
		b := tx.Bucket(listsBucket)
		for _, old := range going {
			if err := b.Delete([]byte(old)); err != nil {
				return err
			}
		}
		if value == nil {
			return b.Delete(key)
		}
		return b.Put(key, value)
	})
	if err != nil {
		ix.lists.forget()
	}
	return err
}

// makeRoomForList counts the list at key as one of size bytes, or of none, as gone, and
// returns the keys of those that have to go for it.
func (ix *Index) makeRoomForList(key string, size int64) (going []string, err error) {
	u, file := &ix.lists, ix.db.Load()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.db != file {
		if err := u.read(ix); err != nil {
			return nil, err
		}
		u.db = file
	}
	u.bytes -= u.of[key].bytes
	delete(u.of, key)
	most := cmp.Or(u.most, maxListsBytes)
	if u.bytes+size > most || len(u.of) >= maxLists {
		// Some more than must, so that this is not done for each.
		byAge := slices.SortedFunc(maps.Keys(u.of), func(a, b string) int { return cmp.Compare(u.of[a].used, u.of[b].used) })
		for _, old := range byAge {
			if u.bytes+size <= most/10*9 && len(u.of) < maxLists/10*9 {
				break
			}
			u.bytes -= u.of[old].bytes
			delete(u.of, old)
			going = append(going, old)
		}
	}
	if size > 0 {
		u.clock++
		u.of[key] = listUse{size, u.clock}
		u.bytes += size
	}
	return going, nil
}

// read reads the sizes of all lists. u.mu is held.
func (u *listUses) read(ix *Index) error {
	u.of, u.bytes = map[string]listUse{}, 0
	return ix.view(func(tx *tx) error {
		c := tx.Bucket(listsBucket).Cursor()
		for key, value := c.First(); key != nil; key, value = c.Next() {
			u.of[string(key)] = listUse{bytes: int64(len(value))}
			u.bytes += int64(len(value))
		}
		return nil
	})
}

// use notes that the list at key was asked for.
func (u *listUses) use(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if l, ok := u.of[key]; ok {
		u.clock++
		l.used = u.clock
		u.of[key] = l
	}
}

// forget has everything read again: the file was changed otherwise.
func (u *listUses) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.db = nil
}

// size returns about how many bytes l takes up as JSON, at least.
func (l *List) size() (n int) {
	for _, t := range l.Tags {
		n += len(t) + 3
	}
	for _, d := range l.Referrers {
		n += len(d.MediaType) + len(d.Digest) + len(d.ArtifactType) + 40
		for k, v := range d.Annotations {
			n += len(k) + len(v) + 6
		}
	}
	return n
}
