package grants

import (
	"time"

	"github.com/entrepot-dev/entrepot/upstream"
)

// Borrow gives a credential with a live grant on repo: none where everyone may pull
// it, else that of whoever came last. What goes on behind for long, as a fill of a
// large layer, borrows again and again; so a lease that is half over and borrowed on
// is renewed, by asking the upstream, as long as it says yes.
func (l *Leases) Borrow(repo string) (upstream.Credential, bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var best *grant
	var whose account
	for who, g := range l.granted[repo] {
		if !now.Before(g.until) {
			continue
		}
		if who == (account{}) {
			best, whose = g, who
			break
		}
		if best == nil || g.used.After(best.used) {
			best, whose = g, who
		}
	}
	if best == nil {
		return upstream.Credential{}, false
	}
	if best.until.Sub(now) < l.lease/2 && !best.renewing && !l.closed {
		best.renewing = true
		q, c := best.asked, best.credential
		l.running.Go(func() {
			// Whatever comes of it is remembered by the check.
			_, _, _ = l.flights.Do(string(whose[:])+repo, func() (any, error) { return nil, l.check(q, whose, c, asker{who: whose}) })
			l.mu.Lock()
			defer l.mu.Unlock()
			best.renewing = false
		})
	}
	return best.credential, true
}

// Refused ends the grant of c on repo: the upstream does not let it pull any more.
func (l *Leases) Refused(repo string, c upstream.Credential) {
	who := l.account(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(repo, who)
}
