package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

const (
	// maxLogins bounds how often one attempt is sent again with another Authorization.
	maxLogins = 4
	// greetingTime and noGreetingTime are how long the challenge of GET /v2/ is
	// remembered, and that there was no answer.
	greetingTime   = 5 * time.Minute
	noGreetingTime = 10 * time.Second
	greetTimeout   = 10 * time.Second
	// helperPatience is how long a request waits for credentials before it is sent
	// without.
	helperPatience = 2 * time.Second
)

// login finds the Authorization of one attempt at an endpoint: at first by what is known
// of the endpoint, then by its answers. One goroutine uses it.
type login struct {
	t     *tokens
	ep    *endpoint
	repo  string
	scope string
	from  Credentials
	since int64 // see wish
	left  int

	header string  // the last that was given
	who    account // whose it is
	token  *token  // that is in it, and
	realm  string  // who gave it
	// shown says that credentials went out, to the registry or its token server, and
	// withheld which token server did not get them.
	shown    bool
	withheld string
	// found is a demand that GET /v2/ has told. It is kept once it has worked.
	found  *demand
	pinged bool
	// refused is the token server's refusal of a guessed scope; unread says why the
	// configured credentials can't be read.
	refused, unread error
	// slow says that the credentials have not come in helperPatience, and patient that
	// they are waited for nevertheless.
	slow, patient bool
}

func (t *tokens) login(ep *endpoint, a *ask) *login {
	return &login{t: t, ep: ep, repo: a.repo, scope: ep.scope(a.repo), from: a.who, since: t.fetched.Load(), left: maxLogins}
}

// first returns the header for the first request, "" for none: how the endpoint wants
// to be asked isn't known yet, or its token server refuses the scope that was guessed.
func (l *login) first(ctx context.Context) (string, error) {
	d := l.ep.auth.Load()
	if d == nil {
		return "", nil
	}
	return l.meet(ctx, d, nil, false)
}

// next returns the header with which to send the request again that was answered res, ""
// if nothing new can be sent.
func (l *login) next(ctx context.Context, res *answer) (string, error) {
	switch res.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
	default:
		return "", nil
	}
	if l.left--; l.left <= 0 || res.away {
		return "", nil
	}
	header, err := l.meetAnswer(ctx, res)
	if l.slow && !l.patient && (header == "" || err != nil) && ctx.Err() == nil {
		// Nobody in particular may not have it: now the credentials are worth the wait.
		l.patient, l.pinged = true, false
		header, err = l.meetAnswer(ctx, res)
	}
	return header, err
}

// meetAnswer is next for a refusal by the registry.
func (l *login) meetAnswer(ctx context.Context, res *answer) (string, error) {
	c, err := l.credential(ctx)
	if err != nil {
		return "", err
	}
	used := l.header
	header := ""
	d, scopes := wanted(res.Header, l.t.trust.realm, c)
	switch {
	case d != nil && (used == "" || challenged(res.Response)):
		l.ep.auth.Store(d)
		l.ep.learnScope(l.repo, scopes)
		header, err = l.meet(ctx, d, scopes, insufficient(res.Response))
	case len(rewrite.Challenges(res.Header.Values("WWW-Authenticate"))) > 0:
		// It says what it wants, and that can't be given.
	case used == "":
		header, err = l.greet(ctx, res, c)
	default:
		header, err = l.again(ctx, res)
	}
	if err != nil || header == used {
		return "", err
	}
	return header, nil
}

// credential returns the credentials for the endpoint. Credentials that can't be read, or
// not soon, don't block what everyone may pull: the request is sent without any. The error
// is that of ctx.
func (l *login) credential(ctx context.Context) (Credential, error) {
	if l.slow && !l.patient {
		return Credential{}, nil
	}
	wait := ctx
	if !l.patient {
		var done context.CancelFunc
		wait, done = context.WithTimeout(ctx, l.t.patience())
		defer done()
	}
	c, err := l.t.credential(wait, l.ep, l.from)
	switch {
	case err == nil:
		l.unread = nil
		return c, nil
	case ctx.Err() != nil:
		return Credential{}, err
	case wait.Err() != nil:
		l.slow = true
		l.t.mu.Lock()
		l.t.slowUntil = time.Now().Add(helperRest)
		l.t.mu.Unlock()
		return Credential{}, nil
	}
	l.unread = err
	l.t.mu.Lock()
	first := !l.t.unread
	l.t.unread = true
	l.t.mu.Unlock()
	if first {
		l.t.r.log.Warn("credentials unavailable; pulling anonymously", zap.String("host", l.ep.host),
			zap.String("setting", "upstreams."+l.t.r.name+".credentials"), zap.Error(err))
	}
	return Credential{}, nil
}

// patience returns how long a request waits for credentials: only one in a while does
// if they are slow.
func (t *tokens) patience() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Now().Before(t.slowUntil) {
		return time.Millisecond
	}
	return helperPatience
}

// meet returns the header that d asks for, "" if there is none. scopes are those of a
// challenge; without them the scope is a guess, whose refusal is no error.
func (l *login) meet(ctx context.Context, d *demand, scopes []string, insufficient bool) (string, error) {
	c, err := l.credential(ctx)
	if err != nil {
		return "", err
	}
	who := c.fingerprint()
	if d.realm == nil {
		if c.Username == "" {
			return "", nil
		}
		l.who, l.shown, l.token = who, true, nil
		l.header = basic(c)
		return l.header, nil
	}
	ask, withCredentials := l.t.trust.realm(d.realm)
	if !ask {
		return "", nil
	}
	if !withCredentials && !c.anonymous() {
		l.t.warn(d.realm.Host)
		l.withheld = d.realm.Host
		c = Credential{}
	}
	l.shown = l.shown || !c.anonymous()
	got, err := l.t.token(ctx, wish{demand: d, credential: c, scope: l.scope, guess: l.ep.guess(l.repo), challenged: scopes,
		insufficient: insufficient, used: l.header, since: l.since})
	return l.take(d, who, got, err, len(scopes) == 0)
}

// take makes the header of a token that was got.
func (l *login) take(d *demand, who account, got *token, err error, guessed bool) (string, error) {
	switch {
	case err != nil && guessed && dropsGuess(err):
		l.refused = err
		return "", nil
	case err != nil:
		return "", err
	case got == nil:
		return "", nil
	}
	l.refused = nil
	l.who, l.token, l.realm = who, got, d.realm.String()
	l.header = got.header()
	return l.header, nil
}

// dropsGuess says whether err, of a request for a guessed scope, may be due to the guess:
// token servers answer all kinds of things to scopes that they don't know.
func dropsGuess(err error) bool {
	e := (*oci.Error)(nil)
	if oci.IsRefused(err) {
		return true
	}
	return errors.As(err, &e) && e.Code != oci.CodeTooManyRequests && (e.Answered >= 400 && e.Answered <= 501)
}

// again returns the header after a token that was refused without a challenge: the
// other token of the same answer, or, if the registry accepted it before, a new one.
func (l *login) again(ctx context.Context, res *answer) (string, error) {
	d := l.ep.auth.Load()
	if l.found != nil {
		d = l.found
	}
	if l.token == nil || d == nil || d.realm == nil {
		return "", nil
	}
	if res.StatusCode == http.StatusNotFound && !d.hides {
		return "", nil
	}
	c, err := l.credential(ctx)
	if err != nil {
		return "", err
	}
	who := c.fingerprint()
	ask, withCredentials := l.t.trust.realm(d.realm)
	if !ask {
		return "", nil
	}
	if !withCredentials {
		c = Credential{}
	}
	got, err := l.t.token(ctx, wish{demand: d, credential: c, scope: l.scope, guess: l.ep.guess(l.repo),
		used: l.header, since: l.since, spare: !l.token.worked.Load()})
	return l.take(d, who, got, err, true)
}

// greet returns the header that GET /v2/ asks for, after a refusal without a challenge:
// some registries hide everything else from those who aren't logged in. A registry that
// asks for nothing is shown a password all the same, as clients do, if it is the only
// endpoint: a mirror beside it may never have been meant to have the password.
func (l *login) greet(ctx context.Context, res *answer, c Credential) (string, error) {
	if l.pinged || c.anonymous() && res.StatusCode == http.StatusNotFound {
		return "", nil
	}
	l.pinged = true
	g, err := l.t.greeting(ctx, l.ep, greetingTime)
	if err != nil {
		if res.StatusCode != http.StatusNotFound {
			err = nil // the refusal says enough
		}
		return "", err
	}
	d, _ := wanted(g.header, l.t.trust.realm, c)
	if d == nil && c.Username != "" && len(l.t.r.endpoints) == 1 && len(rewrite.Challenges(g.header.Values("WWW-Authenticate"))) == 0 {
		d = &demand{}
	}
	if d == nil {
		return "", nil
	}
	found := *d
	found.hides = res.StatusCode == http.StatusNotFound
	header, err := l.meet(ctx, &found, nil, false)
	if header != "" {
		l.found = &found
	}
	return header, err
}

// worked notes that the registry has accepted what was sent.
func (l *login) worked() {
	if l.found != nil {
		l.ep.auth.Store(l.found)
	}
	if l.token != nil && !l.token.worked.Swap(true) && l.token.spareUsed {
		l.t.learn(l.realm, habit{accessToken: true})
	}
}

// failed returns the error behind a refusal by the registry with that status, if it isn't
// the registry's own: nil, the token server's refusal, or why there were no credentials to
// show. A registry that gave an anonymous token, and then answers 404, hides nothing.
func (l *login) failed(status int) error {
	if l.unread != nil && (status != http.StatusNotFound || l.token == nil) {
		return l.unread
	}
	return l.refused
}

// note returns the end of the message of a refusal that came with the header h: which
// credentials were shown, and why not more.
func (l *login) note(ctx context.Context, h http.Header) string {
	t := l.t
	name := t.r.name
	if realm := unasked(h, t.trust.realm); realm != nil {
		host := clean(realm.Host)
		if t.trust.realms["https://"+hostPort(realm)] {
			return fmt.Sprintf(": its token server %s is not asked, for it is plain http and upstreams.%s.realms lists it as https; write http://%s there if that is right", host, name, host)
		}
		return fmt.Sprintf(": its token server %s is not asked, for it is plain http and not in upstreams.%s.realms; write http://%s there if that is right", host, name, host)
	}
	if l.from != nil && t.r.lender != nil {
		return "" // a client's own, of which no setting knows
	}
	if c, err := t.credential(ctx, l.ep, l.from); err == nil && c.anonymous() {
		return fmt.Sprintf(", and there are none for %s in upstreams.%s.credentials", l.ep.host, name)
	}
	switch {
	case l.withheld != "":
		return fmt.Sprintf(": its token server %s was not shown those of upstreams.%s.credentials, for it is not in upstreams.%s.realms", l.withheld, name, name)
	case !l.shown:
		return fmt.Sprintf(": upstream %s did not ask for those of upstreams.%s.credentials in a way that is known, so they were not sent", name, name)
	}
	return fmt.Sprintf(": upstream %[1]s refuses those of upstreams.%[1]s.credentials", name)
}

// basic returns the Authorization header of c's user name and password.
func basic(c Credential) string {
	req := http.Request{Header: http.Header{}}
	req.SetBasicAuth(c.Username, c.Password)
	return req.Header.Get("Authorization")
}

// greeting is an endpoint's answer to GET /v2/ without credentials.
type greeting struct {
	status int         // 0 if there was no answer, for the reason err
	header http.Header // WWW-Authenticate only
	err    error
	at     time.Time
}

// isFresh reports whether g is at most most old. A failure is believed for a short time.
func (g *greeting) isFresh(most time.Duration) bool {
	if g.status == 0 || g.status >= 500 || g.status == http.StatusTooManyRequests {
		most = min(most, noGreetingTime)
	}
	return time.Since(g.at) < most
}

// greeting returns what ep answers to GET /v2/ without credentials (distribution-spec,
// "Determining Support"), at most most ago. It asks once for all. It fails if there was
// no answer. To find out whether an endpoint answers now, see Registry.ping.
func (t *tokens) greeting(ctx context.Context, ep *endpoint, most time.Duration) (*greeting, error) {
	if g := ep.greeting.Load(); g != nil && g.isFresh(most) {
		return g, g.err
	}
	got, err := t.fly(ctx, "/v2/ "+ep.base.String(), func(ctx context.Context) (any, error) {
		ctx, stop := context.WithTimeout(ctx, greetTimeout)
		defer stop()
		reqCtx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		req := (&http.Request{Method: http.MethodGet, URL: ep.ping(), Header: http.Header{"User-Agent": {t.r.userAgent}}}).WithContext(reqCtx)
		began := time.Now()
		g := &greeting{header: http.Header{}}
		res, at, err := t.r.send(req, cancel, nil)
		if err != nil {
			t.r.observe("ping", 0, began)
			g.err = t.r.broken(ctx, at.Host, causeOr(reqCtx, err)).err
		} else {
			t.r.observe("ping", res.StatusCode, began)
			t.r.discard(res.Body, cancel)
			g.status = res.StatusCode
			if sameRegistry(ep.base, at) {
				g.header["Www-Authenticate"] = res.Header.Values("WWW-Authenticate")
			}
		}
		g.at = time.Now()
		ep.greeting.Store(g)
		return g, nil
	})
	if err != nil {
		return nil, err
	}
	g := got.(*greeting)
	return g, g.err
}

// maxAbroad, and the lengths of its keys and realms, bound what is remembered of
// registries that redirects lead to.
const (
	maxAbroad      = 1000
	maxAbroadKey   = 1 << 10
	maxAbroadRealm = 2 << 10
)

// abroadKey names the repository of u, a URL of a registry's API. It is "" for any other.
func abroadKey(u *url.URL) string {
	_, rest, ok := strings.Cut(u.Path, "/v2/")
	if !ok || len(u.Path)+len(u.Host) > maxAbroadKey {
		return ""
	}
	for _, sep := range []string{"/manifests/", "/blobs/", "/tags/list", "/referrers/"} {
		if i := strings.LastIndex(rest, sep); i > 0 {
			return site(u) + " " + rest[:i]
		}
	}
	return ""
}

// abroadToken returns the Authorization header that the registry at u, to which a redirect
// leads, wanted for this repository before; "" if there is none that is still good.
func (t *tokens) abroadToken(u *url.URL) string {
	key := abroadKey(u)
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.abroad[key]
	if w == nil {
		return ""
	}
	h := t.held.get(tokenKey{realm: w.demand.realm.String(), service: w.demand.service, scope: w.scope, who: w.credential.fingerprint()})
	if h == nil || h.refused != nil || !time.Now().Before(h.until) {
		return ""
	}
	return h.header()
}

// visit returns the Authorization header that answers the challenge h of the registry at u,
// to which a redirect led; "" if it can't be answered. It is anonymous, unless u is an
// endpoint of this upstream: only those may have its credentials. used is the header that
// was refused.
func (t *tokens) visit(ctx context.Context, u *url.URL, h http.Header, used string, since int64, from Credentials) (string, error) {
	key := abroadKey(u)
	if key == "" {
		return "", nil
	}
	c, judge := Credential{}, t.trust.guestRealm
	for _, ep := range t.r.endpoints {
		if site(ep.base) != site(u) {
			continue
		}
		own, err := t.credential(ctx, ep, from)
		if err != nil {
			break
		}
		c, judge = own, t.trust.realm
	}
	d, scopes := wanted(h, judge, c)
	if d == nil {
		if realm := unasked(h, judge); realm != nil {
			return "", unavailable(http.StatusBadGateway, nil, "upstream %s redirects to %s, whose token server %s is not asked, for it is plain http; write http://%[3]s in upstreams.%[1]s.realms if that is right",
				t.r.name, u.Host, clean(realm.Host))
		}
		return "", nil
	}
	if d.realm == nil {
		if header := basic(c); header != used {
			return header, nil
		}
		return "", nil
	}
	if _, with := judge(d.realm); !with {
		c = Credential{}
	}
	_, repo, _ := strings.Cut(key, " ")
	w := wish{demand: d, credential: c, scope: key, guess: "repository:" + repo + ":pull", challenged: scopes, used: used, since: since}
	got, err := t.token(ctx, w)
	if err != nil || got == nil {
		return "", err
	}
	if c.anonymous() && len(d.realm.String()) <= maxAbroadRealm {
		t.mu.Lock()
		defer t.mu.Unlock()
		if len(t.abroad) >= maxAbroad {
			clear(t.abroad) // each is challenged anew
		}
		t.abroad[key] = &wish{demand: d, credential: c, scope: key}
	}
	return got.header(), nil
}
