package upstream

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
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
func (p *pauses) wait(ctx context.Context) bool { return p.waitAtLeast(ctx, 0) }

// waitAtLeast is wait for d or longer.
func (p *pauses) waitAtLeast(ctx context.Context, d time.Duration) bool {
	if p.left == 0 {
		return false
	}
	p.left--
	t := time.NewTimer(max(d, p.b.NextBackOff()))
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
	// span, if it is set, is the part of the blob that is enough; see attemptSpan.
	// parts counts the requests for it that have failed.
	span  *oci.Span
	parts int
	// bulk marks what may take long, and leaves room for what does not.
	bulk bool
	// optional marks an API that registries may lack.
	optional bool
	// pull marks what upstreams count: the GET of a manifest.
	pull bool
	// who has the credentials that it is asked with; nil is the registry's own.
	who Credentials
	// what names the thing in messages; absent is the code if it is not there.
	what   string
	absent oci.Code
}

// answer is a response to an ask.
type answer struct {
	*http.Response
	ask  *ask
	ep   *endpoint
	at   *url.URL // the URL that answered, behind redirects
	from string   // the host that sent it
	away bool     // that is another one than the endpoint's
	note string   // for the message of a refusal
	// limited is what a 429 means.
	limited limited
	body    *body
	keep    bool // set by who goes on reading body after the ask
	// who is the account whose login was shown; zero if none was.
	who account
	// direct says that the registry was not asked: see Registry.short.
	direct bool
}

// do is put, with the credentials of a client who may pull where the registry has
// none of its own.
func (r *Registry) do(ctx context.Context, a *ask, take func(*answer) *failure) *failure {
	if r.lender != nil && a.who == nil {
		return r.borrow(ctx, a, take)
	}
	if a.who == nil {
		a.who = r.account(a.repo)
	}
	return r.put(ctx, a, take)
}

// put puts a to the endpoints in order, and to those for which that is worth
// while again after a pause. take gets an answer of status 2xx and reads what
// it needs; a failure of its counts as one of the endpoint's. It may be called
// more than once.
func (r *Registry) put(ctx context.Context, a *ask, take func(*answer) *failure) *failure {
	eps := order(r.endpoints)
	if a.pin != nil {
		eps = []*endpoint{a.pin}
	}
	// What can not be sent waits for nothing, least of all for requests that
	// hang.
	if f := r.unsent(ctx, eps, a); f != nil {
		return f
	}
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

	var worst *failure
	for p, first := newPauses(), true; ; {
		var more []*endpoint
		var beside *endpoint // was asked beside the one before it
		for i, ep := range eps {
			if ep == beside {
				continue
			}
			if f := r.left(ep.breaker); f != nil {
				if worst == nil {
					r.metrics.UpstreamErrors.WithLabelValues(r.name, f.reason).Inc()
					worst = f
				}
				continue
			}
			if !first {
				r.metrics.UpstreamRetries.WithLabelValues(r.name).Inc()
			}
			first = false
			for _, o := range r.race(ctx, ep, next(eps[i+1:]), a) {
				if o.ep != ep {
					beside = o.ep
				}
				var f *failure
				if kept, f = r.settle(ctx, o, a, take, release); f == nil {
					return nil
				}
				if oci.IsAbsent(f.err) && a.pin == nil && o.ep != r.endpoints[0] {
					// It is only asked because those before it have failed, and may lag
					// behind them. Those that rest are asked after it.
					continue
				}
				if worst == nil || worst.err.Code != oci.CodeTooManyRequests {
					worst = f // a rate limit says more than what came after it
				}
				if f.again == nobody || ctx.Err() != nil {
					return f
				}
				if f.again == anybody {
					more = append(more, o.ep)
				}
			}
		}
		eps = more
		if len(eps) == 0 || !p.wait(ctx) {
			return worst
		}
	}
}

// unsent returns the failure of a, which may be sent to none of eps just now; nil if it
// may be sent to one. Where only breakers keep a pull from being sent, one is probed
// first: the endpoint may have come back.
func (r *Registry) unsent(ctx context.Context, eps []*endpoint, a *ask) *failure {
	f := r.refused(eps, a)
	if f != nil && f.reason == "open" && (a.op == "manifest" || a.op == "blob") {
		r.retest(ctx, eps[0])
		f = r.refused(eps, a)
	}
	if f != nil {
		r.metrics.UpstreamErrors.WithLabelValues(r.name, f.reason).Inc()
	}
	return f
}

// refused is unsent without the probe.
func (r *Registry) refused(eps []*endpoint, a *ask) *failure {
	var worst *failure
	for _, ep := range eps {
		f := r.left(ep.breaker)
		if f == nil {
			l, held := ep.governor.held(a.op)
			if !held {
				return nil
			}
			f = r.held(l)
		}
		if worst == nil || worst.reason != reasonHeld {
			worst = f // a rate limit says more
		}
	}
	return worst
}

// settle takes the answer of o and tells its endpoint how the attempt came out. kept says
// that the answer's body lives on, and will release the slot.
func (r *Registry) settle(ctx context.Context, o outcome, a *ask, take func(*answer) *failure, release func()) (kept bool, f *failure) {
	ep, began, res, f := o.ep, o.began, o.res, o.f
	if f == nil {
		if f = take(res); f == nil {
			if !res.direct { // else it says nothing of the endpoint
				ep.healed()
				r.judgeAsk(ep, a, began, nil)
			}
			if res.keep {
				res.body.release = release
				return true, nil
			}
			_ = res.body.Close()
			return false, nil
		}
		f.away = f.away || res.away
		_ = res.body.Close()
	}
	if f.reason != "" {
		r.metrics.UpstreamErrors.WithLabelValues(r.name, f.reason).Inc()
	}
	// An endpoint that used up a caller's patience was silent; one whose caller went
	// away at once was not.
	spent := errors.Is(f.err, context.DeadlineExceeded) && time.Since(began) >= time.Second
	switch {
	case f.away:
		f.blame = blameNobody // the endpoint has answered: it sent us away
	case f.blame == blameNone && spent:
		f.blame = blameSilent
	case f.blame == blameNone && f.status != 0:
		f.blame = blameNobody
	}
	defer r.judgeAsk(ep, a, began, f)
	switch {
	case f.reason == reasonHeld:
	case f.again == nobody && f.status != 0, oci.IsRefused(f.err):
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

// judgeAsk tells ep's breaker how a came out, which was sent at began.
func (r *Registry) judgeAsk(ep *endpoint, a *ask, began time.Time, f *failure) {
	what := blamed{repo: a.repo, began: began, optional: a.optional || a.op != "manifest" && a.op != "blob"}
	r.judge(ep.breaker, ep.host, what, f, r.probe(ep, a))
}

// attempt asks ep once, and again with another Authorization while its answer asks for
// one that can be had.
func (r *Registry) attempt(ctx context.Context, ep *endpoint, a *ask) (*answer, *failure) {
	if l, held := ep.governor.held(a.op); held {
		return nil, r.held(l)
	}
	l := r.tokens.login(ep, a)
	auth, err := l.first(ctx)
	if err != nil {
		return nil, r.tokenless(ctx, ep, err)
	}
	if res := r.short(ctx, ep, a, l.who); res != nil {
		return res, nil
	}
	var res *answer
	var turn uint64
	settle := func(*answer) {} // ends the pull that was counted last
	defer func() { settle(res) }()
	for first, who := true, l.who; ; first = false {
		if a.pull && (first || l.who != who) {
			settle(res)
			settle = func(*answer) {}
			pull, hold, held := ep.governor.spend(l.who, a.what)
			if held {
				return nil, r.held(hold)
			}
			payer := l.who
			settle = func(res *answer) { ep.governor.settle(payer, pull, res) }
		}
		who = l.who
		turn = ep.governor.turn(who)
		var f *failure
		if res, f = r.exchange(ctx, ep, a, auth); f != nil {
			return nil, f
		}
		if auth, err = l.next(ctx, res); err != nil {
			_ = res.body.Close()
			if l.unread != nil && oci.IsRefused(err) {
				err = l.unread // only who has none is refused
			}
			return nil, r.tokenless(ctx, ep, err)
		}
		if auth == "" {
			break
		}
		r.discard(res.body, res.body.cancel)
	}
	// Whoever pulls directly asks for no part, so it may be that parts alone are limited.
	if !res.away && (a.header.Get("Range") == "" || res.StatusCode != http.StatusTooManyRequests) {
		r.noteLimits(ep, l.who, turn, res)
	}
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		l.worked()
		res.who = l.who
		if a.pull {
			r.metrics.UpstreamPulls.WithLabelValues(r.name).Inc()
		}
		return res, nil
	}
	defer res.body.Close()
	switch res.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		if err := l.failed(res.StatusCode); err != nil && !res.away {
			return nil, r.tokenless(ctx, ep, err)
		}
		if res.StatusCode != http.StatusNotFound {
			res.note = l.note(ctx, res.Header)
		}
	}
	return nil, r.believe(ctx, res, r.rejected(res))
}

// tokenless makes the failure of an ask for which no token is to be had.
func (r *Registry) tokenless(ctx context.Context, ep *endpoint, err error) *failure {
	if ctx.Err() != nil {
		return r.gaveUp(ctx)
	}
	f := r.broken(ctx, ep.host, err)
	f.reason = "" // the fetch of the token has counted it
	switch {
	case oci.IsRefused(f.err):
	case f.err.Code == oci.CodeTooManyRequests:
		f.again = elsewhere
	default:
		f.again = max(f.again, elsewhere)
	}
	if forbidden := (*forbiddenAddress)(nil); errors.As(err, &forbidden) {
		// It named a token server that is never asked. That stands for this
		// request; the next one hears what it says then.
		ep.auth.Store(nil)
	}
	// The endpoint may be well, and serve those who have a token: the token
	// server's own breaker has been told.
	f.blame = blameNone
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
	if a.bulk {
		reqCtx = asBulk(reqCtx)
	}
	if a.isPiece() {
		reqCtx = asPiece(reqCtx)
	}
	req := (&http.Request{Method: a.method, URL: u, Header: a.header.Clone()}).WithContext(reqCtx)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("User-Agent", r.userAgent)
	req.Header.Set("Accept-Encoding", "identity")
	// A page of a list may be at another registry, to which the list was redirected.
	if !sameRegistry(ep.base, u) {
		auth = r.tokens.abroadToken(u)
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	began := time.Now()
	res, at, err := r.hedge(reqCtx, ep.lookout, func(ctx context.Context, cancel context.CancelCauseFunc) (*http.Response, *url.URL, error) {
		return r.send(req.Clone(ctx), cancel, &guest{home: ep.base, left: 2, since: r.tokens.fetched.Load(), from: a.who})
	})
	if err != nil {
		err = causeOr(reqCtx, err)
		cancel(nil)
		r.observe(a.op, 0, began)
		f := r.broken(ctx, at.Host, err)
		f.away = !sameRegistry(ep.base, at)
		return nil, f
	}
	r.observe(a.op, res.StatusCode, began)
	host := at.Host
	if isWhole(res, req) {
		res.StatusCode = http.StatusOK
	}
	b := newBody(reqCtx, cancel, res.Body, r.stall, r.metrics.UpstreamBytes.WithLabelValues(r.name))
	return &answer{Response: res, ask: a, ep: ep, at: at, from: host, away: !sameRegistry(ep.base, at), body: b}, nil
}

// isWhole reports whether res, the answer to req, has the whole of what was asked for, under
// another status than 200. Proxies that change what they pass on say 203, and caches 206
// although no part was asked for; clients take both.
func isWhole(res *http.Response, req *http.Request) bool {
	switch res.StatusCode {
	case http.StatusCreated, http.StatusNonAuthoritativeInfo:
		return true
	case http.StatusPartialContent:
		return req.Header.Get("Range") == "" && res.Header.Get("Content-Range") == "" &&
			!strings.HasPrefix(strings.ToLower(res.Header.Get("Content-Type")), "multipart/byteranges")
	}
	return false
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
