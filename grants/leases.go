package grants

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/entrepot-dev/entrepot/fair"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/upstream"
)

const (
	// DefaultLease is for how long the upstream's yes is believed.
	DefaultLease = 5 * time.Minute
	// refusalTime is for how long its no is: an upstream counts failed logins.
	refusalTime = 10 * time.Second
	// downTime is for how long a grant is stretched without asking again, after
	// the upstream could not be asked.
	downTime = 10 * time.Second
	// patience is how long a caller waits for the upstream who could have a stretched
	// grant instead.
	patience = 2 * time.Second
	// publicStretch is for how long after its lease a repository that everyone could
	// pull is still taken for one while the upstream can not be asked. What was
	// fetched for it was fetched without credentials, so it is no secret.
	publicStretch = 720 * time.Hour
	// checkTimeout bounds one check.
	checkTimeout = 30 * time.Second
	// turnTimeout is how long a check waits for its turn. A client waits for less time
	// only if it gives up by itself.
	turnTimeout = 30 * time.Second
	// maxChecks bounds the checks that run at a time, maxWaiting those that wait for it,
	// and maxGrants and maxRefusals what is remembered, whatever strangers ask for.
	maxChecks   = 64
	maxWaiting  = 4096
	maxGrants   = 10_000
	maxRefusals = 10_000
)

// MayPull asks an upstream whether c, the zero Credential being anyone, may pull from
// repo, by the tag or digest ref of a manifest, or of a blob, where it is not empty. It
// gives nil, what oci.IsRefused tells of, or why it could not be found out.
type MayPull func(ctx context.Context, c upstream.Credential, repo, ref string, blob bool) error

// Options describe the leases of one upstream.
type Options struct {
	// Upstream is its configured name.
	Upstream string
	// Lease is for how long the upstream's word that a caller may pull from a
	// repository is believed. Zero means DefaultLease.
	Lease time.Duration
	// Stretch is for how much longer it is while the upstream can not be asked. Zero
	// is not at all.
	Stretch time.Duration
	// MayPull asks the upstream.
	MayPull MayPull
	// Metrics may be nil.
	Metrics *metrics.Metrics
}

// account tells callers apart by a keyed hash of their credential. The zero account is
// everyone.
type account [sha256.Size]byte

// asker is who causes a check: its turn comes after those of other askers.
type asker struct {
	from netip.Addr
	who  account
}

// question is what a caller wants to have.
type question struct {
	repo, ref string
	blob      bool
}

// holder is who was told something of which repository.
type holder struct {
	repo string
	who  account
}

// grant is an upstream's yes.
type grant struct {
	// credential is what it was said to; it is wiped when the lease has ended.
	credential upstream.Credential
	asked      question
	until      time.Time
	used       time.Time
	renewing   bool
	// down is until when it is stretched without asking again.
	down time.Time
}

// Leases are what one upstream has said of who may pull what. All methods are safe for
// concurrent use. It lends the credentials of those who may to the upstream's client
// (upstream.Lender). Close it when it is no longer used.
type Leases struct {
	upstream string
	hint     string // for callers without credentials; New sets it
	lease    time.Duration
	stretch  time.Duration
	mayPull  MayPull
	metrics  *metrics.Metrics
	key      []byte

	// flights makes one check of what several want to know at a time; checks has a
	// place for each that runs, and serves addresses and accounts in turn. They end with
	// life.
	flights singleflight.Group
	checks  *fair.Queue
	life    context.Context
	end     context.CancelFunc
	running sync.WaitGroup // what spawn started, and the checks

	mu      sync.Mutex
	closed  bool
	granted map[string]map[account]*grant // by repository
	count   int                           // of grants
	refused map[holder]time.Time
}

var _ upstream.Lender = (*Leases)(nil)

// NewLeases makes leases of which there is none yet.
func NewLeases(o Options) *Leases {
	l := &Leases{
		upstream: o.Upstream, lease: o.Lease, stretch: o.Stretch, mayPull: o.MayPull, metrics: o.Metrics,
		key: make([]byte, 32), checks: fair.New(maxChecks, maxWaiting),
		granted: map[string]map[account]*grant{}, refused: map[holder]time.Time{},
	}
	if l.lease <= 0 {
		l.lease = DefaultLease
	}
	if l.metrics == nil {
		l.metrics = metrics.Discard()
	}
	_, _ = rand.Read(l.key) // never fails
	l.life, l.end = context.WithCancel(context.Background())
	l.running.Go(l.sweepNowAndThen)
	return l
}

// Close ends what runs, waits for it, and forgets everything.
func (l *Leases) Close() {
	l.end()
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.running.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.granted)
	clear(l.refused)
	l.count = 0
}

// account gives who has c.
func (l *Leases) account(c upstream.Credential) (who account) {
	if c == (upstream.Credential{}) {
		return who
	}
	h := hmac.New(sha256.New, l.key)
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(c.Username)))
	h.Write(n[:]) // where one ends and the other begins
	h.Write([]byte(c.Username))
	h.Write([]byte(c.Password))
	h.Sum(who[:0])
	return who
}

// admit gives nil where c may have what q asks for. Whether everyone may is asked
// first, so that no credential is shown for what is public; but not of a repository
// on which c had a grant a moment ago.
func (l *Leases) admit(ctx context.Context, q question, c upstream.Credential, from netip.Addr) error {
	who, everyone := l.account(c), account{}
	by := asker{from, who}
	if l.live(q.repo, everyone) || who != everyone && l.live(q.repo, who) {
		return nil
	}
	// The server's strings are good until the request is answered, and what is
	// remembered is so for longer.
	q.repo, q.ref = strings.Clone(q.repo), strings.Clone(q.ref)
	if who == everyone {
		err := l.ask(ctx, q, everyone, upstream.Credential{}, by)
		if oci.IsRefused(err) {
			return l.unauthorized(q.repo)
		}
		return err
	}
	var own, all error
	if l.had(q.repo, who) {
		if own = l.ask(ctx, q, who, c, by); own != nil {
			all = l.ask(ctx, q, everyone, upstream.Credential{}, by)
		}
	} else if all = l.ask(ctx, q, everyone, upstream.Credential{}, by); all != nil {
		own = l.ask(ctx, q, who, c, by)
	}
	switch {
	case own == nil || all == nil:
		return nil
	case !oci.IsRefused(own):
		return own
	case !oci.IsRefused(all):
		return all
	}
	return l.denied(q.repo)
}

// had tells whether who has a grant on repo, be its lease over.
func (l *Leases) had(repo string, who account) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.granted[repo][who] != nil
}

// holds tells whether c has a live grant on repo.
func (l *Leases) holds(repo string, c upstream.Credential) bool {
	return l.live(repo, l.account(c)) || l.live(repo, account{})
}

// live tells whether who has a live grant on repo, and notes that it is used.
func (l *Leases) live(repo string, who account) bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.granted[repo][who]
	if g == nil || !now.Before(g.until) {
		return false
	}
	g.used = now
	return true
}

// ask finds out whether who, whose credential is c, may pull. The answer is nil, an
// error that oci.IsRefused tells of, or why it can not be found out. A grant whose
// lease has ended is stretched where that is so and the settings allow it. by is who
// waits for it.
func (l *Leases) ask(ctx context.Context, q question, who account, c upstream.Credential, by asker) error {
	now := time.Now()
	l.mu.Lock()
	until, refused := l.refused[holder{q.repo, who}]
	refused = refused && now.Before(until)
	g := l.granted[q.repo][who]
	stretched := l.stretched(g, who, now)
	down := stretched && now.Before(g.down)
	l.mu.Unlock()
	if refused {
		return errRefused
	}
	if down {
		return l.goOn()
	}
	var tooLong <-chan time.Time
	if stretched {
		t := time.NewTimer(patience)
		defer t.Stop()
		tooLong = t.C
	}
	flight := string(who[:]) + q.repo
	done := l.flights.DoChan(flight, func() (any, error) { return nil, l.check(q, who, c, by) })
	select {
	case r := <-done:
		if stretched && isGone(r.Err, who) {
			return l.goOn()
		}
		return r.Err
	case <-tooLong:
		return l.goOn()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errRefused is the upstream's no. Callers are told it in other words.
var errRefused = oci.Errorf(oci.CodeDenied, "the upstream has refused it")

// errBusy says that a check did not get its turn.
var errBusy = errors.New("too many checks")

// isGone tells whether err says that the upstream can not be asked. That it is asked
// too often does not count for a client, who could see to that.
func isGone(err error, who account) bool {
	var e *oci.Error
	limited := errors.Is(err, errBusy) || errors.As(err, &e) && e.Code == oci.CodeTooManyRequests
	return oci.IsTransient(err) && (who == account{} || !limited)
}

// goOn counts an answer on a grant that is stretched.
func (l *Leases) goOn() error {
	l.metrics.GrantsStretched.WithLabelValues(l.upstream).Inc()
	return nil
}

// stretched tells whether g, whose lease has ended, goes on while the upstream can not
// be asked. l.mu is held.
func (l *Leases) stretched(g *grant, who account, now time.Time) bool {
	if g == nil {
		return false
	}
	return now.Before(g.until.Add(l.stretchOf(who)))
}

func (l *Leases) stretchOf(who account) time.Duration {
	if who == (account{}) {
		return publicStretch
	}
	return l.stretch
}

// check waits for its turn, asks the upstream, and remembers what it says.
func (l *Leases) check(q question, who account, c upstream.Credential, by asker) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &oci.Error{Code: oci.CodeUnavailable, Message: "the proxy is shutting down"}
	}
	l.running.Add(1)
	l.mu.Unlock()
	defer l.running.Done()
	turn, stop := context.WithTimeout(l.life, turnTimeout)
	release, err := l.checks.Take(turn, by.from, string(by.who[:]))
	stop()
	if err != nil {
		l.metrics.Refused.WithLabelValues("grants").Inc()
		return &oci.Error{Code: oci.CodeUnavailable, Status: http.StatusServiceUnavailable, RetryAfter: time.Second,
			Message: "too many requests wait for upstream " + l.upstream + " to confirm what they may pull; try again", Err: errBusy}
	}
	defer release()
	ctx, cancel := context.WithTimeout(l.life, checkTimeout)
	defer cancel()
	asked := time.Now()
	err = l.mayPull(ctx, c, q.repo, q.ref, q.blob)
	whose, result := "client", "error"
	if who == (account{}) {
		whose = "everyone"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		result = "granted"
		delete(l.refused, holder{q.repo, who})
		l.put(q, who, &grant{credential: c, asked: q, until: asked.Add(l.lease), used: asked})
	case oci.IsRefused(err), oci.IsAbsent(err):
		result, err = "refused", errRefused
		l.drop(q.repo, who)
		l.remember(holder{q.repo, who}, asked)
	case isGone(err, who):
		if g := l.granted[q.repo][who]; g != nil {
			g.down = time.Now().Add(downTime)
		}
	}
	l.metrics.GrantChecks.WithLabelValues(l.upstream, whose, result).Inc()
	return err
}

// put keeps g. l.mu is held.
func (l *Leases) put(q question, who account, g *grant) {
	l.drop(q.repo, who)
	if l.count >= maxGrants {
		l.sweep(time.Now())
	}
	for repo, all := range l.granted { // each is only asked for once more
		if l.count < maxGrants {
			break
		}
		for other := range all {
			l.drop(repo, other)
			break
		}
	}
	if l.granted[q.repo] == nil {
		l.granted[q.repo] = map[account]*grant{}
	}
	l.granted[q.repo][who] = g
	l.count++
}

// drop forgets a grant. l.mu is held.
func (l *Leases) drop(repo string, who account) {
	all := l.granted[repo]
	if all[who] == nil {
		return
	}
	delete(all, who)
	l.count--
	if len(all) == 0 {
		delete(l.granted, repo)
	}
}

// remember notes a refusal that was asked for at asked. l.mu is held.
func (l *Leases) remember(h holder, asked time.Time) {
	if len(l.refused) >= maxRefusals {
		l.sweep(time.Now())
	}
	if len(l.refused) >= maxRefusals {
		clear(l.refused) // each is only asked for once more
	}
	l.refused[h] = asked.Add(refusalTime)
}

// sweep forgets what is over: the credentials of leases that have ended, grants that can
// not be stretched any more, refusals. l.mu is held.
func (l *Leases) sweep(now time.Time) {
	for repo, all := range l.granted {
		for who, g := range all {
			if now.Before(g.until) {
				continue
			}
			g.credential = upstream.Credential{}
			if !l.stretched(g, who, now) {
				l.drop(repo, who)
			}
		}
	}
	for h, until := range l.refused {
		if !now.Before(until) {
			delete(l.refused, h)
		}
	}
}

// sweepNowAndThen sweeps until Close.
func (l *Leases) sweepNowAndThen() {
	tick := time.NewTicker(max(time.Second, min(l.lease/2, 15*time.Second)))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.mu.Lock()
			l.sweep(time.Now())
			l.mu.Unlock()
		case <-l.life.Done():
			return
		}
	}
}
