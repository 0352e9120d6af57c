package fill

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// The first body stops after a MiB. What lies behind that comes all the same, for as many
// readers as want it, and no byte is fetched twice.
func TestReadersOfPiecesDoNotWaitForWhatComesBefore(t *testing.T) {
	for _, hidden := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			size := int64(8 << 20)
			gate := make(chan struct{})
			s := &source{content: content(50, int(size)), gate: gate, gateAt: 1 << 20}
			p := &memoryPart{}
			f := newTestFill(s, p)
			f.least = MinSegment
			if hidden {
				f.size, f.task.Size = -1, -1
			}
			wait := start(t.Context(), f)
			spans := []oci.Span{{From: size - 100, To: oci.Open}, {From: size - 300_000, To: size - 200_000}}
			for at := int64(3 << 19); len(spans) < 12; at += 1 << 19 {
				spans = append(spans, oci.Span{From: at + 17, To: at + 17 + 64<<10})
			}
			var readers sync.WaitGroup
			for _, span := range spans {
				readers.Go(func() {
					got, err := read(t.Context(), f, span)
					if err != nil || !bytes.Equal(got, s.content[span.From:End(span, size)]) {
						t.Errorf("%v: got %d bytes, %v", span, len(got), err)
					}
				})
			}
			readers.Wait()
			// The rest needs the gate: nobody is given the end of the whole before that.
			whole := make(chan error, 1)
			go func() {
				got, err := read(t.Context(), f, oci.Whole)
				if err == nil && !bytes.Equal(got, s.content) {
					t.Error("the whole is wrong")
				}
				whole <- err
			}()
			synctest.Wait()
			if _, here := f.Verified(); here || p.committed {
				t.Error("the blob counts as verified, and not all of it is here")
			}
			close(gate)
			if err := <-whole; err != nil {
				t.Error(err)
			}
			if err := wait(); err != nil || s.sent != size {
				t.Errorf("%v; the upstream sent %d bytes of %d", err, s.sent, size)
			}
		})
	}
}

// A piece that begins a little behind another one that is on its way has a request of its
// own: it does not wait until the other one is here.
func TestAPieceDoesNotWaitForAnotherThatEndsBeforeIt(t *testing.T) {
	for _, gap := range []int64{leadSize, 100_000, soonThere - 64<<10} {
		synctest.Test(t, func(t *testing.T) {
			size := int64(8 << 20)
			one := oci.Span{From: 2 << 20, To: 2<<20 + 64<<10}
			two := oci.Span{From: one.To + gap, To: one.To + gap + 64<<10}
			gate := make(chan struct{})
			s := &source{content: content(54, int(size)), gate: gate, gateAt: one.From + 1}
			f := newTestFill(s, &memoryPart{})
			f.least, f.lead = MinSegment, 0
			f.askPiece(one, false)
			wait := start(t.Context(), f)
			first := make(chan error, 1)
			go func() {
				got, err := read(t.Context(), f, oci.Span{From: one.From + 1, To: one.To})
				if err == nil && !bytes.Equal(got, s.content[one.From+1:one.To]) {
					t.Error("the first piece is wrong")
				}
				first <- err
			}()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if got, err := read(ctx, f, two); err != nil || !bytes.Equal(got, s.content[two.From:two.To]) {
				t.Errorf("%d bytes behind a piece that does not come: got %d bytes, %v", gap, len(got), err)
			}
			close(gate)
			if err := <-first; err != nil {
				t.Error(err)
			}
			if err := wait(); !errors.Is(err, ErrParked) {
				t.Errorf("the fill ended with %v, want %v", err, ErrParked)
			}
		})
	}
}

// Only an answer that begins at the first byte can be taken for the whole blob.
func TestOnlyAReaderFromTheFirstByteWaitsForTheDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := int64(1 << 20)
		gate := make(chan struct{})
		s := &source{content: content(51, int(size)), gate: gate, gateAt: 1 << 19}
		f := newTestFill(s, &memoryPart{})
		f.least = MinSegment
		f.askPiece(oci.Span{From: size - 100, To: oci.Open}, true)
		wait := start(t.Context(), f)
		if got, err := read(t.Context(), f, oci.Span{From: size - 100, To: oci.Open}); err != nil || !bytes.Equal(got, s.content[size-100:]) {
			t.Errorf("the last 100 bytes: got %d, %v", len(got), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // before another connection is tried
		defer cancel()
		if got, err := read(ctx, f, oci.Whole); err == nil || int64(len(got)) > size-Withheld {
			t.Errorf("the whole: got %d bytes of %d, %v", len(got), size, err)
		}
		close(gate)
		if err := wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestAFillThatFetchesTheWholeWaitsForNobodyElse completes a blob in the background, of an
// upstream that sends only wholes: the fill is then itself what keeps its upstream from being
// quiet.
func TestAFillThatFetchesTheWholeWaitsForNobodyElse(t *testing.T) {
	for name, s := range map[string]*source{
		"no ranges":          {noRanges: true},
		"nobody says a size": {hideSize: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s.content = content(53, 4<<20)
				p := &memoryPart{}
				f := newTestFill(s, p)
				f.askPiece(oci.Span{From: 0, To: 1}, true)
				f.task.Complete = func() time.Duration {
					if now, used := f.IsInDemand(); !now {
						return Quiet - time.Since(used)
					}
					return Quiet
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				if err := f.Run(ctx); err != nil || !p.committed {
					t.Errorf("committed %v, %v", p.committed, err)
				}
			})
		})
	}
}

// readPieces reads spans of f, eight at a time, and checks them.
func readPieces(t *testing.T, f *Fill, content []byte, spans []oci.Span) (asked int64) {
	t.Helper()
	var readers sync.WaitGroup
	places := make(chan struct{}, 8)
	for _, span := range spans {
		asked += End(span, int64(len(content))) - span.From
		places <- struct{}{}
		readers.Go(func() {
			defer func() { <-places }()
			if !f.Attach() {
				t.Error("the fill ends while there are readers")
				return
			}
			defer f.Detach()
			got, err := read(t.Context(), f, span)
			if err != nil || !bytes.Equal(got, content[span.From:End(span, int64(len(content)))]) {
				t.Errorf("%v: got %d bytes, %v", span, len(got), err)
			}
		})
	}
	readers.Wait()
	return asked
}

// What is asked for in pieces is fetched in pieces, and stays for a later fill. Nothing
// counts as complete that isn't.
func TestPiecesAreFetchedAsPiecesAndServedAgainAfterTheFillHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := int64(32 << 20)
		s := &source{content: content(52, int(size)), pace: time.Millisecond, chunk: 16 << 10}
		p := &memoryPart{}
		var spans []oci.Span
		for i := range int64(32) {
			at := (i * 11 % 32) << 20
			spans = append(spans, oci.Span{From: at + 1000*i, To: at + 1000*i + 64<<10})
		}
		spans = append(spans, oci.Span{From: size - 100, To: oci.Open})
		New := func() *Fill {
			f := newTestFill(s, p)
			f.least, f.lead = MinSegment, leadSize
			f.askPiece(spans[0], false)
			return f
		}
		f := New()
		wait := start(t.Context(), f)
		asked := readPieces(t, f, s.content, spans)
		if err := wait(); !errors.Is(err, ErrParked) {
			t.Fatalf("the fill ends with %v, want %v", err, ErrParked)
		}
		if most := asked + asked/4; s.sent > most {
			t.Errorf("%d bytes were asked for and the upstream sent %d, want %d at most", asked, s.sent, most)
		}
		if p.committed || p.discarded || p.saved.Len() < asked || p.saved.Len() > s.sent {
			t.Errorf("committed %v, discarded %v, %d bytes saved of %d", p.committed, p.discarded, p.saved.Len(), s.sent)
		}
		// Once more, from what the first fill has left.
		before := len(s.requests)
		f = New()
		wait = start(t.Context(), f)
		readPieces(t, f, s.content, spans)
		if err := wait(); !errors.Is(err, ErrParked) || len(s.requests) != before {
			t.Errorf("%v; the upstream was asked %d more times", err, len(s.requests)-before)
		}
		// The rest is fetched without what is here.
		sent := s.sent
		f = New()
		f.askPiece(spans[0], true)
		if err := f.Run(t.Context()); err != nil || !p.committed || !bytes.Equal(p.content, s.content) {
			t.Errorf("%v, committed %v", err, p.committed)
		}
		if rest, most := s.sent-sent, size-asked+int64(len(s.requests))*leadSize; rest > most {
			t.Errorf("the upstream sent %d bytes of the rest, want %d at most", rest, most)
		}
	})
}

// What a lying upstream has sent as pieces is gone once the whole shows it, and is fetched
// anew.
func TestPiecesThatWereWrongGoWhenTheWholeIsVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(53, 4<<20)}
		told := lying(s, flipped)
		p := &memoryPart{}
		f := newTestFill(s, p)
		f.askPiece(oci.Span{From: 1 << 20, To: 1<<20 + 1<<16}, false)
		wait := start(t.Context(), f)
		if got, err := read(t.Context(), f, f.task.Piece); err != nil || bytes.Equal(got, s.content[f.task.Piece.From:f.task.Piece.To]) {
			t.Fatalf("the piece should come, and be wrong: %d bytes, %v", len(got), err)
		}
		if err := wait(); !errors.Is(err, ErrParked) {
			t.Fatal(err)
		}
		f = newTestFill(s, p)
		f.askPiece(oci.Span{From: 0, To: 1}, true)
		if err := f.Run(t.Context()); err != nil || !p.committed || !bytes.Equal(p.content, s.content) {
			t.Errorf("the fill of the rest ends with %v, committed %v; the upstream was blamed %d times", err, p.committed, told.Load())
		}
	})
}

// An upstream that sends the whole whatever it is asked is asked once.
func TestPiecesOfAnUpstreamWithoutRangesAreOneTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := int64(3 << 20)
		s := &source{content: content(54, int(size)), noRanges: true, pace: time.Millisecond, chunk: 64 << 10}
		p := &memoryPart{}
		f := newTestFill(s, p)
		f.least = MinSegment
		spans := []oci.Span{{From: 1 << 20, To: 1<<20 + 1000}, {From: 2 << 20, To: 2<<20 + 1000}, {From: size - 100, To: oci.Open}}
		f.askPiece(spans[0], false)
		wait := start(t.Context(), f)
		if _, err := f.Ready(t.Context(), spans[0]); err != nil {
			t.Fatal(err)
		}
		readPieces(t, f, s.content, spans)
		if err := wait(); err != nil || !p.committed || s.sent != size {
			t.Errorf("%v, committed %v, %d bytes sent", err, p.committed, s.sent)
		}
	})
}

// A reader that goes on and on is given more than it waits for, and a whole is fetched
// with no more requests than ever.
func TestReadAheadGrowsWithWhatAReaderTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := int64(24 << 20)
		s := &source{content: content(55, int(size))}
		p := &memoryPart{}
		f := newTestFill(s, p)
		f.least = MinSegment
		f.askPiece(oci.Span{From: 1, To: oci.Open}, false)
		wait := start(t.Context(), f)
		readPieces(t, f, s.content, []oci.Span{f.task.Piece})
		if err := wait(); err != nil || !p.committed || s.sent != size {
			t.Errorf("%v, committed %v, %d bytes sent", err, p.committed, s.sent)
		}
		if n := len(s.requests); n > 8 {
			t.Errorf("%d requests for one reader that goes on: %v", n, s.requests)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(56, 24<<20)}
		f := newTestFill(s, &memoryPart{})
		f.least = MinSegment
		var spans []oci.Span
		for at := int64(1 << 20); at < 17<<20; at += 64 << 10 {
			spans = append(spans, oci.Span{From: at, To: at + 64<<10})
		}
		f.askPiece(spans[0], false)
		wait := start(t.Context(), f)
		for i := range spans {
			readPieces(t, f, s.content, spans[i:i+1])
		}
		if err := wait(); !errors.Is(err, ErrParked) {
			t.Fatal(err)
		}
		if n := len(s.requests); n > 16 {
			t.Errorf("%d requests for %d ranges in a row", n, len(spans))
		}
	})
}

// A piece of which an earlier fill has left the beginning is answered.
func TestTheRestOfAPieceIsFetchedWhereAnEarlierFillEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(57, 4<<20)}
		p := &memoryPart{content: append([]byte{}, s.content[:2<<20]...)}
		p.saved.Add(1<<20, 2<<20)
		f := newTestFill(s, p)
		f.askPiece(oci.Span{From: 1 << 20, To: 2<<20 + 1000}, false)
		wait := start(t.Context(), f)
		if got, err := read(t.Context(), f, f.task.Piece); err != nil || !bytes.Equal(got, s.content[f.task.Piece.From:f.task.Piece.To]) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if err := wait(); !errors.Is(err, ErrParked) || s.sent > 2*minPiece {
			t.Errorf("%v; %d bytes sent", err, s.sent)
		}
	})
}
