package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/entrepot-dev/entrepot/operator"
	"github.com/entrepot-dev/entrepot/upstream"
)

const (
	// clockOff is by how much a clock may differ from those of upstreams before that
	// is worth a word, and clockWrong before it breaks things.
	clockOff   = time.Minute
	clockWrong = time.Hour
)

// Upstreams checks that the upstreams answer and take the credentials, what they still
// grant, and by their clocks our own. Nothing that it asks counts as a pull.
type Upstreams struct {
	// Ask gives what came of asking them.
	Ask func(ctx context.Context) (*operator.Upstreams, error)
	// Unasked are the names of those that are there by default, and that nobody has
	// said to need.
	Unasked map[string]bool
}

// Name is "upstream".
func (Upstreams) Name() string { return "upstream" }

// Look judges what came of it.
func (u Upstreams) Look(ctx context.Context) []Finding {
	got, err := u.Ask(ctx)
	switch {
	case err != nil:
		return []Finding{{Status: Failure, Seen: "they could not be asked: " + err.Error(), Advice: "mend what is named, as serving would want it, too"}}
	case got.Offline:
		return []Finding{{Status: OK, Seen: "none is asked, for cache.offline is set"}}
	case len(got.Endpoints) == 0:
		return []Finding{{Status: Warning, Seen: "there is none", Advice: "set upstreams"}}
	}
	answering := map[string]bool{}
	for _, e := range got.Endpoints {
		answering[e.Upstream] = answering[e.Upstream] || e.Failed == ""
	}
	var found []Finding
	for _, e := range got.Endpoints {
		f := endpoint(&e, answering[e.Upstream])
		if f.Status == Failure && u.Unasked[e.Upstream] {
			f.Status = Warning
			f.Advice = fmt.Sprintf("drop those that nobody pulls from: upstreams: {%s: null}; else see the name server, the firewall and the route", e.Upstream)
		}
		found = append(found, f)
	}
	for _, e := range got.Endpoints {
		if e.Quota != nil {
			found = append(found, quota(&e, time.Now()))
		}
	}
	return append(found, clock(got.Endpoints)...)
}

// endpoint judges one; another says that one of its upstream answers.
func endpoint(e *upstream.Examination, another bool) Finding {
	f := Finding{Status: OK}
	var advice []string
	between := "; "
	say := func(s Status, seen, what string) {
		f.Status = worst(f.Status, s)
		f.Seen += between + seen
		between = "; "
		if what != "" {
			advice = append(advice, what)
		}
	}
	f.Seen = e.Upstream + " at " + e.Endpoint
	if e.Via != "" {
		f.Seen += " by way of the proxy " + e.Via
	}
	if e.Failed != "" {
		between = ": "
		status := Failure
		if another || e.Failed == "held" {
			status = Warning
		}
		say(status, strings.TrimPrefix(e.Error, "upstream "+e.Upstream+": "), failedAdvice(e))
	} else {
		f.Seen += " answers"
	}
	credentials := fmt.Sprintf("see upstreams.%s.credentials", e.Upstream)
	switch e.Access {
	case upstream.AccessAccepted:
		say(OK, "it takes the credentials", "")
	case upstream.AccessClients:
		say(OK, "its clients have credentials of their own", "")
	case upstream.AccessRefused:
		say(Failure, e.AccessError, credentials)
	case upstream.AccessWithheld:
		say(Failure, e.AccessError, fmt.Sprintf("if it belongs to the registry, list it in upstreams.%s.realms", e.Upstream))
	case upstream.AccessMissing:
		say(Warning, e.AccessError, credentials+"; public images may be had without")
	case upstream.AccessUnknown:
		if e.AccessError != "" {
			say(Warning, e.AccessError, "")
		}
	case upstream.AccessOpen, upstream.AccessAnonymous:
	}
	if e.Breaker != "closed" {
		seen := "the proxy leaves it alone until it answers again"
		if e.BreakerCause != "" {
			seen += ", for " + strings.TrimPrefix(e.BreakerCause, "upstream "+e.Upstream+": ")
		}
		say(Warning, seen, "")
	}
	f.Advice = strings.Join(advice, "; ")
	return f
}

func failedAdvice(e *upstream.Examination) string {
	switch {
	case e.CertificateTime:
		return "see whether this host's clock is right; if it is, the registry's certificate has run out"
	case e.Failed == "held":
		return "wait; the more is asked, the longer it takes"
	case e.Failed == "tls":
		return fmt.Sprintf("see upstreams.%s.tls, and whether something on the way breaks TLS open", e.Upstream)
	case e.Failed == "connect", e.Failed == "timeout":
		what := "see the name server, the firewall and the route of the host that the proxy runs on"
		if e.Via == "" {
			what += "; a proxy on the way is to be in HTTPS_PROXY of its environment"
		}
		return what
	}
	return fmt.Sprintf("see that upstreams.%s.endpoints names a registry", e.Upstream)
}

// quota tells what an upstream still grants.
func quota(e *upstream.Examination, now time.Time) Finding {
	q := e.Quota
	f := Finding{Check: "quota", Status: OK}
	until := ""
	if !q.Resets.IsZero() {
		until = ", for the next " + q.Resets.Sub(now).Round(time.Second).String()
	}
	switch {
	case q.AllHeldUntil.After(now):
		f.Status, f.Seen = Warning, fmt.Sprintf("%s limits all requests from here for another %s", e.Upstream, q.AllHeldUntil.Sub(now).Round(time.Second))
	case q.HeldUntil.After(now):
		f.Status, f.Seen = Warning, fmt.Sprintf("%s grants no pull for another %s", e.Upstream, q.HeldUntil.Sub(now).Round(time.Second))
	case q.Limit > 0:
		f.Seen = fmt.Sprintf("%s grants %d more pulls of %d%s", e.Upstream, q.Remaining, q.Limit, until)
		if q.Remaining*10 <= q.Limit {
			f.Status = Warning
		}
	default:
		f.Seen = fmt.Sprintf("%s grants %d more pulls%s", e.Upstream, q.Remaining, until)
		if q.Remaining == 0 {
			f.Status = Warning
		}
	}
	if q.Reserve > 0 {
		f.Seen += fmt.Sprintf("; %d are kept for images that aren't cached (%s)", min(q.Reserve, q.Remaining), q.ReserveWhy)
	}
	if f.Status != OK {
		f.Advice = fmt.Sprintf("what is cached is served meanwhile; credentials in upstreams.%s.credentials may be granted more", e.Upstream)
	}
	return f
}

// clock judges ours by theirs: by the one in the middle, for one of them may be wrong.
func clock(list []upstream.Examination) []Finding {
	var ahead []time.Duration
	for _, e := range list {
		if e.Dated {
			ahead = append(ahead, time.Duration(e.Ahead)*time.Second)
		}
	}
	if len(ahead) == 0 {
		return []Finding{{Check: "clock", Status: Warning, Seen: "no upstream has told what time it is"}}
	}
	slices.Sort(ahead)
	middle := ahead[len(ahead)/2]
	f := Finding{Check: "clock", Status: OK, Seen: fmt.Sprintf("it agrees with those of %d endpoints", len(ahead))}
	if off := middle.Abs(); off > clockOff {
		f.Status, f.Advice = Warning, "set the clock of the host that the proxy runs on by NTP"
		if off > clockWrong {
			f.Status = Failure
		}
		word := "behind"
		if middle < 0 {
			word = "ahead of"
		}
		f.Seen = fmt.Sprintf("it is %s %s those of upstreams: certificates and tokens are judged by it", off, word)
	}
	return []Finding{f}
}
