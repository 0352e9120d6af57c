package fill

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// lying makes s answer requests for a part by the bytes that lie gives, under the right
// header. It counts the times that it was told so.
func lying(s *source, lie func(content []byte, span oci.Span) []byte) *atomic.Int32 {
	told := new(atomic.Int32)
	usual := s.open
	s.open = func(n int, span oci.Span) (*oci.Body, error) {
		if usual != nil {
			if b, err := usual(n, span); b != nil || err != nil {
				return b, err
			}
		}
		if span.From == 0 {
			return nil, nil
		}
		size := int64(len(s.content))
		got := oci.Span{From: span.From, To: End(span, size)}
		body := &sourceBody{s: s, ctx: context.Background(), rest: lie(s.content, got), cut: -1}
		return &oci.Body{ReadCloser: body, Span: got, Size: size, Status: 206, Source: "source.test", NoRanges: func() { told.Add(1) }}, nil
	}
	return told
}

// lies are answers to a request for a part that are as long as that is.
var lies = map[string]func(content []byte, span oci.Span) []byte{
	"the first bytes": func(c []byte, s oci.Span) []byte { return c[:s.To-s.From] },
	"one byte late":   func(c []byte, s oci.Span) []byte { return append(append([]byte{}, c[s.From+1:s.To]...), 0) },
	"one byte early":  func(c []byte, s oci.Span) []byte { return c[s.From-1 : s.To-1] },
	"zeros":           func(_ []byte, s oci.Span) []byte { return make([]byte, s.To-s.From) },
}

func TestReadersGetTheRightBytesThoughPartsOfABlobAreWrong(t *testing.T) {
	for name, lie := range lies {
		for _, unsized := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &source{content: content(31, 8*testSegment+999), pace: 10 * time.Millisecond, chunk: 50_000}
					told := lying(s, lie)
					p := &memoryPart{}
					f := newTestFill(s, p)
					f.lead = leadSize
					if unsized {
						f.size, f.task.Size = -1, -1
					}
					wait := start(t.Context(), f)
					got, err := read(t.Context(), f, oci.Whole)
					if err != nil || !bytes.Equal(got, s.content) {
						t.Errorf("the reader got %d bytes, right: %v, %v", len(got), bytes.Equal(got, s.content), err)
					}
					if err := wait(); err != nil {
						t.Fatal(err)
					}
					if !p.committed || !bytes.Equal(p.content, s.content) {
						t.Error("the blob is not kept as it is")
					}
					if told.Load() == 0 {
						t.Error("the upstream is not taken for one without ranges")
					}
				})
			})
		}
	}
}

func TestAWrongResumeIsFollowedByTheWhole(t *testing.T) {
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &source{content: content(32, 1_500_000), cut: func(n int) int {
					if n == 0 {
						return 1 << 20
					}
					return -1
				}}
				told := lying(s, lie)
				f := newTestFill(s, &memoryPart{})
				f.least, f.lead = MinSegment, leadSize
				wait := start(t.Context(), f)
				got, err := read(t.Context(), f, oci.Whole)
				if err := errors.Join(err, wait()); err != nil || !bytes.Equal(got, s.content) {
					t.Errorf("the reader got %d bytes, %v", len(got), err)
				}
				if told.Load() == 0 {
					t.Error("the upstream is not taken for one without ranges")
				}
			})
		})
	}
}

// flipped changes one bit in the middle of a part: where parts meet, they fit.
func flipped(c []byte, s oci.Span) []byte {
	b := append([]byte{}, c[s.From:s.To]...)
	b[len(b)/2] ^= 1
	return b
}

func TestWrongBytesOfPartsAreFetchedOnceMoreAsAWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(33, 8*testSegment), pace: 10 * time.Millisecond, chunk: 50_000}
		_ = lying(s, flipped)
		p := &memoryPart{}
		f := newTestFill(s, p)
		f.lead = leadSize
		wait := start(t.Context(), f)
		var got bytes.Buffer
		size, err := f.Ready(t.Context(), oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		r, err := newReader(t.Context(), f, size, nil)
		if err != nil {
			t.Fatal(err)
		}
		// It has read the beginning, which is right.
		if _, err := r.Send(&got, oci.Span{From: 0, To: 1000}); err != nil {
			t.Fatal(err)
		}
		// A reader of all of it was given the wrong bytes, and has to be cut off.
		all, err := read(t.Context(), f, oci.Whole)
		if err == nil || bytes.Equal(all, s.content) || len(all) > len(s.content)-Withheld {
			t.Errorf("a reader of wrong bytes got %d of them, %v", len(all), err)
		}
		_ = wait()
		if p.committed {
			t.Error("bytes are kept that readers were not given")
		}
		if n := len(s.requests); s.requests[n-1] != oci.Whole {
			t.Errorf("the last request was for %v, want the whole", s.requests[n-1])
		}
	})
	// Without a reader that was given them, the whole is kept.
	synctest.Test(t, func(t *testing.T) {
		s := &source{content: content(34, 8*testSegment), pace: 10 * time.Millisecond, chunk: 50_000}
		told := lying(s, flipped)
		p := &memoryPart{}
		f := newTestFill(s, p)
		f.lead = leadSize
		if err := f.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !p.committed || !bytes.Equal(p.content, s.content) || told.Load() == 0 {
			t.Errorf("committed %v, told %d", p.committed, told.Load())
		}
	})
}

func TestABlobOfWhichOnlyTheEndOfTheBodyIsMissingIsComplete(t *testing.T) {
	for _, size := range []int{1000, 3 << 20} {
		synctest.Test(t, func(t *testing.T) {
			s := &source{content: content(35, size), hideSize: true}
			s.open = func(n int, span oci.Span) (*oci.Body, error) {
				if n > 0 {
					return nil, oci.Errorf(oci.CodeUnavailable, "416")
				}
				rest := io.MultiReader(bytes.NewReader(s.content), brokenReader{})
				return &oci.Body{ReadCloser: io.NopCloser(rest), Span: oci.Whole, Size: -1, Status: 200}, nil
			}
			p := &memoryPart{}
			f := newTestFill(s, p)
			wait := start(t.Context(), f)
			got, err := read(t.Context(), f, oci.Whole)
			if err := errors.Join(err, wait()); err != nil || !bytes.Equal(got, s.content) || !p.committed {
				t.Errorf("got %d bytes of %d, %v; committed %v", len(got), size, err, p.committed)
			}
		})
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errCut }

func TestTheDigestDecidesIfAManifestIsWrongAboutTheSize(t *testing.T) {
	for _, size := range []int{1000, Withheld, Withheld + 1, 20 << 20} {
		for _, off := range []int64{-1, 1, 1000} {
			if int64(size)+off < 0 {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				s := &source{content: content(36, size)}
				p := &memoryPart{}
				f := newTestFill(s, p)
				f.lead = leadSize
				f.size += off
				f.task.Size += off
				wait := start(t.Context(), f)
				got, err := read(t.Context(), f, oci.Whole)
				if err := errors.Join(err, wait()); err != nil || !bytes.Equal(got, s.content) || !p.committed || s.recordedN != int64(size) {
					t.Errorf("size %d, off by %d: got %d bytes, %v; committed %v, recorded %d", size, off, len(got), err, p.committed, s.recordedN)
				}
			})
		}
	}
}

// A part that an earlier fill left never is in the way.
func TestAPartOfAnEarlierFillIsNoObstacle(t *testing.T) {
	for name, c := range map[string]struct {
		kept func(content []byte) []byte
		off  int64
		lie  func([]byte, oci.Span) []byte
	}{
		"right bytes, and ranges that lie":        {kept: func(c []byte) []byte { return c[:1<<20] }, lie: lies["the first bytes"]},
		"wrong bytes":                             {kept: func([]byte) []byte { return make([]byte, 1<<20) }},
		"right bytes, but a manifest has another": {kept: func(c []byte) []byte { return c[:1<<20] }, off: 1},
		"all of them":                             {kept: func(c []byte) []byte { return c }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &source{content: content(37, 3<<20)}
				if c.lie != nil {
					lying(s, c.lie)
				}
				kept := c.kept(s.content)
				p := &memoryPart{content: bytes.Clone(kept)}
				p.saved.Add(0, int64(len(kept)))
				f := newTestFill(s, p)
				f.least, f.lead = MinSegment, leadSize
				f.size += c.off
				f.task.Size += c.off
				if err := f.Run(t.Context()); err != nil || !p.committed || !bytes.Equal(p.content, s.content) {
					t.Errorf("%v; committed %v", err, p.committed)
				}
			})
		})
	}
}
