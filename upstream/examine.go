package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// Access says what became of the credentials when an endpoint was examined.
type Access string

const (
	// AccessOpen is that of an endpoint that wants none.
	AccessOpen Access = "open"
	// AccessAnonymous is that of one which gives tokens to who has none.
	AccessAnonymous Access = "anonymous"
	// AccessAccepted says that they are taken, AccessRefused that they are not.
	AccessAccepted Access = "accepted"
	AccessRefused  Access = "refused"
	// AccessMissing says that some are wanted, and there are none.
	AccessMissing Access = "missing"
	// AccessWithheld says that they are for a token server that nobody has named.
	AccessWithheld Access = "withheld"
	// AccessClients is that of an upstream at which each client has its own.
	AccessClients Access = "clients"
	// AccessUnknown says that it was not found out.
	AccessUnknown Access = "unknown"
)

// Examination is what came of asking an endpoint, over a new connection, whether it
// answers: GET /v2/, which no upstream counts as a pull. It holds no secret.
type Examination struct {
	Upstream string `json:"upstream"`
	// Endpoint is its URL.
	Endpoint string `json:"endpoint"`
	// Via is the host of the proxy that the environment names for it.
	Via string `json:"via,omitempty"`
	// Address is where the connection led to, host:port.
	Address string `json:"address,omitempty"`
	// Status is that of the answer; zero where there was none.
	Status int `json:"status,omitempty"`
	// Failed is a word for what went wrong, "connect", "tls", "timeout", "held",
	// "protocol", and Error a sentence; empty where it answered as registries do.
	Failed string `json:"failed,omitempty"`
	Error  string `json:"error,omitempty"`
	// CertificateTime is set where a certificate was not valid at this time.
	CertificateTime bool `json:"certificateTime,omitempty"`
	// Dated is set where its Date tells by how many seconds its clock is ahead of ours.
	Dated bool `json:"dated"`
	Ahead int  `json:"aheadSeconds"`
	// Access is what became of the credentials, and AccessError why they are no use.
	Access      Access `json:"access"`
	AccessError string `json:"accessError,omitempty"`
	// Breaker is the state of its circuit breaker: "closed", "half-open" or "open",
	// and BreakerCause the failure that opened it.
	Breaker      string `json:"breaker"`
	BreakerCause string `json:"breakerCause,omitempty"`
	// Quota is what it grants, as far as it has said so; nil where it has not.
	Quota *QuotaLeft `json:"quota,omitempty"`
}

// QuotaLeft is what an upstream still grants.
type QuotaLeft struct {
	// Limit is how many pulls it grants in a window, of which Remaining are left
	// until Resets. Limit is zero where it has not said.
	Limit     int       `json:"limit"`
	Remaining int       `json:"remaining"`
	Resets    time.Time `json:"resets,omitzero"`
	// Reserve is how many of those that remain are kept for images that aren't cached, and
	// ReserveWhy says where the number comes from.
	Reserve    int    `json:"reserve,omitempty"`
	ReserveWhy string `json:"reserveWhy,omitempty"`
	// HeldUntil is until when no pull is sent, for it would be refused, and
	// AllHeldUntil until when no request at all is.
	HeldUntil    time.Time `json:"heldUntil,omitzero"`
	AllHeldUntil time.Time `json:"allHeldUntil,omitzero"`
}

// Examine asks all endpoints beside each other whether they answer, and whether they
// take the credentials. Nothing that it finds counts for the breakers, and no token
// that it is given is kept. It ends with ctx.
func (r *Registry) Examine(ctx context.Context) []Examination {
	list := make([]Examination, len(r.endpoints))
	var all sync.WaitGroup
	for i, ep := range r.endpoints {
		all.Go(func() { list[i] = r.examine(ctx, ep) })
	}
	all.Wait()
	return list
}

func (r *Registry) examine(ctx context.Context, ep *endpoint) Examination {
	e := Examination{Upstream: r.name, Endpoint: ep.base.Scheme + "://" + ep.label, Access: AccessUnknown, Quota: ep.governor.left()}
	e.Breaker, e.BreakerCause = ep.breaker.tell()
	if r.lender != nil {
		e.Access = AccessClients
	}
	if l, held := ep.governor.heldAll(); held {
		e.Failed, e.Error = reasonHeld, r.overLimit(l, "").Message
		return e
	}
	// A connection that is open already would say nothing of names and certificates.
	t := r.routes.named.Load().shared.Clone()
	t.DisableKeepAlives = true
	defer t.CloseIdleConnections()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	res, f := r.visit(ctx, cancel, t, ep, "", &e)
	if f == nil && res.StatusCode != http.StatusOK && res.StatusCode != http.StatusUnauthorized {
		f = &failure{reason: "protocol", err: unavailable(http.StatusBadGateway, nil,
			"upstream %s: %s answers %d to %s, where a registry says 200 or 401", r.name, ep.host, res.StatusCode, ep.ping().Path)}
	}
	if f != nil {
		e.Failed, e.Error = f.reason, f.err.Message
	} else if r.lender == nil {
		r.examineAccess(ctx, cancel, t, ep, res, &e)
	}
	return e
}

// visit sends a GET of /v2/ to ep, and notes what e tells of the answer. The answer's
// body is closed.
func (r *Registry) visit(ctx context.Context, cancel context.CancelCauseFunc, t *http.Transport, ep *endpoint, auth string, e *Examination) (*http.Response, *failure) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { e.Address = c.Conn.RemoteAddr().String() }})
	req := (&http.Request{Method: http.MethodGet, URL: ep.ping(), Header: http.Header{}}).WithContext(ctx)
	req.Header.Set("User-Agent", r.userAgent)
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	if via, err := r.routes.proxy(req); err == nil && via != nil {
		e.Via = via.Host
	}
	began := time.Now()
	res, err := t.RoundTrip(req)
	if err != nil {
		r.observe("examine", 0, began)
		if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) {
			e.CertificateTime = invalid.Reason == x509.Expired
		}
		return nil, r.broken(ctx, ep.host, err)
	}
	r.observe("examine", res.StatusCode, began)
	r.discard(res.Body, cancel)
	e.Status = res.StatusCode
	if at, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		// Of its second, and of the way, the half is the best guess.
		now := time.Now()
		ahead := at.Add(time.Second / 2).Sub(now.Add(-now.Sub(began) / 2))
		e.Ahead, e.Dated = int(ahead.Round(time.Second)/time.Second), true
	}
	return res, nil
}

// examineAccess finds out whether ep, which answered res to who shows nothing, takes
// the credentials.
func (r *Registry) examineAccess(ctx context.Context, cancel context.CancelCauseFunc, t *http.Transport, ep *endpoint, res *http.Response, e *Examination) {
	if res.StatusCode == http.StatusOK {
		e.Access = AccessOpen
		return
	}
	refuse := func(a Access, why string) { e.Access, e.AccessError = a, why }
	c, err := r.tokens.credential(ctx, ep, nil)
	if err != nil {
		refuse(AccessRefused, fmt.Sprintf("the credentials of upstreams.%s.credentials can not be read%s", r.name, causeOf(err)))
		return
	}
	missing := fmt.Sprintf("%s wants credentials, and there are none for it in upstreams.%s.credentials", ep.host, r.name)
	if realm := unasked(res.Header, r.routes.trust.realm); realm != nil {
		host := clean(realm.Host)
		refuse(AccessWithheld, fmt.Sprintf("its token server %s is not asked, for it is plain http; write http://%s in upstreams.%s.realms if that is right", host, host, r.name))
		return
	}
	d, scopes := wanted(res.Header, r.routes.trust.realm, c)
	switch {
	case d == nil && c.anonymous():
		refuse(AccessMissing, missing)
	case d == nil:
		refuse(AccessUnknown, ep.host+" asks for credentials in a way that is not known")
	case d.realm == nil:
		again, f := r.visit(ctx, cancel, t, ep, basic(c), e)
		switch {
		case f != nil:
			refuse(AccessUnknown, f.err.Message)
		case again.StatusCode == http.StatusOK:
			e.Access = AccessAccepted
		default:
			refuse(AccessRefused, fmt.Sprintf("%s answers %d to those of upstreams.%s.credentials", ep.host, again.StatusCode, r.name))
		}
	default:
		r.examineToken(ctx, d, c, scopes, missing, e)
	}
}

// causeOf returns ": " and the cause of an error about credentials, on one line; empty if it has
// none. The log shows the same.
func causeOf(err error) string {
	var known *oci.Error
	if !errors.As(err, &known) || known.Err == nil {
		return ""
	}
	return ": " + strings.Join(strings.Fields(known.Err.Error()), " ")
}

// examineToken asks the token server of d for a token.
func (r *Registry) examineToken(ctx context.Context, d *demand, c Credential, scopes []string, missing string, e *Examination) {
	if _, with := r.routes.trust.realm(d.realm); !with && !c.anonymous() {
		e.Access, e.AccessError = AccessWithheld, fmt.Sprintf("its token server %s is not shown them, for it is not in upstreams.%s.realms", d.realm.Host, r.name)
		return
	}
	got, f := r.tokens.fetchNow(ctx, d, c, scopes)
	switch {
	case f != nil:
		e.AccessError = f.err.Message
	case got.refused != nil && got.refused.Code == oci.CodeTooManyRequests:
		e.AccessError = got.refused.Message
	case got.refused != nil && c.anonymous():
		e.Access, e.AccessError = AccessMissing, missing
	case got.refused != nil:
		e.Access, e.AccessError = AccessRefused, fmt.Sprintf("its token server %s refuses those of upstreams.%s.credentials", d.realm.Host, r.name)
	case c.anonymous():
		e.Access = AccessAnonymous
	default:
		e.Access = AccessAccepted
	}
}

// tell gives the state in a word, and why it is not closed.
func (b *breaker) tell() (state, cause string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	state = map[breakerState]string{breakerClosed: "closed", breakerHalfOpen: "half-open", breakerOpen: "open"}[b.now]
	if b.now != breakerClosed && b.cause != nil {
		cause = b.cause.Message
	}
	return state, cause
}

// left gives what the account that was answered last is granted; nil where nothing
// is known of it.
func (g *governor) left() *QuotaLeft {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	l := QuotaLeft{}
	if q := g.accounts[g.last]; q != nil {
		if q.known {
			l.Limit, l.Remaining, l.Resets = q.limit, q.remaining, q.resets
			l.Reserve, l.ReserveWhy = g.keep(q, false)
		}
		if now.Before(q.pulls.until) {
			l.HeldUntil = q.pulls.until
		}
	}
	if now.Before(g.all.until) {
		l.AllHeldUntil = g.all.until
	}
	if l == (QuotaLeft{}) {
		return nil
	}
	return &l
}

// Examine is Registry.Examine.
func (l *Live) Examine(ctx context.Context) []Examination {
	r, done := l.ask()
	defer done()
	return r.Examine(ctx)
}
