package doctor

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/operator"
	"github.com/entrepot-dev/entrepot/upstream"
)

func TestUpstreamsAreJudgedByWhatWasSeen(t *testing.T) {
	now := time.Now()
	good := upstream.Examination{Upstream: "docker.io", Endpoint: "https://hub.test", Access: upstream.AccessAccepted, Breaker: "closed", Dated: true}
	with := func(change func(e *upstream.Examination)) upstream.Examination {
		e := good
		change(&e)
		return e
	}
	bad := with(func(e *upstream.Examination) {
		e.Failed, e.Error, e.Access = "connect", "upstream docker.io: hub.test refuses the connection", upstream.AccessUnknown
	})
	for name, c := range map[string]struct {
		list   []upstream.Examination
		status Status
		seen   string
	}{
		"good":        {[]upstream.Examination{good}, OK, "docker.io at https://hub.test answers; it takes the credentials"},
		"by a proxy":  {[]upstream.Examination{with(func(e *upstream.Examination) { e.Via = "squid:3128" })}, OK, "by way of the proxy squid:3128"},
		"down":        {[]upstream.Examination{bad}, Failure, "docker.io at https://hub.test: hub.test refuses the connection"},
		"one is down": {[]upstream.Examination{bad, good}, Warning, "refuses the connection"},
		"expired": {[]upstream.Examination{with(func(e *upstream.Examination) {
			e.Failed, e.Error, e.CertificateTime = "tls", "upstream docker.io: hub.test has a certificate that is not valid", true
		})}, Failure, "certificate"},
		"refused":    {[]upstream.Examination{with(func(e *upstream.Examination) { e.Access, e.AccessError = upstream.AccessRefused, "it refuses them" })}, Failure, "it refuses them"},
		"missing":    {[]upstream.Examination{with(func(e *upstream.Examination) { e.Access, e.AccessError = upstream.AccessMissing, "there are none" })}, Warning, "there are none"},
		"left alone": {[]upstream.Examination{with(func(e *upstream.Examination) { e.Breaker, e.BreakerCause = "open", "it was gone"; e.Failed = "connect" })}, Failure, "for it was gone"},
		"quota":      {[]upstream.Examination{with(func(e *upstream.Examination) { e.Quota = &upstream.QuotaLeft{Limit: 100, Remaining: 76} })}, OK, "grants 76 more pulls of 100"},
		"little quota": {[]upstream.Examination{with(func(e *upstream.Examination) {
			e.Quota = &upstream.QuotaLeft{Limit: 100, Remaining: 3, Resets: now.Add(time.Hour)}
		})}, Warning, "grants 3 more pulls of 100"},
		"no quota": {[]upstream.Examination{with(func(e *upstream.Examination) { e.Quota = &upstream.QuotaLeft{HeldUntil: now.Add(time.Hour)} })}, Warning, "no pull for another"},
		"behind":   {[]upstream.Examination{with(func(e *upstream.Examination) { e.Ahead = 300 })}, Warning, "it is 5m0s behind"},
		"ahead":    {[]upstream.Examination{with(func(e *upstream.Examination) { e.Ahead = -5 * 3600 })}, Failure, "it is 5h0m0s ahead"},
		"one clock of three": {[]upstream.Examination{good, good, with(func(e *upstream.Examination) { e.Ahead = 5 * 3600 })},
			OK, "it agrees with those of 3 endpoints"},
		"no clock": {[]upstream.Examination{with(func(e *upstream.Examination) { e.Dated = false })}, Warning, "what time it is"},
		"none":     {nil, Warning, "there is none"},
	} {
		t.Run(name, func(t *testing.T) {
			u := Upstreams{Ask: func(context.Context) (*operator.Upstreams, error) { return &operator.Upstreams{Endpoints: c.list}, nil }}
			want(t, u.Look(t.Context()), c.status, c.seen)
		})
	}
	unneeded := Upstreams{Ask: func(context.Context) (*operator.Upstreams, error) {
		return &operator.Upstreams{Endpoints: []upstream.Examination{bad}}, nil
	}, Unasked: map[string]bool{"docker.io": true}}
	want(t, unneeded.Look(t.Context()), Warning, "refuses the connection")
	offline := Upstreams{Ask: func(context.Context) (*operator.Upstreams, error) { return &operator.Upstreams{Offline: true}, nil }}
	want(t, offline.Look(t.Context()), OK, "cache.offline")
	unasked := Upstreams{Ask: func(context.Context) (*operator.Upstreams, error) { return nil, errors.New("no password file") }}
	want(t, unasked.Look(t.Context()), Failure, "no password file")
}
