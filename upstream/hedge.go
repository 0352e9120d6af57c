package upstream

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// hedgeAfter is how long a request may be silent before another is sent beside it.
	hedgeAfter = 2 * time.Second
	// lookEvery is how often a lookout probes an endpoint that does not answer, and
	// lookAgain how often one that does. lookTimeout bounds each probe.
	lookEvery   = 500 * time.Millisecond
	lookAgain   = 5 * time.Second
	lookTimeout = 5 * time.Second
	// goneAfter is how many probes in a row are not answered yet when an endpoint counts as
	// gone: 2 s, since a probe of one far away takes three long round trips.
	goneAfter = 4
)

// errOvertaken is the cause with which an attempt is cancelled that another overtook.
var errOvertaken = errors.New("another request was answered first")

type freshKey struct{}

// fresh returns a context whose requests are sent on connections of their own.
func fresh(ctx context.Context) context.Context { return context.WithValue(ctx, freshKey{}, true) }

func isFresh(ctx context.Context) bool { return ctx.Value(freshKey{}) != nil }

// try is one attempt at a request.
type try struct {
	cancel context.CancelCauseFunc
	began  time.Time
	done   chan struct{} // closed when res, at and err are set
	res    *http.Response
	at     *url.URL
	err    error

	mu        sync.Mutex
	connected bool      // there is a connection
	reused    bool      // which was used before
	moved     time.Time // when it last made progress
}

// sender sends a request once, as Registry.send does.
type sender func(ctx context.Context, cancel context.CancelCauseFunc) (*http.Response, *url.URL, error)

// begin sends a request in a goroutine that ends after t.cancel at the latest.
func (s sender) begin(ctx context.Context) *try {
	t := &try{began: time.Now(), moved: time.Now(), done: make(chan struct{})}
	step := func(f func()) {
		t.mu.Lock()
		defer t.mu.Unlock()
		f()
		t.moved = time.Now()
	}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:              func(string) { step(func() { t.connected, t.reused = false, false }) },
		GotConn:              func(c httptrace.GotConnInfo) { step(func() { t.connected, t.reused = true, c.Reused }) },
		GotFirstResponseByte: func() { step(func() {}) },
	})
	ctx, t.cancel = context.WithCancelCause(ctx)
	go func() {
		defer close(t.done)
		if t.res, t.at, t.err = s(ctx, t.cancel); t.err != nil {
			t.err = causeOr(ctx, t.err)
		}
	}()
	return t
}

// drop ends t, which may be nil, and waits for its end.
func (t *try) drop() {
	if t == nil {
		return
	}
	t.cancel(errOvertaken)
	<-t.done
	if t.res != nil {
		_ = t.res.Body.Close() // nothing of it was used
	}
}

// state returns whether t has a connection, whether that was used before, and for how
// long t has made no progress.
func (t *try) state() (connected, reused bool, quiet time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.connected, t.reused, time.Since(t.moved)
}

// good reports whether t, which is done, was answered with something that may be
// preferred to waiting for another attempt.
func (t *try) good() bool {
	return t.err == nil && t.res.StatusCode < 500 && t.res.StatusCode != http.StatusTooManyRequests
}

// hedge sends a request to l's endpoint. If it is silent for hedgeAfter, hedge sends it
// once more on a new connection, beside the first, and returns the first good answer.
// It does so
//   - once, if the first has no connection yet, so that nothing was sent. For anything but
//     blobs also if it went out on a connection that was used before, which may be dead,
//     or if somebody else has joined (see oci.Joins);
//   - each time the endpoint answers again after a while without any answer.
//
// A request that is merely slow to be answered is not sent twice for one client. At most
// two attempts run at a time. They end when hedge returns, but for the one whose
// response it returns: the caller closes its body and ends ctx.
func (r *Registry) hedge(ctx context.Context, l *lookout, send sender) (*http.Response, *url.URL, error) {
	first := send.begin(ctx)
	firstDone := first.done
	var extra *try
	var back <-chan struct{} // closed when the endpoint answers again
	joined := oci.Joined(ctx)
	// Of a blob that is merely slow to begin, two requests would both send bytes.
	bulk, _ := ctx.Value(bulkKey{}).(bool)
	isJoined, sentTwice := false, false
	timer := time.NewTimer(hedgeAfter)
	defer timer.Stop()
	again := func() {
		extra.drop()
		extra = send.begin(fresh(ctx))
		sentTwice = true
		r.metrics.UpstreamRetries.WithLabelValues(r.name).Inc()
	}
	for {
		var extraDone chan struct{}
		if extra != nil {
			extraDone = extra.done
		}
		select {
		case <-firstDone:
			if first.err == nil || extra == nil || ctx.Err() != nil {
				extra.drop()
				return first.res, first.at, first.err
			}
			firstDone = nil
			// The other has as long as the first had before it was called silent.
			patience := max(0, hedgeAfter-time.Since(extra.began))
			if connected, _, _ := extra.state(); !connected {
				patience = 0
			}
			timer.Reset(patience)
		case <-extraDone:
			if extra.good() {
				first.drop()
				// Whatever was sent on the old connections may wait in vain too.
				r.routes.renew()
				return extra.res, extra.at, nil
			}
			extra.drop()
			extra = nil
			if firstDone == nil {
				return first.res, first.at, first.err
			}
		case <-joined:
			joined, isJoined = nil, true
			if firstDone != nil {
				timer.Reset(0)
			}
		case <-back:
			back = l.back()
			if firstDone != nil {
				again()
			}
		case <-timer.C:
			if firstDone == nil {
				extra.drop()
				return first.res, first.at, first.err
			}
			connected, reused, quiet := first.state()
			if quiet < hedgeAfter {
				timer.Reset(hedgeAfter - quiet)
				continue
			}
			if back == nil {
				back = l.enter()
				defer l.leave()
			}
			if !sentTwice && (!connected || !bulk && (reused || isJoined)) {
				again()
			}
			timer.Reset(hedgeAfter)
		}
	}
}

// outcome is how an attempt at an endpoint ended: with res or with f.
type outcome struct {
	ep     *endpoint
	ask    *ask // of an attempt beside another
	began  time.Time
	res    *answer
	f      *failure
	cancel context.CancelFunc // of an attempt beside another
	done   chan struct{}      // closed when res and f are set
}

// next returns the first of eps that may be asked; nil if none may.
func next(eps []*endpoint) *endpoint {
	for _, ep := range eps {
		if _, _, refused := ep.breaker.refusal(); !refused {
			return ep
		}
	}
	return nil
}

// race asks first. If that is silent for hedgeAfter, it asks second beside it, unless
// that is nil. It returns the one attempt that was answered with what was asked for, or
// those that failed: first a failure that another endpoint may mend. The caller takes or
// closes the answer.
func (r *Registry) race(ctx context.Context, first, second *endpoint, a *ask) []outcome {
	if second == nil {
		o := outcome{ep: first, began: time.Now()}
		o.res, o.f = r.attemptSpan(ctx, first, a)
		return []outcome{o}
	}
	one := r.begin(ctx, first, a, r.attemptSpan)
	timer := time.NewTimer(hedgeAfter)
	defer timer.Stop()
	select {
	case <-one.done:
		return []outcome{*one}
	case <-timer.C:
	}
	first.rest(afterFailure) // better than none, but no longer the first choice
	two := r.begin(ctx, second, a, r.attemptSpan)
	ended, left := one, two
	select {
	case <-one.done:
	case <-two.done:
		ended, left = two, one
	}
	if ended.f == nil {
		if left.drop(); left.res == nil && left == one {
			r.judgeAsk(first, a, one.began, &failure{blame: blameSilent, err: unavailable(http.StatusGatewayTimeout, nil,
				"upstream %s: %s takes too long to answer", r.name, first.host)})
		}
		return []outcome{*ended}
	}
	<-left.done
	switch {
	case left.f == nil:
		return []outcome{*left}
	case ended.f.again == nobody:
		ended, left = left, ended
	}
	return []outcome{*ended, *left}
}

// begin attempts a at ep in a goroutine that ends after cancel at the latest. attempt gets
// a copy of a.
func (r *Registry) begin(ctx context.Context, ep *endpoint, a *ask, attempt func(context.Context, *endpoint, *ask) (*answer, *failure)) *outcome {
	own := *a // attempts note in it what they learn
	o := &outcome{ep: ep, ask: &own, began: time.Now(), done: make(chan struct{})}
	ctx, o.cancel = context.WithCancel(ctx)
	go func() {
		defer close(o.done)
		if o.res, o.f = attempt(ctx, ep, &own); o.f != nil {
			o.res = nil
			o.cancel()
			return
		}
		b := o.res.body
		end := b.cancel
		b.cancel = func(cause error) { end(cause); o.cancel() }
	}()
	return o
}

// drop ends o, which may be nil, waits for its end, and closes its answer, if there is one.
func (o *outcome) drop() {
	if o == nil {
		return
	}
	o.cancel()
	<-o.done
	if o.res != nil {
		_ = o.res.body.Close() // nothing of it was used
	}
}

// lookout probes an endpoint while requests to it are silent, to know when one that
// answered nothing answers again. Its methods are safe for concurrent use.
type lookout struct {
	r *Registry
	// probe asks the endpoint on a new connection whether it answers.
	probe func(context.Context) health
	// answered is called with each answer of the endpoint to a probe.
	answered func(health)

	mu      sync.Mutex
	waiting int           // silent requests
	running bool          // a goroutine probes
	returns chan struct{} // closed, and replaced, when the endpoint answers again
	gone    bool          // it does not answer
}

// enter has the endpoint probed until leave is called. The channel that it returns is
// closed when the endpoint answers after it has not.
func (l *lookout) enter() (back <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting++
	if !l.running {
		l.running = true
		if !l.r.spawn(l.run) {
			l.running = false
		}
	}
	return l.channel()
}

// back returns the channel that is closed the next time.
func (l *lookout) back() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.channel()
}

// channel returns l.returns. l.mu is held.
func (l *lookout) channel() chan struct{} {
	if l.returns == nil {
		l.returns = make(chan struct{})
	}
	return l.returns
}

func (l *lookout) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting--
}

// isGone reports whether the endpoint is being probed and does not answer.
func (l *lookout) isGone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gone
}

// idle ends the lookout if nobody waits any more.
func (l *lookout) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting > 0 {
		return false
	}
	l.running, l.gone = false, false
	return true
}

// note notes whether the endpoint answers. It wakes those who wait for it to come back.
func (l *lookout) note(gone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone && !gone {
		// What was sent before is lost, and so are the connections.
		l.r.routes.renew()
		close(l.channel())
		l.returns = nil
	}
	l.gone = gone
}

// run probes until nobody waits. It ends with the registry's life.
func (l *lookout) run() {
	ctx, cancel := context.WithCancel(l.r.life)
	var probes sync.WaitGroup
	defer probes.Wait()
	defer cancel()
	answers := make(chan health, 2*int(lookTimeout/lookEvery))
	for misses := 0; !l.idle() && ctx.Err() == nil; {
		probes.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, lookTimeout)
			defer cancel()
			if h := l.probe(ctx); h != healthSilent && h != healthUnknown {
				select {
				case answers <- h:
				case <-ctx.Done():
				}
			}
		})
		pause := time.NewTimer(lookEvery)
		select {
		case h := <-answers:
			misses = 0
			l.note(false)
			l.answered(h)
			pause.Reset(lookAgain)
			for wait := true; wait; {
				select {
				case <-answers: // of an earlier probe
				case <-pause.C:
					wait = false
				case <-ctx.Done():
					wait = false
				}
			}
		case <-pause.C:
			if misses++; misses >= goneAfter {
				l.note(true)
			}
		case <-ctx.Done():
		}
		pause.Stop()
	}
}
