package store

import (
	"slices"

	"github.com/entrepot-dev/entrepot/oci"
)

// Spans is a set of bytes, kept as runs that are sorted, not empty and do not
// touch. The zero value is the empty set. It is not safe for concurrent use.
type Spans struct {
	runs []oci.Span
}

// Add puts the bytes from up to but not including to into the set.
func (s *Spans) Add(from, to int64) {
	if from >= to {
		return
	}
	// The runs that touch [from, to) are replaced by their union with it.
	i, _ := slices.BinarySearchFunc(s.runs, from, func(r oci.Span, at int64) int {
		if r.To < at {
			return -1
		}
		return 1
	})
	j := i
	for j < len(s.runs) && s.runs[j].From <= to {
		from = min(from, s.runs[j].From)
		to = max(to, s.runs[j].To)
		j++
	}
	s.runs = slices.Replace(s.runs, i, j, oci.Span{From: from, To: to})
}

// Reach gives the end of the run that holds the byte at off, or off itself
// where that byte is not in the set.
func (s *Spans) Reach(off int64) int64 {
	if i, found := s.find(off); found {
		return s.runs[i].To
	}
	return off
}

// Start returns the beginning of the run that holds the byte at off, or off itself if
// that byte isn't in the set.
func (s *Spans) Start(off int64) int64 {
	if i, found := s.find(off); found {
		return s.runs[i].From
	}
	return off
}

// find returns the index of the run that holds the byte at off.
func (s *Spans) find(off int64) (int, bool) {
	return slices.BinarySearchFunc(s.runs, off, func(r oci.Span, at int64) int {
		switch {
		case r.To <= at:
			return -1
		case r.From > at:
			return 1
		}
		return 0
	})
}

// Gap gives the first run of bytes in [from, to) that is not in the set. It is
// empty (From equal to To) where there is none.
func (s *Spans) Gap(from, to int64) oci.Span {
	for _, r := range s.runs {
		if r.To <= from {
			continue
		}
		if r.From > from {
			return oci.Span{From: from, To: min(to, r.From)}
		}
		from = r.To
	}
	if from >= to {
		return oci.Span{From: to, To: to}
	}
	return oci.Span{From: from, To: to}
}

// Len gives the number of bytes in the set.
func (s *Spans) Len() int64 {
	var n int64
	for _, r := range s.runs {
		n += r.To - r.From
	}
	return n
}

// Clone gives an independent copy.
func (s *Spans) Clone() Spans { return Spans{runs: slices.Clone(s.runs)} }

// Runs gives the runs in order. The slice must not be changed.
func (s *Spans) Runs() []oci.Span { return s.runs }
