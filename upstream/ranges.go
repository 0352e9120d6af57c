package upstream

import (
	"context"
	"net/http"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// rangelessFor is for how long an endpoint whose ranges don't work is asked for whole
// blobs only.
const rangelessFor = 10 * time.Minute

// attemptSpan is attempt for what may be a part of a blob. That only a part is asked for
// is our own wish: whoever pulls directly asks for the whole. So a refused range, or an
// answer that is not the part, says nothing of the blob, its endpoint or the client's
// rights: the whole blob is asked for instead, and that answer counts. If it is good, the
// endpoint is asked for whole blobs for rangelessFor.
func (r *Registry) attemptSpan(ctx context.Context, ep *endpoint, a *ask) (*answer, *failure) {
	if a.span == nil {
		return r.attempt(ctx, ep, a)
	}
	refused := false
	for !ep.isRangeless() {
		part := *a
		part.header = http.Header{"Range": {rangeHeader(*a.span)}}
		res, f := r.attempt(ctx, ep, &part)
		if f == nil {
			if f = r.unfitPart(res, *a.span); f == nil {
				return res, nil
			}
			_ = res.body.Close()
		} else if !mayMeanRange(f) || ctx.Err() != nil {
			return nil, f
		}
		again := !refused && !a.refused && !isDefinite(f)
		refused, a.refused = true, true
		if !again {
			break
		}
		// It may have been chance, or a signature that has expired.
	}
	res, f := r.attempt(ctx, ep, a)
	if f == nil && refused {
		ep.forgoRanges()
	}
	return res, f
}

// mayMeanRange says whether f, the failure of a request for a range, may be due to that.
func mayMeanRange(f *failure) bool {
	switch f.status {
	case 0:
		return f.reason == "other" // the connection broke off
	case http.StatusUnauthorized, http.StatusTooManyRequests:
		return false
	}
	return true
}

// isDefinite says whether f stays as it is if the range is asked for again.
func isDefinite(f *failure) bool {
	switch f.status {
	case http.StatusOK, http.StatusPartialContent, http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented:
		return true
	}
	return false
}

// unfitPart gives a failure if res, an answer to a request for span, is neither the
// whole blob nor just that part of it.
func (r *Registry) unfitPart(res *answer, span oci.Span) *failure {
	got, size, f := r.carried(res, span)
	switch {
	case f != nil || res.StatusCode == http.StatusOK:
		return f
	case got.From == 0 && span.From > 0:
		return r.garbled(res, "sent the bytes from the first on when asked for those from %d on", span.From)
	case span.To != oci.Open && got.To < span.To && got.To != size, span.To == oci.Open && size >= 0 && got.To < size:
		return r.garbled(res, "sent the bytes up to %d and no more", got.To-1)
	}
	return nil
}

// isRangeless says whether the endpoint is to be asked for whole blobs only.
func (e *endpoint) isRangeless() bool { return time.Now().UnixNano() < e.rangeless.Load() }

// forgoRanges has the endpoint asked for whole blobs only for a while.
func (e *endpoint) forgoRanges() { e.rangeless.Store(time.Now().Add(rangelessFor).UnixNano()) }
