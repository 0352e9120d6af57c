package index

import (
	"bytes"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// dropChunk is how many entries go in one transaction, so that no writer waits long.
const dropChunk = 2000

// DropLinks forgets that a repository may serve these digests, but for those of which w,
// where it is not nil, has seen that a link was put since it began. It gives what it has
// forgotten.
func (ix *Index) DropLinks(upstream, repo string, ds []digest.Digest, w *Watch) (dropped []digest.Digest, err error) {
	ix.backupSoon()
	for some := range slices.Chunk(ds, dropChunk) {
		var gone []digest.Digest
		err := ix.update(func(tx *tx) error {
			gone = gone[:0]
			b := tx.Bucket(linksBucket)
			for _, d := range some {
				key := join(upstream, repo, d.String())
				// Who puts one tells w before, and then waits for this transaction.
				if b.Get(key) == nil || w.seen(key) {
					continue
				}
				if err := b.Delete(key); err != nil {
					return err
				}
				gone = append(gone, d)
			}
			return nil
		})
		if err != nil {
			return dropped, err
		}
		dropped = append(dropped, gone...)
	}
	return dropped, nil
}

// ListName says which list is meant.
type ListName struct {
	Kind, Upstream, Repository string
	// Of is the subject's digest for Referrers and empty for Tags.
	Of string
}

// Lists gives the names of the lists that are kept of a repository, of all of an upstream
// where repo is empty, or where upstream is empty of all.
func (ix *Index) Lists(upstream, repo string) ([]ListName, error) {
	var list []ListName
	for _, kind := range []string{Tags, Referrers} {
		prefix := append(join(kind, ""), scope(upstream, repo)...)
		err := ix.chunksOf(listsBucket, prefix, blobsChunk, func(key, _ []byte) bool {
			if p := bytes.Split(key, separator); len(p) == 4 {
				list = append(list, ListName{string(p[0]), string(p[1]), string(p[2]), string(p[3])})
			}
			return true
		}, nil)
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// DropLists forgets lists, but those of referrers to digests of which w, where it is not
// nil, has seen that something was put since it began.
func (ix *Index) DropLists(list []ListName, w *Watch) error {
	defer ix.lists.forget()
	for some := range slices.Chunk(list, dropChunk) {
		err := ix.update(func(tx *tx) error {
			for _, l := range some {
				if w != nil && w.Linked(digest.Digest(l.Of)) {
					continue
				}
				if err := tx.Bucket(listsBucket).Delete(join(l.Kind, l.Upstream, l.Repository, l.Of)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Watch sees what is put while it is there: tags, links and referrers. Its methods may be
// called by several goroutines.
type Watch struct {
	mu   sync.Mutex
	keys map[string]bool
	ds   map[digest.Digest]bool
}

// Watch begins to watch, until end is called. There is one watch at a time. It waits for
// what is being put.
func (ix *Index) Watch() (w *Watch, end func()) {
	w = &Watch{keys: map[string]bool{}, ds: map[digest.Digest]bool{}}
	set := func(w *Watch) {
		ix.putting.Lock()
		defer ix.putting.Unlock()
		ix.watch = w
	}
	set(w)
	return w, func() { set(nil) }
}

// note notes what is about to be put.
func (w *Watch) note(c Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.Tag != "" {
		w.keys[string(join(c.Upstream, c.Repository, c.Tag))] = true
	}
	for d := range c.Links {
		w.keys[string(join(c.Upstream, c.Repository, d.String()))], w.ds[d] = true, true
	}
	for d := range c.Referrers {
		w.ds[d] = true
	}
}

// Linked tells whether any repository has got a link of d, or referrers to it, since the
// watch began.
func (w *Watch) Linked(d digest.Digest) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ds[d]
}

// seen tells of the key of a tag or a link whether that was put. w may be nil.
func (w *Watch) seen(key []byte) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.keys[string(key)]
}
