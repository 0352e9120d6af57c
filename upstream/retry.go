package upstream

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// tries is how often one endpoint is asked for one thing.
	tries = 3
	// maxPause bounds the pause between two tries; an upstream that asks for
	// a longer one is not asked again.
	maxPause = 2 * time.Second
)

// pauses are the waits between tries, longer each time, with jitter.
type pauses struct {
	b    backoff.ExponentialBackOff
	left int
}

func newPauses() *pauses {
	return &pauses{left: tries - 1, b: backoff.ExponentialBackOff{
		InitialInterval: 200 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 3, MaxInterval: maxPause}}
}

// wait sleeps until the next try; false when there is none, or ctx is done.
func (p *pauses) wait(ctx context.Context) bool {
	if p.left == 0 {
		return false
	}
	p.left--
	t := time.NewTimer(p.b.NextBackOff())
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ask is one question to the upstream, which may be put more than once: GET or
// HEAD, so that is safe.
type ask struct {
	op     string // of metrics.UpstreamRequests
	method string
	repo   string
	path   string // below the repository: "manifests/latest"
	// page, when it is set, is asked instead of path, on the endpoint pin.
	page   *url.URL
	pin    *endpoint
	header http.Header
	// bulk marks what may take long, and leaves room for what does not.
	bulk bool
	// what names the thing in messages; absent is the code if it is not there.
	what   string
	absent oci.Code
}

// answer is a response to an ask.
type answer struct {
	*http.Response
	ask  *ask
	ep   *endpoint
	from string // the host that sent it
	away bool   // that is another one than the endpoint's
	note string // for the message of a refusal
	body *body
	keep bool // set by who goes on reading body after the ask
}

// do puts a to the endpoints in order, and to those for which that is worth
// while again after a pause. take gets an answer of status 2xx and reads what
// it needs; a failure of its counts as one of the endpoint's. It may be called
// more than once.
func (r *Registry) do(ctx context.Context, a *ask, take func(*answer) *failure) *failure {
	release, err := r.slots.take(ctx, a.bulk)
	if err != nil {
		f := r.gaveUp(ctx)
		f.err.Message = "all connections to upstream " + r.name + " are taken; upstreams." + r.name + ".max_connections bounds them"
		f.err.Status, f.err.RetryAfter = http.StatusServiceUnavailable, time.Second
		r.metrics.UpstreamErrors.WithLabelValues(r.name, f.reason).Inc()
		return f
	}
	kept := false
	defer func() {
		if !kept {
			release()
		}
	}()

	eps := order(r.endpoints)
	if a.pin != nil {
		eps = []*endpoint{a.pin}
	}
	var worst *failure
	for p, first := newPauses(), true; ; {
		var more []*endpoint
		for _, ep := range eps {
			if !first {
				r.metrics.UpstreamRetries.WithLabelValues(r.name).Inc()
			}
			first = false
			var f *failure
			if kept, f = r.once(ctx, ep, a, take, release); f == nil {
				return nil
			}
			if worst == nil || worst.err.Code != oci.CodeTooManyRequests {
				worst = f // a rate limit says more than what came after it
			}
			if f.again == nobody || ctx.Err() != nil {
				return f
			}
			if f.again == anybody {
				more = append(more, ep)
			}
		}
		eps = more
		if len(eps) == 0 || !p.wait(ctx) {
			return worst
		}
	}
}

// once puts a to ep. kept says that the answer's body lives on, and will
// release the slot.
func (r *Registry) once(ctx context.Context, ep *endpoint, a *ask, take func(*answer) *failure, release func()) (kept bool, f *failure) {
	began := time.Now()
	res, f := r.attempt(ctx, ep, a)
	if f == nil {
		if f = take(res); f == nil {
			ep.healed()
			if res.keep {
				res.body.release = release
				return true, nil
			}
		}
		_ = res.body.Close()
	}
	if f == nil {
		return false, nil
	}
	if f.reason != "" {
		r.metrics.UpstreamErrors.WithLabelValues(r.name, f.reason).Inc()
	}
	// An endpoint that used up a caller's patience is as good as gone; one
	// whose caller went away at once is not.
	spent := errors.Is(f.err, context.DeadlineExceeded) && time.Since(began) >= time.Second
	switch {
	case f.again == nobody && f.status != 0:
		ep.healed() // it answers, though not as one would like
	case f.again != nobody || spent:
		// Said aloud once for each rest: an upstream that is gone fails a lot.
		level := zap.WarnLevel
		if ep.resting() {
			level = zap.DebugLevel
		}
		ep.rest(afterFailure)
		r.log.Log(level, "the upstream failed", zap.String("operation", a.op), zap.String("host", ep.host), zap.Error(f.err))
	}
	return false, f
}

// attempt asks ep once, or twice where the first answer is a challenge that can
// be met.
func (r *Registry) attempt(ctx context.Context, ep *endpoint, a *ask) (*answer, *failure) {
	scope := ep.scope(a.repo)
	auth, err := r.tokens.authorization(ctx, ep, scope)
	if err != nil {
		return nil, r.tokenless(ctx, ep, err)
	}
	res, f := r.exchange(ctx, ep, a, auth)
	if f != nil {
		return nil, f
	}
	if challenged(res.Response) && !res.away {
		renewed, err := r.tokens.renew(ctx, ep, scope, res.Response, auth)
		if err != nil {
			_ = res.body.Close()
			return nil, r.tokenless(ctx, ep, err)
		}
		if renewed != "" {
			r.discard(res.body, res.body.cancel)
			if res, f = r.exchange(ctx, ep, a, renewed); f != nil {
				return nil, f
			}
		}
		res.note = r.tokens.withheld(ep)
	}
	if !res.away {
		r.noteQuota(res.Header)
	}
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		return res, nil
	}
	defer res.body.Close()
	return nil, r.rejected(res)
}

// tokenless makes the failure of an ask for which no token is to be had.
func (r *Registry) tokenless(ctx context.Context, ep *endpoint, err error) *failure {
	if ctx.Err() != nil {
		return r.gaveUp(ctx)
	}
	f := r.broken(ctx, ep.host, err)
	f.reason = "" // the fetch of the token has counted it
	if f.again == nobody && !oci.IsRefused(f.err) {
		f.again = elsewhere
	}
	return f
}

// exchange sends a to ep with the given Authorization, and follows redirects.
// The answer's body is to be closed.
func (r *Registry) exchange(ctx context.Context, ep *endpoint, a *ask, auth string) (*answer, *failure) {
	u := a.page
	if u == nil {
		u = ep.url(a.repo + "/" + a.path)
	}
	reqCtx, cancel := context.WithCancelCause(ctx)
	req := (&http.Request{Method: a.method, URL: u, Header: a.header.Clone()}).WithContext(reqCtx)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("User-Agent", r.userAgent)
	req.Header.Set("Accept-Encoding", "identity")
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	began := time.Now()
	res, at, err := r.send(req, cancel)
	if err != nil {
		err = causeOr(reqCtx, err)
		cancel(nil)
		r.observe(a.op, 0, began)
		f := r.broken(ctx, at.Host, err)
		f.away = site(at) != site(ep.base)
		return nil, f
	}
	r.observe(a.op, res.StatusCode, began)
	host := at.Host
	b := newBody(reqCtx, cancel, res.Body, r.stall, r.metrics.UpstreamBytes.WithLabelValues(r.name))
	return &answer{Response: res, ask: a, ep: ep, from: host, away: site(at) != site(ep.base), body: b}, nil
}

// causeOr gives why ctx was ended, or err where it was not: "context canceled"
// tells nothing of a stall.
func causeOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (r *Registry) observe(op string, status int, began time.Time) {
	code := "error"
	if status != 0 {
		code = strconv.Itoa(status)
	}
	r.metrics.UpstreamRequests.WithLabelValues(r.name, op, code).Inc()
	r.metrics.UpstreamSeconds.WithLabelValues(r.name, op).Observe(time.Since(began).Seconds())
}
