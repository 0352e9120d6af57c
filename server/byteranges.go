package server

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"

	"github.com/entrepot-dev/entrepot/oci"
)

// byteranges is an answer of several ranges (RFC 9110 sections 14.6 and 15.3.7.2): 206, with a
// body of type multipart/byteranges. It is for one goroutine.
type byteranges struct {
	spans       []oci.Span // in the order in which they are sent
	size        int64      // of the whole
	contentType string     // of the whole
	// boundary stands between the parts. It is new for each answer, so that nobody can
	// make content that looks like the end of a part.
	boundary string
}

// newByteranges returns the answer that sends spans of content of a size and a type.
func newByteranges(spans []oci.Span, size int64, contentType string) *byteranges {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return &byteranges{spans: spans, size: size, contentType: contentType, boundary: hex.EncodeToString(b[:])}
}

// header returns the answer's Content-Type.
func (m *byteranges) header() string { return "multipart/byteranges; boundary=" + m.boundary }

// appendHead appends what stands before the content of part i.
func (m *byteranges) appendHead(b []byte, i int) []byte {
	if i > 0 {
		b = append(b, "\r\n"...)
	}
	b = append(append(b, "--"...), m.boundary...)
	b = append(append(b, "\r\nContent-Type: "...), m.contentType...)
	b = appendContentRange(append(b, "\r\nContent-Range: "...), m.spans[i], m.size)
	return append(b, "\r\n\r\n"...)
}

// appendEnd appends what stands behind the last part.
func (m *byteranges) appendEnd(b []byte) []byte {
	b = append(append(b, "\r\n--"...), m.boundary...)
	return append(b, "--\r\n"...)
}

// length returns how many bytes the body has. scratch is memory to work in, which it returns.
func (m *byteranges) length(scratch []byte) (int64, []byte) {
	scratch = m.appendEnd(scratch[:0])
	n := int64(len(scratch))
	for i, span := range m.spans {
		scratch = m.appendHead(scratch[:0], i)
		n += int64(len(scratch)) + span.To - span.From
	}
	return n, scratch
}

// appendContentRange appends a Content-Range: the span that is sent of size bytes.
func appendContentRange(b []byte, span oci.Span, size int64) []byte {
	b = append(b, "bytes "...)
	b = strconv.AppendInt(b, span.From, 10)
	b = append(b, '-')
	b = strconv.AppendInt(b, span.To-1, 10)
	b = append(b, '/')
	return strconv.AppendInt(b, size, 10)
}

// sendParts sends the body of several ranges.
func (x *exchange) sendParts() error {
	for i, span := range x.parts.spans {
		x.scratch = x.parts.appendHead(x.scratch[:0], i)
		if _, err := x.out.Write(x.scratch); err != nil {
			return err
		}
		if err := x.sendSpan(span); err != nil {
			return err
		}
	}
	x.scratch = x.parts.appendEnd(x.scratch[:0])
	_, err := x.out.Write(x.scratch)
	return err
}
