package store

import (
	"math/rand/v2"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
)

// TestSpansAreASetOfBytes compares Spans with a map of bytes under random
// additions.
func TestSpansAreASetOfBytes(t *testing.T) {
	const size = 64
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		var s Spans
		var set [size]bool
		for range 20 {
			from := r.Int64N(size)
			to := from + r.Int64N(size-from+1)
			s.Add(from, to)
			for i := from; i < to; i++ {
				set[i] = true
			}
			check(t, seed, &s, set[:])
		}
	}
}

func check(t *testing.T, seed uint64, s *Spans, set []bool) {
	t.Helper()
	var n int64
	for off := range int64(len(set)) {
		reach := off
		for reach < int64(len(set)) && set[reach] {
			reach++
		}
		if got := s.Reach(off); got != reach {
			t.Fatalf("seed %d: Reach(%d) = %d, want %d; %v", seed, off, got, reach, s.Runs())
		}
		gap := oci.Span{From: int64(len(set)), To: int64(len(set))}
		if reach < int64(len(set)) {
			gap = oci.Span{From: reach, To: reach}
			for gap.To < int64(len(set)) && !set[gap.To] {
				gap.To++
			}
		}
		if got := s.Gap(off, int64(len(set))); got != gap {
			t.Fatalf("seed %d: Gap(%d) = %v, want %v; %v", seed, off, got, gap, s.Runs())
		}
		if set[off] {
			n++
		}
	}
	if s.Len() != n {
		t.Fatalf("seed %d: Len() = %d, want %d", seed, s.Len(), n)
	}
	for i, r := range s.Runs() {
		if r.From >= r.To || i > 0 && s.Runs()[i-1].To >= r.From {
			t.Fatalf("seed %d: runs are not sorted, apart and non-empty: %v", seed, s.Runs())
		}
	}
}

func TestCloneIsIndependent(t *testing.T) {
	var s Spans
	s.Add(0, 10)
	c := s.Clone()
	c.Add(5, 20)
	s.Add(30, 40)
	if s.Len() != 20 || c.Len() != 20 || c.Reach(30) != 30 {
		t.Errorf("%v, %v", s.Runs(), c.Runs())
	}
}
