package fill

import (
	"slices"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// maxForeseers bounds the writers of a fill that are begun for what readers will wait for:
	// some are left for those who wait.
	maxForeseers = maxWaitedFor / 2
	// maxForeseen bounds the spans that a fill remembers. Further readers just wait for theirs.
	maxForeseen = 4096
)

// foreseen is a span that a reader of several spans will wait for.
type foreseen struct {
	oci.Span
	by *Reader
}

// foreseeAll has spans fetched side by side that b will send one after another, if the fill is
// one of pieces: a round trip for each of up to a thousand would take long. Nothing waits for
// it, and what readers wait for comes first. b calls forget when it is done.
func (f *Fill) foreseeAll(b *Reader, spans []oci.Span) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended || f.eager || f.size < 0 || len(f.foreseen)+len(spans) > maxForeseen {
		return
	}
	for _, s := range spans {
		f.foreseen = append(f.foreseen, foreseen{s, b})
	}
	for f.group != nil && len(f.writers) < maxForeseers {
		w := &writer{}
		if !f.grantForeseen(w) {
			return
		}
		f.add(w)
	}
}

// forget drops what b has said that it will wait for.
func (f *Fill) forget(b *Reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.foreseen = slices.DeleteFunc(f.foreseen, func(s foreseen) bool { return s.by == b })
}

// grantForeseen moves w on to what a reader will wait for and no other writer will bring soon.
// It returns false if there is nothing of that kind. f.mu is held.
func (f *Fill) grantForeseen(w *writer) bool {
	if f.eager {
		return false // all of it comes
	}
	granted := false
	left := f.foreseen[:0]
	for _, s := range f.foreseen {
		if !granted {
			gap := f.have.Gap(s.From, s.To)
			if gap.From == gap.To {
				continue // it is here
			}
			granted = f.claimFor(w, &wish{span: s.Span, at: gap.From})
		}
		left = append(left, s)
	}
	clear(f.foreseen[len(left):])
	f.foreseen = left
	return granted
}
