// Package evict says what goes when a store has to become smaller.
//
// The rule is least recent use in two segments. What was used once is on
// probation and goes first, the largest things before all else; what was used
// again is protected, as far as the most recently used of it fill protectedShare
// of the limit. So a large layer that is asked for once makes room for other
// things, and not the base images below everything else for it, while what has
// not been used for long loses its protection and ages out with the rest.
//
// The package is pure: it does no I/O and reads no clock. A Plan is told of
// everything twice and keeps a few thousand counters, however much is stored.
package evict

import (
	"math/bits"
	"time"
)

const (
	// protectedShare is the part of the limit that content which was used
	// again may fill before the least recent of it is on probation as well.
	protectedShare = 0.5
	// largeShare is the part of the limit above which content that was used
	// once goes before all that is smaller: each such thing would take the
	// place of many.
	largeShare = 1. / 16
	// protectedFor is how long content that is not used keeps its protection.
	// So a manifest does not stay for ever where its layers are long gone.
	protectedFor = 30 * 24 * time.Hour
	// Small content counts as used again: a manifest that is lost is a counted
	// pull at some upstreams, and frees next to nothing.
	Small = 64 << 10
)

// Item is something that is stored.
type Item struct {
	// Size is in bytes, as they are freed when it goes.
	Size int64
	// Age is the time since it was last used.
	Age time.Duration
	// Uses is how often it was used.
	Uses uint32
	// Pinned content never goes.
	Pinned bool
	// Promised content goes after all else, and only as far as it must: a
	// client was just told of it, and is about to ask for it. It counts for
	// nothing where the content is Oversize and was used once.
	Promised bool
}

// Need says how much is to go.
type Need struct {
	// Limit is the size in bytes that the whole may have.
	Limit int64
	// Must is the number of bytes that have to go, Want the number that should,
	// so that it is a while before the next ones must. Want is at least Must.
	Must, Want int64
}

// A Plan is made in two passes over what is stored: Add for each item, then
// Evict for each, which says whether that item goes. It is for one goroutine.
type Plan struct {
	need Need
	// bytes are what a class holds, by age.
	bytes [classes][ages]int64
	// decided is set when the first pass has ended.
	decided bool
	// demoted is the least age of what was used again and is protected no
	// longer; ages if there is none.
	demoted int
	// least is the size above which something is large.
	least int64
	// Of a class, all that is older than the age in cut goes, and of that age
	// as many bytes as are left in part.
	cut  [classes]int
	part [classes]int64
}

// The classes, in the order in which they go.
const (
	oversize  = iota // used once, and larger than any one thing should be
	large            // used once, and as large as many others
	probation        // used once, or not for a long time
	protected        // used again
	promised         // about to be asked for
	classes
)

// NewPlan begins a plan.
func NewPlan(n Need) *Plan {
	n.Want = max(n.Want, n.Must)
	return &Plan{need: n, least: int64(largeShare * float64(n.Limit))}
}

// Oversize tells whether content of a size is too large to stay on its first
// use, whatever was promised: it alone would push out half of a cache of limit
// bytes.
func Oversize(size, limit int64) bool { return size > limit/2 }

// class gives the class of an item as far as its own history tells.
func (p *Plan) class(i Item) int {
	switch {
	case i.Uses < 2 && Oversize(i.Size, p.need.Limit):
		return oversize
	case i.Promised:
		return promised
	case i.Uses < 2 && i.Size > p.least:
		return large
	case i.Age < protectedFor && (i.Uses >= 2 || i.Size <= Small):
		return protected
	}
	return probation
}

// Add tells of an item in the first pass.
func (p *Plan) Add(i Item) {
	if !i.Pinned {
		p.bytes[p.class(i)][bucket(i.Age)] += i.Size
	}
}

// Evict tells in the second pass whether an item goes. Items that were not there
// in the first pass, or have been used since, are judged as they are now.
func (p *Plan) Evict(i Item) bool {
	if !p.decided {
		p.decide()
	}
	if i.Pinned {
		return false
	}
	c, age := p.class(i), bucket(i.Age)
	if c == protected && age >= p.demoted {
		c = probation
	}
	switch {
	case age > p.cut[c]:
		return true
	case age == p.cut[c] && p.part[c] > 0:
		p.part[c] -= i.Size
		return true
	}
	return false
}

// decide ends the first pass: it finds the ages from which on each class goes.
func (p *Plan) decide() {
	p.decided = true
	p.demoted = ages
	room := int64(protectedShare * float64(p.need.Limit))
	for age, n := range p.bytes[protected] {
		if room -= n; room < 0 {
			p.demoted = age
			break
		}
	}
	for age := p.demoted; age < ages; age++ {
		p.bytes[probation][age] += p.bytes[protected][age]
		p.bytes[protected][age] = 0
	}
	freed := int64(0)
	for c := range classes {
		left := p.need.Want - freed
		if c == promised {
			left = p.need.Must - freed
		}
		p.cut[c] = ages
		for age := ages - 1; age >= 0 && left > 0; age-- {
			n := p.bytes[c][age]
			p.cut[c], p.part[c] = age, min(n, left)
			left -= n
			freed += n
		}
	}
}

// Ages are told apart to the second below four minutes, and to about one in a hundred
// and twenty-eighth beyond: who is older by less than that may go later.
const (
	fine = 7
	ages = (32 - fine + 1) << fine
)

// bucket gives the place of an age among ages; the older, the larger.
func bucket(age time.Duration) int {
	s := uint64(min(max(age/time.Second, 0), 1<<32-1))
	// The place of the highest bit, and the fine bits below it.
	if s < 1<<(fine+1) {
		return int(s)
	}
	shift := bits.Len64(s) - 1 - fine
	return shift<<fine + int(s>>shift)
}
