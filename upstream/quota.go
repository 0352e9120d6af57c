package upstream

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// pullPause is for how long no pull is sent where an upstream refuses one
	// and does not say when to come again. A HEAD that tells of pulls that are
	// left ends it.
	pullPause = time.Minute
	// abusePause is the same for one operation, and for all requests. It doubles as
	// long as the upstream refuses everything, up to maxAbusePause.
	abusePause    = 5 * time.Second
	maxAbusePause = 2 * time.Minute
	// maxHold bounds what an upstream can ask for by Retry-After: after that
	// it is asked whether it still means it.
	maxHold = time.Hour
	// defaultWindow counts where an upstream does not say its window.
	defaultWindow = time.Hour
	maxWindow     = 31 * 24 * time.Hour
	maxAccounts   = 1000
)

// account tells apart whose requests an upstream counts: the fingerprint of the
// credential, or the zero account where the endpoint has never asked for one.
type account [sha256.Size]byte

// governor knows what an endpoint still grants, and holds requests that it would
// refuse. An upstream has up to three kinds of limits: one on pulls, counted by account
// and told in headers; limits on single operations, such as listing tags; and one
// against abuse, on everything that comes from an address. A 429 without a word about
// the quota holds its own operation. Everything is held once a second operation gets a
// 429 too, if nothing else was answered in between and one of the two is a pull's.
// Its methods are safe for concurrent use.
type governor struct {
	upstream string
	metrics  *metrics.Metrics

	mu       sync.Mutex
	accounts map[account]*quota
	// last is the one that was answered last.
	last account
	// operations holds the requests of one operation each, by ask.op.
	operations map[string]*hold
	// answered is when the endpoint last answered a request with something else than
	// 429.
	answered time.Time
	// all holds every request.
	all     hold
	reserve reserve
}

// quota is what one account is granted.
type quota struct {
	limit int
	// remaining is what is left until resets; it is not known before or after.
	remaining int
	known     bool
	resets    time.Time
	expiry    *time.Timer
	// begun counts the pulls that were sent, or are about to be, and ended those of them
	// that were answered or failed. unread counts the pulls under way that began while it
	// wasn't known how many remain, so that they were not taken off.
	begun, ended uint64
	unread       int
	// reads counts the answers that said what is left, as of after all pulls before.
	reads uint64
	usage usage
	// pulls holds the GETs of manifests.
	pulls hold
}

// hold keeps requests back for a while.
type hold struct {
	until time.Time
	// told is set where the upstream has said how long.
	told  bool
	pause time.Duration // of the last one that it has not told
	since time.Time     // when the upstream last refused what is held
}

// limited is a 429 as the governor understands it.
type limited struct {
	// pulls is set where the quota of pulls is used up; else it is the limit
	// against abuse.
	pulls bool
	// operation is the only one that is limited; empty if all are.
	operation string
	wait      time.Duration
	// guessed is set if the upstream has not said how long an operation is limited. Pulls come
	// back with the quota's window.
	guessed bool
}

func newGovernor(upstream string, m *metrics.Metrics, r reserve) *governor {
	return &governor{upstream: upstream, metrics: m, accounts: map[account]*quota{}, operations: map[string]*hold{}, reserve: r}
}

// of gives who's quota. g.mu is held.
func (g *governor) of(who account) *quota {
	q := g.accounts[who]
	if q == nil {
		if len(g.accounts) >= maxAccounts {
			for _, q := range g.accounts {
				q.stop()
			}
			clear(g.accounts) // each is told again with its next answer
		}
		q = &quota{}
		g.accounts[who] = q
	}
	return q
}

func (q *quota) stop() {
	if q.expiry != nil {
		q.expiry.Stop()
	}
}

// close ends the timers.
func (g *governor) close() {
	defer g.save(true)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, q := range g.accounts {
		q.stop()
	}
}

// held returns for how long no request of operation op may be sent; false if it may.
func (g *governor) held(op string) (limited, bool) {
	if l, held := g.heldAll(); held {
		return l, true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.operations[op]
	if h == nil {
		return limited{}, false
	}
	wait := time.Until(h.until)
	return limited{operation: op, wait: wait, guessed: !h.told}, wait > 0
}

// heldAll returns for how long no request at all may be sent; false if some may.
func (g *governor) heldAll() (limited, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	wait := time.Until(g.all.until)
	return limited{wait: wait, guessed: !g.all.told}, wait > 0
}

// spend notes that a pull of what is about to be sent for who. If it must not be sent,
// held is true and the hold says for how long. Give s to settle once, with the answer or
// without one.
func (g *governor) spend(who account, what string) (s sent, l limited, held bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.of(who)
	now := time.Now()
	g.roll(q, now, false)
	if wait := q.pulls.until.Sub(now); wait > 0 {
		q.usage.refuse(what)
		return sent{}, limited{pulls: true, wait: wait}, true
	}
	// The answer corrects that; many at once are not to go below the reserve.
	s = sent{counted: q.remaining > 0, needed: !q.usage.takePromise(now), reads: q.reads}
	if s.counted {
		q.remaining--
	} else {
		q.unread++
	}
	if s.needed {
		q.usage.needed++
	}
	q.begun++
	return s, limited{}, false
}

// settle ends the pull s that was sent for who. If res, its answer, doesn't say what is
// left, it takes back what spend counted: Docker Hub doesn't count such pulls. Without an
// answer, res is nil: the upstream may have counted the pull.
func (g *governor) settle(who account, s sent, res *answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.of(who)
	q.ended = min(q.ended+1, q.begun)
	if !s.counted {
		q.unread = max(q.unread-1, 0)
	}
	if res == nil || res.StatusCode == http.StatusTooManyRequests || res.Header.Get("RateLimit-Remaining") != "" {
		return
	}
	if s.counted && s.reads == q.reads {
		q.remaining++
	}
	if s.needed {
		q.usage.needed = max(q.usage.needed-1, 0)
	}
}

// turn returns how many pulls for who have ended. Take it before a request is sent, and
// give it to note with the answer: the upstream has certainly counted these pulls by then,
// and may have counted those under way before the request or after it.
func (g *governor) turn(who account) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.of(who).ended
}

// note learns from an answer of the endpoint to a request of operation op for who. It
// takes a 429 for the quota's if it answers a pull and the upstream mentions the quota,
// or is known to have none left. It takes any other 429 for a limit on op, or on
// everything (see governor). turn is that of before the request was sent. If the request
// is a pull, note comes before its settle.
func (g *governor) note(who account, turn uint64, op string, pull bool, status int, h http.Header) limited {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.of(who)
	if op != "probe" { // which is nobody's
		g.last = who
	}
	told := g.read(q, turn, pull, h, now)
	if status != http.StatusTooManyRequests {
		g.answered = now
		g.all.pause = 0
		if o := g.operations[op]; o != nil {
			o.pause = 0
		}
		if told && q.remaining > 0 && !q.pulls.told {
			q.pulls = hold{}
		}
		return limited{}
	}
	wait := retryAfter(h)
	if pull && (told || q.known && q.remaining == 0) {
		if wait == 0 {
			q.pulls.set(now, pullPause, false)
		} else {
			q.pulls.set(now, wait, true)
		}
		return limited{pulls: true, wait: max(wait, q.pulls.until.Sub(now))}
	}
	o := g.operations[op]
	if o == nil {
		o = &hold{}
		g.operations[op] = o // as many as there are operations
	}
	if !o.since.After(g.answered) {
		o.pause = 0 // other operations go on
	}
	o.refuse(now, wait)
	if !g.refusesAll(op) {
		return limited{operation: op, wait: max(wait, o.until.Sub(now)), guessed: !o.told}
	}
	g.all.refuse(now, wait)
	return limited{wait: max(wait, g.all.until.Sub(now)), guessed: !g.all.told}
}

// refusesAll reports whether the endpoint, which has just refused op, seems to refuse
// everything: it refused another operation too, answered nothing since, and one of the
// two is needed for pulls. g.mu is held.
func (g *governor) refusesAll(op string) bool {
	isPull := func(op string) bool { return op == "manifest" || op == "blob" }
	for other, o := range g.operations {
		if other != op && (isPull(op) || isPull(other)) && o.since.After(g.answered) && time.Since(o.since) < maxHold {
			return true
		}
	}
	return false
}

// refuse notes that what h holds was refused at now, for wait or, if that is zero, for a
// time that the upstream has not told.
func (h *hold) refuse(now time.Time, wait time.Duration) {
	h.since = now
	if wait == 0 {
		h.pause = min(max(2*h.pause, abusePause), maxAbusePause)
		h.set(now, h.pause, false)
		return
	}
	h.set(now, wait, true)
}

func (h *hold) set(now time.Time, d time.Duration, told bool) {
	if until := now.Add(min(d, maxHold)); until.After(h.until) {
		h.until, h.told = until, told
	}
}

// read takes over what h says of the quota; false where that is nothing.
// g.mu is held.
//
// The headers are those of Docker Hub, "ratelimit-limit: 100;w=21600", and of
// draft-ietf-httpapi-ratelimit-headers.
func (g *governor) read(q *quota, turn uint64, pull bool, h http.Header, now time.Time) bool {
	limit, window, okLimit := readQuota(h.Get("RateLimit-Limit"))
	remaining, window2, okRemaining := readQuota(h.Get("RateLimit-Remaining"))
	if okLimit {
		q.limit = limit
		g.metrics.RateLimit.WithLabelValues(g.upstream).Set(float64(limit))
	}
	if !okRemaining {
		return okLimit
	}
	if window2 > 0 {
		window = window2
	}
	if window == 0 {
		window = defaultWindow
	}
	// The answer may leave out the pulls that were under way beside the request: answers
	// come in another order than the upstream has counted the pulls.
	late := int(q.begun - min(turn, q.begun)) // #nosec G115 -- a count of requests
	if pull {
		late = max(late-1, 0) // itself
	}
	if q.known && now.Before(q.resets) && remaining <= q.remaining+late {
		remaining = min(remaining, q.remaining)
	}
	if late == 0 || remaining != q.remaining {
		q.reads++
	}
	g.roll(q, now, q.known && (!now.Before(q.resets) || remaining > q.remaining+max(1, limit/4)))
	q.usage.window = window
	// When its window began the upstream does not say; the first that we saw
	// of it is the latest that it can have been.
	if !q.known || !now.Before(q.resets) || remaining > q.remaining+1 {
		q.resets = now.Add(window)
	}
	if s, _, ok := readQuota(h.Get("RateLimit-Reset")); ok {
		q.resets = now.Add(min(time.Duration(s)*time.Second, maxWindow))
	}
	q.known, q.remaining = true, remaining
	g.metrics.RateRemaining.WithLabelValues(g.upstream).Set(float64(remaining))
	g.metrics.RateReset.WithLabelValues(g.upstream).Set(float64(q.resets.Unix()))
	kept, _ := g.keep(q, false)
	g.metrics.RateReserve.WithLabelValues(g.upstream).Set(float64(kept))
	q.stop()
	q.expiry = time.AfterFunc(q.resets.Sub(now), func() { g.expire(q) })
	return true
}

// expire forgets what was left in a window that has ended.
func (g *governor) expire(q *quota) {
	defer g.save(false)
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Now().Before(q.resets) {
		return
	}
	q.known = false
	if !q.pulls.told {
		q.pulls = hold{}
	}
	g.roll(q, time.Now(), true)
	g.metrics.RateReserve.DeleteLabelValues(g.upstream)
	g.metrics.RateRemaining.DeleteLabelValues(g.upstream)
	g.metrics.RateReset.DeleteLabelValues(g.upstream)
}

// spared is what the account that was answered last has beyond the reserve.
type spared struct {
	// left pulls remain, and kept of them are the reserve; why says where that number
	// comes from.
	left, kept int
	why        string
	// wait is when more are granted; zero if that isn't known.
	wait time.Duration
}

// spare reports whether the account that was answered last has n pulls beyond the reserve.
// What isn't known is spared. If operator is set, an operator asked for the pulls; else
// one is set aside for the caller for promiseTime.
func (g *governor) spare(n int, operator bool) (s spared, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.accounts[g.last]
	now := time.Now()
	until := g.all.until
	if o := g.operations["manifest"]; o != nil && o.until.After(until) {
		until = o.until
	}
	switch {
	case now.Before(until):
		return spared{wait: until.Sub(now)}, false
	case q == nil:
		return spared{}, true
	case now.Before(q.pulls.until):
		return spared{wait: q.pulls.until.Sub(now)}, false
	case !q.known:
		return spared{}, true
	}
	g.roll(q, now, false)
	q.usage.prune(now)
	s = spared{left: q.remaining, wait: q.resets.Sub(now)}
	s.kept, s.why = g.keep(q, operator)
	promised := len(q.usage.promises)
	if operator {
		promised = 0 // its own may be among them
	}
	if q.remaining-q.unread-promised-n < s.kept {
		return s, false
	}
	q.usage.promise(now)
	return s, true
}

// readQuota reads the first number of s, and the window behind it:
// "100;w=21600".
func readQuota(s string) (n int, window time.Duration, ok bool) {
	s, _, _ = strings.Cut(s, ",")
	first, params, _ := strings.Cut(s, ";")
	n, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || n < 0 {
		return 0, 0, false
	}
	for p := range strings.SplitSeq(params, ";") {
		if v, found := strings.CutPrefix(strings.TrimSpace(p), "w="); found {
			if w, err := strconv.ParseUint(v, 10, 31); err == nil {
				window = min(time.Duration(w)*time.Second, maxWindow)
			}
		}
	}
	return n, window, true
}

// SparePull reports whether a manifest may be fetched now to refresh a cached tag. The
// caller fetches it soon after. The error is an *oci.Error: what the upstream still grants
// is kept for images that aren't cached.
func (r *Registry) SparePull(context.Context) error {
	_, err := r.sparePulls(1, false)
	return err
}

// SparePulls reports whether an operator's command may pull, if n pulls, this one
// included, are under way. again is when the upstream grants more; zero if that isn't known.
func (r *Registry) SparePulls(_ context.Context, n int) (again time.Duration, err error) {
	return r.sparePulls(n, true)
}

func (r *Registry) sparePulls(n int, operator bool) (again time.Duration, err error) {
	for _, ep := range r.endpoints {
		if _, _, refused := ep.breaker.refusal(); refused {
			continue
		}
		s, ok := ep.governor.spare(n, operator)
		if ok {
			return 0, nil
		}
		if err == nil {
			again = max(s.wait, 0)
			why := ""
			if s.why != "" {
				why = fmt.Sprintf(" (%s)", s.why)
			}
			err = &oci.Error{Code: oci.CodeTooManyRequests, Message: fmt.Sprintf(
				"upstream %s grants %d more pulls, which are kept for what is not in the cache%s; upstreams.%s.quota_reserve bounds that", r.name, s.left, why, r.name)}
		}
	}
	return again, err
}

// reasonHeld is that of a request which was not sent, for the upstream would
// refuse it.
const reasonHeld = "held"

// held makes the failure of a request that was not sent.
func (r *Registry) held(l limited) *failure {
	f := &failure{reason: reasonHeld, again: elsewhere}
	f.err = r.overLimit(l, "")
	f.err.Reported = true
	return f
}

// overLimit makes the error of a request that a limit refuses.
func (r *Registry) overLimit(l limited, tail string) *oci.Error {
	what := "limits the requests from here"
	switch {
	case l.pulls:
		what = "grants no more pulls for now: the quota of its rate limit is used up"
	case l.operation != "":
		what = "limits the requests of this kind from here (" + l.operation + ")"
	}
	return &oci.Error{Code: oci.CodeTooManyRequests, RetryAfter: max(l.wait, 0), Guessed: l.guessed,
		Message: fmt.Sprintf("upstream %s %s%s", r.name, what, tail)}
}

// noteLimits learns from an answer of ep itself.
func (r *Registry) noteLimits(ep *endpoint, who account, turn uint64, res *answer) {
	defer ep.governor.save(false)
	res.limited = ep.governor.note(who, turn, res.ask.op, res.ask.pull, res.StatusCode, res.Header)
	if res.StatusCode == http.StatusTooManyRequests {
		r.log.Warn("the upstream limits us", zap.String("host", ep.host), zap.Bool("pulls", res.limited.pulls), zap.String("operation", res.limited.operation),
			zap.Duration("wait", res.limited.wait), zap.String("counted_by", clean(res.Header.Get("Docker-RateLimit-Source"))))
	}
}
