package upstream

import (
	"fmt"
	"hash/maphash"
	"time"
)

// AutoReserve as Options.QuotaReserve keeps back as many pulls as images that aren't
// cached have needed lately.
const AutoReserve = -1

// The automatic reserve limits how many pulls of a window may refresh cached tags. It
// starts near the limit, because nothing is known yet of how many pulls new images need,
// and a tag that is served stale is better than a build that fails. It then falls, window
// by window, to what was needed.
const (
	// reserveWindows is how many windows are remembered: a week of Docker Hub's six hours.
	reserveWindows = 28
	// maxRefused bounds how many refused pulls of a window are told apart.
	maxRefused = 1000
	// promiseTime is how long a pull that was approved may take until it is sent.
	promiseTime = 10 * time.Second
)

// QuotaNeeds is how many pulls images that weren't cached have needed at one endpoint.
type QuotaNeeds struct {
	// Windows are the last windows of the upstream's quota, the newest last.
	Windows []int `json:"windows"`
	// Running is the count of the window that began at Began.
	Running int       `json:"running,omitempty"`
	Began   time.Time `json:"began,omitzero"`
}

// QuotaHistory keeps QuotaNeeds across restarts, by upstream and endpoint. It is safe for
// concurrent use.
type QuotaHistory interface {
	Load(key string) QuotaNeeds
	Save(key string, n QuotaNeeds)
}

// reserve is how many pulls a governor keeps for what isn't cached, and what it knows of
// that. The governor's lock guards it.
type reserve struct {
	// fixed is the configured number, or AutoReserve.
	fixed   int
	history QuotaHistory // nil keeps nothing
	key     string

	loaded  bool
	needs   QuotaNeeds // of all accounts; Running is the restored count until an account takes it
	unsaved bool
}

// demand of an account in the running window of its quota.
type usage struct {
	began  time.Time
	window time.Duration
	// needed counts the pulls for what wasn't cached, and refused those that were held,
	// each reference once.
	needed  int
	refused map[uint64]struct{}
	// promises are the times at which pulls for cached tags were approved that have not
	// been sent yet.
	promises []time.Time
}

// sent is a pull that was sent and whose answer isn't there yet.
type sent struct {
	// counted is set if the pull was taken off what remains, and needed if it is for
	// something that isn't cached.
	counted, needed bool
	reads           uint64
}

var refusedSeed = maphash.MakeSeed()

func (u *usage) total() int { return u.needed + len(u.refused) }

// promise notes that a pull for a cached tag was approved.
func (u *usage) promise(now time.Time) {
	u.prune(now)
	if len(u.promises) < maxRefused {
		u.promises = append(u.promises, now)
	}
}

// prune forgets the promises that nobody made use of.
func (u *usage) prune(now time.Time) {
	i := 0
	for i < len(u.promises) && now.Sub(u.promises[i]) >= promiseTime {
		i++
	}
	u.promises = u.promises[i:]
}

// takePromise reports whether a pull that is sent now was approved before.
func (u *usage) takePromise(now time.Time) bool {
	u.prune(now)
	if len(u.promises) == 0 {
		return false
	}
	u.promises = u.promises[1:]
	return true
}

func (u *usage) refuse(what string) {
	if u.refused == nil {
		u.refused = map[uint64]struct{}{}
	}
	if len(u.refused) < maxRefused {
		u.refused[maphash.String(refusedSeed, what)] = struct{}{}
	}
}

// roll begins a new window of q if its last one has ended, or if ended says so. g.mu is
// held.
func (g *governor) roll(q *quota, now time.Time, ended bool) {
	r := &g.reserve
	if r.fixed >= 0 {
		return
	}
	g.load()
	u := &q.usage
	if u.began.IsZero() {
		u.began = now
		if r.needs.Running > 0 && now.Sub(r.needs.Began) < maxWindow { // from before the restart
			u.began, u.needed = r.needs.Began, r.needs.Running
			r.needs.Running, r.needs.Began = 0, time.Time{}
		}
	}
	if !ended && (u.window == 0 || now.Sub(u.began) < u.window) {
		return
	}
	if u.window > 0 { // else the upstream has no quota
		r.needs.Windows = append(r.needs.Windows, u.total())
		r.needs.Windows = r.needs.Windows[max(0, len(r.needs.Windows)-reserveWindows):]
		r.unsaved = true
	}
	u.began, u.needed, u.refused = now, 0, nil
}

// load reads the history once. g.mu is held: the history is read from memory, but for the
// first time.
func (g *governor) load() {
	r := &g.reserve
	if r.loaded {
		return
	}
	r.loaded = true
	if r.history != nil {
		r.needs = r.history.Load(r.key)
		r.needs.Windows = r.needs.Windows[max(0, len(r.needs.Windows)-reserveWindows):]
	}
}

// save writes the history if it has changed, or if closing.
func (g *governor) save(closing bool) {
	g.mu.Lock()
	r := &g.reserve
	if r.fixed >= 0 || r.history == nil || !r.loaded || !r.unsaved && !closing {
		g.mu.Unlock()
		return
	}
	r.unsaved = false
	n := QuotaNeeds{Windows: append([]int{}, r.needs.Windows...)}
	for _, q := range g.accounts {
		if u := q.usage; u.window > 0 && u.total() >= n.Running {
			n.Running, n.Began = u.total(), u.began
		}
	}
	g.mu.Unlock()
	if len(n.Windows) > 0 || n.Running > 0 {
		r.history.Save(r.key, n)
	}
}

// keep returns how many of the pulls that remain to q are kept for what isn't cached,
// and why. operator is set for pulls that an operator asked for, from which only what is
// known to be needed is kept. g.mu is held.
func (g *governor) keep(q *quota, operator bool) (n int, why string) {
	r := &g.reserve
	if r.fixed >= 0 {
		n = r.fixed
		if q.limit > 0 {
			n = min(n, q.limit/2)
		}
		return n, "as quota_reserve says"
	}
	g.load()
	limit := q.limit
	if limit == 0 {
		limit = max(20, q.remaining)
	}
	most := 0
	for _, w := range r.needs.Windows {
		most = max(most, w)
	}
	seen := len(r.needs.Windows)
	floor := limit*7/8 - limit*5/8*seen/reserveWindows
	why = fmt.Sprintf("automatic, with %d of %d windows observed so far", seen, reserveWindows)
	if operator {
		floor = min(10, limit/2)
	}
	if need := most + (most+3)/4; need >= floor {
		floor = need
		why = fmt.Sprintf("automatic: images that weren't cached needed up to %d pulls in one of the last %d windows", most, seen)
	}
	// Those that came already in this window need no pull any more. A few more may come.
	return min(max(floor-q.usage.needed, limit/10), limit), why
}
