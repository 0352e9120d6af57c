package fill

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// Spans of one request come side by side, each byte once, and little more than they have.
func TestSpansThatWillBeReadAreFetchedSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pieces, piece = 64, 70_000
		s := &source{content: content(70, 64<<20)}
		s.open = func(int, oci.Span) (*oci.Body, error) {
			time.Sleep(100 * time.Millisecond) // a round trip
			return nil, nil
		}
		var spans []oci.Span
		for i := range int64(pieces) {
			spans = append(spans, oci.Span{From: i<<20 + 5000, To: i<<20 + 5000 + piece})
		}
		spans[3], spans[60] = spans[60], spans[3]
		f := newTestFill(s, &memoryPart{})
		f.least = MinSegment
		f.askPiece(spans[0], false)
		wait := start(t.Context(), f)
		began := time.Now()
		size, err := f.Ready(t.Context(), spans[0])
		if err != nil || !f.Attach() {
			t.Fatal(err)
		}
		r, err := newReader(t.Context(), f, size, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.attached = true
		if !r.Prepare(spans) {
			t.Fatal("it wants to be read as a whole")
		}
		for _, span := range spans {
			var got bytes.Buffer
			if _, err := r.Send(&got, span); err != nil || !bytes.Equal(got.Bytes(), s.content[span.From:span.To]) {
				t.Fatalf("%v: got %d bytes, %v", span, got.Len(), err)
			}
		}
		if took := time.Since(began); took > pieces/maxForeseers*2*100*time.Millisecond {
			t.Errorf("%d spans took %s", pieces, took)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err := wait(); !errors.Is(err, ErrParked) {
			t.Errorf("the fill ends with %v", err)
		}
		if most := int64(pieces*piece) * 11 / 10; s.sent > most {
			t.Errorf("the upstream sent %d bytes, want up to %d", s.sent, most)
		}
		if len(f.foreseen) > 0 {
			t.Errorf("%d spans are still foreseen", len(f.foreseen))
		}
	})
}

// Readers who leave are forgotten, and many of them are not remembered at all.
func TestWhatIsForeseenIsBounded(t *testing.T) {
	f := newTestFill(&source{content: content(71, 8<<20)}, &memoryPart{})
	f.eager = false
	var readers []*Reader
	for range 10 {
		r := &Reader{fill: f}
		var spans []oci.Span
		for i := range int64(1024) {
			spans = append(spans, oci.Span{From: i << 12, To: i<<12 + 1})
		}
		r.Prepare(spans)
		readers = append(readers, r)
	}
	if n := len(f.foreseen); n != maxForeseen {
		t.Errorf("%d spans are remembered, want %d", n, maxForeseen)
	}
	for _, r := range readers {
		f.forget(r)
	}
	if n := len(f.foreseen); n != 0 {
		t.Errorf("%d spans are still remembered", n)
	}
}
