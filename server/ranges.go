package server

import (
	"bytes"
	"math"

	"github.com/entrepot-dev/entrepot/oci"
)

// byteRange is one range of a Range header, before the size is known.
type byteRange struct {
	// suffix is set where the last length bytes are asked for.
	suffix bool
	length int64
	// span is set else; To may be oci.Open, and may lie beyond the end.
	span oci.Span
}

// parseRange reads a Range header of a single byte range. Everything else, and
// several ranges too, gives false: the header is then ignored and the whole
// sent, as RFC 9110 section 14.2 allows.
func parseRange(v []byte) (byteRange, bool) {
	unit, set, ok := bytes.Cut(v, []byte("="))
	if !ok || !bytes.EqualFold(bytes.TrimSpace(unit), []byte("bytes")) {
		return byteRange{}, false
	}
	first, last, ok := bytes.Cut(bytes.TrimSpace(set), []byte("-"))
	if !ok {
		return byteRange{}, false
	}
	first, last = bytes.TrimSpace(first), bytes.TrimSpace(last)
	if len(first) == 0 {
		n, ok := parseOffset(last)
		return byteRange{suffix: true, length: n}, ok
	}
	from, ok := parseOffset(first)
	if !ok {
		return byteRange{}, false
	}
	if len(last) == 0 {
		return byteRange{span: oci.Span{From: from, To: oci.Open}}, true
	}
	to, ok := parseOffset(last)
	if !ok || to < from {
		return byteRange{}, false
	}
	if to < math.MaxInt64 {
		to++
	}
	return byteRange{span: oci.Span{From: from, To: to}}, true
}

// parseOffset reads digits; what is larger than an int64 counts as the largest.
func parseOffset(b []byte) (int64, bool) {
	if len(b) == 0 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		d := int64(c - '0')
		if n > (math.MaxInt64-d)/10 {
			n = math.MaxInt64
			continue
		}
		n = n*10 + d
	}
	return n, true
}

// hint gives the span that can be told before the size is known: none for a
// suffix.
func (r byteRange) hint() oci.Span {
	if r.suffix {
		return oci.Span{}
	}
	return r.span
}

// resolve gives the range's span of a blob of size bytes, or false where it has
// none of its bytes.
func (r byteRange) resolve(size int64) (oci.Span, bool) {
	s := r.span
	if r.suffix {
		s = oci.Span{From: max(0, size-r.length), To: size}
	}
	if s.To == oci.Open || s.To > size {
		s.To = size
	}
	return s, s.From < s.To
}
