package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// errorBody is the error JSON of distribution-spec, "Error Codes".
type errorBody struct {
	Errors []errorItem `json:"errors"`
}

type errorItem struct {
	Code    oci.Code `json:"code"`
	Message string   `json:"message"`
	Detail  any      `json:"detail,omitempty"`
}

// fail makes err the answer. It is the one place where an error becomes a
// status and JSON.
func (x *exchange) fail(err error) {
	x.err = err
	e := x.told(err)
	x.outcome.Stored = false
	if x.outcome.Status == cache.Miss || x.outcome.Status == cache.Collapsed {
		x.outcome.Forwarded = e.Answered
	}
	// These name content, which an error is not.
	x.ctx.Response.Header.Del("ETag")
	x.ctx.Response.Header.Del("Docker-Content-Digest")
	x.ctx.Response.Header.Del("Link")
	if e.Challenge != "" {
		x.header("WWW-Authenticate", e.Challenge)
	}
	if e.RetryAfter > 0 && !e.Guessed {
		seconds := (e.RetryAfter + time.Second - 1) / time.Second
		x.header("Retry-After", strconv.FormatInt(int64(seconds), 10))
	}
	x.send(e.HTTPStatus(), jsonType, errorJSON(e))
}

// told gives what a client is told of err.
func (x *exchange) told(err error) *oci.Error {
	var e *oci.Error
	if !errors.As(err, &e) {
		if x.s.base.Err() != nil && errors.Is(err, context.Canceled) {
			return &oci.Error{Code: oci.CodeUnavailable, Message: "the cache is shutting down; ask again", RetryAfter: time.Second}
		}
		return &oci.Error{Code: oci.CodeUnknown, Message: "an error inside the cache; its log says more"}
	}
	switch pull := x.ctx.IsGet() || x.ctx.IsHead(); {
	case e.HTTPStatus() == fasthttp.StatusUnauthorized && e.Challenge == "" && !x.challenged:
		// The upstream's word on the cache's own credentials, or the lack of
		// them. A 401 would tell the client to log in here, which it can not.
		told := *e
		told.Code, told.Status = oci.CodeDenied, fasthttp.StatusForbidden
		return &told
	case pull && e.HTTPStatus() == fasthttp.StatusMethodNotAllowed:
		// containerd makes a GET of a HEAD that gets 405.
		told := *e
		told.Status = fasthttp.StatusBadRequest
		return &told
	}
	return e
}

func errorJSON(e *oci.Error) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	body := errorBody{Errors: []errorItem{{Code: e.Code, Message: e.Message, Detail: e.Detail}}}
	if enc.Encode(body) != nil { // a detail that JSON can not hold
		b.Reset()
		body.Errors[0].Detail = nil
		_ = enc.Encode(body)
	}
	return b.Bytes()
}

// badRequest answers what fasthttp could not read as a request, or not in time.
func (s *Server) badRequest(ctx *fasthttp.RequestCtx, err error) {
	e := &oci.Error{Code: oci.CodeUnsupported, Status: fasthttp.StatusBadRequest, Message: "this is no HTTP request that can be read"}
	var small *fasthttp.ErrSmallBuffer
	var timeout interface{ Timeout() bool }
	switch {
	case isLongRange(own(ctx.Conn()), err):
		e = errLongRange
	case errors.As(err, &small):
		e.Status = fasthttp.StatusRequestHeaderFieldsTooLarge
		e.Message = "the request's header is larger than " + strconv.Itoa(maxHeaderBytes) + " bytes"
	case errors.As(err, &timeout) && timeout.Timeout():
		e.Status = fasthttp.StatusRequestTimeout
		e.Message = "the request's header did not come in time"
	}
	ctx.Response.Reset()
	ctx.Response.SetStatusCode(e.Status)
	ctx.Response.Header.SetContentType(jsonType)
	ctx.Response.Header.Set("Docker-Distribution-Api-Version", "registry/2.0")
	ctx.Response.SetBody(errorJSON(e))
	s.metrics.Requests.WithLabelValues("", "other", "error", strconv.Itoa(e.Status)).Inc()
}
