package index

import (
	"bytes"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"time"
)

// What the index knows about names has a share of the cache: records of tags, their history,
// what clients asked for, and links. Above the share, DropNames drops what was used least
// recently, down to half of it.

const (
	// namesChunk is how many entries are read, or dropped, in one transaction.
	namesChunk = 2000
	// entryCost is about what an entry takes up beside its key and its value, in bytes.
	entryCost = 24
	// rankBits is how far a rank is shifted, above any time in milliseconds.
	rankBits = 48
)

// Name is a tag, or with a digest in Reference a link.
type Name struct{ Upstream, Repository, Reference string }

// SetShare says how many bytes the index may use, zero for any number, and has grown called
// when the file has grown beyond that, from any goroutine; it must not block. DropNames is
// for what is beyond it. SetShare may be called again at any time.
func (ix *Index) SetShare(bytes int64, grown func()) {
	ix.grown.Store(&grown)
	if ix.share.Swap(bytes) != bytes {
		ix.notice.Store(bytes)
	}
}

// noticeSize has the owner told that the file has grown to size bytes.
func (ix *Index) noticeSize(size int64) {
	grown := ix.grown.Load()
	if at := ix.notice.Load(); grown == nil || at == 0 || size <= at || !ix.notice.CompareAndSwap(at, size+size/16) {
		return
	}
	(*grown)()
}

// IsOverShare reports whether the index uses more than its share, free pages not counted,
// and DropNames may change that.
func (ix *Index) IsOverShare() bool {
	share := ix.share.Load()
	if share == 0 || ix.Bytes() <= share || !ix.Whole() {
		return false
	}
	_, live, err := ix.inUse()
	return err == nil && live > max(share, ix.least.Load())
}

// inUse returns how many bytes the file has, and how many of them are in use.
func (ix *Index) inUse() (size, live int64, err error) {
	err = ix.db.Load().view(func(tx *tx) error {
		m, ok := metaOf(tx.data, tx.page)
		if !ok {
			return damage("no meta page is intact")
		}
		free, _, err := freePages(tx.data, tx.page, m)
		size = int64(len(tx.data))
		live = size - int64(len(free)*tx.page)
		return err
	})
	return size, live, err
}

// DropNames drops names that were used least recently until those that are left take up at
// most half of the share, and then compacts the file. A tag goes with its history and with
// what is known of who asked for it; a repository's links go after the last of its names that
// has to go, and before its first that stays. Of the tags, those go first for which rank
// returns the smallest number. Pinned names, and the links of their repositories, stay.
//
// gone is told what was dropped, in batches: tags or links. What is put
// while DropNames runs may be dropped as well if its repository was used long ago: the upstream
// is asked for it again. One DropNames runs at a time.
func (ix *Index) DropNames(rank func(Name, Tag) int, gone func(links bool, names []Name)) error {
	share := ix.share.Load()
	if err := ix.flush(); err != nil {
		return err
	}
	begun := time.Now()
	uses, err := ix.nameUses(rank)
	if err != nil {
		return err
	}
	last, err := ix.lastToGo(uses, share/2)
	if err != nil {
		return err
	}
	ix.backupSoon()
	goes := func(order int64, known bool) bool { return known && order <= last }
	err = ix.dropEntries(askedBucket, func(key, _ []byte) bool { return goes(uses.name(key)) }, nil)
	if err == nil {
		err = ix.dropEntries(ledgerBucket, func(key, _ []byte) bool { return len(key) > 9 && goes(uses.name(key[:len(key)-9])) }, nil)
	}
	if err == nil {
		err = ix.dropEntries(tagsBucket, func(key, value []byte) bool {
			var t Tag
			return goes(uses.name(key)) && !(decode(value, &t) && t.Checked.After(begun))
		}, func(names []Name) { gone(false, names) })
	}
	if err == nil {
		err = ix.dropEntries(linksBucket, func(key, _ []byte) bool {
			order, known := uses.repository(key)
			return goes(order, known) || !known && last > 0
		}, func(names []Name) { gone(true, names) })
	}
	if err == nil {
		err = ix.dropIdleSources()
	}
	if err != nil {
		return err
	}
	if _, live, err := ix.inUse(); err != nil || !ix.roomToCompact(live) {
		return err
	}
	err = ix.compact()
	// What is left, and no names, is not looked through again until it has grown.
	size, live, failed := ix.inUse()
	if failed == nil {
		ix.least.Store(live + live/4)
		ix.notice.Store(max(share, size+size/16))
	}
	return err
}

// nameUses says when names and repositories were used last: as milliseconds since 1970, with
// the rank above them. It holds hashes, of which two may be the same: then the later use counts.
type nameUses struct {
	seed         maphash.Seed
	names, repos map[uint64]int64
}

// name returns the use of the name at a key of three parts; false if none is known.
func (u *nameUses) name(key []byte) (int64, bool) {
	order, ok := u.names[maphash.Bytes(u.seed, key)]
	return order, ok
}

// repository returns the last use of the repository in a key of three parts.
func (u *nameUses) repository(key []byte) (int64, bool) {
	order, ok := u.repos[maphash.Bytes(u.seed, repositoryOf(key))]
	return order, ok
}

func (u *nameUses) use(key []byte, order int64) {
	h := maphash.Bytes(u.seed, key)
	u.names[h] = max(u.names[h], order)
	h = maphash.Bytes(u.seed, repositoryOf(key))
	u.repos[h] = max(u.repos[h], order)
}

// repositoryOf returns the first two parts of a key.
func repositoryOf(key []byte) []byte {
	return key[:max(0, bytes.LastIndexByte(key, separator[0]))]
}

func nameOf(key []byte) (n Name, ok bool) {
	p := bytes.Split(key, separator)
	if len(p) != 3 {
		return n, false
	}
	return Name{string(p[0]), string(p[1]), string(p[2])}, true
}

// nameUses reads the last uses of all names.
func (ix *Index) nameUses(rank func(Name, Tag) int) (*nameUses, error) {
	u := &nameUses{seed: maphash.MakeSeed(), names: map[uint64]int64{}, repos: map[uint64]int64{}}
	err := ix.chunks(askedBucket, namesChunk, func(key, value []byte) bool {
		a, ok := readAsked(key, value)
		if !ok {
			return true
		}
		order := a.Last.UnixMilli()
		if n, ok := nameOf(key); ok && a.Tag == "" && !a.Referrers {
			order += int64(rank(n, Tag{Digest: a.Digest})) << rankBits
		}
		u.use(key, order)
		return true
	}, nil)
	if err != nil {
		return nil, err
	}
	err = ix.chunks(tagsBucket, namesChunk, func(key, value []byte) bool {
		var t Tag
		n, ok := nameOf(key)
		if !ok || !decode(value, &t) {
			u.use(key, 1)
			return true
		}
		asked, _ := u.name(key)
		u.use(key, int64(rank(n, t))<<rankBits+max(1, asked, t.Checked.UnixMilli()))
		return true
	}, nil)
	if err != nil {
		return nil, err
	}
	err = ix.chunks(ledgerBucket, namesChunk, func(key, value []byte) bool {
		if len(key) <= 9 {
			return true
		}
		tag := key[:len(key)-9]
		if o, _, ok := readObservation(len(tag), key, value); ok {
			u.use(tag, max(1, o.First.UnixMilli(), o.Last.UnixMilli()))
		}
		return true
	}, nil)
	if err != nil {
		return nil, err
	}
	return u, ix.chunks(pinsBucket, namesChunk, func(key, _ []byte) bool {
		u.use(key, math.MaxInt64)
		return true
	}, nil)
}

// lastToGo returns up to which use names have to go so that the others take up at most most
// bytes; zero if none has to.
func (ix *Index) lastToGo(u *nameUses, most int64) (int64, error) {
	bytesAt, all := map[int64]int64{}, int64(0)
	count := func(order, n int64) {
		bytesAt[order] += n
		all += n
	}
	for _, bucket := range [][]byte{askedBucket, tagsBucket, ledgerBucket, linksBucket} {
		err := ix.chunks(bucket, namesChunk, func(key, value []byte) bool {
			n := int64(len(key) + len(value) + entryCost)
			switch {
			case &bucket[0] == &linksBucket[0]:
				order, _ := u.repository(key)
				count(order, n)
			case &bucket[0] == &ledgerBucket[0]:
				order, _ := u.name(key[:max(0, len(key)-9)])
				count(order, n)
			default:
				order, _ := u.name(key)
				count(order, n)
			}
			return true
		}, nil)
		if err != nil {
			return 0, err
		}
	}
	last := int64(0)
	for _, order := range slices.Sorted(maps.Keys(bytesAt)) {
		if all <= most || order == math.MaxInt64 {
			break
		}
		last = max(1, order)
		all -= bytesAt[order]
	}
	return last, nil
}

// dropEntries drops the entries for which goes returns true. gone, which may be nil, is told
// their names after each transaction.
func (ix *Index) dropEntries(bucket []byte, goes func(key, value []byte) bool, gone func([]Name)) error {
	var keys [][]byte
	return ix.chunks(bucket, namesChunk, func(key, value []byte) bool {
		if goes(key, value) {
			keys = append(keys, bytes.Clone(key))
		}
		return true
	}, func() error {
		if len(keys) == 0 {
			return nil
		}
		var names []Name
		err := ix.update(func(tx *tx) error {
			if &bucket[0] == &ledgerBucket[0] {
				return dropObservations(tx, keys)
			}
			names = names[:0]
			b := tx.Bucket(bucket)
			for _, key := range keys {
				value := b.Get(key)
				if value == nil || !goes(key, value) { // it was put again
					continue
				}
				if err := b.Delete(key); err != nil {
					return err
				}
				if n, ok := nameOf(key); ok {
					names = append(names, n)
				}
			}
			return nil
		})
		keys = keys[:0]
		if err == nil && gone != nil {
			gone(names)
		}
		return err
	})
}

// dropIdleSources forgets where content came from that is not stored.
func (ix *Index) dropIdleSources() error {
	// The keys are long enough: no other key in metaBucket begins so.
	blobOf := func(key []byte) []byte {
		rest := bytes.TrimPrefix(key, sourcePrefix)
		n := map[byte]int{1: 32, 2: 48, 3: 64}
		if len(rest) == len(key) || len(rest) == 0 || len(rest) < 1+n[rest[0]] {
			return nil
		}
		return rest[:1+n[rest[0]]]
	}
	var keys [][]byte
	return ix.chunksOf(metaBucket, sourcePrefix, namesChunk, func(key, _ []byte) bool {
		keys = append(keys, bytes.Clone(key))
		return true
	}, func() error {
		defer func() { keys = keys[:0] }()
		return ix.update(func(tx *tx) error {
			blobs, b := tx.Bucket(blobsBucket), tx.Bucket(metaBucket)
			for _, key := range keys {
				if blob := blobOf(key); blob == nil || blobs.Get(blob) != nil {
					continue
				}
				if err := b.Delete(key); err != nil {
					return err
				}
			}
			return nil
		})
	})
}
