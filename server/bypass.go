package server

import (
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/rewrite"
)

const (
	// maxWatched bounds the addresses that are watched.
	maxWatched = 1024
	// bypassAfter is for how long a client must have asked without pulling, and
	// bypassRequests how often, before that is told.
	bypassAfter    = time.Hour
	bypassRequests = 12
	// bypassEvery is how often a connection's HEADs are noted at most: many a minute
	// tell no more, and each costs a lock and a name.
	bypassEvery = 10 * time.Second
	// bypassQuiet is how long nothing is told of an address again.
	bypassQuiet = 24 * time.Hour
)

// bypasses notices clients that ask what tags stand for, or are refused, and never
// pull: a daemon that fails at its mirror goes to the registry itself, and tells
// nobody.
type bypasses struct {
	log *zap.Logger

	mu sync.Mutex
	of map[netip.Addr]*bypass
}

// bypass is what is known of an address since it last pulled.
type bypass struct {
	since time.Time
	// heads are those that were noted, and so may be fewer than there were.
	heads, refused int
	told           time.Time
	last           string // what it asked for last
}

func newBypasses(log *zap.Logger) *bypasses {
	return &bypasses{log: log, of: make(map[netip.Addr]*bypass)}
}

// asked notes a HEAD of a tag, or a request that was refused for who asked.
func (b *bypasses) asked(at netip.Addr, what string, refused bool, now time.Time) {
	if !at.IsValid() {
		return
	}
	if told, ok := b.note(at, what, refused, now); ok {
		b.tell(at, told, now)
	}
}

// note counts, and gives what is to be told, where it is time for that.
func (b *bypasses) note(at netip.Addr, what string, refused bool, now time.Time) (bypass, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	one := b.of[at]
	if one == nil {
		if len(b.of) >= maxWatched {
			b.forget(now)
		}
		one = &bypass{since: now}
		b.of[at] = one
	}
	if one.last != what {
		one.last = strings.Clone(what) // what may lie in the buffer of a request
	}
	if refused {
		one.refused++
	} else {
		one.heads++
	}
	if one.heads+one.refused < bypassRequests || now.Sub(one.since) < bypassAfter ||
		!one.told.IsZero() && now.Sub(one.told) < bypassQuiet {
		return bypass{}, false
	}
	one.told = now
	return *one, true
}

// forget drops those that were watched for longest without being told of, an eighth
// at least.
func (b *bypasses) forget(now time.Time) {
	for at, one := range b.of {
		if now.Sub(one.since) > bypassQuiet+bypassAfter {
			delete(b.of, at)
		}
	}
	for at := range b.of {
		if len(b.of) <= maxWatched-maxWatched/8 {
			return
		}
		delete(b.of, at)
	}
}

// pulled forgets an address: its pulls come through here.
func (b *bypasses) pulled(at netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.of, at)
}

func (b *bypasses) tell(at netip.Addr, one bypass, now time.Time) {
	fields := []zap.Field{
		zap.String("client", at.String()), zap.String("last", one.last), zap.Duration("for", now.Sub(one.since).Round(time.Second)),
		zap.Int("heads", one.heads), zap.Int("refused", one.refused),
	}
	if one.refused > 0 {
		b.log.Warn("pulls of this client do not come through this cache: it is refused again and again, and a Docker daemon then goes to the registry "+
			"itself without a word; let it in by auth.networks or a client certificate, or see that it logs in", fields...)
		return
	}
	b.log.Warn("pulls of this client may not come through this cache: it asks what tags stand for and fetches nothing; either it has "+
		"the images already, or it falls back to the registry itself", fields...)
}

// watch tells the bypasses what an exchange was. A client that pulls costs a
// comparison, but for the first time on its connection.
func (x *exchange) watch(now time.Time) {
	c := own(x.ctx.Conn())
	if c == nil {
		return
	}
	at := x.at
	if !at.IsValid() {
		at = c.from
	}
	switch kind := x.request.Resource; {
	case x.target.Upstream == "":
		// Refused before it was routed.
		if x.caller != nil && (x.status == fasthttp.StatusUnauthorized || x.status == fasthttp.StatusForbidden) {
			x.s.bypasses.asked(at, x.request.Name, true, now)
		}
	case c.pulledBy == at || kind != rewrite.ManifestPath && kind != rewrite.BlobPath || x.status >= 400:
	case x.ctx.IsGet():
		c.pulledBy = at
		x.s.bypasses.pulled(at)
	case x.target.Tag != "" && now.Sub(c.headNoted) >= bypassEvery:
		c.headNoted = now
		x.s.bypasses.asked(at, x.target.String(), false, now)
	}
}
