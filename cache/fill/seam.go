package fill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// leadSize is how many bytes before those that it needs a writer asks for. They must be
// the ones that another transfer has brought: if they aren't, what the upstream sends as
// a part of the blob is not that part. They come twice, and there are many of them where
// clients read small pieces, so they are few.
const leadSize = 1 << 10

// maxSeams bounds the seams that wait for being compared, of leadSize bytes each. Pieces
// beyond that are verified by the digest of the whole alone.
const maxSeams = 1024

// errSeam says that two parts of a blob don't fit together.
var errSeam = errors.New("the parts that came do not fit together")

// errWhole says that an upstream sends the whole blob though a part was requested, and that another
// writer is better placed to take it.
var errWhole = errors.New("the whole is sent instead of a part")

// seam is a place where a transfer begins whose lead can't be compared yet. No reader
// that comes from before it passes it until that is done.
type seam struct {
	at   int64
	lead []byte // the bytes before at, as that transfer has them
}

// takeLead reads body up to byte at, which is the first that is needed of it, and
// compares what comes before it with the cached bytes, now or once those have come.
func (f *Fill) takeLead(body *oci.Body, at int64) error {
	skip := at - body.Span.From
	lead := make([]byte, min(skip, f.lead))
	if _, err := io.CopyN(io.Discard, body, skip-int64(len(lead))); err != nil {
		return fmt.Errorf("skip %d bytes: %w", skip, Unexpected(err))
	}
	if _, err := io.ReadFull(body, lead); err != nil {
		return fmt.Errorf("skip %d bytes: %w", skip, Unexpected(err))
	}
	if len(lead) == 0 {
		return nil
	}
	s := seam{at, lead}
	f.mu.Lock()
	here := f.isHere(s)
	if !here && len(f.seams) < maxSeams {
		f.seams = append(f.seams, s)
	}
	f.mu.Unlock()
	if !here {
		return nil
	}
	return f.compare(s)
}

// isHere reports whether the bytes before s have come. f.mu is held.
func (f *Fill) isHere(s seam) bool { return f.have.Reach(s.at-int64(len(s.lead))) >= s.at }

// compare returns errSeam if s's lead is not what is in the part.
func (f *Fill) compare(s seam) error {
	here := make([]byte, len(s.lead))
	if _, err := f.part.ReadAt(here, s.at-int64(len(here))); err != nil && err != io.EOF {
		return OnDisk(err)
	}
	if !bytes.Equal(here, s.lead) {
		return fmt.Errorf("%s: %w at byte %d", f.task.Digest, errSeam, s.at)
	}
	return nil
}

// checkSeams compares the leads of the seams where the bytes before have come.
func (f *Fill) checkSeams() error {
	for {
		f.mu.Lock()
		i := slices.IndexFunc(f.seams, f.isHere)
		if i < 0 {
			f.mu.Unlock()
			return nil
		}
		s := f.seams[i]
		f.mu.Unlock()
		if err := f.compare(s); err != nil {
			return err
		}
		f.mu.Lock()
		f.seams = slices.Delete(f.seams, i, i+1) // the others only append to it
		f.wake()
		f.mu.Unlock()
	}
}

// upToSeam returns limit, or the first seam before it that a reader must not pass yet. The reader began
// at byte from and is at off. f.mu is held.
func (f *Fill) upToSeam(from, off, limit int64) int64 {
	for _, s := range f.seams {
		if s.at > off || s.at == off && off > from {
			limit = min(limit, s.at)
		}
	}
	return limit
}

// trimSeams lets a reader who began at byte from and waits at a seam at byte at go on without
// the bytes before from: they may never come. What is here of the lead is compared. f.mu is held.
func (f *Fill) trimSeams(from, at int64) {
	for i := range f.seams {
		s := &f.seams[i]
		if s.at != at || s.at == from || f.isHere(*s) {
			continue
		}
		if more := int64(len(s.lead)) - (at - max(from, f.have.Start(at-1))); more > 0 {
			s.lead = s.lead[more:]
			f.wake()
		}
	}
}

// writeAt writes b, which came from an upstream. Bytes that an earlier round showed to readers stay as
// they are: the error is ErrMismatch if b differs there.
func (f *Fill) writeAt(b []byte, off int64) error {
	for _, r := range f.fixed.Runs() {
		from, to := max(r.From, off), min(r.To, off+int64(len(b)))
		if from >= to {
			continue
		}
		here := make([]byte, to-from)
		if _, err := f.part.ReadAt(here, from); err != nil && err != io.EOF {
			return OnDisk(err)
		}
		if !bytes.Equal(here, b[from-off:to-off]) {
			return fmt.Errorf("%s: %w: readers have been given others between the bytes %d and %d", f.task.Digest, ErrMismatch, from, to)
		}
	}
	_, err := f.part.WriteAt(b, off)
	if err != nil && !errors.Is(err, ErrMismatch) {
		return OnDisk(err)
	}
	return err
}

// blameParts marks the sources of parts as unfit for ranges: their parts were wrong. f.mu is held.
func (f *Fill) blameParts() {
	for _, noRanges := range f.noRanges {
		noRanges()
	}
	f.noRanges = nil
}

// nextRound prepares another round after one that failed with err because of wrong bytes,
// and says whether one is worth while. If some of the bytes came as a part, or a TOC was
// wrong, the whole is asked for next, once. Else another round helps only if another source may be asked, and
// nobody was given bytes that may be wrong.
func (f *Fill) nextRound(err error, round int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if errors.Is(err, errSeam) || f.plain {
		f.blameParts() // the whole was something else
	}
	for _, refuse := range f.refuse {
		if errors.Is(err, ErrMismatch) {
			refuse()
		}
	}
	wrongTOC := errors.Is(err, errTOC)
	again := (f.parts || wrongTOC) && !f.plain || !f.given && round < maxRounds
	f.plain = f.plain || f.parts || wrongTOC
	f.wrongTOC = f.wrongTOC || wrongTOC
	f.resetTOCs()
	f.refuse, f.have, f.unsaved, f.seams, f.parts = nil, store.Spans{}, 0, nil, false
	f.whole = f.plain
	f.eager = f.eager || f.plain
	f.candidate, f.tried = -1, -1
	if f.given {
		f.fixed = f.shown.Clone()
	} else {
		f.size = f.task.Size
	}
	return again
}

// isWhole says whether what has come of a blob whose size is not sure, up to where w is,
// is all of it, though its sender has not said so properly. Then that is the blob's size,
// and w's claim ends there.
func (f *Fill) isWhole(ctx context.Context, w *writer) bool {
	f.mu.Lock()
	at := w.at
	if at == 0 || !f.hashes() || f.size >= 0 && f.given || len(f.writers) > 1 {
		f.mu.Unlock()
		return false
	}
	f.candidate = at
	f.wake()
	f.mu.Unlock()
	err := f.wait(ctx, func() (bool, error) { return f.tried == at || f.have.Reach(0) < at, nil })
	f.mu.Lock()
	defer f.mu.Unlock()
	f.candidate = -1
	if err != nil || f.size != at {
		return false
	}
	w.end = at
	return true
}

// tryEnd finds out for isWhole whether the done bytes that hash has are all of the blob.
func (f *Fill) tryEnd(done int64, sum digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tried = done
	if sum == f.task.Digest && !(f.given && f.size >= 0) {
		f.size = done
	}
	f.wake()
}

// mayEnd reports whether the verifier should find out if the blob ends after done bytes.
func (f *Fill) mayEnd(done int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.endsPerhaps(done)
}

// endsPerhaps is mayEnd for a caller that holds f.mu.
func (f *Fill) endsPerhaps(done int64) bool { return f.candidate == done && f.tried != done }
