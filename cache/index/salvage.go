package index

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/entrepot-dev/entrepot/cache/store"
)

// asideKey holds, in an index that was begun after damage, the name of the quarantined file.
var asideKey = []byte("aside")

// salvage brings back from the quarantined file what is intact of that which a backup holds,
// unless it is known by now. The checksums of the entries say what is intact. An index that
// succeeds no file, or one whose file is gone, is no error.
func (ix *Index) salvage(d *db) (restored int, err error) {
	var name []byte
	err = d.view(func(tx *tx) error {
		name = bytes.Clone(tx.Bucket(metaBucket).Get(asideKey))
		return nil
	})
	if err != nil || name == nil {
		return 0, err
	}
	f, err := store.OpenOwn(filepath.Join(filepath.Dir(ix.path), filepath.Base(string(name))))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() < minPage {
		return 0, err
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_SHARED) // #nosec G115 -- a file descriptor
	if err != nil {
		return 0, err
	}
	defer func() { _ = syscall.Munmap(data) }()
	leaves, size := leavesOf(data)
	var chunk []entry
	for _, id := range leaves {
		// A page that can't be read has nothing.
		_ = guarded(func() error {
			p, err := headerAt(data, size, id)
			if err == nil && p.leaf {
				p.count = max(p.count, p.countByFirst()) // whichever is damaged
				chunk = append(chunk, entriesOf(p, true)...)
			}
			return err
		})
		if len(chunk) >= backupChunk {
			n, err := d.putMissing(chunk)
			if restored += n; err != nil {
				return restored, err
			}
			chunk = chunk[:0]
		}
	}
	n, err := d.putMissing(chunk)
	return restored + n, err
}

// entriesOf returns the intact entries of a leaf, copied, and those of small buckets that it
// holds.
func entriesOf(p page, outer bool) (list []entry) {
	for i := range min(p.count, (len(p.b)-pageHeader)/pageElement) {
		key, value, _, flags, err := p.element(i)
		if err != nil {
			continue
		}
		if flags&leafBucket != 0 {
			if outer && len(value) > 16+pageHeader {
				inner := page{leaf: true, b: value[16:]}
				inner.count = max(int(pageOrder.Uint16(inner.b[10:])), inner.countByFirst())
				list = append(list, entriesOf(inner, false)...)
			}
			continue
		}
		for _, kind := range backupOrder {
			if v, ok := unseal(backedUp[kind], key, value); ok {
				list = append(list, entry{kind, bytes.Clone(key), bytes.Clone(v)})
				break
			}
		}
	}
	return list
}

// leavesOf returns the ids of the leaves of a damaged file, and the size of its pages: those
// that its tree leads to and, if the tree is broken, those that its list of free pages
// doesn't name. Pages that are free hold what was dropped.
func leavesOf(data []byte) (leaves []uint64, size int) {
	for at := 0; at <= maxPage && size == 0; at = max(2*at, minPage) {
		_ = guarded(func() error { // the disk may have lost this page
			if len(data) >= at+metaAt+metaLen && metaIntact(data[at+metaAt:]) {
				size = int(pageOrder.Uint32(data[at+metaAt+metaPageSize:]))
			}
			return nil
		})
	}
	if size < minPage || size > maxPage {
		return nil, 0
	}
	m, ok := meta{}, false
	for i := range 2 {
		_ = guarded(func() error {
			if n, is := metaOn(data, size, i); is && (!ok || n.txid > m.txid) {
				m, ok = n, true
			}
			return nil
		})
	}
	if !ok {
		return nil, 0
	}
	reached := map[uint64]bool{}
	complete := true
	var walk func(id uint64, depth int, buckets bool)
	walk = func(id uint64, depth int, buckets bool) {
		var below, roots []uint64
		err := guarded(func() error {
			p, err := pageAt(data, size, id)
			if err != nil {
				return err
			}
			if reached[id] || depth > maxDepth {
				return damage("page %d is in use twice", id)
			}
			reached[id] = true
			if p.leaf {
				leaves = append(leaves, id)
				if !buckets {
					return nil
				}
			}
			for i := range p.count {
				_, value, child, flags, err := p.element(i)
				switch {
				case err != nil:
					return err
				case !p.leaf:
					below = append(below, child)
				case flags&leafBucket != 0 && len(value) >= 16 && pageOrder.Uint64(value) != 0:
					roots = append(roots, pageOrder.Uint64(value))
				}
			}
			return nil
		})
		if err != nil {
			complete = false
		}
		for _, child := range below {
			walk(child, depth+1, buckets)
		}
		for _, root := range roots {
			walk(root, 0, false)
		}
	}
	walk(m.root, 0, true)
	if complete {
		return leaves, size
	}
	var free []uint64
	err := guarded(func() (err error) {
		free, _, err = freePages(data, size, m)
		return err
	})
	if err != nil {
		return leaves, size
	}
	for id := uint64(2); id < min(m.pages, uint64(len(data)/size)); id++ {
		for len(free) > 0 && free[0] < id {
			free = free[1:]
		}
		if len(free) > 0 && free[0] == id || reached[id] {
			continue
		}
		leaves = append(leaves, id)
	}
	return leaves, size
}
