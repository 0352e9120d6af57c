package fill

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// minPiece is the least that is asked for when a reader waits for less.
	minPiece = 64 << 10
	// wholeSize is up to which size a blob is fetched as a whole even if only a piece of
	// it is asked for.
	wholeSize = 256 << 10
	// firstAhead is what is asked for at first for a reader of everything from some byte on,
	// which may close its connection soon. It grows with what the reader takes.
	firstAhead = 1 << 20
	// readOn is how many bytes before its own a reader must find here for more to be fetched
	// than it asks for: as many again, up to maxReadOn.
	readOn    = 256 << 10
	maxReadOn = 8 << 20
	// Quiet is how long nobody may have read before a fill of pieces ends, and before pieces are
	// completed.
	Quiet = time.Second
	// soonThere is how far before a byte a writer may be that will bring it sooner than a new
	// request does. It is no less than what a writer reads at a time.
	soonThere = ReadSize
)

// wish is what a reader waits for: the byte at at, of the span that it reads.
type wish struct {
	span oci.Span
	at   int64
}

// want sees to it that what wi waits for is on its way, by a writer of its own if need
// be. f.mu is held.
func (f *Fill) want(wi *wish) {
	w := &writer{}
	if f.group == nil || len(f.writers) >= maxWaitedFor || wi.at >= wi.span.To || !f.claimFor(w, wi) {
		return
	}
	f.add(w)
}

// grant moves w on to what a reader waits for, or will wait for, that no other writer will bring soon. It
// returns false if there is no such reader. f.mu is held.
func (f *Fill) grant(w *writer) bool {
	for _, wi := range f.wishes {
		if wi.at < wi.span.To && f.claimFor(w, wi) {
			return true
		}
	}
	return len(f.writers) <= maxForeseers && f.grantForeseen(w)
}

// claimFor gives w the bytes that wi waits for, and takes them from a writer that is far
// from them. It returns false if they are here, if another writer will bring them soon, or
// if the upstream sends only wholes. f.mu is held.
func (f *Fill) claimFor(w *writer, wi *wish) bool {
	if f.whole || f.size < 0 || wi.at >= f.size || f.have.Reach(wi.at) > wi.at {
		return false
	}
	var far *writer
	for _, o := range f.writers {
		switch {
		case o == w || wi.at < o.at:
		case wi.at-o.at <= soonThere && (wi.at < o.end || o.at == o.end):
			return false // also if it is done and about to claim the byte
		case wi.at < o.end:
			far = o
		}
	}
	if far != nil {
		far.end = wi.at
	}
	w.at = wi.at
	w.end = min(f.freeUpTo(w), wi.at+f.ahead(wi))
	return true
}

// ahead returns how many bytes are asked for when wi waits. f.mu is held.
func (f *Fill) ahead(wi *wish) int64 {
	n := max(wi.span.To-wi.at, minPiece)
	switch taken := wi.at - wi.span.From; {
	case f.eager:
	case wi.span.To >= f.size:
		n = min(n, max(firstAhead, 4*taken))
	case taken == 0 && f.have.Reach(max(0, wi.at-readOn)) == wi.at:
		// It goes on where one before it has ended.
		n += min(wi.at-f.have.Start(wi.at-1), maxReadOn)
	}
	return min(n, max(f.segment(), minPiece))
}

// Begins returns the byte at which hint (see Task.Piece) begins in a blob of size bytes. It is the
// first one if that depends on a size that isn't known (-1).
func Begins(hint oci.Span, size int64) int64 {
	switch {
	case hint.From >= 0:
		return hint.From
	case size < 0:
		return 0
	}
	return max(0, size+hint.From)
}

// WantWhole has the whole blob fetched, for a reader that wants all of it.
func (f *Fill) WantWhole() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.goEager()
}

// dropWish takes a wish off, which may be nil.
func (f *Fill) dropWish(mine *wish) {
	if mine == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wishes = slices.DeleteFunc(f.wishes, func(o *wish) bool { return o == mine })
	f.used = time.Now()
}

// wishOf returns the wish of a reader that begins with hint: the first byte of that which
// isn't here. If the hint begins behind the blob's end, that is the last byte: an upstream
// has to say that the blob is no longer. f.mu is held, and the size known.
func (f *Fill) wishOf(hint oci.Span) *wish {
	from := min(Begins(hint, f.size), max(0, f.size-1))
	return &wish{span: oci.Span{From: from, To: End(hint, f.size)}, at: f.have.Reach(from)}
}

// holds says whether all of a piece is here, by its hint, or lies behind the blob's end.
// f.mu is held.
func (f *Fill) holds(hint oci.Span) bool {
	if hint == oci.Whole || f.size < 0 {
		return false
	}
	wi := f.wishOf(hint)
	return wi.at >= wi.span.To
}

// goEager has the whole fetched from now on. f.mu is held.
func (f *Fill) goEager() {
	if f.eager || f.ended {
		return
	}
	f.eager = true
	f.startWriter(0)
	f.wake()
}

// judgeSize has a small blob fetched as a whole. f.mu is held.
func (f *Fill) judgeSize() {
	if f.size >= 0 && f.size <= wholeSize {
		f.goEager()
	}
}

// startPieces begins with a round of a fill of pieces. f.mu is held.
func (f *Fill) startPieces() {
	ctx := f.ctx
	if f.task.Complete == nil {
		f.used = time.Now()
	}
	f.inRound(func() error { return f.tend(ctx) })
	if f.task.Complete != nil {
		f.inRound(func() error { return f.fetchRest(ctx) })
	}
	if f.size >= 0 {
		f.want(f.wishOf(f.task.Piece))
		for _, wi := range f.wishes {
			f.want(wi)
		}
		return
	}
	w := &writer{at: Begins(f.task.Piece, -1), end: f.task.Piece.To}
	switch {
	case f.task.Piece.From < 0:
		w.end = minPiece
	case f.task.Piece.To == oci.Open, f.task.Piece.To == math.MaxInt64, f.task.Piece.To-w.at > maxSegment:
		w.end = w.at + firstAhead
	}
	w.end = max(w.end, w.at+minPiece)
	f.add(w)
}

// hashes reports whether the fill hashes bytes as they come, because all will come. Otherwise it hashes
// them once all are there. f.mu is held.
func (f *Fill) hashes() bool { return f.eager || f.task.Complete != nil }

// ErrParked says that a fill of pieces has ended because nobody reads it.
var ErrParked = errors.New("nobody reads it just now")

// tend ends a fill of pieces with ErrParked once nobody has read it for a while. It
// returns nil once all is here and right, or will come without readers.
func (f *Fill) tend(ctx context.Context) error {
	for {
		f.mu.Lock()
		left := Quiet
		if f.readers == 0 && len(f.wishes) == 0 && len(f.writers) == 0 && f.have.Reach(0) != f.size {
			left -= time.Since(f.used)
		}
		f.parked = left <= 0 && !f.hashes()
		parked := f.parked
		f.mu.Unlock()
		if parked {
			return ErrParked
		}
		soon, cancel := context.WithTimeout(ctx, left)
		err := f.wait(soon, func() (bool, error) { return f.right || f.hashes(), nil })
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// Attach counts a reader, for which the fill goes on until Detach is called. It returns false, and
// counts none, if the fill is ending because it had no reader.
func (f *Fill) Attach() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.parked {
		return false
	}
	f.readers++
	return true
}

// Detach undoes one Attach.
func (f *Fill) Detach() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	f.used = time.Now()
}

// stepAtFirst is how much is fetched at a time of what nobody asked for; it doubles with
// each step up to lastStep.
const (
	stepAtFirst = 1 << 20
	lastStep    = 8 << 20
)

// fetchRest fetches what is missing in order, one step after another as complete lets it,
// until nothing is missing or the whole is wanted.
func (f *Fill) fetchRest(ctx context.Context) error {
	for step := int64(stepAtFirst); ; step = min(2*step, lastStep) {
		if err := f.awaitStep(ctx); err != nil {
			return err
		}
		w := &writer{once: true}
		f.mu.Lock()
		if f.eager || f.right || f.size >= 0 && f.have.Reach(0) == f.size {
			f.mu.Unlock()
			return nil
		}
		claimed := f.size >= 0 && f.group != nil && len(f.writers) < maxWaitedFor && f.claim(w, 0)
		if claimed {
			w.end = min(w.end, w.at+step)
			f.writers = append(f.writers, w)
		}
		f.mu.Unlock()
		if claimed {
			if err := f.write(ctx, w); err != nil {
				return f.giveUpRest(ctx, w, err)
			}
			continue
		}
		// All that is missing is on its way.
		if err := f.wait(ctx, func() (bool, error) { return len(f.writers) == 0 || f.eager || f.right, nil }); err != nil {
			return err
		}
	}
}

// awaitStep waits until complete lets fetchRest take its next step, or none is needed any more.
func (f *Fill) awaitStep(ctx context.Context) error {
	f.mu.Lock()
	complete := f.task.Complete
	f.mu.Unlock()
	for {
		left := complete()
		if left <= 0 {
			return nil
		}
		soon, cancel := context.WithTimeout(ctx, left)
		// A fill that fetches the whole is itself what its upstream is in demand for.
		err := f.wait(soon, func() (bool, error) { return f.eager || f.right, nil })
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// giveUpRest ends with the error err of w, which was fetching what nobody asked for. That
// is no trouble to those who read: the fill goes on until they have left.
func (f *Fill) giveUpRest(ctx context.Context, w *writer, err error) error {
	if ctx.Err() != nil || IsDiskError(err) || errors.Is(err, ErrMismatch) || errors.Is(err, errSeam) {
		return err
	}
	f.mu.Lock()
	f.task.Complete = nil
	f.writers = slices.DeleteFunc(f.writers, func(o *writer) bool { return o == w })
	f.mu.Unlock()
	if ended := f.tend(ctx); !errors.Is(ended, ErrParked) {
		return ended
	}
	return err
}

// IsInDemand reports whether readers wait for the fill or it fetches a whole blob for them, and when
// one last did.
func (f *Fill) IsInDemand() (now bool, used time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.eager || len(f.wishes) > 0, f.used
}

// Stay keeps the fill from ending for now because nobody reads it; if eager is set, it fetches the
// whole blob from now on. It returns false if the fill is ending already.
func (f *Fill) Stay(eager bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.parked {
		return false
	}
	f.used = time.Now()
	if eager {
		f.goEager()
	}
	return true
}
