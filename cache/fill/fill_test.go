package fill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// memoryPart is a part that keeps its bytes in memory and tells what became of
// it.
type memoryPart struct {
	mu        sync.Mutex
	content   []byte
	saved     store.Spans
	committed bool
	discarded bool
	fail      error // of writes and commits
}

func (p *memoryPart) WriteAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return 0, p.fail
	}
	if need := int(off) + len(b); need > len(p.content) {
		p.content = append(p.content, make([]byte, need-len(p.content))...)
	}
	return copy(p.content[off:], b), nil
}

func (p *memoryPart) ReadAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.NewReader(p.content).ReadAt(b, off)
}

func (p *memoryPart) Open() (store.Reader, error) {
	return struct {
		io.ReaderAt
		io.Closer
	}{io.NewSectionReader(p, 0, 1<<40), io.NopCloser(nil)}, nil
}

func (p *memoryPart) Flush(int64, int64) {}

func (p *memoryPart) Save(have store.Spans, _ int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.saved = have.Clone()
	return nil
}

func (p *memoryPart) MarkWhole(size int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.saved = store.Spans{}
	p.saved.Add(0, size)
	return nil
}

func (p *memoryPart) Commit(size int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	p.content, p.committed = p.content[:size], true
	return nil
}

func (p *memoryPart) Reset() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.content = nil
	return nil
}

func (p *memoryPart) Discard() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.discarded = true
	return nil
}

func (p *memoryPart) Close() error { return nil }

// source is an upstream with one blob and the faults of a test.
type source struct {
	content []byte
	// pace is the time between two chunks.
	pace  time.Duration
	chunk int
	// open, where set, may answer the nth request (from 0) in the usual
	// answer's stead; it gives nil, nil for the usual one.
	open func(n int, span oci.Span) (*oci.Body, error)
	// cut, where set, gives after how many bytes of the nth body it breaks
	// off; -1 for never.
	cut func(n int) int
	// gate, where set, stops every body that begins before gateAt there until it is closed.
	gate      chan struct{}
	gateAt    int64
	hideSize  bool
	noRanges  bool
	mu        sync.Mutex
	requests  []oci.Span
	sent      int64
	refused   int
	resumed   int
	mismatch  int
	recordedN int64
}

func (s *source) Blob(ctx context.Context, span oci.Span) (*oci.Body, error) {
	s.mu.Lock()
	n := len(s.requests)
	s.requests = append(s.requests, span)
	s.mu.Unlock()
	if s.open != nil {
		if b, err := s.open(n, span); b != nil || err != nil {
			return b, err
		}
	}
	size := int64(len(s.content))
	got := oci.Span{From: span.From, To: End(span, size)}
	if s.noRanges {
		got = oci.Span{From: 0, To: size}
	}
	body := &oci.Body{Span: got, Size: size, Source: "source.test", Refuse: func() { s.refused++ }}
	cut := -1
	if s.cut != nil {
		cut = s.cut(n)
	}
	if s.hideSize {
		body.Size, body.Span.To = -1, oci.Open
	}
	gated := int64(-1)
	if s.gate != nil && got.From < s.gateAt {
		gated = s.gateAt - got.From
	}
	body.ReadCloser = &sourceBody{s: s, ctx: ctx, rest: s.content[got.From:got.To], cut: cut, gated: gated}
	return body, nil
}

type sourceBody struct {
	s    *source
	ctx  context.Context
	rest []byte
	cut  int
	// gated is how many bytes come before the gate; less than none if there is no gate.
	gated int64
}

var errCut = errors.New("connection reset by peer")

func (b *sourceBody) Read(p []byte) (int, error) {
	if b.cut == 0 {
		return 0, errCut
	}
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	if b.s.gate != nil && b.gated == 0 {
		select {
		case <-b.s.gate:
			b.gated = -1
		case <-b.ctx.Done():
			return 0, context.Cause(b.ctx)
		}
	}
	if b.s.pace > 0 {
		select {
		case <-time.After(b.s.pace):
		case <-b.ctx.Done():
			return 0, context.Cause(b.ctx)
		}
	}
	n := len(b.rest)
	if b.s.chunk > 0 {
		n = min(n, b.s.chunk)
	}
	if b.cut > 0 {
		n = min(n, b.cut)
	}
	if b.gated > 0 {
		n = min(n, int(b.gated))
	}
	n = copy(p, b.rest[:n])
	b.rest = b.rest[n:]
	if b.cut > 0 {
		b.cut -= n
	}
	if b.gated > 0 {
		b.gated -= int64(n)
	}
	b.s.mu.Lock()
	b.s.sent += int64(n)
	b.s.mu.Unlock()
	return n, nil
}

func (b *sourceBody) Close() error { return nil }

// newTestFill gives a fill of s's blob into p. The size is told to it unless s
// hides it.
func newTestFill(s *source, p *memoryPart) *Fill {
	size := int64(len(s.content))
	if s.hideSize {
		size = -1
	}
	f := New(Task{
		Digest: digest.FromBytes(s.content),
		Size:   size,
		Begin: func() (Part, store.Spans, int64, error) {
			return p, p.saved.Clone(), -1, nil
		},
		Open:       s.Blob,
		Reserve:    func(int64) error { return nil },
		Arrived:    func(int64) {},
		Record:     func(size int64) { s.recordedN = size },
		Resumed:    func() { s.mu.Lock(); s.resumed++; s.mu.Unlock() },
		Mismatched: func(error) { s.mismatch++ },
	})
	f.least, f.lead = testSegment, 0
	return f
}

// askPiece makes f one whose first reader asks for a piece, before it is run. If completes
// is set, the rest is fetched as well.
func (f *Fill) askPiece(piece oci.Span, completes bool) {
	f.task.Piece, f.eager = piece, false
	if completes {
		f.task.Complete = func() time.Duration { return 0 }
	}
}

// testSegment is small, so that tests with many segments move few bytes.
const testSegment = 1 << 20

func content(seed uint64, size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// read reads span of f as a client would.
func read(ctx context.Context, f *Fill, span oci.Span) ([]byte, error) {
	size, err := f.Ready(ctx, span)
	if err != nil {
		return nil, err
	}
	r, err := newReader(ctx, f, size, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var buf bytes.Buffer
	_, err = r.Send(&buf, span)
	return buf.Bytes(), err
}

// start runs f and gives a function that waits for its end.
func start(ctx context.Context, f *Fill) (wait func() error) {
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return func() error { return <-done }
}

func TestFillIsOneTransferForAnyMixOfReadersAndRanges(t *testing.T) {
	for _, size := range []int{0, 1, Withheld, Withheld + 1, 1 << 20, 3*testSegment + 12345} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &source{content: content(1, size), pace: time.Millisecond, chunk: 100_000}
				p := &memoryPart{}
				f := newTestFill(s, p)
				wait := start(t.Context(), f)
				var readers sync.WaitGroup
				for i := range 24 {
					span := oci.Whole
					if i > 0 && size > 0 {
						span.From = rand.Int64N(int64(size))
						if i%2 == 0 {
							span.To = span.From + rand.Int64N(int64(size)-span.From+1)
						}
					}
					readers.Go(func() {
						got, err := read(t.Context(), f, span)
						want := s.content[span.From:End(span, int64(size))]
						if err != nil || !bytes.Equal(got, want) {
							t.Errorf("span %v: got %d bytes, %v; want %d", span, len(got), err, len(want))
						}
					})
				}
				readers.Wait()
				if err := wait(); err != nil {
					t.Fatal(err)
				}
				if s.sent != int64(size) {
					t.Errorf("the upstream sent %d bytes for a blob of %d", s.sent, size)
				}
				if !p.committed || !bytes.Equal(p.content, s.content) || s.recordedN != int64(size) {
					t.Errorf("committed %v, %d bytes, recorded %d; want all %d", p.committed, len(p.content), s.recordedN, size)
				}
			})
		})
	}
}

func TestFillGivesBytesAsTheyComeButHoldsTheLastBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := 1 << 20
		gate := make(chan struct{})
		s := &source{content: content(2, size)}
		rest := s.content[size-1:]
		s.open = func(int, oci.Span) (*oci.Body, error) {
			return &oci.Body{
				ReadCloser: io.NopCloser(io.MultiReader(bytes.NewReader(s.content[:size-1]), gatedReader{gate}, bytes.NewReader(rest))),
				Span:       oci.Span{From: 0, To: int64(size)}, Size: int64(size),
			}, nil
		}
		f := newTestFill(s, &memoryPart{})
		wait := start(t.Context(), f)
		n, err := f.Ready(t.Context(), oci.Whole)
		if err != nil || n != int64(size) {
			t.Fatalf("ready: %d, %v", n, err)
		}
		synctest.Wait()
		limit, err := f.await(t.Context(), oci.Whole, 0)
		if want := int64(size - Withheld); limit != want || err != nil {
			t.Errorf("all but one byte is there: %d bytes are given out, %v; want %d", limit, err, want)
		}
		close(gate)
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		if limit, err := f.await(t.Context(), oci.Whole, int64(size-Withheld)); limit != int64(size) || err != nil {
			t.Errorf("verified: %d bytes are given out, %v; want %d", limit, err, size)
		}
	})
}

// gatedReader gives nothing, once its gate is closed.
type gatedReader struct{ gate chan struct{} }

func (g gatedReader) Read([]byte) (int, error) {
	<-g.gate
	return 0, io.EOF
}

func TestFillResumesWhereTheUpstreamBrokeOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(3, 5<<20), chunk: 70_001}
		s.cut = func(n int) int {
			if n < 7 {
				return 300_000 + n
			}
			return -1
		}
		p := &memoryPart{}
		f := newTestFill(s, p)
		f.least = MinSegment // one request at a time
		wait := start(t.Context(), f)
		got, err := read(t.Context(), f, oci.Whole)
		if err != nil || !bytes.Equal(got, s.content) {
			t.Errorf("got %d bytes, %v; want %d", len(got), err, len(s.content))
		}
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		if s.sent != int64(len(s.content)) || s.resumed != 7 {
			t.Errorf("sent %d bytes in all with %d resumes; want %d and 7", s.sent, s.resumed, len(s.content))
		}
		if want := int64(300_000); s.requests[1].From != want {
			t.Errorf("the second request Begins at %d, want %d", s.requests[1].From, want)
		}
	})
}

func TestFillOfAnUpstreamWithoutRangesGoesOn(t *testing.T) {
	for _, size := range []int{1 << 20, 3 * testSegment} {
		synctest.Test(t, func(t *testing.T) {
			s := &source{content: content(4, size), chunk: 100_000, pace: time.Millisecond, noRanges: true}
			s.cut = func(n int) int {
				if n == 0 {
					return size / 2
				}
				return -1
			}
			p := &memoryPart{}
			f := newTestFill(s, p)
			wait := start(t.Context(), f)
			var readers sync.WaitGroup
			for _, from := range []int64{0, int64(size) / 4, int64(size) - 10} {
				readers.Go(func() {
					got, err := read(t.Context(), f, oci.Span{From: from, To: oci.Open})
					if err != nil || !bytes.Equal(got, s.content[from:]) {
						t.Errorf("from %d: got %d bytes, %v", from, len(got), err)
					}
				})
			}
			readers.Wait()
			if err := wait(); err != nil || !p.committed {
				t.Fatalf("size %d: %v, committed %v", size, err, p.committed)
			}
			// Half of it, and then all of it once more: less is not possible.
			if max := int64(size/2 + size); s.sent > max {
				t.Errorf("size %d: sent %d, want at most %d", size, s.sent, max)
			}
		})
	}
}

// Two writers have asked for parts, and the upstream sends the whole to both. The one that
// leaves its claim to the other does so at once.
func TestAWriterThatLeavesItsClaimToAnotherDoesSoAtOnce(t *testing.T) {
	const size = 1 << 20
	f := newTestFill(&source{content: content(4, size)}, &memoryPart{})
	first, last := &writer{at: 0, end: size - 10}, &writer{at: size - 10, end: size}
	f.writers = []*writer{first, last}
	whole := func() *oci.Body { return &oci.Body{Span: oci.Span{From: 0, To: size}, Size: size} }
	if err := f.accept(last, whole(), size); !errors.Is(err, errWhole) {
		t.Errorf("the last bytes' writer gets %v, want %v", err, errWhole)
	}
	if err := f.accept(first, whole(), size-10); err != nil || first.end != size {
		t.Errorf("the first bytes' writer takes the bytes up to %d, %v; want all %d", first.end, err, size)
	}
}

func TestFillOfWrongBytesIsNeverCompleteAndNeverKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		right := content(5, 2<<20)
		s := &source{content: slices.Clone(right), chunk: 50_000, pace: time.Millisecond}
		p := &memoryPart{}
		f := newTestFill(s, p)
		s.content[1000] ^= 1 // after the digest has been taken
		wait := start(t.Context(), f)
		got, err := read(t.Context(), f, oci.Whole)
		if !errors.Is(err, ErrMismatch) {
			t.Errorf("the reader gets %v, want %v", err, ErrMismatch)
		}
		if len(got) > len(right)-Withheld {
			t.Errorf("the reader got %d bytes, want at most %d", len(got), len(right)-Withheld)
		}
		if err := wait(); !errors.Is(err, ErrMismatch) {
			t.Errorf("the fill ends with %v", err)
		}
		if p.committed || !p.discarded || s.refused == 0 || s.mismatch != 1 {
			t.Errorf("committed %v, discarded %v, refused %d, mismatches %d", p.committed, p.discarded, s.refused, s.mismatch)
		}
		if s.sent != int64(len(right)) {
			t.Errorf("sent %d: bytes had been given out, so a second try helps nobody", s.sent)
		}
	})
}

func TestFillTriesAgainWhenTheWrongBytesReachedNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		right := content(6, Withheld) // small: held back as a whole
		s := &source{content: right}
		s.open = func(n int, _ oci.Span) (*oci.Body, error) {
			if n > 0 {
				return nil, nil
			}
			wrong := slices.Clone(right)
			wrong[7] ^= 1
			return &oci.Body{
				ReadCloser: io.NopCloser(bytes.NewReader(wrong)),
				Span:       oci.Span{From: 0, To: int64(len(wrong))}, Size: int64(len(wrong)),
			}, nil
		}
		p := &memoryPart{}
		f := newTestFill(s, p)
		wait := start(t.Context(), f)
		got, err := read(t.Context(), f, oci.Whole)
		if err != nil || !bytes.Equal(got, right) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if err := wait(); err != nil || s.mismatch != 1 {
			t.Errorf("%v, %d mismatches; want nil, 1", err, s.mismatch)
		}
	})
}

func TestFillOfUnknownSizeEndsWithTheBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(7, 1<<20+3), chunk: 10_000, hideSize: true}
		p := &memoryPart{}
		f := newTestFill(s, p)
		wait := start(t.Context(), f)
		got, err := read(t.Context(), f, oci.Whole)
		if err != nil || !bytes.Equal(got, s.content) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if err := wait(); err != nil || s.sent != int64(len(s.content)) {
			t.Errorf("%v; sent %d", err, s.sent)
		}
	})
}

// What comes is not bounded by anything that the upstream says, so it is by us: it
// ends the fill at once, for all who read, and nothing of it stays.
func TestFillOfUnknownSizeThatDoesNotEndIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(5, 3<<20), hideSize: true}
		p := &memoryPart{}
		f := newTestFill(s, p)
		f.task.Most = 1 << 20
		wait := start(t.Context(), f)
		_, readErr := read(t.Context(), f, oci.Whole)
		err := wait()
		for _, err := range []error{err, readErr} {
			var e *oci.Error
			if !errors.As(err, &e) || e.Code != oci.CodeUnavailable || e.HTTPStatus() != 502 {
				t.Errorf("want a 502 that says so, got %v", err)
			}
		}
		if !p.discarded || p.committed {
			t.Errorf("discarded is %v, committed %v; want the part to be gone", p.discarded, p.committed)
		}
		if n := len(p.content); n > 2<<20 {
			t.Errorf("%d bytes were written, want little more than %d", n, f.task.Most)
		}
		if len(s.requests) != 1 || s.refused != 1 {
			t.Errorf("asked %d times and refused %d times, want once", len(s.requests), s.refused)
		}
	})
}

func TestFillGoesOnFromThePartThatAnEarlierOneLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(8, 4<<20), chunk: 65_536, pace: time.Millisecond}
		p := &memoryPart{}
		ctx, cancel := context.WithCancel(t.Context())
		wait := start(ctx, newTestFill(s, p))
		time.Sleep(20 * time.Millisecond)
		cancel()
		if err := wait(); !errors.Is(err, context.Canceled) {
			t.Fatalf("a cancelled fill ends with %v", err)
		}
		half := p.saved.Len()
		if half == 0 || p.discarded {
			t.Fatalf("saved %d bytes, discarded %v", half, p.discarded)
		}
		f := newTestFill(s, p)
		wait = start(t.Context(), f)
		got, err := read(t.Context(), f, oci.Whole)
		if err != nil || !bytes.Equal(got, s.content) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		if want := int64(len(s.content)) + 65_536; s.sent > want {
			t.Errorf("sent %d in both, want at most %d", s.sent, want)
		}
	})
}

// A part is saved by what has come, wherever that is: also while its beginning
// is still missing.
func TestFillSavesWhatIsAheadOfTheVerifiedPrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		s := &source{content: content(13, 8*testSegment), chunk: 64 << 10, pace: time.Millisecond}
		s.open = func(_ int, span oci.Span) (*oci.Body, error) {
			if span.From == 0 { // what stays silent
				r, w := io.Pipe()
				context.AfterFunc(ctx, func() { w.Close() })
				return &oci.Body{ReadCloser: r, Span: span, Size: int64(len(s.content))}, nil
			}
			return nil, nil
		}
		p := &memoryPart{}
		f := newTestFill(s, p)
		f.every = testSegment / 2
		f.askPiece(oci.Span{From: 4 * testSegment, To: oci.Open}, false)
		f.WantWhole()
		wait := start(ctx, f)
		go func() { _, _ = read(ctx, f, oci.Whole) }() // ends with ctx
		time.Sleep(time.Minute)
		synctest.Wait()
		p.mu.Lock()
		saved, there := p.saved.Len(), p.saved.Reach(0)
		p.mu.Unlock()
		if want := 8*testSegment - f.segment() - f.every; there != 0 || saved < want {
			t.Errorf("saved %d bytes, and %d of the prefix; want %d at least, and none", saved, there, want)
		}
		end()
		if err := wait(); err == nil {
			t.Error("it ended well")
		}
	})
}

func TestFillOfASavedPartThatIsDamagedFetchesAllAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(9, Withheld)}
		p := &memoryPart{content: make([]byte, 1000)}
		p.saved.Add(0, 1000)
		f := newTestFill(s, p)
		wait := start(t.Context(), f)
		got, err := read(t.Context(), f, oci.Whole)
		if err != nil || !bytes.Equal(got, s.content) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if err := wait(); err != nil || !p.committed {
			t.Errorf("%v, committed %v", err, p.committed)
		}
	})
}

func TestFillEndsCleanlyWhereTheUpstreamHasNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(10, 100)}
		absent := oci.Errorf(oci.CodeBlobUnknown, "no such blob")
		s.open = func(int, oci.Span) (*oci.Body, error) { return nil, absent }
		p := &memoryPart{}
		f := newTestFill(s, p)
		wait := start(t.Context(), f)
		if _, err := read(t.Context(), f, oci.Whole); !errors.Is(err, absent) {
			t.Errorf("the reader gets %v", err)
		}
		if err := wait(); !errors.Is(err, absent) || !p.discarded || len(s.requests) != 1 {
			t.Errorf("%v, discarded %v, %d requests", err, p.discarded, len(s.requests))
		}
	})
}

func TestFillGivesUpOnAnUpstreamThatSendsNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(11, 1<<20)}
		s.cut = func(n int) int {
			if n == 0 {
				return 500_000
			}
			return 0
		}
		p := &memoryPart{}
		f := newTestFill(s, p)
		wait := start(t.Context(), f)
		got, err := read(t.Context(), f, oci.Whole)
		if !errors.Is(err, errCut) || len(got) != 500_000 {
			t.Errorf("the reader gets %d bytes and %v", len(got), err)
		}
		if err := wait(); !errors.Is(err, errCut) || len(s.requests) != MaxTries {
			t.Errorf("%v after %d requests, want %d", err, len(s.requests), MaxTries)
		}
		if p.saved.Len() != 500_000 || p.discarded {
			t.Errorf("saved %d bytes, discarded %v", p.saved.Len(), p.discarded)
		}
	})
}

func TestFillRefusesAnotherSizeThanTheManifestSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(12, 1<<20)}
		f := newTestFill(s, &memoryPart{})
		s.content = s.content[:1<<19]
		wait := start(t.Context(), f)
		_, err := read(t.Context(), f, oci.Whole)
		if !oci.IsTransient(err) || err == nil {
			t.Errorf("the reader gets %v", err)
		}
		if err := wait(); err == nil {
			t.Error("the fill ends well")
		}
	})
}

func TestFillAsksAgainWhereTheSizeWasWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(12, 1<<20)}
		refused := 0
		s.open = func(n int, _ oci.Span) (*oci.Body, error) {
			if n > 0 {
				return nil, nil // the next endpoint
			}
			size := int64(len(s.content)) + 1000
			return &oci.Body{
				ReadCloser: io.NopCloser(bytes.NewReader(s.content)),
				Span:       oci.Span{From: 0, To: size}, Size: size, Refuse: func() { refused++ },
			}, nil
		}
		f := newTestFill(s, &memoryPart{})
		wait := start(t.Context(), f)
		got, err := read(t.Context(), f, oci.Whole)
		if err != nil || !bytes.Equal(got, s.content) {
			t.Errorf("the reader gets %d bytes of %d, %v", len(got), len(s.content), err)
		}
		if err := wait(); err != nil || refused != 1 || len(s.requests) != 2 {
			t.Errorf("%v, %d refusals, %d requests; want nil, 1, 2", err, refused, len(s.requests))
		}
	})
}

// A fault of the last writer ends the round; readers that want other bytes come
// at just that time.
func TestFillThatEndsWhileReadersAskForMoreEndsCleanly(t *testing.T) {
	for range 100 {
		s := &source{content: content(40, 4<<20)}
		ready, refuse := make(chan struct{}), make(chan struct{})
		s.open = func(n int, span oci.Span) (*oci.Body, error) {
			if n == 0 {
				close(ready)
				<-refuse
			}
			return nil, oci.Errorf(oci.CodeBlobUnknown, "gone")
		}
		f := newTestFill(s, &memoryPart{})
		f.least = 64 << 10
		wait := start(t.Context(), f)
		<-ready
		var readers sync.WaitGroup
		for range 2 {
			readers.Go(func() {
				for {
					f.mu.Lock()
					ended := f.ended
					f.want(&wish{span: oci.Span{From: 0, To: 4 << 20}, at: 3 << 20})
					f.mu.Unlock()
					if ended {
						return
					}
				}
			})
		}
		close(refuse)
		if err := wait(); !oci.IsAbsent(err) {
			t.Fatalf("the fill ends with %v; want that the blob is gone", err)
		}
		readers.Wait()
	}
}

// The size that a client has been told is that of the first answer. When that
// answer was wrong, and the next one has another size, what the client would get
// is cut off at the wrong place.
func TestFillNeverCompletesAReaderThatWasToldAnotherSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		whole, wrong := content(41, 3*Withheld), content(42, 2*Withheld)
		s := &source{content: whole, hideSize: true}
		told := make(chan struct{})
		s.open = func(n int, span oci.Span) (*oci.Body, error) {
			b := whole
			if n == 0 {
				b = wrong
			}
			size := int64(len(b))
			body := &oci.Body{ReadCloser: io.NopCloser(bytes.NewReader(b)), Span: oci.Span{To: size}, Size: size}
			if n == 0 {
				body.ReadCloser = io.NopCloser(io.MultiReader(gatedReader{told}, bytes.NewReader(b)))
			}
			return body, nil
		}
		f := newTestFill(s, &memoryPart{})
		wait := start(t.Context(), f)
		size, err := f.Ready(t.Context(), oci.Whole)
		if err != nil || size != int64(len(wrong)) {
			t.Fatalf("ready: %d, %v; want %d", size, err, len(wrong))
		}
		r, err := newReader(t.Context(), f, size, nil)
		if err != nil {
			t.Fatal(err)
		}
		close(told)
		if err := wait(); err != nil {
			t.Fatalf("the second answer is right, and the fill ends with %v", err)
		}
		var got bytes.Buffer
		if n, err := r.Send(&got, oci.Whole); err == nil {
			t.Errorf("a reader that was told %d bytes got %d bytes of a blob of %d, and no error", size, n, len(whole))
		}
		if got, err := read(t.Context(), f, oci.Whole); err != nil || !bytes.Equal(got, whole) {
			t.Errorf("a later reader got %d bytes, %v; want all %d", len(got), err, len(whole))
		}
	})
}

// lastWords gives its last bytes together with an error.
type lastWords struct {
	rest []byte
	err  error
}

func (l *lastWords) Read(p []byte) (int, error) {
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	if len(l.rest) == 0 {
		return n, l.err
	}
	return n, nil
}

func TestFillKeepsABlobWhoseLastBytesCameWithAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(43, 5*Withheld)}
		s.open = func(n int, span oci.Span) (*oci.Body, error) {
			if n > 0 {
				return nil, oci.Errorf(oci.CodeRangeInvalid, "no such bytes: %v", span)
			}
			size := int64(len(s.content))
			return &oci.Body{ReadCloser: io.NopCloser(&lastWords{s.content, errCut}), Span: oci.Span{To: size}, Size: size}, nil
		}
		p := &memoryPart{}
		f := newTestFill(s, p)
		if err := f.Run(t.Context()); err != nil {
			t.Errorf("all bytes came, and the fill ends with %v", err)
		}
		if !p.committed || p.discarded || len(s.requests) != 1 {
			t.Errorf("committed %v, discarded %v, %d requests; want true, false, 1", p.committed, p.discarded, len(s.requests))
		}
	})
}

// A note of an earlier fill is a hint. One with a wrong size must not make every
// later fill fail.
func TestFillOfAPartWithAWrongSizeIsRightTheNextTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(44, 3*Withheld), hideSize: true}
		s.open = func(n int, span oci.Span) (*oci.Body, error) {
			size := int64(len(s.content))
			return &oci.Body{ReadCloser: io.NopCloser(bytes.NewReader(s.content[span.From:])), Span: oci.Span{From: span.From, To: size}, Size: size}, nil
		}
		p := &memoryPart{content: content(45, 1000)}
		p.saved.Add(0, 1000)
		noted := int64(2 * Withheld)
		var err error
		for range 2 {
			p.discarded = false
			f := newTestFill(s, p)
			f.task.Begin = func() (Part, store.Spans, int64, error) { return p, p.saved.Clone(), noted, nil }
			if err = f.Run(t.Context()); err == nil {
				break
			}
			if p.discarded {
				p.saved, noted = store.Spans{}, -1
			}
		}
		if err != nil || !p.committed {
			t.Errorf("the second fill ends with %v, committed %v", err, p.committed)
		}
	})
}

func TestFillAsksForTheFarEndWhenAReaderWaitsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := 4 * testSegment
		s := &source{content: content(13, size), chunk: 16 << 10, pace: 10 * time.Millisecond}
		f := newTestFill(s, &memoryPart{})
		wait := start(t.Context(), f)
		begun := time.Now()
		from := int64(3 * testSegment)
		got, err := read(t.Context(), f, oci.Span{From: from, To: from + 1000})
		if err != nil || !bytes.Equal(got, s.content[from:from+1000]) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		// The clock is fake: this is a count of chunks, not a measurement.
		if d := time.Since(begun); d > 10*s.pace {
			t.Errorf("a reader far from the first writer waited %v", d)
		}
		if err := wait(); err != nil || s.sent != int64(size) {
			t.Errorf("%v; sent %d of %d", err, s.sent, size)
		}
	})
}

func TestFillBeginsWithWhatItsFirstReaderWants(t *testing.T) {
	for i, first := range []int64{0, 700_000, 1 << 20, 2 << 20, 700_000} {
		synctest.Test(t, func(t *testing.T) {
			size := int64(1 << 20)
			s := &source{content: content(15, int(size)), noRanges: i == 4}
			p := &memoryPart{}
			f := newTestFill(s, p)
			f.askPiece(oci.Span{From: first, To: oci.Open}, true)
			wait := start(t.Context(), f)
			if err := wait(); err != nil || !bytes.Equal(p.content, s.content) || s.sent != size {
				t.Errorf("first %d: %v, sent %d of %d", first, err, s.sent, size)
			}
			want := first
			if first >= size {
				want = 0
			}
			// The request for the rest may overtake it.
			if s.requests[0].From != want && (len(s.requests) < 2 || s.requests[1].From != want) {
				t.Errorf("first %d: the first requests are for %v", first, s.requests)
			}
		})
	}
}

func TestFillThatCanNotBeKeptIsStillReadToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("no space left on device")
		s := &source{content: content(14, 1<<20)}
		p := &failingCommit{memoryPart: &memoryPart{}, err: full}
		f := newTestFill(s, p.memoryPart)
		f.task.Begin = func() (Part, store.Spans, int64, error) { return p, store.Spans{}, -1, nil }
		wait := start(t.Context(), f)
		got, err := read(t.Context(), f, oci.Whole)
		if err != nil || !bytes.Equal(got, s.content) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if err := wait(); !errors.Is(err, full) || !p.discarded {
			t.Errorf("the fill ends with %v, discarded %v", err, p.discarded)
		}
	})
}

// TestFillIsReadToItsEndWhileTheDiskSyncs also kills the process meanwhile: the next
// one finds all of it, and asks for nothing.
func TestFillIsReadToItsEndWhileTheDiskSyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(22, 1<<20)}
		p := &slowCommit{memoryPart: &memoryPart{}, sync: make(chan struct{})}
		f := newTestFill(s, p.memoryPart)
		f.task.Begin = func() (Part, store.Spans, int64, error) { return p, store.Spans{}, -1, nil }
		wait := start(t.Context(), f)
		got, err := read(t.Context(), f, oci.Whole)
		if err != nil || !bytes.Equal(got, s.content) {
			t.Errorf("got %d bytes, %v; want %d", len(got), err, len(s.content))
		}
		if _, kept := f.Origin(); kept || p.committed {
			t.Error("it is kept before its sync has ended")
		}
		next := &memoryPart{content: bytes.Clone(p.content), saved: p.saved.Clone()}
		if err := newTestFill(s, next).Run(t.Context()); err != nil || !next.committed || len(s.requests) != 1 {
			t.Errorf("the next process: %v, committed %v, with %d requests in all; want one", err, next.committed, len(s.requests))
		}
		close(p.sync)
		if err := wait(); err != nil || !p.committed {
			t.Errorf("%v, committed %v", err, p.committed)
		}
	})
}

// slowCommit is a part on a disk that syncs when sync is closed.
type slowCommit struct {
	*memoryPart
	sync chan struct{}
}

func (p *slowCommit) Commit(size int64) error {
	<-p.sync
	return p.memoryPart.Commit(size)
}

type failingCommit struct {
	*memoryPart
	err error
}

func (p *failingCommit) Commit(int64) error { return p.err }

func TestFillIsRightUnderRandomFaults(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			size := 1 + r.IntN(3*testSegment)
			s := &source{
				content:  content(seed, size),
				chunk:    1000 + r.IntN(1<<17),
				pace:     time.Duration(r.IntN(3)) * time.Millisecond,
				hideSize: seed%5 == 4,
			}
			var mu sync.Mutex
			cuts := 12
			s.cut = func(int) int {
				mu.Lock()
				defer mu.Unlock()
				if cuts == 0 {
					return -1
				}
				cuts--
				return 1 + r.IntN(size)
			}
			s.open = func(n int, _ oci.Span) (*oci.Body, error) {
				if n%4 == 3 {
					return nil, oci.Errorf(oci.CodeUnavailable, "busy")
				}
				return nil, nil
			}
			spans := make([]oci.Span, 10)
			for i := range spans {
				from := r.Int64N(int64(size))
				spans[i] = oci.Span{From: from, To: from + 1 + r.Int64N(int64(size)-from)}
			}
			p := &memoryPart{}
			f := newTestFill(s, p)
			wait := start(t.Context(), f)
			var readers sync.WaitGroup
			for _, span := range append(spans, oci.Whole) {
				readers.Go(func() {
					got, err := read(t.Context(), f, span)
					if want := s.content[span.From:End(span, int64(size))]; err != nil || !bytes.Equal(got, want) {
						t.Errorf("seed %d: span %v of %d: got %d bytes, %v", seed, span, size, len(got), err)
					}
				})
			}
			readers.Wait()
			if err := wait(); err != nil || !bytes.Equal(p.content, s.content) {
				t.Errorf("seed %d: %v", seed, err)
			}
			if !s.hideSize && s.sent != int64(size) {
				t.Errorf("seed %d: sent %d of %d", seed, s.sent, size)
			}
		})
	}
}

func TestFillComesBackWhenTheUpstreamSays(t *testing.T) {
	for _, c := range []struct{ asks, want time.Duration }{{10 * time.Second, 10 * time.Second}, {time.Hour, maxComeBack}} {
		synctest.Test(t, func(t *testing.T) {
			s := &source{content: content(1, testSegment)}
			s.cut = func(n int) int { return []int{1000, -1}[min(n, 1)] }
			s.open = func(n int, _ oci.Span) (*oci.Body, error) {
				if n == 1 {
					return nil, &oci.Error{Code: oci.CodeUnavailable, Message: "is left alone", RetryAfter: c.asks}
				}
				return nil, nil
			}
			p := &memoryPart{}
			began := time.Now()
			wait := start(t.Context(), newTestFill(s, p))
			if err := wait(); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d < c.want || d > c.want+5*time.Second {
				t.Errorf("told to come back in %s the fill took %s, want a little over %s", c.asks, d, c.want)
			}
		})
	}
}
