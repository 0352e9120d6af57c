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
	// breakAfter is how many failures in a row open a breaker.
	breakAfter = 3
	// firstProbe and lastProbe bound the wait for an open endpoint's next
	// probe, which doubles from one to the next, give or take probeJitter.
	firstProbe  = time.Second
	lastProbe   = 30 * time.Second
	probeJitter = 0.2
	// probeTimeout bounds one probe.
	probeTimeout = 10 * time.Second
)

// breakerState is a breaker's state, with its value in the metrics.
type breakerState int

const (
	breakerClosed   breakerState = 0 // requests are sent
	breakerHalfOpen breakerState = 1 // none is, but for the probe that is under way
	breakerOpen     breakerState = 2 // none is
)

// blame says what a failure tells of the endpoint.
type blame int

const (
	blameNone    blame = iota // nothing: it was not asked, or its caller left
	blameNobody               // it answered: what went wrong is not its fault
	blameRequest              // it fails, maybe only with what it was asked for
	blameGone                 // it fails with whatever it is asked for
	blameSilent               // it did not answer in the time that it has
)

// breaker keeps requests from an endpoint that fails whatever it is asked. It
// opens after some failures in a row. It does not find out by itself when to
// close: whoever opened it probes (see Registry.revive), so that no client ever
// waits for the answer of an endpoint that has none.
type breaker struct {
	state    prometheus.Gauge
	openings prometheus.Counter

	mu  sync.Mutex
	now breakerState
	// streak is how many failures there were since the last success, and
	// thing what was asked for at the last of them.
	streak int
	thing  string
	cause  *oci.Error
	// answered is when the endpoint last answered.
	answered time.Time
	// probe is when the next probe is due, and pauses the waits between them.
	probe    time.Time
	pauses   backoff.ExponentialBackOff
	reviving bool // someone probes
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

// refusal tells whether no request may be sent: the failure that opened the
// breaker, and for how long the next probe is away.
func (b *breaker) refusal() (cause *oci.Error, wait time.Duration, refused bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == breakerClosed {
		return nil, 0, false
	}
	return b.cause, max(time.Until(b.probe), firstProbe), true
}

// success notes an answer to a request.
func (b *breaker) success() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.streak, b.thing, b.cause = 0, "", nil
	b.answered = time.Now()
	b.pauses.Reset()
	if b.now != breakerClosed {
		b.set(breakerClosed)
	}
}

// failure notes a failed request for thing that began at began. It tells
// whether the breaker has opened by it, and whether the caller is to revive the
// endpoint.
func (b *breaker) failure(how blame, thing string, began time.Time, cause *oci.Error) (opened, revive bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// One thing that an endpoint can not serve, asked for again and again,
	// says nothing of all the others.
	if how == blameRequest && thing == b.thing {
		return false, false
	}
	b.streak++
	b.thing, b.cause = thing, cause
	// Who said nothing for so long, to nobody, is gone; to wait for more such
	// failures would take each of them as long.
	if how == blameSilent && !b.answered.After(began) {
		b.streak = max(b.streak, breakAfter)
	}
	if b.streak < breakAfter || b.now != breakerClosed {
		return false, false
	}
	b.set(breakerOpen)
	b.openings.Inc()
	b.probe = time.Now().Add(firstProbe)
	revive = !b.reviving
	b.reviving = true
	return true, revive
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

// end notes what came of a probe. After a good one the endpoint is on trial:
// the next failure opens the breaker again, and the waits go on to grow.
func (b *breaker) end(good bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.now == breakerClosed: // a request was answered meanwhile
	case good:
		b.streak = breakAfter - 1
		b.answered = time.Now()
		b.set(breakerClosed)
	default:
		b.set(breakerOpen)
	}
}

// left makes the failure of a request that was not sent, for the host behind b is
// left alone; nil where it is not.
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

// judge tells host's breaker b how a request for thing came out that began at
// began; f is nil where it came out well. probe, which tells whether the host
// answers, is for when it is found to be gone.
func (r *Registry) judge(b *breaker, host, thing string, began time.Time, f *failure, probe func(context.Context) bool) {
	switch {
	case f == nil || f.blame == blameNobody:
		b.success()
		return
	case f.blame == blameNone:
		return
	}
	opened, revive := b.failure(f.blame, thing, began, f.err)
	if !opened {
		return
	}
	r.log.Warn("it has failed several times in a row and is left alone until it answers again", zap.String("host", host), zap.Error(f.err))
	// What is idle may be dead as well, and would hold the probe up.
	r.routes.named.CloseIdleConnections()
	if revive {
		r.spawn(func() { r.revive(b, host, probe) })
	}
}

// revive probes host until it answers. It ends with the registry.
func (r *Registry) revive(b *breaker, host string, probe func(context.Context) bool) {
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
		good := probe(ctx)
		cancel()
		b.end(good)
		if good {
			r.log.Info("it answers again", zap.String("host", host))
		}
	}
}

// probe gives the probe of ep, which failed with a: a GET of /v2/, which needs no
// token to be an answer. Where that of all things fails, a is asked again, by
// HEAD, which is no pull.
func (r *Registry) probe(ep *endpoint, a *ask) func(context.Context) bool {
	return func(ctx context.Context) bool {
		if _, held := ep.governor.heldAll(); held {
			return false
		}
		res := r.knock(ctx, http.MethodGet, ep.ping(), nil)
		if res != nil && res.StatusCode >= 500 && a.page == nil {
			res = r.knock(ctx, http.MethodHead, ep.url(a.repo+"/"+a.path), a.header)
		}
		if res != nil && res.StatusCode == http.StatusTooManyRequests {
			ep.governor.note(account{}, ep.governor.turn(account{}), false, res.StatusCode, res.Header)
		}
		return res != nil && (res.StatusCode < 500 || res.StatusCode == http.StatusNotImplemented)
	}
}

// knock sends a probe, and gives the answer, of which the body is closed; nil
// where none came.
func (r *Registry) knock(ctx context.Context, method string, u *url.URL, header http.Header) *http.Response {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req := (&http.Request{Method: method, URL: u, Header: http.Header{}}).WithContext(ctx)
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
