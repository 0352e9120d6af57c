// Package fill downloads one blob: a verifier hashes it, writers fetch spans of it side by side,
// and any number of readers are served from it while it comes. It knows neither HTTP nor the
// index: a Task says where the bytes come from, where they go, and who is told.
package fill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// Withheld is how many of a blob's last bytes wait for the digest. A wrong blob never gets its
	// last chunk, so no client can take it for complete.
	Withheld = 64 << 10
	// MinSegment and maxSegment bound the spans that a large blob is fetched in. Small spans waste
	// round trips. Large ones make a reader wait that comes for the middle of a blob.
	MinSegment = 8 << 20
	maxSegment = 64 << 20
	// MaxWriters bounds the writers of one fill that read ahead at the same time.
	MaxWriters = 4
	// maxWaitedFor bounds the writers of one fill, those included that bring what
	// readers wait for.
	maxWaitedFor = 16
	// MaxTries bounds the attempts in a row that bring no byte.
	MaxTries = 5
	// maxRounds bounds the attempts at a blob whose bytes were wrong while
	// nobody had been given any.
	maxRounds = 3
	// maxComeBack bounds the pause that an upstream may ask for.
	maxComeBack = 30 * time.Second
	// saveEvery is how many bytes come before the part is synced and noted: so
	// many, and what comes while that is done, may be lost to a crash.
	saveEvery = 32 << 20
	// flushEvery is how many hashed bytes are handed to the disk at a time.
	flushEvery = 4 << 20
	// arrivedEvery is how many bytes of a blob of unknown size come between two calls of Task.Arrived.
	arrivedEvery = 1 << 20
	// ReadSize is the size of the buffers that move bytes from an upstream to the partial file.
	ReadSize = 256 << 10
)

// ErrMismatch says that the bytes an upstream sent do not have the blob's digest.
var ErrMismatch = errors.New("the bytes are not the digest's")

// errSizes says that an upstream gave another size than the known one.
var errSizes = errors.New("the sizes differ")

// errEndless says that a blob of unknown size is larger than Task.Most.
var errEndless = errors.New("it does not end")

// Part is the partial file that a fill writes: a store.Part, or one that compares what comes with
// what is stored. Its methods are those of store.Part.
type Part interface {
	io.WriterAt
	io.ReaderAt
	Open() (store.Reader, error)
	Flush(off, n int64)
	Save(have store.Spans, size int64) error
	MarkWhole(size int64) error
	Commit(size int64) error
	Reset() error
	Discard() error
	Close() error
}

// Task says what a fill downloads, and what it needs for that. A fill calls these functions from
// goroutines of its own, but never after Run has returned.
type Task struct {
	// Digest is the blob's.
	Digest digest.Digest
	// Size is the blob's size in bytes as a manifest gives it, or -1.
	Size int64
	// Most bounds the bytes of a blob whose size nobody gives; zero is no bound.
	Most int64
	// Piece is the span that the first reader wants, if that isn't the whole blob; a From of -n
	// stands for the last n bytes. Then the fill fetches only what readers want, and ends with
	// ErrParked once nobody has read for a while.
	Piece oci.Span
	// Complete, if it is set, makes the fill fetch the whole blob in the background, after Piece.
	// It returns how long the next step waits if nobody wants anything meanwhile; zero for not
	// at all.
	Complete func() time.Duration
	// Begin opens the partial file. It returns the bytes and the size (or -1) that an earlier fill left.
	Begin func() (Part, store.Spans, int64, error)
	// Open requests a span from the upstream. The fill closes the body.
	Open func(ctx context.Context, span oci.Span) (*oci.Body, error)
	// Reserve is called with the size once an upstream has given it, if it wasn't known before. Its
	// error ends the fill.
	Reserve func(size int64) error
	// Arrived is called now and then with how many bytes have come, if nobody gives the blob's
	// size. It may wait a moment for room.
	Arrived func(bytes int64)
	// Record is called once the content has its final name.
	Record func(size int64)
	// Resumed is called when a transfer resumes. Mismatched is called if an upstream's bytes were
	// wrong, with the error that says how.
	Resumed    func()
	Mismatched func(error)
}

// Fill downloads one blob and lets any number of readers follow. One verifier hashes the
// contiguous prefix behind the writers; nothing else commits the file. Up to MaxWriters writers
// read ahead, each on a span of its own of one sparse file. All methods may be called
// concurrently; Run or End is called once.
type Fill struct {
	task Task
	// least is the smallest segment, every what may be lost to a crash, lead what is
	// compared where parts meet: MinSegment, saveEvery and leadSize, but in tests.
	least, every, lead int64

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when what stands below changes
	waiting  int           // readers and verifier that wait for changed
	part     Part
	size     int64 // -1 until known
	have     store.Spans
	growth   growth
	came     int64 // bytes that have come from an upstream, wrong ones included
	unsaved  int64 // those that have come since the part was saved
	saving   bool  // the part is being saved
	writers  []*writer
	wishes   []*wish         // of the readers that wait, in the order in which they began to
	foreseen []foreseen      // what readers will wait for
	group    *errgroup.Group // the round's goroutines; nil once it fails, and between rounds
	ctx      context.Context // the round's
	whole    bool            // the upstream does not do ranges, or the size is not known
	eager    bool            // the whole is wanted: what nobody waits for yet is fetched ahead
	readers  int             // that are attached
	used     time.Time       // when one was last
	parked   bool            // the fill is about to end with ErrParked
	opened   bool            // an upstream has begun to send it
	status   int             // the HTTP status by which it began, zero if not known
	refused  bool            // what an upstream began to send was refused: another may do better
	given    bool            // a reader has been let at some bytes
	shown    store.Spans     // those bytes
	fixed    store.Spans     // those that were shown before this round: they stay as they are
	seams    []seam          // where parts meet that have not been compared yet
	guards   []*guard        // of the TOCs that manifests give digests of
	wrongTOC bool            // one of them was wrong
	parts    bool            // not all of the bytes come from one body that began at the first
	stale    bool            // an earlier fill has left some
	plain    bool            // parts were wrong: the whole is asked for
	// disputed is the size that an upstream has told and that is not size; -1 if none.
	disputed int64
	// doubtful is set if an upstream insists on another size than a manifest tells.
	doubtful bool
	// candidate is where the blob may end, and tried where that was found out; else -1.
	candidate, tried int64
	noRanges         []func() // tell who has sent parts that those are wrong
	right            bool     // the digest has been verified
	kept             bool     // and it has its final name, for good
	ended            bool
	err              error // why it ended; nil if all is well
	refuse           []func()
}

// writer has claimed the bytes from at up to end. Fill.mu guards all of it.
type writer struct {
	at, end int64
	once    bool  // it has one claim, and no further one
	begun   bool  // bytes have come to it
	reach   int64 // the end of what its body carries
	// spare, if it is set, is a body from another connection that goes on at at, or
	// before it: what the first one brought was too slow.
	spare *oci.Body
	// stalled says that a part has stalled. It is for one transfer at a time, not guarded.
	stalled bool
}

// unbounded stands for the end of a claim on a blob whose size is not known.
const unbounded = int64(1) << 62

// New returns a fill that does t once Run is called. Readers may wait for it before that.
func New(t Task) *Fill {
	return &Fill{task: t, least: MinSegment, every: saveEvery, lead: leadSize,
		size: t.Size, eager: t.Piece == oci.Span{}, disputed: -1, candidate: -1, tried: -1, changed: make(chan struct{})}
}

// Run downloads the blob. It returns when the fill has ended and all its goroutines with it; readers
// get the same error. It is ErrParked if nobody reads pieces any more, wraps ErrMismatch if the bytes
// were wrong, and is a DiskError if the blob can't be stored.
func (f *Fill) Run(ctx context.Context) error {
	err := f.fetch(ctx)
	f.mu.Lock()
	p, have, size, right := f.part, f.have.Clone(), f.size, f.right
	f.ended, f.err = true, err
	if right {
		f.err = nil // it could not be kept, but it can be read to its end
	}
	f.wake()
	f.mu.Unlock()
	if p == nil {
		return err
	}
	switch {
	case err == nil:
		return p.Close()
	case errors.Is(err, ErrParked) && f.unsaved == 0:
		return errors.Join(err, p.Close())
	case errors.Is(err, ErrMismatch), errors.Is(err, errEndless), right, have.Len() == 0, IsDiskError(err):
		// Of a disk that fails, what was written is not to be relied on, or is
		// in the way of what is smaller.
		return errors.Join(err, p.Discard())
	case errors.Is(err, errSizes) && f.task.Size < 0:
		// One of two upstreams, or of an earlier fill and this one, was wrong
		// about the size. The part would pass that on to the next fill.
		return errors.Join(err, p.Discard())
	default:
		// What is there spares the next fill its fetch.
		return errors.Join(err, p.Save(have, size), p.Close())
	}
}

// End ends, with err, a fill whose Run is never called.
func (f *Fill) End(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended, f.err = true, err
	f.wake()
}

func (f *Fill) fetch(ctx context.Context) error {
	p, have, size, err := f.task.Begin()
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.part, f.have = p, have
	if f.size < 0 {
		f.size = size
	} else if size >= 0 && size != f.size {
		f.have = store.Spans{} // a part of something else
	}
	f.parts = f.have.Len() > 0
	f.stale = f.parts
	f.mu.Unlock()

	for round := 1; ; round++ {
		err := f.round(ctx)
		switch {
		case errors.Is(err, ErrMismatch):
			f.task.Mismatched(err)
		case errors.Is(err, errSeam):
		case errors.Is(err, errSizes) && f.leaveStale():
			// What an earlier fill left is of another size.
		default:
			if f.plain && err == nil {
				f.blameParts() // the whole was right
			}
			return err
		}
		again := f.nextRound(err, round)
		switch {
		case !again && errors.Is(err, errSeam):
			return fmt.Errorf("%w: %w", ErrMismatch, err)
		case !again:
			return err
		case f.fixed.Len() > 0:
			err = p.Save(store.Spans{}, -1) // readers may be reading
		default:
			err = p.Reset()
		}
		if err != nil {
			return OnDisk(err)
		}
	}
}

// leaveStale says whether the round has failed because of what an earlier fill left, and
// may begin without that.
func (f *Fill) leaveStale() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	stale := f.stale && !f.given
	f.stale, f.noRanges = false, nil
	return stale
}

// round fetches what is missing and verifies it all.
func (f *Fill) round(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	f.mu.Lock()
	f.group, f.ctx, f.writers, f.growth = g, ctx, nil, growth{}
	f.inRound(func() error { return f.verify(ctx) })
	f.judgeSize()
	if f.task.Piece != (oci.Span{}) && !(f.eager && f.size < 0) {
		f.startPieces()
	}
	if f.eager {
		f.startWriter(0)
	}
	f.wake()
	f.mu.Unlock()
	err := g.Wait()
	f.mu.Lock()
	f.group = nil
	f.mu.Unlock()
	return err
}

// inRound runs work in the round's group. Work that fails closes the group before
// it leaves it: whoever joined later could be missed by who waits for it. f.mu is
// held.
func (f *Fill) inRound(work func() error) {
	f.group.Go(func() error {
		err := work()
		if err != nil {
			f.mu.Lock()
			f.group = nil
			f.mu.Unlock()
		}
		return err
	})
}

// segment is how much one claim spans: where one for each writer is enough, they
// end together.
func (f *Fill) segment() int64 {
	return min(max((f.size+MaxWriters-1)/MaxWriters, f.least), maxSegment)
}

// claim finds w the first bytes from from on that are neither there nor
// claimed; false if there are none. f.mu is held.
func (f *Fill) claim(w *writer, from int64) bool {
	size := f.size
	if size < 0 {
		size = unbounded
	}
	taken := f.have.Clone()
	for _, o := range f.writers {
		if o != w {
			taken.Add(o.at, o.end)
		}
	}
	gap := taken.Gap(from, size)
	if gap.From == gap.To {
		return false
	}
	w.at, w.end = gap.From, gap.To
	// One request for the whole is best for what is small; and all there is
	// for an upstream that sends the whole whatever it is asked.
	if seg := f.segment(); !f.whole && f.size >= 2*seg {
		w.end = min(w.end, w.at+seg)
	}
	return true
}

// startWriter puts one more writer on the first free bytes from from on. f.mu
// is held.
func (f *Fill) startWriter(from int64) {
	w := &writer{}
	if f.group == nil || len(f.writers) >= MaxWriters || !f.claim(w, from) {
		return
	}
	f.add(w)
}

// add sets w to work on its claim. f.mu is held, and the round runs.
func (f *Fill) add(w *writer) {
	f.writers = append(f.writers, w)
	ctx := f.ctx
	f.inRound(func() error { return f.write(ctx, w) })
}

// write fetches w's claim, and then further ones while there are any. What
// breaks off is resumed. A writer that can not go on gives its claim back to
// the others; the last one's failure is the fill's.
func (f *Fill) write(ctx context.Context, w *writer) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = 200 * time.Millisecond
	pause.MaxInterval = 5 * time.Second
	defer f.dropSpare(w)
	for tries := 0; ; {
		before := w.at
		err := f.transfer(ctx, w)
		if err == nil {
			tries = 0
			f.dropSpare(w)
			if !f.next(w) {
				return nil
			}
			continue
		}
		if w.at > before {
			tries = 0
			pause.Reset()
		}
		tries++
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if IsDiskError(err) || errors.Is(err, errEndless) || errors.Is(err, ErrMismatch) || errors.Is(err, errSeam) {
			return err // the others will not do better
		}
		if errors.Is(err, errWhole) {
			return nil // accept has taken w off
		}
		if f.isWhole(ctx, w) {
			if !f.next(w) {
				return nil
			}
			continue
		}
		if f.hasSpare(w) {
			f.task.Resumed()
			continue
		}
		if tries >= MaxTries || !f.mayRetry(err) {
			if f.retire(w) {
				return nil
			}
			return err
		}
		f.task.Resumed()
		select {
		case <-time.After(max(pause.NextBackOff(), comeBack(err))):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// comeBack gives how long an upstream that fails, or limits us, wants to be left
// alone, as far as those who read may be kept waiting.
func comeBack(err error) time.Duration {
	var e *oci.Error
	if !errors.As(err, &e) {
		return 0
	}
	return min(e.RetryAfter, maxComeBack)
}

// mayRetry tells whether trying again may help. Before an upstream has answered
// it does not: the origin has tried already, and a client waits.
func (f *Fill) mayRetry(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return (f.opened || f.refused) && !oci.IsAbsent(err)
}

// retire takes w off the fill if others are left to do its work.
func (f *Fill) retire(w *writer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.writers) == 1 {
		return false
	}
	f.writers = slices.DeleteFunc(f.writers, func(o *writer) bool { return o == w })
	f.wake()
	return true
}

// next moves w on to bytes that nobody has claimed: those that a reader waits for, else
// those behind its own, else the first. It takes w off and returns false if there are no
// such bytes, or if enough others read ahead.
func (f *Fill) next(w *writer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.grant(w) {
		return true
	}
	if f.size >= 0 && f.eager && !w.once && len(f.writers) <= MaxWriters && (f.claim(w, w.end) || f.claim(w, 0)) {
		return true
	}
	f.writers = slices.DeleteFunc(f.writers, func(o *writer) bool { return o == w })
	f.wake()
	return false
}

// transfer asks for w's claim once, unless a spare body of it is there, and writes
// what comes.
func (f *Fill) transfer(ctx context.Context, w *writer) error {
	round := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	ask, end := f.ask(w), w.end
	f.mu.Unlock()
	body, err := f.takeSpare(ctx, w)
	if body == nil && err == nil {
		body, err = f.task.Open(ctx, ask)
	}
	if err != nil {
		return err
	}
	defer body.Close()
	f.mu.Lock()
	unsized := f.size < 0
	f.mu.Unlock()
	if unsized && body.Size >= 0 {
		if err := f.task.Reserve(body.Size); err != nil {
			return OnDisk(err)
		}
		unsized = false
	}
	if err := f.accept(w, body, end); err != nil {
		return err
	}
	f.mu.Lock()
	from := w.at
	f.mu.Unlock()
	// Much of a whole blob may come before the byte where w is: that is no standstill.
	part := body.Status == http.StatusPartialContent
	if part {
		defer f.rescue(round, w, part, cancel)()
	}
	if err := f.takeLead(body, from); err != nil {
		return err
	}
	if !part {
		defer f.rescue(round, w, part, cancel)()
	}
	buf := Buffers.Get().(*[ReadSize]byte)
	defer Buffers.Put(buf)
	defer f.flushPiece(w, from)
	for {
		f.mu.Lock()
		at, left := w.at, w.end-w.at
		f.mu.Unlock()
		if left == 0 {
			return nil
		}
		n, err := body.Read(buf[:min(left, ReadSize)])
		if n > 0 {
			if err := f.writeAt(buf[:n], at); err != nil {
				return err
			}
			if f.advance(w, int64(n)) {
				return f.endless(body)
			}
			if have := at + int64(n); unsized && have/arrivedEvery > at/arrivedEvery {
				f.task.Arrived(have)
			}
		}
		switch {
		case err == nil:
		case int64(n) == left:
			return nil // however it ended: all came
		case err == io.EOF && f.finishUnsized(w):
			return nil
		default:
			return fmt.Errorf("read at byte %d: %w", at+int64(n), Unexpected(err))
		}
	}
}

// flushPiece begins to write to the disk what w brought from from on, if that isn't hashed yet,
// which would do it. Else a sync has many small pieces to find room for at once, and whoever
// writes the next piece waits for it.
func (f *Fill) flushPiece(w *writer, from int64) {
	f.mu.Lock()
	n, hashed := w.at-from, f.hashes()
	f.mu.Unlock()
	if n > 0 && !hashed {
		f.part.Flush(from, n)
	}
}

// ask returns the span to request for w: its claim, and a lead before it that is compared with what
// other transfers bring. f.mu is held.
func (f *Fill) ask(w *writer) oci.Span {
	ask := oci.Span{From: max(0, w.at-f.lead), To: w.end}
	switch {
	case f.plain || f.disputed >= 0:
		return oci.Whole
	case w.end == f.size || w.end == unbounded:
		ask.To = oci.Open
	}
	return ask
}

// accept checks that body carries what w asked for, which was its claim when that ended
// at end, and learns from it. If another writer is better placed to take the body, accept
// takes w off and returns errWhole.
func (f *Fill) accept(w *writer, body *oci.Body, end int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if body.Refuse != nil {
		f.refuse = append(f.refuse, body.Refuse)
	}
	if body.NoRanges != nil && !f.plain && w.at > 0 {
		f.noRanges = append(f.noRanges, body.NoRanges)
	}
	if body.Span.From > w.at {
		return oci.Errorf(oci.CodeUnavailable, "%s sent bytes from %d on when asked for those from %d on", body.Source, body.Span.From, w.at)
	}
	if f.size < 0 && body.Size >= 0 {
		f.size = body.Size
		w.end, end = min(w.end, f.size), min(end, f.size)
		f.judgeSize()
	}
	if f.size < 0 && end != unbounded {
		// Nobody tells the size: it will be where the bytes end.
		f.eager, w.at, w.end, end = true, 0, unbounded, unbounded
		if body.Span != oci.Whole {
			f.refused = true
			return oci.Errorf(oci.CodeUnavailable, "%s sent a piece of %s and didn't say how many bytes that has", body.Source, f.task.Digest)
		}
	}
	if body.Size >= 0 && body.Size != f.size {
		if err := f.dispute(w, body); err != nil {
			return err
		}
		end = w.end
	}
	f.disputed = -1
	if w.at > body.Span.From || body.Status == http.StatusPartialContent {
		f.parts = true
	}
	w.reach = body.Span.To
	if w.reach == oci.Open {
		w.reach = unbounded
	}
	if body.Span.From == 0 && (body.Span.To != end || w.at > f.lead) && end != unbounded {
		// It sends the whole whatever it is asked: one writer takes it all, the one
		// that is there already if there is one.
		f.whole, f.eager = true, true
		if len(f.writers) > 1 && w.at > 0 {
			// At once, so that no other writer stops where w would have begun.
			f.writers = slices.DeleteFunc(f.writers, func(o *writer) bool { return o == w })
			for _, o := range f.writers {
				if o.reach > o.end {
					o.end = min(o.reach, f.freeUpTo(o))
				}
			}
			f.wake()
			return errWhole
		}
		if len(f.writers) == 1 && f.have.Len() == 0 {
			w.at = 0
		}
		w.end = f.freeUpTo(w)
	}
	if !f.opened {
		f.opened, f.status = true, body.Status
	}
	f.wake()
	return nil
}

// freeUpTo returns the end of the run of bytes from w's position on that are neither cached nor claimed
// by another writer. f.mu is held.
func (f *Fill) freeUpTo(w *writer) int64 {
	end := f.size
	for _, r := range f.have.Runs() {
		if r.From > w.at {
			end = min(end, r.From)
		}
	}
	for _, o := range f.writers {
		if o != w && o.at >= w.at {
			end = min(end, o.at)
		}
	}
	return end
}

// dispute deals with a body of another size than is known. The upstream is asked for the
// whole blob once more, at another endpoint if there is one. If the size stays the same
// then, a manifest is wrong about it, and the digest will tell. The error is errSizes, if
// the body is of no use. f.mu is held.
func (f *Fill) dispute(w *writer, body *oci.Body) error {
	if body.Size == f.disputed && !f.opened && f.have.Len() == 0 && len(f.writers) == 1 && body.Span.From == 0 {
		f.size, w.at, w.end, f.doubtful = body.Size, 0, body.Size, true
		return nil
	}
	f.disputed = body.Size
	err := oci.Errorf(oci.CodeUnavailable, "%s says that %s has %d bytes, and it has %d", body.Source, f.task.Digest, body.Size, f.size)
	err.Status, err.Err = http.StatusBadGateway, errSizes
	if body.Refuse != nil {
		body.Refuse()
	}
	f.refused = true
	return err
}

// advance records that the next n bytes of w's claim have come. It reports whether there are too many
// for a blob of unknown size.
func (f *Fill) advance(w *writer, n int64) (endless bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.have.Add(w.at, w.at+n)
	f.came += n
	f.unsaved += n
	w.at += n
	w.begun = true
	f.grow(n)
	f.wake()
	return f.size < 0 && f.task.Most > 0 && w.at > f.task.Most
}

// endless returns the error of a body that has no end and gave no size.
func (f *Fill) endless(body *oci.Body) error {
	if body.Refuse != nil {
		body.Refuse()
	}
	return &oci.Error{Code: oci.CodeUnavailable, Status: http.StatusBadGateway, Err: errEndless, Message: fmt.Sprintf(
		"%s sends more than %d bytes of %s, and has not said how many there are; that is as much as is taken of such a blob", body.Source, f.task.Most, f.task.Digest)}
}

// finishUnsized ends a blob of unknown size where its bytes end. The digest shows whether that is
// right. It returns false if the size is known.
func (f *Fill) finishUnsized(w *writer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.size >= 0 {
		return false
	}
	f.size, w.end = w.at, w.at
	f.wake()
	return true
}

// verify hashes the contiguous prefix as it grows, and commits the partial file once all of it is there
// and its digest is right.
func (f *Fill) verify(ctx context.Context) error {
	hash := f.task.Digest.Algorithm().Hash()
	buf := Buffers.Get().(*[ReadSize]byte)
	spare := sync.OnceFunc(func() { Buffers.Put(buf) })
	defer spare()
	var done, flushed int64
	// Saving waits for the disk, and the hash does not wait for saving.
	var saver sync.WaitGroup
	defer saver.Wait()
	for {
		end, size, err := f.grown(ctx, done)
		if err != nil {
			return err
		}
		if err := f.checkSeams(); err != nil {
			return err
		}
		if err := f.checkTOCs(); err != nil {
			return err
		}
		end = min(end, done+flushEvery)
		for done < end {
			n, err := f.part.ReadAt(buf[:min(end-done, ReadSize)], done)
			if n == 0 && err != nil {
				return OnDisk(err)
			}
			hash.Write(buf[:n])
			done += int64(n)
		}
		if done == size {
			break
		}
		if f.mayEnd(done) {
			f.tryEnd(done, digest.NewDigest(f.task.Digest.Algorithm(), hash))
			continue
		}
		if done-flushed >= flushEvery {
			f.part.Flush(flushed, done-flushed)
			flushed = done
		}
		if have, due := f.beginSave(); due {
			saver.Go(func() {
				// A part that can not be saved costs a fetch after a crash;
				// the disk's error will show when it matters.
				_ = f.part.Save(have, size)
				f.endSave()
			})
		}
	}
	if got := digest.NewDigest(f.task.Digest.Algorithm(), hash); got != f.task.Digest {
		return fmt.Errorf("%s: %w: they are those of %s", f.task.Digest, ErrMismatch, got)
	}
	if f.spareRanges(done) {
		f.mu.Lock()
		f.noRanges = nil
		f.mu.Unlock()
	}
	spare() // many may wait for the disk
	// Nobody waits for the disk's syncs who may have the bytes: a process that is
	// killed now leaves them, with a mark, to the next one. A small blob waits, so that
	// its header can say that it is stored.
	if done > Withheld && f.part.MarkWhole(done) == nil {
		f.mu.Lock()
		f.right = true
		f.wake()
		f.mu.Unlock()
	}
	saver.Wait()
	err := f.part.Commit(done)
	if err == nil {
		f.task.Record(done)
	}
	f.mu.Lock()
	f.right, f.kept = true, err == nil
	f.wake()
	f.mu.Unlock()
	if err != nil {
		return OnDisk(err)
	}
	return nil
}

// beginSave returns the bytes to save the partial file with, and whether it is due to be saved. Then
// the caller calls endSave afterwards.
func (f *Fill) beginSave() (have store.Spans, due bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.saveDue() {
		return have, false
	}
	f.unsaved, f.saving = 0, true
	return f.have.Clone(), true
}

// endSave ends what beginSave began.
func (f *Fill) endSave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.saving = false
	f.wake()
}

// saveDue reports whether the partial file is due to be saved. f.mu is held.
func (f *Fill) saveDue() bool { return f.unsaved >= f.every && !f.saving }

// grown waits until the contiguous prefix reaches beyond done, or there is something else for the
// verifier to do: writers may be far ahead of the prefix. It returns the prefix's end and the blob's
// size.
func (f *Fill) grown(ctx context.Context, done int64) (end, size int64, err error) {
	err = f.wait(ctx, func() (bool, error) {
		end, size = f.have.Reach(done), f.size
		if end < size && !f.hashes() {
			end = done // it may never be all here
		}
		return end > done || end == size || f.saveDue() || f.endsPerhaps(done) || slices.ContainsFunc(f.seams, f.isHere) || f.dueTOC() != nil, nil
	})
	return end, size, err
}

// await waits until the byte at off may be given out to a reader of span, and returns
// the end of the run of bytes that may. The last ones are held back from a reader that
// began at the first byte until the digest has been verified; a reader of a later piece
// can't take that for the whole, and verifies it itself. What a reader waits for is
// fetched before anything else.
func (f *Fill) await(ctx context.Context, span oci.Span, off int64) (int64, error) {
	var limit int64
	var mine, toc *wish
	err := f.wait(ctx, func() (bool, error) {
		if f.ended && f.err != nil {
			return false, f.err
		}
		limit = f.have.Reach(off)
		if !f.right {
			if span.From == 0 || f.doubtful {
				limit = min(limit, f.size-Withheld)
				if f.size >= 0 && off >= f.size-Withheld {
					f.goEager() // the digest is that of the whole
				}
			}
			limit = f.upToSeam(span.From, off, limit)
			if limit == off {
				f.trimSeams(span.From, off)
			}
			limit = f.upToTOC(span, off, limit)
		}
		if limit > off {
			f.given = true
			if !f.right {
				f.shown.Add(off, limit)
			}
			return true, nil
		}
		if mine == nil && !f.ended {
			mine = &wish{span: span, at: off}
			f.wishes = append(f.wishes, mine)
			if span.To >= f.size && off-span.From >= f.least {
				f.goEager() // it reads on and on
			}
			f.want(mine)
		}
		toc = f.wantTOC(toc, span, off)
		return false, nil
	})
	f.dropWish(mine)
	f.dropWish(toc)
	return limit, err
}

// prefix returns how many of the blob's first bytes are in the partial file.
func (f *Fill) prefix() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.upToSeam(0, 0, f.have.Reach(0))
}

// isOf returns an error if the blob's size is not size, which a reader was given before a source turned
// out to be wrong. Once a reader has bytes, the size stays.
func (f *Fill) isOf(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.size != size {
		return fmt.Errorf("%s: %w: %d bytes were announced, and it has %d", f.task.Digest, errSizes, size, f.size)
	}
	return nil
}

// Ready waits until the blob's size is known and an upstream has begun to send it, or all of the piece
// that hint names is cached. It returns the size. What can't be fetched at all fails here, before a
// client gets a header; so does a small blob that is wrong.
func (f *Fill) Ready(ctx context.Context, hint oci.Span) (int64, error) {
	var size int64
	var mine, toc *wish
	err := f.wait(ctx, func() (bool, error) {
		if f.ended {
			size = f.size
			return true, f.err
		}
		size = f.size
		if mine == nil && size >= 0 && hint != oci.Whole {
			mine = f.wishOf(hint)
			f.wishes = append(f.wishes, mine)
			f.want(mine)
		}
		if size >= 0 && hint != oci.Whole {
			first := f.wishOf(hint).span
			toc = f.wantTOC(toc, first, first.From)
			if f.guardAt(first, first.From) != nil {
				return false, nil
			}
		}
		return size > Withheld && (f.opened || f.holds(hint)) || f.right, nil
	})
	f.dropWish(mine)
	f.dropWish(toc)
	return size, err
}

// Settled has the whole blob fetched, waits until the digest has shown how large it is, and returns
// that size. The error is why the fill brought nothing, or that ctx has ended.
func (f *Fill) Settled(ctx context.Context) (int64, error) {
	f.WantWhole()
	var size int64
	err := f.wait(ctx, func() (bool, error) {
		size = f.size
		if f.ended {
			return true, f.err
		}
		return f.right, nil
	})
	return size, err
}

// Failure returns why the fill, which has ended, brought nothing to read. It is nil while the fill
// runs.
func (f *Fill) Failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Progress returns how many of the blob's bytes are cached, and how many came from an upstream for
// that.
func (f *Fill) Progress() (have, came int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.have.Len(), f.came
}

// Verified returns the blob's size (-1 if unknown), and whether its digest has been verified.
func (f *Fill) Verified() (size int64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size, f.right
}

// Expected returns the size of the blob in bytes, as far as it is known.
func (f *Fill) Expected() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return cmp.Or(max(f.size, 0), f.have.Len())
}

// Origin returns the HTTP status with which the upstream began to send, zero if it didn't, and whether
// the blob is verified and stored by now.
func (f *Fill) Origin() (status int, kept bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status, f.kept
}

// wait calls enough with f.mu held, now and after each change, until it returns true or an error.
func (f *Fill) wait(ctx context.Context, enough func() (bool, error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if ok, err := enough(); ok || err != nil {
			return err
		}
		changed := f.changed
		f.waiting++
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		f.mu.Lock()
		f.waiting--
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// wake wakes all that wait for a change. f.mu is held.
func (f *Fill) wake() {
	if f.waiting > 0 {
		close(f.changed)
		f.changed = make(chan struct{})
	}
}

// DiskError is a failure of the cache's own disk. No upstream can do anything about it.
type DiskError struct{ err error }

func (e *DiskError) Error() string { return "cache disk: " + e.err.Error() }
func (e *DiskError) Unwrap() error { return e.err }

// OnDisk returns err, which the cache's own disk gave, as a DiskError.
func OnDisk(err error) error { return &DiskError{err} }

// IsDiskError reports whether err is, or wraps, a DiskError.
func IsDiskError(err error) bool {
	var disk *DiskError
	return errors.As(err, &disk)
}

// Unexpected returns io.ErrUnexpectedEOF for io.EOF, and any other error as it is.
func Unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Buffers are the buffers that bytes move through, each a *[ReadSize]byte. Who takes one puts it back.
var Buffers = sync.Pool{New: func() any { return new([ReadSize]byte) }}
