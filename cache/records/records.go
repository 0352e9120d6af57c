// Package records is what is known about content: what tags stand for, which repositories
// have which digests and by what proof, which lists registries gave, and what clients ask
// for. The index has it on disk, and the memory tier in front of it has what is in use.
//
// Records is the only owner of the protocol that keeps these two in agreement:
//
//   - Each name (of a tag, a link or a list) belongs to a stripe with a number.
//   - Who reads a record from the index takes the stripe's number before. The record goes
//     into memory only if the number is still the same.
//   - Who writes raises the number before the write to the index and after it. If nobody else
//     raised it in between, the record goes into memory, else memory forgets the name: the
//     index knows which write was the last.
//   - Who drops raises the number after the index has dropped, and memory forgets the name.
//
// So memory never holds for longer than a write takes what the index does not hold, but for
// what the index could not take: if a write fails, memory alone has the record for a while.
package records

import (
	"hash/maphash"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/memory"
)

// Index is what Records needs of the index on disk; see package index.
type Index interface {
	Tag(upstream, repo, tag string) (index.Tag, bool)
	Touch(upstream, repo, tag string, t index.Tag)
	DropTags(upstream, repo string, tags []string, w *index.Watch) (dropped int, err error)
	Link(upstream, repo string, d digest.Digest) (index.Link, bool)
	DropLinks(upstream, repo string, ds []digest.Digest, w *index.Watch) (dropped []digest.Digest, err error)
	List(kind, upstream, repo, of string) (index.List, bool)
	PutList(kind, upstream, repo, of string, l index.List) error
	DropLists(list []index.ListName, w *index.Watch) error
	DropNames(rank func(index.Name, index.Tag) int, gone func(links bool, names []index.Name)) error
	Put(changes ...index.Change) error
}

// Records keeps records of tags, links and lists. All methods are safe for concurrent use.
type Records struct {
	index  Index
	memory *memory.Tier

	seed    maphash.Seed
	stripes [stripes]stripe
}

// stripes is how many stripes there are: names that share one only cost a look into the
// index when two of them change at the same time.
const stripes = 1024

// stripe is what names with the same hash share. Its lock is held while memory is changed,
// and never while the index is.
type stripe struct {
	mu     sync.Mutex
	number uint64
}

// New returns the records of an index, with a memory tier in front of it.
func New(ix Index, tier *memory.Tier) *Records {
	return &Records{index: ix, memory: tier, seed: maphash.MakeSeed()}
}

func (r *Records) stripe(n memory.Name) *stripe {
	return &r.stripes[maphash.Comparable(r.seed, n)%stripes]
}

// raise raises the number, and returns it.
func (s *stripe) raise() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	return s.number
}

// look returns the number of now.
func (s *stripe) look() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.number
}

// after calls keep if the number is still the one of a look before.
func (s *stripe) after(number uint64, keep func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.number == number {
		keep()
	}
}

// forget has memory forget names that the index has dropped or changed. A reader who has looked
// before does not bring them back, and one who looks afterwards finds them nowhere.
func (r *Records) forget(names []memory.Name) {
	groups := map[*stripe][]memory.Name{}
	for _, n := range names {
		s := r.stripe(n)
		groups[s] = append(groups[s], n)
	}
	for s, g := range groups {
		s.mu.Lock()
		s.number++
		r.memory.Drop(g...)
		s.mu.Unlock()
	}
}

// Put keeps a change in the index and then in memory. The error is the index's; memory has
// the change all the same. If it returns nil, the change outlives a crash.
func (r *Records) Put(change index.Change) error {
	writes := make([]write, 0, len(change.Links)+1)
	for d, l := range change.Links {
		writes = append(writes, linkWrite(linkName(change.Upstream, change.Repository, d), l))
	}
	if change.Tag != "" {
		writes = append(writes, tagWrite(tagName(change.Upstream, change.Repository, change.Tag), change.Record))
	}
	return r.write(writes, func() error {
		for i := range writes {
			r.strengthen(&writes[i])
		}
		return r.index.Put(change)
	})
}

// write is a record that is being written: what memory keeps under its name.
type write struct {
	name  memory.Name
	value any
	cost  int64
}

// write calls put, which writes records to the index, and then has memory keep them.
func (r *Records) write(writes []write, put func() error) error {
	// Records of one write that share a stripe don't disturb each other.
	groups := map[*stripe][]*write{}
	for i := range writes {
		s := r.stripe(writes[i].name)
		groups[s] = append(groups[s], &writes[i])
	}
	numbers := make(map[*stripe]uint64, len(groups))
	for s := range groups {
		numbers[s] = s.raise()
	}
	err := put()
	for s, g := range groups {
		s.mu.Lock()
		alone := s.number == numbers[s] // else somebody else writes or has dropped
		s.number++
		// The tier may keep a value that it has or is about to have, and not the one that is set.
		names := make([]memory.Name, len(g))
		for i, w := range g {
			names[i] = w.name
		}
		r.memory.Drop(names...)
		for _, w := range g {
			if alone {
				r.memory.Set(w.name, w.value, w.cost)
			}
		}
		s.mu.Unlock()
	}
	return err
}

// PutAll keeps all changes in the index, or none of them. Memory forgets what they are
// about, and looks it up again.
func (r *Records) PutAll(changes ...index.Change) error {
	if len(changes) == 0 {
		return nil
	}
	err := r.index.Put(changes...)
	var names []memory.Name
	for _, c := range changes {
		if c.Tag != "" {
			names = append(names, tagName(c.Upstream, c.Repository, c.Tag))
		}
		for d := range c.Links {
			names = append(names, linkName(c.Upstream, c.Repository, d))
		}
		for subject := range c.Referrers {
			names = append(names, listName(index.Referrers, c.Upstream, c.Repository, string(subject)))
		}
	}
	r.forget(names)
	return err
}

// DropNames makes the index as small as its share says, by dropping the names of which rank
// is the least: see index.DropNames. dropped is called after each part of that.
func (r *Records) DropNames(rank func(index.Name, index.Tag) int, dropped func(links bool, n int)) error {
	return r.index.DropNames(rank, func(links bool, gone []index.Name) {
		kind := memory.Tag
		if links {
			kind = memory.Link
		}
		names := make([]memory.Name, 0, len(gone))
		for _, n := range gone {
			names = append(names, memory.Name{Kind: kind, Upstream: n.Upstream, Repo: n.Repository, Reference: n.Reference})
		}
		r.forget(names)
		dropped(links, len(gone))
	})
}
