package server

import (
	"math"
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
		"bytes=-10":                      {true, oci.Span{}, true, oci.Span{From: 90, To: 100}},
		"bytes=-1000":                    {true, oci.Span{}, true, oci.Span{From: 0, To: 100}},
		"bytes=-0":                       {true, oci.Span{}, false, oci.Span{}},
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
		"bytes=0-1,2-3":                  {},
		"items=0-1":                      {},
	} {
		r, ok := parseRange([]byte(v))
		if ok != want.ok {
			t.Errorf("%q: read %v, want %v", v, ok, want.ok)
			continue
		}
		if !ok {
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

func FuzzRange(f *testing.F) {
	for _, v := range []string{"bytes=0-0", "bytes=5-", "bytes=-5", "bytes=1-2,3-4", "bytes=99999999999999999999-1", "x=1-2", "bytes=-0"} {
		f.Add(v, int64(100))
	}
	f.Fuzz(func(t *testing.T, v string, size int64) {
		if size < 0 {
			return
		}
		r, ok := parseRange([]byte(v))
		if !ok {
			return
		}
		if h := r.hint(); h.From < 0 || h.To != oci.Open && h.To < h.From {
			t.Errorf("%q: hint %v", v, h)
		}
		if s, found := r.resolve(size); found && (s.From < 0 || s.To > size || s.From >= s.To) {
			t.Errorf("%q of %d: %v", v, size, s)
		}
	})
}
