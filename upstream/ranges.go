package upstream

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// rangelessFor is for how long an endpoint whose ranges don't work is asked for whole
// blobs only.
const rangelessFor = 10 * time.Minute

const (
	// rangeTries is how often a part of a blob is asked for, if that fails in a way that
	// may pass, before the whole is.
	rangeTries = 3
	// rangeDoubt is how long parts must have failed in such a way, and whole blobs come,
	// before the endpoint counts as one whose ranges don't work.
	rangeDoubt = 2 * time.Second
)

const (
	// rangeSilence is how long a request for a part of a blob may bring no byte before the
	// whole is asked for beside it.
	rangeSilence = 5 * time.Second
	// rangeGrace is how much longer the part has once the whole has begun to come: an
	// upstream that is silent before each blob may answer both requests at once.
	rangeGrace = time.Second
)

// attemptSpan is attempt for what may be a part of a blob. That only a part is asked for
// is our own wish: a client that pulls directly asks for the whole. So a refused range, or
// an answer that isn't the part, says nothing about the blob, its endpoint or the client's
// rights: attemptSpan asks for the whole blob instead, and that answer counts.
//
// A range may also be met with silence, before the header of its answer or after it. So
// may every blob, by an upstream that is busy. To tell the two apart, attemptSpan asks for
// the whole beside the part after rangeSilence, and returns the one whose bytes come.
//
// If the whole comes, and the range was refused in so many words or was silent, the
// endpoint is asked for whole blobs for rangelessFor. Failures that may pass (5xx, a reset)
// are retried first, since the whole may be a thousand times the part. They count against
// the endpoint's ranges only if they come again after rangeDoubt.
func (r *Registry) attemptSpan(ctx context.Context, ep *endpoint, a *ask) (*answer, *failure) {
	if a.span == nil || ep.isRangeless() {
		return r.attempt(ctx, ep, a)
	}
	part := r.begin(ctx, ep, a, r.attemptPart)
	var whole *outcome
	silent := false
	timer := time.NewTimer(rangeSilence)
	defer timer.Stop()
	select {
	case <-part.done:
	case <-timer.C:
		r.metrics.UpstreamRetries.WithLabelValues(r.name).Inc()
		whole = r.begin(ctx, ep, a, r.attemptWhole)
		silent = r.overtakes(whole, part)
	}
	a.parts = part.ask.parts
	switch {
	case silent:
		part.drop()
	case part.f == nil:
		whole.drop()
		return part.res, nil
	case !part.f.ofRange:
		whole.drop()
		return nil, part.f
	case whole == nil:
		whole = r.begin(ctx, ep, a, r.attempt)
	}
	<-whole.done
	if whole.f == nil && (silent || !mayPass(part.f) || ep.doubtRanges()) {
		ep.forgoRanges()
	}
	return whole.res, whole.f
}

// overtakes waits for whole and part, and reports whether the whole comes while the part
// stays silent. If it reports false, part is done.
func (r *Registry) overtakes(whole, part *outcome) bool {
	select {
	case <-part.done:
		return false
	case <-whole.done:
	}
	if whole.f != nil {
		<-part.done
		return false
	}
	grace := time.NewTimer(rangeGrace)
	defer grace.Stop()
	select {
	case <-part.done:
		return false
	case <-grace.C:
		return true
	}
}

// attemptPart asks for a.span, and again if that fails in a way that may pass. Its failure
// is one of the range if the whole may come nevertheless. a.parts counts its requests that
// have failed.
func (r *Registry) attemptPart(ctx context.Context, ep *endpoint, a *ask) (*answer, *failure) {
	for p := newPauses(); ; {
		part := *a
		part.header = http.Header{"Range": {rangeHeader(*a.span)}}
		res, f := r.attempt(ctx, ep, &part)
		stalled := false
		if f == nil {
			if f = r.unfitPart(res, *a.span); f == nil {
				f = r.awaitFirst(ctx, res)
				stalled = f != nil
			}
			if f == nil {
				ep.rangeDoubt.Store(0)
				r.shortcuts.remember(res)
				return res, nil
			}
			_ = res.body.Close()
		} else if !mayMeanRange(f) {
			return nil, f
		}
		if ctx.Err() != nil {
			return nil, f
		}
		f.ofRange = true
		most := 2 // it may have been chance, or a signature that has expired
		switch {
		case isDefinite(f), stalled:
			most = 1
		case mayPass(f) && a.span.From > 0:
			most = rangeTries
		}
		if a.parts++; a.parts >= most {
			return nil, f
		}
		if most == rangeTries && !p.waitAtLeast(ctx, min(f.err.RetryAfter, maxPause)) {
			return nil, r.gaveUp(ctx)
		}
	}
}

// attemptWhole asks for the whole blob, and waits for its first byte.
func (r *Registry) attemptWhole(ctx context.Context, ep *endpoint, a *ask) (*answer, *failure) {
	res, f := r.attempt(ctx, ep, a)
	if f == nil {
		if f = r.awaitFirst(ctx, res); f != nil {
			_ = res.body.Close()
		}
	}
	return res, f
}

// awaitFirst waits for the first byte of res's body, which stays to be read, or for its
// end. It fails if the body breaks off or stalls before that.
func (r *Registry) awaitFirst(ctx context.Context, res *answer) *failure {
	b, first := res.body, make([]byte, 1)
	b.timer.Reset(b.stall)
	n, err := io.ReadFull(b.rc, first)
	b.timer.Stop()
	if err != nil && err != io.EOF {
		return r.broken(ctx, res.from, causeOr(b.ctx, err))
	}
	b.rc = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(first[:n]), b.rc), b.rc}
	return nil
}

// mayPass says whether f, the failure of a request for a range, is one that any request
// meets now and then.
func mayPass(f *failure) bool {
	return f.status == 0 || f.status >= http.StatusInternalServerError && f.status != http.StatusNotImplemented ||
		f.status == http.StatusTooManyRequests || isPassing(f.status)
}

// mayMeanRange says whether f, the failure of a request for a range, may be due to that:
// the registry or its store answered, or the connection broke off.
func mayMeanRange(f *failure) bool {
	return f.status != 0 || f.reason == "other" || f.reason == "protocol"
}

// isDefinite says whether f stays as it is if the range is asked for again.
func isDefinite(f *failure) bool {
	switch f.status {
	case http.StatusOK, http.StatusPartialContent, http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed,
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
	case f != nil:
		return f
	case res.StatusCode == http.StatusOK && isGzip(res.Header):
		return r.garbled(res, "compressed a blob of which a part was asked for")
	case res.StatusCode == http.StatusOK:
		return nil
	case got.From == 0 && span.From > 0:
		return r.garbled(res, "sent the bytes from the first on when asked for those from %d on", span.From)
	case span.To != oci.Open && got.To < span.To && got.To != size, span.To == oci.Open && size >= 0 && got.To < size:
		return r.garbled(res, "sent the bytes up to %d and no more", got.To-1)
	}
	return nil
}

// isRangeless says whether the endpoint is to be asked for whole blobs only.
func (e *endpoint) isRangeless() bool { return time.Now().UnixNano() < e.rangeless.Load() }

// doubtRanges notes that a part didn't come for a reason that may pass, and then the whole
// did. It reports whether that has been so for rangeDoubt, and no part came since.
func (e *endpoint) doubtRanges() bool {
	now := time.Now().UnixNano()
	return !e.rangeDoubt.CompareAndSwap(0, now) && now-e.rangeDoubt.Load() >= int64(rangeDoubt)
}

// forgoRanges has the endpoint asked for whole blobs only for a while.
func (e *endpoint) forgoRanges() {
	e.rangeDoubt.Store(0)
	e.rangeless.Store(time.Now().Add(rangelessFor).UnixNano())
}
