package server

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
)

func TestRangeIsReadOrIgnored(t *testing.T) {
	for v, want := range map[string]struct {
		ok    bool
		hint  oci.Span
		found bool // of a blob of 100 bytes
		span  oci.Span
	}{
		"bytes=0-0":                      {true, oci.Span{From: 0, To: 1}, true, oci.Span{From: 0, To: 1}},
		"bytes=10-":                      {true, oci.Span{From: 10, To: oci.Open}, true, oci.Span{From: 10, To: 100}},
		"bytes=-10":                      {true, oci.Span{From: -10, To: oci.Open}, true, oci.Span{From: 90, To: 100}},
		"bytes=-1000":                    {true, oci.Span{From: -1000, To: oci.Open}, true, oci.Span{From: 0, To: 100}},
		"bytes=-0":                       {true, oci.Whole, false, oci.Span{}},
		"bytes=99-99":                    {true, oci.Span{From: 99, To: 100}, true, oci.Span{From: 99, To: 100}},
		"bytes=100-":                     {true, oci.Span{From: 100, To: oci.Open}, false, oci.Span{}},
		"bytes=0-99999999999999999999":   {true, oci.Span{From: 0, To: math.MaxInt64}, true, oci.Span{From: 0, To: 100}},
		"bytes=99999999999999999999999-": {true, oci.Span{From: math.MaxInt64, To: oci.Open}, false, oci.Span{}},
		"BYTES = 1 - 2 ":                 {true, oci.Span{From: 1, To: 3}, true, oci.Span{From: 1, To: 3}},
		"bytes=2-1":                      {},
		"bytes=-":                        {},
		"bytes=":                         {},
		"bytes":                          {},
		"":                               {},
		"bytes=a-b":                      {},
		"bytes=+1-2":                     {},
		"bytes=1--2":                     {},
		"bytes=,":                        {},
		"bytes=0-1,x":                    {},
		"bytes=0-1,2-1":                  {},
		"bytes=, 0-1 ,":                  {true, oci.Span{From: 0, To: 2}, true, oci.Span{From: 0, To: 2}},
		"items=0-1":                      {},
	} {
		r, n, err := scanRanges([]byte(v))
		if ok := n == 1; ok != want.ok || err != nil {
			t.Errorf("%q: read %v, %v, want %v", v, ok, err, want.ok)
			continue
		}
		if n == 0 {
			continue
		}
		if r.hint() != want.hint {
			t.Errorf("%q: hint %v, want %v", v, r.hint(), want.hint)
		}
		if span, found := r.resolve(100); found != want.found || found && span != want.span {
			t.Errorf("%q: %v, %v; want %v, %v", v, span, found, want.span, want.found)
		}
	}
}

func TestSeveralRangesAreSentInTheirOrderAndOverlappingOnesOnce(t *testing.T) {
	span := func(from, to int64) oci.Span { return oci.Span{From: from, To: to} }
	for v, want := range map[string][]oci.Span{
		"bytes=0-1,4-5":                {span(0, 2), span(4, 6)},
		"bytes=4-5,0-1":                {span(4, 6), span(0, 2)},
		"bytes=0-1,2-3":                {span(0, 2), span(2, 4)}, // containers/image counts the parts
		"bytes=0-2,2-3":                {span(0, 4)},
		"bytes=50-59,0-1,55-69,80-":    {span(50, 70), span(0, 2), span(80, 100)},
		"bytes=0-1,-10,90-":            {span(0, 2), span(90, 100)},
		"bytes=0-,0-,0-,5-9":           {span(0, 100)},
		"bytes=0-0,100-,200-300,-0":    {span(0, 1)},
		"bytes=100-,200-":              {},
		"bytes=-0,-0":                  {},
		"bytes=0-0, 2-2 ,,4-4,":        {span(0, 1), span(2, 3), span(4, 5)},
		"bytes=10-19,0-99,30-39,-1":    {span(0, 100)},
		"bytes=60-69,20-29,65-74,0-24": {span(60, 75), span(0, 30)},
		"Bytes=0-0,99-999999999999999": {span(0, 1), span(99, 100)},
	} {
		if _, n, err := scanRanges([]byte(v)); n < 2 || err != nil {
			t.Errorf("%q: read %d ranges, %v", v, n, err)
		}
		if got := resolveRanges([]byte(v), 100); !slices.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", v, got, want)
		}
	}
}

func TestRangesAreCountedUpToABound(t *testing.T) {
	for n, want := range map[int]error{maxRanges: nil, maxRanges + 1: errTooManyRanges, 100 * maxRanges: errTooManyRanges} {
		for _, one := range []string{"0-", "5-6", "-1"} {
			_, got, err := scanRanges([]byte("bytes=" + strings.Repeat(one+",", n)))
			if !errors.Is(err, want) || err == nil && got != n {
				t.Errorf("%d times %s: read %d, %v; want %v", n, one, got, err, want)
			}
		}
	}
}

func FuzzRange(f *testing.F) {
	for _, v := range []string{"bytes=0-0", "bytes=5-", "bytes=-5", "bytes=1-2,3-4", "bytes=99999999999999999999-1", "x=1-2", "bytes=-0"} {
		f.Add(v, int64(100))
	}
	f.Fuzz(func(t *testing.T, v string, size int64) {
		if size < 0 {
			return
		}
		r, n, err := scanRanges([]byte(v))
		if n == 0 || err != nil {
			return
		}
		if h := r.hint(); h.From < 0 && !r.suffix || h.To != oci.Open && h.To < h.From {
			t.Errorf("%q: hint %v", v, h)
		}
		if s, found := r.resolve(size); found && (s.From < 0 || s.To > size || s.From >= s.To) {
			t.Errorf("%q of %d: %v", v, size, s)
		}
		var of int64 = -1
		for _, s := range (ranges{[]byte(v), r, n}).all(size) {
			if s.From < 0 || s.To > size || s.From >= s.To {
				t.Errorf("%q of %d: %v", v, size, s)
			}
			of = max(of, 0) + s.To - s.From
		}
		if of > size {
			t.Errorf("%q of %d: %d bytes", v, size, of)
		}
	})
}

// all returns what is sent of content of a size.
func (a ranges) all(size int64) []oci.Span {
	one, several, ok := a.resolve(size)
	if ok && several == nil {
		return []oci.Span{one}
	}
	return several
}
