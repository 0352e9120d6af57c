package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unsafe"

	"go.etcd.io/bbolt"
)

// tx, bucket and cursor are bbolt's, with three additions: values are sealed by a checksum
// over bucket, key and value; the pages on the way to a key are checked before bbolt follows
// them; and a key counts as absent only if its neighbours are intact and in order, so that a
// damaged key can't pass for one that was never there. All damage is a panic with
// errDamaged, which db's guard makes an error of.

// tx is a transaction. It is for one goroutine.
type tx struct {
	d        *db
	b        *bbolt.Tx
	id       int
	writable bool
	// data is the mapped file, as far as it is in use.
	data []byte
	page int // the size of a page
	// root is the page of the bucket that holds the buckets.
	root uint64

	committed []func()
	deleted   bool
	changed   map[changedKey]struct{}
}

func newTx(d *db, b *bbolt.Tx, writable bool) *tx {
	info := b.DB().Info()
	t := &tx{d: d, b: b, id: b.ID(), writable: writable, page: info.PageSize, root: uint64(b.Cursor().Bucket().Root())}
	// The mapping outlives the transaction: bbolt moves it only while nobody reads, and while
	// a writer's pages are being written.
	base := *(*unsafe.Pointer)(unsafe.Pointer(&info.Data)) // #nosec G103 -- bbolt gives its mapping as a uintptr
	t.data = unsafe.Slice((*byte)(base), b.Size())         // #nosec G103 -- bbolt maps at least this much
	if writable && d.changed != nil {
		t.changed = map[changedKey]struct{}{}
	}
	return t
}

// end ends a transaction that reads. It doesn't wait: bbolt's locks may be held by a
// transaction that found damage.
func (t *tx) end() {
	if t.writable {
		return
	}
	go func() { _ = guarded(t.b.Rollback) }()
}

// onCommit has fn called once the transaction is on the disk.
func (t *tx) onCommit(fn func()) { t.committed = append(t.committed, fn) }

// Bucket returns one of the buckets.
func (t *tx) Bucket(name []byte) *bucket {
	t.checkInline(t.checkPath(t.root, name), name)
	b := t.b.Bucket(name)
	if b == nil {
		panic(fmt.Errorf("%w: no bucket %q", errDamaged, name))
	}
	return &bucket{t: t, b: b, name: name}
}

// bucket is a bucket of a transaction.
type bucket struct {
	t    *tx
	b    *bbolt.Bucket
	name []byte
}

// Get returns the value of key, or nil. It is valid until the transaction ends.
func (b *bucket) Get(key []byte) []byte {
	b.check(key)
	v := b.b.Get(key)
	if v == nil {
		if next := b.around(key); bytes.Equal(next, key) {
			panic(fmt.Errorf("%w: an entry of %s isn't where its key leads to", errDamaged, b.name))
		}
		return nil
	}
	return b.open(key, v)
}

// Put sets the value of key.
func (b *bucket) Put(key, value []byte) error {
	b.check(key)
	b.note(key)
	if !b.t.d.sealed {
		return b.b.Put(key, value)
	}
	return b.b.Put(key, sealed(b.name, key, value))
}

// Delete removes key, if it is there.
func (b *bucket) Delete(key []byte) error {
	b.check(key)
	b.note(key)
	b.t.deleted = true
	return b.b.Delete(key)
}

func (b *bucket) note(key []byte) {
	if b.t.changed != nil {
		b.t.changed[changedKey{string(b.name), string(key)}] = struct{}{}
	}
}

// KeyN counts the keys.
func (b *bucket) KeyN() int { return b.b.Stats().KeyN }

// Cursor returns a cursor over the bucket.
func (b *bucket) Cursor() *cursor { return &cursor{b: b, c: b.b.Cursor()} }

// check checks the pages on the way to key. Small buckets have none of their own.
func (b *bucket) check(key []byte) {
	if root := uint64(b.b.Root()); root != 0 {
		b.t.checkPath(root, key)
	}
}

// around panics unless the entries before and after key, which isn't there or begins a
// range, are intact and in order. It returns the key from which on the range begins; nil at
// the end.
func (b *bucket) around(key []byte) (next []byte) {
	if !b.t.d.sealed {
		return nil
	}
	c := b.b.Cursor()
	next, v := c.Seek(key)
	var prev, before []byte
	if next == nil {
		prev, before = c.Last()
	} else {
		b.open(next, v)
		prev, before = c.Prev()
	}
	if prev != nil {
		b.open(prev, before)
	}
	if next != nil && bytes.Compare(next, key) < 0 || prev != nil && bytes.Compare(prev, key) >= 0 {
		panic(fmt.Errorf("%w: keys of %s are out of order", errDamaged, b.name))
	}
	return next
}

// sealLen is how many bytes a checksum adds to a value.
const sealLen = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal returns the checksum of an entry.
func seal(bucket, key, value []byte) uint32 {
	sum := crc32.Update(0, castagnoli, bucket)
	sum = crc32.Update(sum, castagnoli, separator)
	sum = crc32.Update(sum, castagnoli, key)
	sum = crc32.Update(sum, castagnoli, separator)
	return crc32.Update(sum, castagnoli, value)
}

// sealed returns a value with its checksum.
func sealed(bucket, key, value []byte) []byte {
	v := append(make([]byte, 0, len(value)+sealLen), value...)
	return binary.BigEndian.AppendUint32(v, seal(bucket, key, value))
}

// unseal returns the value without its checksum; false if that is wrong.
func unseal(bucket, key, sealed []byte) ([]byte, bool) {
	n := len(sealed) - sealLen
	if n < 0 || binary.BigEndian.Uint32(sealed[n:]) != seal(bucket, key, sealed[:n]) {
		return nil, false
	}
	return sealed[:n:n], true
}

func (b *bucket) open(key, value []byte) []byte {
	if !b.t.d.sealed {
		return value
	}
	v, ok := unseal(b.name, key, value)
	if !ok {
		panic(fmt.Errorf("%w: the checksum of an entry of %s is wrong", errDamaged, b.name))
	}
	return v
}

// cursor goes over a bucket in the order of keys. Keys and values are valid until the
// transaction ends.
type cursor struct {
	b *bucket
	c *bbolt.Cursor
	// at is the key where the cursor is, and leaf the last page that was checked.
	at, leaf []byte
}

// Seek goes to key, or to the next after it. The key is nil at the end.
func (c *cursor) Seek(key []byte) (k, v []byte) {
	c.b.check(key)
	c.b.around(key)
	k, v = c.c.Seek(key)
	return c.arrive(k, v)
}

// First goes to the first key.
func (c *cursor) First() (k, v []byte) {
	c.b.check(nil)
	k, v = c.c.First()
	return c.arrive(k, v)
}

// Last goes to the last key.
func (c *cursor) Last() (k, v []byte) {
	c.b.check(bytes.Repeat([]byte{0xff}, 64))
	k, v = c.c.Last()
	return c.arrive(k, v)
}

// Next goes to the next key.
func (c *cursor) Next() (k, v []byte) { return c.move(c.c.Next, 1) }

// Prev goes to the key before.
func (c *cursor) Prev() (k, v []byte) { return c.move(c.c.Prev, -1) }

func (c *cursor) move(step func() ([]byte, []byte), order int) (k, v []byte) {
	was := c.at
	k, v = step()
	if k != nil && was != nil && bytes.Compare(k, was) != order {
		panic(fmt.Errorf("%w: keys of %s are out of order", errDamaged, c.b.name))
	}
	return c.arrive(k, v)
}

func (c *cursor) arrive(k, v []byte) ([]byte, []byte) {
	c.at = k
	if k == nil {
		return nil, nil
	}
	if root := uint64(c.b.b.Root()); root != 0 && within(c.b.t.data, k) && !within(c.leaf, k) {
		c.leaf = c.b.t.checkPages(root, k, true).b
	}
	return k, c.b.open(k, v)
}

// within tells whether k is a part of the memory of b.
func within(b, k []byte) bool {
	at, from := uintptr(unsafe.Pointer(unsafe.SliceData(k))), uintptr(unsafe.Pointer(unsafe.SliceData(b))) // #nosec G103 -- compared only
	return at >= from && at < from+uintptr(len(b))
}
