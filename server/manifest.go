package server

import (
	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// manifest answers /v2/<name>/manifests/<tag or digest>.
func (x *exchange) manifest() {
	accept := rewrite.ParseAccept(x.ctx.Request.Header.PeekAll("Accept")...)
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
	if m.Negotiated {
		x.header("Vary", "Accept")
	}
	x.bytes = m.Bytes
	status := fasthttp.StatusOK
	if x.isUnmodified(m.Digest) {
		status = fasthttp.StatusNotModified
	}
	x.stream(status, m.MediaType, m.Size)
}
