package server

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"strconv"
	"sync"

	"github.com/valyala/fasthttp"

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

// maxRanges is the most ranges of one request that are read: as many as containers/image
// sends.
const maxRanges = 1024

// errTooManyRanges makes clients ask for fewer ranges: containers/image joins some of them
// upon a 400, and stargz-snapshotter asks for one range around all.
var errTooManyRanges = &oci.Error{Code: oci.CodeRangeInvalid, Status: fasthttp.StatusBadRequest,
	Message: "the request asks for more than " + strconv.Itoa(maxRanges) + " ranges; ask for fewer at a time"}

// ranges are those that a request asks for; none if it asks for the whole.
type ranges struct {
	header []byte // of the request
	first  byteRange
	n      int // of them
}

// askedRanges returns the ranges that the request asks for of content whose entity tag is tag.
// The error is errTooManyRanges.
func (x *exchange) askedRanges(tag string) (ranges, error) {
	v := x.rangeHeader()
	if len(v) == 0 || !isSameForRange(x.ctx.Request.Header.Peek("If-Range"), tag) {
		return ranges{}, nil
	}
	first, n, err := scanRanges(v)
	return ranges{v, first, n}, err
}

// hint returns the span that is sent first, as far as it is known before the size is.
func (a ranges) hint() oci.Span {
	if a.n == 0 {
		return oci.Whole
	}
	return a.first.hint()
}

// resolve returns what to send of content of size bytes: one span, or several. It is false if
// the content has none of the bytes that are asked for.
func (a ranges) resolve(size int64) (one oci.Span, several []oci.Span, ok bool) {
	switch a.n {
	case 0:
		return oci.Span{From: 0, To: size}, nil, true
	case 1:
		one, ok = a.first.resolve(size)
		return one, nil, ok
	}
	several = resolveRanges(a.header, size)
	switch len(several) {
	case 0:
		return oci.Span{}, nil, false
	case 1:
		return several[0], nil, true
	}
	return oci.Span{}, several, true
}

// scanRanges reads a Range header (RFC 9110 section 14.2), and returns its first range and how
// many there are. None means that there is nothing to read, and that the whole is sent: the
// header is of another unit, or malformed. The error is errTooManyRanges.
func scanRanges(v []byte) (first byteRange, n int, err error) {
	set, ok := rangeSet(v)
	for ok && len(set) > 0 {
		var r byteRange
		var found bool
		if r, set, found, ok = nextRange(set); !found {
			continue
		}
		if n++; n == 1 {
			first = r
		}
		if n > maxRanges {
			return byteRange{}, 0, errTooManyRanges
		}
	}
	if !ok {
		return byteRange{}, 0, nil
	}
	return first, n, nil
}

// resolveRanges returns the spans to send of a blob of size bytes for v, which scanRanges has
// read: those that the blob has, in the order of v. Ranges that overlap become one span, in
// the place of the first of them. Ranges that only touch do not: containers/image wants as
// many parts as it has asked for, and asks for no byte twice.
func resolveRanges(v []byte, size int64) []oci.Span {
	work := resolving.Get().(*[]placed)
	defer resolving.Put(work)
	all := (*work)[:0]
	set, _ := rangeSet(v)
	for len(set) > 0 {
		r, rest, found, _ := nextRange(set)
		set = rest
		if !found {
			continue
		}
		if span, ok := r.resolve(size); ok {
			all = append(all, placed{span, len(all)})
		}
	}
	slices.SortFunc(all, func(a, b placed) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.place, b.place)) })
	merged := all[:0]
	for _, r := range all {
		if last := len(merged) - 1; last >= 0 && r.From < merged[last].To {
			merged[last].To = max(merged[last].To, r.To)
			merged[last].place = min(merged[last].place, r.place)
			continue
		}
		merged = append(merged, r)
	}
	slices.SortFunc(merged, func(a, b placed) int { return cmp.Compare(a.place, b.place) })
	spans := make([]oci.Span, len(merged)) // an answer that takes long has no more than it needs
	for i, r := range merged {
		spans[i] = r.Span
	}
	*work = all
	return spans
}

// placed is a span and its place in the request.
type placed struct {
	oci.Span
	place int
}

// resolving is the memory that resolveRanges works in.
var resolving = sync.Pool{New: func() any { return new([]placed) }}

// rangeSet returns what follows "bytes=" in a Range header.
func rangeSet(v []byte) ([]byte, bool) {
	unit, set, ok := bytes.Cut(v, []byte("="))
	return set, ok && bytes.EqualFold(bytes.TrimSpace(unit), []byte("bytes"))
}

// nextRange reads the first element of a range set, and returns what follows it. Elements may
// be empty (RFC 9110 section 5.6.1): then none is found. ok is false if the element is malformed.
func nextRange(set []byte) (r byteRange, rest []byte, found, ok bool) {
	spec, rest, _ := bytes.Cut(set, []byte(","))
	if spec = bytes.TrimSpace(spec); len(spec) == 0 {
		return byteRange{}, rest, false, true
	}
	r, ok = parseRange(spec)
	return r, rest, ok, ok
}

// parseRange reads one range of a set: "0-9", "10-" or "-10".
func parseRange(spec []byte) (byteRange, bool) {
	first, last, ok := bytes.Cut(spec, []byte("-"))
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

// hint returns the span as it can be told before the size is known: see Content.Blob.
func (r byteRange) hint() oci.Span {
	if r.suffix {
		return oci.Span{From: -r.length, To: oci.Open}
	}
	if r.span == oci.Whole {
		// A client that says "from the first byte on" may stop at any.
		return oci.Span{From: 0, To: math.MaxInt64}
	}
	return r.span
}

// resolve returns the range's span of a blob of size bytes, or false if the blob has none of
// those bytes.
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
