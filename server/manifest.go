package server

import (
	"bytes"

	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// manifest answers /v2/<name>/manifests/<tag or digest>.
func (x *exchange) manifest() {
	accept := x.accept()
	if accept.OnlySchema1() {
		x.fail(&oci.Error{Code: oci.CodeUnsupported, Status: fasthttp.StatusNotAcceptable,
			Message: "the client takes only Docker's schema 1, which is not served; it needs Docker 1.10 or later"})
		return
	}
	var m *cache.Manifest
	var err error
	if x.ctx.IsHead() {
		m, x.outcome, err = x.s.content.Describe(x.s.base, x.target, accept)
	} else {
		m, x.outcome, err = x.s.content.Manifest(x.s.base, x.target, accept)
	}
	if err != nil {
		x.fail(err)
		return
	}
	x.digestHeaders(m.Digest)
	if m.Negotiated || x.target.Tag != "" && oci.IsIndex(m.MediaType) {
		// Both answers, for a cache that has kept one must not give it to who
		// takes the other only.
		x.known(headerVary, valueAccept)
	}
	x.bytes = m.Bytes
	status := fasthttp.StatusOK
	switch {
	case x.isUnmodified(m.Digest):
		status = fasthttp.StatusNotModified
	case m.Size > smallBody && !x.ctx.IsHead():
		// The memory tier may not have it: then each answer brings bytes of its own.
		if x.held = x.s.manifests.hold(bodyKey{digest: m.Digest, size: m.Size}, func() []byte { return m.Bytes }); x.held == nil {
			x.fail(&oci.Error{
				Code: oci.CodeUnavailable, RetryAfter: retrySoon,
				Message: "the manifests that clients are reading take as much memory as they may (limits.manifests); ask again",
			})
			return
		}
		x.bytes = x.held.bytes
	}
	contentType, size := m.MediaType, m.Size
	if status == fasthttp.StatusOK && !x.ctx.IsHead() {
		// containerd asks for manifests in chunks (containerd#12291).
		asked, err := x.askedRanges(string(m.Digest))
		if err != nil {
			x.release()
			x.fail(err)
			return
		}
		if span, several, ok := asked.resolve(m.Size); ok && asked.n > 0 {
			status = fasthttp.StatusPartialContent
			if contentType, size = x.partial(span, several, m.Size, contentType); several == nil {
				x.bytes = x.bytes[span.From:span.To]
			}
		}
	}
	x.ctx.Response.ImmediateHeaderFlush = size > largeBody
	x.stream(status, contentType, size)
}

// accept reads what the client takes. Most clients say the same in all requests
// of a connection, at length: then it is read once.
func (x *exchange) accept() rewrite.Accept {
	said := x.ctx.Request.Header.PeekAll("Accept")
	c := own(x.ctx.Conn())
	if c == nil || len(said) != 1 || len(said[0]) > maxHeaderBytes/16 {
		return rewrite.ParseAccept(said...)
	}
	if !bytes.Equal(c.said, said[0]) {
		c.said = append(c.said[:0], said[0]...)
		c.accept = rewrite.ParseAccept(c.said)
	}
	return c.accept
}
