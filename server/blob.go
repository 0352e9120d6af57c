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
	asked, ranged := parseRange(x.ctx.Request.Header.Peek("Range"))
	ranged = ranged && isSameForRange(x.ctx.Request.Header.Peek("If-Range"), string(d))
	hint := oci.Whole
	if ranged {
		hint = asked.hint()
	}
	blob, outcome, err := x.s.content.Blob(x.s.base, x.target, hint)
	x.outcome = outcome
	if err != nil {
		x.fail(err)
		return
	}
	x.blob = blob
	size := blob.Size()
	x.span = oci.Span{From: 0, To: size}
	x.blobHeaders()
	status := fasthttp.StatusOK
	if ranged && size > 0 {
		var ok bool
		if x.span, ok = asked.resolve(size); !ok {
			x.rangeMissed(size)
			return
		}
		status = fasthttp.StatusPartialContent
		x.contentRange(x.span, size)
	}
	if status == fasthttp.StatusOK {
		x.location()
	}
	// While bytes are still to come from the upstream, the client has the
	// header at least; and what is large goes around fasthttp's buffer.
	coming := outcome.Status == cache.Miss || outcome.Status == cache.Collapsed
	large := x.span.To-x.span.From > largeSpan
	x.ctx.Response.ImmediateHeaderFlush = coming || large
	x.stream(status, blobType(outcome), x.span.To-x.span.From)
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

// contentRange says which span of size bytes is sent.
func (x *exchange) contentRange(span oci.Span, size int64) {
	b := append(x.scratch[:0], "bytes "...)
	b = strconv.AppendInt(b, span.From, 10)
	b = append(b, '-')
	b = strconv.AppendInt(b, span.To-1, 10)
	b = append(b, '/')
	x.scratch = strconv.AppendInt(b, size, 10)
	x.known(headerContentRange, x.scratch)
}

// rangeMissed answers a range that lies beyond the blob's end.
func (x *exchange) rangeMissed(size int64) {
	x.release()
	x.header("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
	x.fail(oci.Errorf(oci.CodeRangeInvalid, "the range has no byte of the blob, which has %d", size))
}
