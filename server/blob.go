package server

import (
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// sendBlob answers /v2/<name>/blobs/<digest>.
func (x *exchange) sendBlob() {
	d := x.target.Digest
	unmodified := x.isUnmodified(d)
	if x.ctx.IsHead() || unmodified {
		// Whether the client has it is no secret only where it may have it:
		// so a 304 needs the blob to be there too.
		size, outcome, err := x.s.content.Stat(x.s.base, x.target)
		x.outcome = outcome
		if err != nil {
			x.fail(err)
			return
		}
		x.blobHeaders()
		status := fasthttp.StatusOK
		if unmodified {
			status = fasthttp.StatusNotModified
		} else {
			x.location()
		}
		x.stream(status, blobType(outcome), size)
		return
	}
	asked, err := x.askedRanges(string(d))
	if err != nil {
		x.fail(err)
		return
	}
	blob, outcome, err := x.s.content.Blob(x.s.base, x.target, asked.hint())
	x.outcome = outcome
	if err != nil {
		x.fail(err)
		return
	}
	x.blob = blob
	size := blob.Size()
	x.blobHeaders()
	span, several, ok := asked.resolve(size)
	x.forgetRange()
	ranged := asked.n > 0
	if size == 0 {
		// Of nothing there is no range: all of it is sent.
		ranged, span = false, oci.Span{}
	}
	switch {
	case several != nil && !blob.Prepare(several):
		ranged, several, span = false, nil, oci.Span{From: 0, To: size}
	case ranged && !ok:
		x.rangeMissed(size)
		return
	}
	x.span = span
	status, contentType, length := fasthttp.StatusOK, blobType(outcome), span.To-span.From
	if ranged {
		status = fasthttp.StatusPartialContent
		contentType, length = x.partial(span, several, size, contentType)
	} else {
		x.location()
	}
	// While bytes are still to come from the upstream, the client has the
	// header at least; and what is large goes around fasthttp's buffer.
	coming := outcome.Status == cache.Miss || outcome.Status == cache.Collapsed
	large := length > largeSpan*int64(max(1, len(several)))
	x.ctx.Response.ImmediateHeaderFlush = coming || large
	x.stream(status, contentType, length)
}

// partial prepares a 206 of span, or of several spans if there are any, of content of a size
// and a type. It returns the type and the length of the body.
func (x *exchange) partial(span oci.Span, several []oci.Span, size int64, contentType string) (string, int64) {
	if several == nil {
		x.scratch = appendContentRange(x.scratch[:0], span, size)
		x.known(headerContentRange, x.scratch)
		return contentType, span.To - span.From
	}
	var length int64
	x.parts = newByteranges(several, size, contentType)
	length, x.scratch = x.parts.length(x.scratch)
	return x.parts.header(), length
}

// blobType returns the Content-Type of a blob. A client that is sent a manifest without its
// type may keep it as an image that it can't read.
func blobType(o cache.Outcome) string {
	if o.MediaType != "" {
		return o.MediaType
	}
	return oci.MediaTypeOctetStream
}

func (x *exchange) blobHeaders() {
	x.digestHeaders(x.target.Digest)
	x.known(headerAcceptRanges, valueBytes)
}

// location sets Location to the path that the client asked for. Ollama expects a
// registry to redirect to its storage, and takes the URL of all further requests from
// that header of the last answer, a 200 included.
func (x *exchange) location() {
	x.scratch = append(x.scratch[:0], x.request.Path...)
	if x.request.Query != "" {
		x.scratch = append(append(x.scratch, '?'), x.request.Query...)
	}
	x.known(headerLocation, x.scratch)
}

// rangeMissed answers a range that lies beyond the blob's end.
func (x *exchange) rangeMissed(size int64) {
	x.release()
	x.header("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
	x.fail(oci.Errorf(oci.CodeRangeInvalid, "the range has no byte of the blob, which has %d", size))
}
