package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The pages of a bbolt file (go.etcd.io/bbolt/internal/common): a header of an id, flags, a
// count of elements and how many more pages it covers, then the elements, then keys and
// values, without gaps.
const (
	pageHeader  = 16
	pageElement = 16
	flagBranch  = 1
	flagLeaf    = 2
	flagFree    = 16
	// leafBucket marks an element whose value is a bucket.
	leafBucket = 1
	// maxDepth bounds the way from a root to a leaf: a tree of 2^40 entries is not as deep.
	maxDepth = 40
	// manyFree in a count says that the first element of a free list is the count.
	manyFree = 0xFFFF
)

var pageOrder = binary.NativeEndian

// page is a page with those that it covers.
type page struct {
	id    uint64
	leaf  bool
	count int
	more  uint64 // how many pages it covers beside the first
	b     []byte
}

func damage(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errDamaged}, args...)...)
}

// pageAt returns the page of a tree at id of the data of a file; an error if its header
// isn't one's.
func pageAt(data []byte, size int, id uint64) (page, error) {
	p, err := headerAt(data, size, id)
	switch {
	case err != nil:
		return page{}, err
	case p.count == 0: // bbolt frees an empty page
		return page{}, damage("page %d is empty", id)
	}
	return p, p.checkCount()
}

// headerAt is pageAt of a page whose count of elements may be wrong.
func headerAt(data []byte, size int, id uint64) (page, error) {
	pages := uint64(len(data) / size)
	if id < 2 || id >= pages {
		return page{}, damage("page %d of %d", id, pages)
	}
	head := data[id*uint64(size):][:pageHeader]
	p := page{id: id, count: int(pageOrder.Uint16(head[10:])), more: uint64(pageOrder.Uint32(head[12:]))}
	flags := pageOrder.Uint16(head[8:])
	p.leaf = flags == flagLeaf
	switch {
	case pageOrder.Uint64(head) != id:
		return page{}, damage("page %d says that it is page %d", id, pageOrder.Uint64(head))
	case flags != flagLeaf && flags != flagBranch:
		return page{}, damage("page %d has flags %#x", id, flags)
	case p.more >= pages-id:
		return page{}, damage("page %d covers %d more of %d", id, p.more, pages)
	}
	p.b = data[id*uint64(size):][:(p.more+1)*uint64(size)]
	return p, nil
}

// checkCount returns an error unless the page has as many elements as its header says: bbolt
// writes the first key right behind the last element. A count that was lowered would hide
// entries, which then pass for ones that were never there.
func (p page) checkCount() error {
	end := pageHeader + p.count*pageElement
	if end > len(p.b) {
		return damage("page %d has %d elements", p.id, p.count)
	}
	if n := p.countByFirst(); p.count > 0 && n != p.count {
		return damage("page %d has %d elements, and says %d", p.id, n, p.count)
	}
	return nil
}

// countByFirst returns how many elements precede the first key; -1 if none can.
func (p page) countByFirst() int {
	if len(p.b) < pageHeader+pageElement {
		return -1
	}
	first := p.b[pageHeader:]
	if p.leaf {
		first = first[4:] // behind the flags
	}
	pos := int(pageOrder.Uint32(first))
	if pos%pageElement != 0 || pageHeader+pos > len(p.b) {
		return -1
	}
	return pos / pageElement
}

// element returns the key of an element, and its value or the id of its child.
func (p page) element(i int) (key, value []byte, child uint64, flags uint32, err error) {
	at := pageHeader + i*pageElement
	e := p.b[at:][:pageElement]
	var pos, klen, vlen uint32
	if p.leaf {
		flags, pos, klen, vlen = pageOrder.Uint32(e), pageOrder.Uint32(e[4:]), pageOrder.Uint32(e[8:]), pageOrder.Uint32(e[12:])
	} else {
		pos, klen, child = pageOrder.Uint32(e), pageOrder.Uint32(e[4:]), pageOrder.Uint64(e[8:])
	}
	from := uint64(at) + uint64(pos)
	if klen == 0 || from+uint64(klen)+uint64(vlen) > uint64(len(p.b)) {
		return nil, nil, 0, 0, damage("page %d, element %d: %d bytes at %d", p.id, i, uint64(klen)+uint64(vlen), from)
	}
	key = p.b[from:][:klen]
	return key, p.b[from+uint64(klen):][:vlen], child, flags, nil
}

// check checks all elements: keys in order, no byte outside, and as many pages as they take.
func (p page) check(size int) error {
	used := pageHeader + p.count*pageElement
	var before []byte
	for i := range p.count {
		key, value, _, _, err := p.element(i)
		if err != nil {
			return err
		}
		if before != nil && bytes.Compare(before, key) >= 0 {
			return damage("page %d has keys out of order", p.id)
		}
		before = key
		used += len(key) + len(value)
	}
	if pages := (used + size - 1) / size; uint64(pages) != p.more+1 {
		return damage("page %d covers %d pages for %d bytes", p.id, p.more+1, used)
	}
	return nil
}

// child returns the index of the child that key is in.
func (p page) child(key []byte) (int, error) {
	low, high := 0, p.count // the first child whose key is greater is in [low, high]
	for low < high {
		mid := (low + high) / 2
		k, _, _, _, err := p.element(mid)
		if err != nil {
			return 0, err
		}
		if bytes.Compare(k, key) > 0 {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return max(0, low-1), nil
}

// checkChild returns an error unless the keys of child, the page that p names i-th, are those
// that p leads to it for.
func (p page) checkChild(i int, child page) error {
	from, _, _, _, err := p.element(i)
	if err != nil {
		return err
	}
	first, _, _, _, err := child.element(0)
	if err != nil {
		return err
	}
	last, _, _, _, err := child.element(child.count - 1)
	if err != nil {
		return err
	}
	var to []byte
	if i+1 < p.count {
		if to, _, _, _, err = p.element(i + 1); err != nil {
			return err
		}
	}
	if bytes.Compare(first, from) < 0 || to != nil && bytes.Compare(last, to) >= 0 {
		return damage("page %d has keys of others than page %d says", child.id, p.id)
	}
	return nil
}

// checkPath panics unless the pages from a root to the leaf of key are in order: bbolt
// would follow a loop until its stack is used up, and free as many pages as a header says.
// A writer's pages are checked to their last element, with the neighbours that bbolt may
// merge them with. It returns the leaf.
func (t *tx) checkPath(root uint64, key []byte) (leaf page) {
	return t.checkPages(root, key, t.writable)
}

// checkPages is checkPath. With beside set it checks the neighbours of the pages too: a reader
// who walks from leaf to leaf would pass by one that seems to be empty.
func (t *tx) checkPages(root uint64, key []byte, beside bool) (leaf page) {
	leaf, err := t.path(root, key, beside)
	if err != nil {
		panic(err)
	}
	return leaf
}

func (t *tx) path(id uint64, key []byte, beside bool) (leaf page, err error) {
	var above page // the page that names the current one, as its child which
	which := 0
	for range maxDepth {
		p, err := pageAt(t.data, t.page, id)
		if err != nil {
			return page{}, err
		}
		if t.writable {
			if err := p.check(t.page); err != nil {
				return page{}, err
			}
		}
		if t.writable && above.b != nil {
			if err := above.checkChild(which, p); err != nil {
				return page{}, err
			}
		}
		if p.leaf {
			return p, nil
		}
		at, err := p.child(key)
		if err != nil {
			return page{}, err
		}
		above, which = p, at
		for _, i := range []int{at - 1, at, at + 1} {
			if i < 0 || i >= p.count || i != at && !beside {
				continue
			}
			_, _, child, _, err := p.element(i)
			if err != nil {
				return page{}, err
			}
			if i == at {
				id = child
				continue
			}
			neighbour, err := pageAt(t.data, t.page, child)
			if err == nil && t.writable {
				err = errors.Join(neighbour.check(t.page), p.checkChild(i, neighbour))
			}
			if err != nil {
				return page{}, err
			}
		}
	}
	return page{}, damage("the tree is more than %d pages deep", maxDepth)
}

// checkInline panics unless the bucket of this name, if it is small enough to be held by the
// leaf of its name, has as many entries as it says.
func (t *tx) checkInline(leaf page, name []byte) {
	for i := range leaf.count {
		key, value, _, flags, err := leaf.element(i)
		if err != nil {
			panic(err)
		}
		if flags&leafBucket == 0 || !bytes.Equal(key, name) || len(value) < 16+pageHeader || pageOrder.Uint64(value) != 0 {
			continue
		}
		b := value[16:]
		inline := page{id: leaf.id, leaf: true, count: int(pageOrder.Uint16(b[10:])), b: b}
		err = inline.checkCount()
		if inline.count == 0 && len(b) > pageHeader {
			err = damage("the bucket %q on page %d says that it is empty", name, leaf.id)
		}
		if err != nil {
			panic(err)
		}
	}
}

// meta is what a meta page says.
type meta struct{ root, freeList, pages, txid uint64 }

// metaOf returns the meta page that bbolt goes by; false if there is none.
func metaOf(data []byte, size int) (m meta, ok bool) {
	for i := range 2 {
		if n, is := metaOn(data, size, i); is && (!ok || n.txid > m.txid) {
			m, ok = n, true
		}
	}
	return m, ok
}

// metaOn returns the meta page that is page i; false if it isn't intact.
func metaOn(data []byte, size, i int) (meta, bool) {
	if len(data) < i*size+metaAt+metaLen {
		return meta{}, false
	}
	b := data[i*size+metaAt:][:metaLen]
	if !metaIntact(b) {
		return meta{}, false
	}
	return meta{root: pageOrder.Uint64(b[16:]), freeList: pageOrder.Uint64(b[32:]), pages: pageOrder.Uint64(b[metaPages:]), txid: pageOrder.Uint64(b[48:])}, true
}

// freePages returns the list of free pages that m names, and how many more pages than one
// it takes.
func freePages(data []byte, size int, m meta) (ids []uint64, more uint64, err error) {
	pages := min(m.pages, uint64(len(data)/size))
	if m.freeList < 2 || m.freeList >= pages {
		return nil, 0, damage("the list of free pages is at page %d of %d", m.freeList, pages)
	}
	b := data[m.freeList*uint64(size):]
	if more = uint64(pageOrder.Uint32(b[12:])); more >= pages-m.freeList {
		return nil, 0, damage("the list of free pages covers %d more of %d", more, pages)
	}
	ids, err = freeIDs(b[:(more+1)*uint64(size)], size, m)
	return ids, more, err
}

// freeIDs reads the list of free pages from its pages.
func freeIDs(b []byte, size int, m meta) ([]uint64, error) {
	if !freeHeader(b, size, m) {
		return nil, damage("page %d is no list of free pages", m.freeList)
	}
	n, b := uint64(pageOrder.Uint16(b[10:])), b[pageHeader:]
	if n == manyFree {
		n, b = pageOrder.Uint64(b), b[8:]
	}
	if n > uint64(len(b)/8) {
		return nil, damage("the list of free pages has %d entries on %d bytes", n, len(b))
	}
	ids := make([]uint64, n)
	for i := range ids {
		ids[i] = pageOrder.Uint64(b[8*i:])
		if ids[i] < 2 || ids[i] >= m.pages || i > 0 && ids[i] <= ids[i-1] {
			return nil, damage("page %d is out of order in the list of free pages", ids[i])
		}
	}
	return ids, nil
}

// freeHeader tells whether b begins with the header of the list of free pages.
func freeHeader(b []byte, size int, m meta) bool {
	more, n := uint64(pageOrder.Uint32(b[12:])), uint64(pageOrder.Uint16(b[10:]))
	if n == manyFree {
		n = pageOrder.Uint64(b[pageHeader:])
	}
	// bbolt takes the pages of the list before it writes it, which is then as much shorter.
	return pageOrder.Uint64(b) == m.freeList && pageOrder.Uint16(b[8:]) == flagFree && n <= m.pages &&
		more*uint64(size) <= pageHeader+8*(n+more+2)+uint64(size)
}

// checkFreeList panics unless the page of the free list has a right header: a commit frees
// as many pages as it says.
func (t *tx) checkFreeList() {
	m, ok := metaOf(t.data, t.page)
	if !ok {
		panic(damage("no meta page is intact"))
	}
	at := m.freeList * uint64(t.page)
	if m.freeList < 2 || at >= uint64(len(t.data)) || !freeHeader(t.data[at:], t.page, m) {
		panic(damage("page %d is no list of free pages", m.freeList))
	}
}

// What checkTree knows of a page.
const (
	pageUnknown = iota
	pageTree    // begins a node of the tree
	pageFree
)

// checkTree returns an error unless each page is either in the tree or in the list of free
// pages: bbolt would write over a page of the tree that the list names. It reads the branch
// pages, about one in a hundred, and of the leaves only those with pages after them that
// nothing else names.
func (t *tx) checkTree() error {
	m, ok := metaOf(t.data, t.page)
	if !ok {
		return damage("no meta page is intact")
	}
	free, more, err := freePages(t.data, t.page, m)
	if err != nil {
		return err
	}
	kind := make([]byte, len(t.data)/t.page)
	take := func(id uint64, as byte) error {
		if id < 2 || id >= uint64(len(kind)) {
			return damage("page %d of %d", id, len(kind))
		}
		if kind[id] != pageUnknown {
			return damage("page %d is in use twice", id)
		}
		kind[id] = as
		return nil
	}
	for id := m.freeList; id <= m.freeList+more; id++ {
		if err := take(id, pageFree); err != nil {
			return err
		}
	}
	for _, id := range free {
		if err := take(id, pageFree); err != nil {
			return err
		}
	}
	roots := []uint64{t.root}
	for first := true; len(roots) > 0; first = false {
		id := roots[len(roots)-1]
		roots = roots[:len(roots)-1]
		leaves, err := t.takeTree(id, 0, take)
		if err != nil {
			return err
		}
		if !first {
			continue
		}
		for _, leaf := range leaves { // those with the buckets
			p, err := pageAt(t.data, t.page, leaf)
			if err != nil {
				return err
			}
			for i := range p.count {
				_, value, _, flags, err := p.element(i)
				if err != nil {
					return err
				}
				if flags&leafBucket == 0 || len(value) < 16 {
					return damage("page %d holds no buckets", leaf)
				}
				if root := pageOrder.Uint64(value); root != 0 {
					roots = append(roots, root)
				}
			}
		}
	}
	// What is left is covered by the page before.
	for id := 2; id < len(kind); {
		if kind[id] == pageUnknown {
			return damage("page %d is neither in the tree nor free", id)
		}
		next := id + 1
		if kind[id] == pageTree && next < len(kind) && kind[next] == pageUnknown {
			p, err := pageAt(t.data, t.page, uint64(id))
			if err != nil {
				return err
			}
			next += int(p.more) // #nosec G115 -- pageAt has bounded it
			if slices.ContainsFunc(kind[id+1:next], func(k byte) bool { return k != pageUnknown }) {
				return damage("page %d covers a page that is in use", id)
			}
		}
		id = next
	}
	return nil
}

// takeTree takes the pages of a tree, all of whose leaves are at one depth, and returns the
// leaves.
func (t *tx) takeTree(id uint64, depth int, take func(uint64, byte) error) (leaves []uint64, err error) {
	if depth > maxDepth {
		return nil, damage("the tree is more than %d pages deep", maxDepth)
	}
	if err := take(id, pageTree); err != nil {
		return nil, err
	}
	p, err := pageAt(t.data, t.page, id)
	if err != nil {
		return nil, err
	}
	if p.leaf {
		return []uint64{id}, nil
	}
	if err := p.check(t.page); err != nil {
		return nil, err
	}
	lowest := false
	for i := range p.count {
		_, _, child, _, err := p.element(i)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			first, err := pageAt(t.data, t.page, child)
			if err != nil {
				return nil, err
			}
			lowest = first.leaf
		}
		if lowest {
			if err := take(child, pageTree); err != nil {
				return nil, err
			}
			leaves = append(leaves, child)
			continue
		}
		below, err := t.takeTree(child, depth+1, take)
		if err != nil {
			return nil, err
		}
		leaves = append(leaves, below...)
	}
	return leaves, nil
}
