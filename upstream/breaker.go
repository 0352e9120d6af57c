package upstream

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// breakAfter is how many connections in a row must fail, or how many repositories
	// without an answer to any other in between, before an endpoint is suspected.
	breakAfter = 3
	// firstProbe and lastProbe bound the wait for an open endpoint's next
	// probe, which doubles from one to the next, give or take probeJitter.
	firstProbe  = time.Second
	lastProbe   = 30 * time.Second
	probeJitter = 0.2
	// probeTimeout bounds one probe of an open endpoint, and doubtTimeout one of an
	// endpoint that is suspected: shorter than a silent one is passed over.
	probeTimeout = 10 * time.Second
	doubtTimeout = afterFailure - hedgeAfter
)

// breakerState is a breaker's state, with its value in the metrics.
type breakerState int

const (
	breakerClosed   breakerState = 0 // requests are sent
	breakerHalfOpen breakerState = 1 // none is, but for the probe that is under way
	breakerOpen     breakerState = 2 // none is
)

// blame says what a failure tells about the endpoint.
type blame int

const (
	blameNone    blame = iota // nothing: the request was not sent, or its caller left
	blameNobody               // the endpoint answered: the failure is not its fault
	blameRequest              // it failed, maybe only for what this request asked for
	blameGone                 // no connection could be made
	blameSilent               // it did not answer in time, maybe only this request
	blameUnreach              // no connection came about in time
)

// blamed is a failed request as a breaker sees it.
type blamed struct {
	how blame
	// repo is the repository (for token servers: the scopes) it was about.
	repo string
	// optional is set for requests whose failure says little about pulls: HEADs and
	// lists, which some registries don't support or answer with 5xx.
	optional bool
	began    time.Time
	cause    *oci.Error
}

// verdict is what a breaker makes of a failure.
type verdict int

const (
	carryOn verdict = iota // nothing changes
	suspect                // a probe must tell whether the endpoint fails
	opened                 // the breaker has opened; the caller revives the endpoint
)

// health is how an endpoint answered a probe, the worst last.
type health int

const (
	healthUnknown health = iota // no probe may be sent: a rate limit holds it
	healthGood                  // it answered
	healthFailing               // it answered with a failure
	healthSilent                // it did not answer
)

// breaker keeps requests from an endpoint that fails whatever it is asked. Failures
// of single requests never open it: a registry answers 5xx for one repository, one
// image or an API it lacks, and serves everything else. It opens
//   - after breakAfter failed connections in a row, or one that timed out;
//   - if a request for anything gets no answer in time, nothing else was answered
//     meanwhile, and a probe gets no answer either;
//   - if GETs of breakAfter repositories fail, nothing else was answered meanwhile, and
//     a probe fails too.
//
// It does not find out by itself when to close: whoever opened it probes (see
// Registry.revive), so that no client ever waits for the answer of an endpoint that
// has none. Its methods are safe for concurrent use.
type breaker struct {
	state    prometheus.Gauge
	openings prometheus.Counter

	mu  sync.Mutex
	now breakerState
	// streak counts the failed connections since the last answer, and repos has the
	// repositories with failed requests since then, at most breakAfter of them.
	streak int
	repos  map[string]bool
	cause  *oci.Error
	// answered is when the endpoint last answered.
	answered time.Time
	// probe is when the next probe is due, and pauses the waits between them.
	probe    time.Time
	pauses   backoff.ExponentialBackOff
	reviving bool // a goroutine probes until the endpoint answers
	doubting bool // a goroutine probes once to confirm a suspicion
	// trial lets one request through: probes are answered with failures, but what
	// clients ask for may work.
	trial bool
}

func newBreaker(state prometheus.Gauge, openings prometheus.Counter) *breaker {
	b := &breaker{state: state, openings: openings, pauses: backoff.ExponentialBackOff{
		InitialInterval: firstProbe, RandomizationFactor: probeJitter, Multiplier: 2, MaxInterval: lastProbe}}
	state.Set(float64(breakerClosed))
	return b
}

// set changes the state. b.mu is held.
func (b *breaker) set(s breakerState) {
	b.now = s
	b.state.Set(float64(s))
}

// refusal returns whether no request may be sent, the failure that opened the
// breaker, and the time until the next probe. A trial request passes.
func (b *breaker) refusal() (cause *oci.Error, wait time.Duration, refused bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == breakerClosed || b.trial {
		return nil, 0, false
	}
	return b.cause, max(time.Until(b.probe), firstProbe), true
}

// success notes an answer to a request.
func (b *breaker) success() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pauses.Reset()
	b.well()
}

// well closes the breaker after a good answer. b.mu is held.
func (b *breaker) well() {
	b.clear()
	if b.now != breakerClosed {
		b.set(breakerClosed)
	}
}

// clear forgets the failures before an answer that has just come. b.mu is held.
func (b *breaker) clear() {
	b.streak, b.cause, b.trial = 0, nil, false
	clear(b.repos)
	b.answered = time.Now()
}

// failure notes a failed request. If it gives suspect, the caller probes the endpoint
// and calls confirm; if it gives opened, the caller revives it.
func (b *breaker) failure(f blamed) verdict {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now != breakerClosed {
		b.trial = false
		return carryOn
	}
	b.cause = f.cause
	quiet := !b.answered.After(f.began) // nothing was answered since it was sent
	switch f.how {
	case blameGone, blameUnreach:
		b.streak++
		// Waiting for more timeouts would take each of the next requests as long.
		if b.streak >= breakAfter || f.how == blameUnreach && quiet {
			return b.open()
		}
		return carryOn
	case blameSilent:
		if !quiet {
			return carryOn
		}
	default:
		if f.optional {
			return carryOn
		}
		if b.repos == nil {
			b.repos = map[string]bool{}
		}
		if len(b.repos) < breakAfter {
			b.repos[f.repo] = true
		}
		if len(b.repos) < breakAfter {
			return carryOn
		}
	}
	if b.doubting {
		return carryOn
	}
	b.doubting = true
	return suspect
}

// open opens the breaker. It gives opened, or carryOn if the endpoint is being
// revived already. b.mu is held.
func (b *breaker) open() verdict {
	b.set(breakerOpen)
	b.openings.Inc()
	b.probe = time.Now().Add(firstProbe)
	if b.reviving {
		return carryOn
	}
	b.reviving = true
	return opened
}

// confirm ends the suspicion that began at began: h is how the endpoint answered a
// probe, and worst the best answer that still opens the breaker.
func (b *breaker) confirm(began time.Time, h, worst health) verdict {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.doubting = false
	if h == healthGood {
		b.well() // it may have opened meanwhile
	}
	if h < worst || b.now != breakerClosed || b.answered.After(began) || b.cause == nil {
		return carryOn
	}
	return b.open()
}

// pause gives the wait for the next probe; false when the breaker has closed:
// the endpoint needs no reviving.
func (b *breaker) pause() (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == breakerClosed {
		b.reviving = false
		return 0, false
	}
	d := min(b.pauses.NextBackOff(), lastProbe)
	b.probe = time.Now().Add(d)
	return d, true
}

// begin notes that a probe is sent; false when the breaker has closed.
func (b *breaker) begin() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == breakerClosed {
		return false
	}
	b.set(breakerHalfOpen)
	return true
}

// end notes how the endpoint answered a probe while the breaker was open.
func (b *breaker) end(h health) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.now == breakerClosed: // a request was answered meanwhile
	case h == healthGood:
		b.well()
	default:
		b.trial = h == healthFailing
		b.set(breakerOpen)
	}
}

// left returns the failure of a request that is not sent because breaker b is open;
// nil if it may be sent.
func (r *Registry) left(b *breaker) *failure {
	cause, wait, refused := b.refusal()
	if !refused {
		return nil
	}
	wait = wait.Round(time.Second)
	f := &failure{reason: "open", again: elsewhere}
	f.err = unavailable(http.StatusServiceUnavailable, cause, "%s; it has failed several times in a row and is left alone until it answers again; it is tried next in %s", cause.Message, wait)
	f.err.RetryAfter, f.err.Reported = wait, true
	return f
}

// judge tells host's breaker b how a request came out: f is its failure or nil, and
// what describes the request. probe asks whether the host answers.
func (r *Registry) judge(b *breaker, host string, what blamed, f *failure, probe func(context.Context) health) {
	switch {
	case f == nil || f.blame == blameNobody:
		b.success()
		return
	case f.blame == blameNone:
		return
	}
	what.how, what.cause = f.blame, f.err
	switch b.failure(what) {
	case opened:
		r.opened(b, host, f.err, probe)
	case suspect:
		worst := healthFailing
		if what.how == blameSilent {
			worst = healthSilent // the others may be answered
		}
		r.spawn(func() {
			began := time.Now()
			ctx, cancel := context.WithTimeout(r.life, doubtTimeout)
			h := probe(ctx)
			cancel()
			if r.life.Err() == nil && b.confirm(began, h, worst) == opened {
				r.opened(b, host, f.err, probe)
			}
		})
	}
}

// opened logs that host's breaker b has opened, and has the host probed until it
// answers.
func (r *Registry) opened(b *breaker, host string, why *oci.Error, probe func(context.Context) health) {
	r.log.Warn("it has failed several times in a row and is left alone until it answers again", zap.String("host", host), zap.Error(why))
	// Idle connections may be dead too.
	r.routes.renew()
	r.spawn(func() { r.revive(b, host, probe) })
}

// revive probes host until it answers. It ends with the registry.
func (r *Registry) revive(b *breaker, host string, probe func(context.Context) health) {
	for {
		wait, due := b.pause()
		if !due {
			return
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-r.life.Done():
			t.Stop()
			return
		}
		if !b.begin() {
			continue
		}
		ctx, cancel := context.WithTimeout(r.life, probeTimeout)
		h := probe(ctx)
		cancel()
		b.end(h)
		if h == healthGood {
			r.log.Info("it answers again", zap.String("host", host))
		}
	}
}

// probe returns the probe of ep after a failed: see ping.
func (r *Registry) probe(ep *endpoint, a *ask) func(context.Context) health {
	return func(ctx context.Context) health { return r.ping(ctx, ep, a) }
}

// ping probes ep by a GET of /v2/ on a new connection: an endpoint without a token answers
// too. If that gets a failure, and failed isn't nil, ping asks for that by HEAD, which is
// no pull: some endpoints fail the GET of /v2/ only.
func (r *Registry) ping(ctx context.Context, ep *endpoint, failed *ask) health {
	if _, held := ep.governor.held("probe"); held {
		return healthUnknown
	}
	fails := func(res *http.Response) bool {
		return res.StatusCode >= 500 && res.StatusCode != http.StatusNotImplemented
	}
	res := r.knock(ctx, http.MethodGet, ep.ping(), nil)
	if res == nil {
		return healthSilent
	}
	if fails(res) && failed != nil && failed.page == nil {
		if res = r.knock(ctx, http.MethodHead, ep.url(failed.repo+"/"+failed.path), failed.header); res == nil {
			return healthFailing
		}
	}
	if res.StatusCode == http.StatusTooManyRequests {
		ep.governor.note(account{}, ep.governor.turn(account{}), "probe", false, res.StatusCode, res.Header)
	}
	if fails(res) {
		return healthFailing
	}
	return healthGood
}

const (
	// retestTimeout is how long a request waits for a probe of an endpoint whose breaker
	// is open, and retestPause the time between two such probes.
	retestTimeout = time.Second
	retestPause   = 500 * time.Millisecond
)

// retest is a probe that several requests wait for. Its zero value is ready.
type retest struct {
	mu    sync.Mutex
	done  chan struct{} // closed when the probe has ended; nil if there was none
	ended time.Time
}

// retest probes ep, whose breaker is open, and waits for the answer, unless a probe has
// just failed. Whoever asks meanwhile waits for the same probe. A good answer closes the
// breaker.
func (r *Registry) retest(ctx context.Context, ep *endpoint) {
	t := &ep.retesting
	t.mu.Lock()
	if t.done == nil || !t.ended.IsZero() && time.Since(t.ended) >= retestPause {
		done := make(chan struct{})
		started := r.spawn(func() {
			ctx, cancel := context.WithTimeout(r.life, retestTimeout)
			defer cancel()
			if h := r.ping(ctx, ep, nil); h == healthGood {
				ep.breaker.end(h)
			}
			t.mu.Lock()
			t.ended = time.Now()
			t.mu.Unlock()
			close(done)
		})
		if !started {
			close(done)
		}
		t.done, t.ended = done, time.Time{}
	}
	done := t.done
	t.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// knock sends a probe on a new connection and returns the answer, whose body is closed;
// nil if there was none. Only the end of ctx counts, not its values: ctx may be that of
// another request, whose progress is watched.
func (r *Registry) knock(ctx context.Context, method string, u *url.URL, header http.Header) *http.Response {
	own, cancel := context.WithCancelCause(fresh(context.Background()))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	req := (&http.Request{Method: method, URL: u, Header: http.Header{}}).WithContext(own)
	maps.Copy(req.Header, header)
	req.Header.Del("Range")
	req.Header.Set("User-Agent", r.userAgent)
	began := time.Now()
	res, err := r.routes.roundTrip(req)
	if err != nil {
		r.observe("probe", 0, began)
		return nil
	}
	r.observe("probe", res.StatusCode, began)
	r.discard(res.Body, cancel)
	return res
}
