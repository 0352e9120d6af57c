package index

import (
	_ "crypto/sha256" // go-digest knows what the program links
	_ "crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/store"
)

// Blob is what is known of stored content, beside the content.
type Blob struct {
	// Stamp is how its file looked when it was verified; a file that looks
	// otherwise has been changed behind our back.
	Stamp store.Stamp
	// Verified is when its bytes were last found to be the digest's, to the
	// second.
	Verified time.Time
	// Used is when it was last asked for, to the second, and Uses how often,
	// requests of one pull counted as one.
	Used time.Time
	Uses uint32
}

const (
	// usesApart is how long the requests of one pull may be apart: they count
	// as one use.
	usesApart = time.Minute
	// blobsChunk is how many records are read in one transaction.
	blobsChunk = 20_000
	// usesSlot is how long requests without such a pause count as one use.
	usesSlot = time.Hour
)

// blobKey is the key of d: a byte for the algorithm and the digest's bytes.
// It is nil for what is no digest that is stored.
func blobKey(d digest.Digest) []byte {
	if !store.IsDigest(d) {
		return nil
	}
	var alg byte
	switch d.Algorithm() {
	case digest.SHA256:
		alg = 1
	case digest.SHA384:
		alg = 2
	case digest.SHA512:
		alg = 3
	default:
		return nil
	}
	key, err := hex.AppendDecode([]byte{alg}, []byte(d.Encoded()))
	if err != nil {
		return nil
	}
	return key
}

// blobDigest undoes blobKey; it is empty for what is no key.
func blobDigest(key []byte) digest.Digest {
	if len(key) < 2 {
		return ""
	}
	alg, ok := map[byte]digest.Algorithm{1: digest.SHA256, 2: digest.SHA384, 3: digest.SHA512}[key[0]]
	if !ok || alg.Size() != len(key)-1 {
		return ""
	}
	return digest.NewDigestFromBytes(alg, key[1:])
}

// A record is a version byte, seven fields of fixed width, since there may be
// millions, and a byte that is not in use.
const (
	blobVersion = 1
	blobLen     = 1 + 8 + 8 + 8 + 8 + 4 + 4 + 4 + 1
)

func (b Blob) encode() []byte {
	v := make([]byte, 0, blobLen)
	v = append(v, blobVersion)
	v = binary.BigEndian.AppendUint64(v, uint64(b.Stamp.Size))
	v = binary.BigEndian.AppendUint64(v, uint64(b.Stamp.Modified))
	v = binary.BigEndian.AppendUint64(v, uint64(b.Stamp.Changed))
	v = binary.BigEndian.AppendUint64(v, b.Stamp.Inode)
	v = binary.BigEndian.AppendUint32(v, seconds(b.Verified))
	v = binary.BigEndian.AppendUint32(v, seconds(b.Used))
	v = binary.BigEndian.AppendUint32(v, b.Uses)
	return append(v, 0)
}

func decodeBlob(v []byte) (Blob, bool) {
	if len(v) != blobLen || v[0] != blobVersion {
		return Blob{}, false
	}
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(v[at:]) }
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(v[at:]) }
	return Blob{
		Stamp:    store.Stamp{Size: int64(u64(1)), Modified: int64(u64(9)), Changed: int64(u64(17)), Inode: u64(25)},
		Verified: fromSeconds(u32(33)),
		Used:     fromSeconds(u32(37)),
		Uses:     u32(41),
	}, true
}

// seconds and fromSeconds keep a time in 32 bits, until 2106; the zero time is 0.
func seconds(t time.Time) uint32 {
	if t.IsZero() {
		return 0
	}
	return uint32(max(0, min(t.Unix(), 1<<32-1)))
}

func fromSeconds(s uint32) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(int64(s), 0)
}

// Blob gives what is known of d's content, uses that are not written yet
// included.
func (ix *Index) Blob(d digest.Digest) (Blob, bool) {
	key := blobKey(d)
	if key == nil {
		return Blob{}, false
	}
	var b Blob
	ok := false
	err := ix.view(func(tx *tx) error {
		b, ok = decodeBlob(tx.Bucket(blobsBucket).Get(key))
		return nil
	})
	if err != nil || !ok {
		return Blob{}, false
	}
	ix.mu.Lock()
	u, used := ix.used[string(key)]
	ix.mu.Unlock()
	if used {
		b.use(u)
	}
	return b, true
}

// PutBlob remembers content that has been stored or verified.
func (ix *Index) PutBlob(d digest.Digest, b Blob) error {
	return ix.Put(Change{Blobs: map[digest.Digest]Blob{d: b}})
}

// UseBlob remembers that d's content was asked for at now. It does not wait for
// the disk: a crash in the next seconds may lose it.
func (ix *Index) UseBlob(d digest.Digest, now time.Time) {
	key := blobKey(d)
	if key == nil || ix.options.ReadOnly {
		return
	}
	ix.mu.Lock()
	ix.used[string(key)] = now
	ix.mu.Unlock()
	ix.flushSoon()
}

// use notes a request at now.
func (b *Blob) use(now time.Time) {
	if now.Sub(b.Used) >= usesApart || now.Truncate(usesSlot).After(b.Used) {
		b.Uses++
	}
	if now.After(b.Used) {
		b.Used = now
	}
}

// DropBlobs forgets content that is not stored any more.
func (ix *Index) DropBlobs(ds ...digest.Digest) error {
	ix.mu.Lock()
	for _, d := range ds {
		delete(ix.used, string(blobKey(d)))
	}
	ix.mu.Unlock()
	return ix.batch(func(tx *tx) error {
		for _, d := range ds {
			if key := blobKey(d); key != nil {
				if err := ix.setBlob(tx, key, nil); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Blobs calls fn for all that is known, in the order of digests, until fn gives
// false. What changes meanwhile may or may not be seen. fn must not call the
// Index.
func (ix *Index) Blobs(fn func(d digest.Digest, b Blob) bool) error {
	if err := ix.flush(); err != nil {
		return err
	}
	return ix.chunks(blobsBucket, blobsChunk, func(key, v []byte) bool {
		b, ok := decodeBlob(v)
		d := blobDigest(key)
		return !ok || d == "" || fn(d, b)
	}, nil)
}
