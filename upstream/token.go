package upstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

const (
	// defaultExpiry counts where a token server does not say (distribution
	// spec, "Token Authentication Specification").
	defaultExpiry = 60 * time.Second
	maxExpiry     = 24 * time.Hour
	// refusalTime is for how long a refusal is believed: token servers limit
	// logins, and lock accounts.
	refusalTime = 10 * time.Second
	// flightTimeout bounds one flight to a token server, retries included.
	flightTimeout = 60 * time.Second
	// maxTokenBody bounds a token server's answer: a token, often twice, and a refresh token.
	maxTokenBody = 4 * maxToken
	// maxTokenServers bounds those that are known at a time.
	maxTokenServers = 100
	clientID        = "entrepot"
)

// tokens gives the Authorization of each request: it keeps bearer tokens and
// fetches each once for all who wait for it.
type tokens struct {
	r           *Registry
	credentials Credentials
	trust       *trust
	flight      singleflight.Group
	joins       sync.Map // of flights: key to *oci.Joins

	mu     sync.Mutex
	held   heldTokens
	warned map[string]bool
	// habits are what token servers turned out to need, by realm.
	habits map[string]habit
	// abroad says how registries that redirects lead to want to be asked, by site and
	// repository.
	abroad map[string]*wish
	// fetched counts answers of token servers.
	fetched atomic.Int64
	// breakers are those of the token servers, by site.
	breakers map[string]*breaker
	// unread says that a failure to read the credentials has been logged; the next
	// success resets it.
	unread bool
	// slowUntil is until when requests are sent without credentials that aren't there yet.
	slowUntil time.Time
	closed    bool
	running   sync.WaitGroup
}

// tokenKey is what a token is good for. scope is what we want; the token
// server may have been asked for more, as the registry's challenge says.
type tokenKey struct {
	realm, service, scope string
	who                   account
}

// token is what a token server answered. Only worked changes once others can see it.
type token struct {
	value string
	// spare is the other token of the answer, if "token" and "access_token" differ.
	spare string
	// spareUsed says that value was the second choice: access_token.
	spareUsed bool
	until     time.Time
	// born is its number among all that were fetched.
	born int64
	// scopes is what was asked for.
	scopes []string
	// refused, when it is set, is the answer instead of value.
	refused *oci.Error
	// worked says that the registry has accepted it.
	worked atomic.Bool
}

// header returns the Authorization header of t.
func (t *token) header() string { return "Bearer " + t.value }

// refusal returns the token server's refusal, or nil. A Retry-After in it counts from now.
func (t *token) refusal() error {
	if t.refused == nil {
		return nil
	}
	if t.refused.RetryAfter == 0 {
		return t.refused
	}
	e := *t.refused
	e.RetryAfter = max(time.Second, time.Until(t.until).Round(time.Second))
	return &e
}

func newTokens(r *Registry, c Credentials, t *trust) *tokens {
	return &tokens{r: r, credentials: c, trust: t, warned: map[string]bool{}, habits: map[string]habit{}, abroad: map[string]*wish{}, breakers: map[string]*breaker{}}
}

// wait ends the flights; the registry's life must have ended.
func (t *tokens) wait() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.running.Wait()
}

// credential gives what from has for ep; nil stands for the registry's own
// credentials.
func (t *tokens) credential(ctx context.Context, ep *endpoint, from Credentials) (Credential, error) {
	if from == nil {
		from = t.credentials
	}
	c, err := from.Credential(ctx, ep.host)
	if err != nil {
		if ctx.Err() != nil {
			return Credential{}, t.r.gaveUp(ctx).err
		}
		return Credential{}, unavailable(http.StatusBadGateway, err, "the credentials of upstreams.%s.credentials can not be read", t.r.name)
	}
	t.mu.Lock()
	t.unread = false
	t.mu.Unlock()
	return c, nil
}

// wish is a token that a request needs.
type wish struct {
	demand     *demand
	credential Credential
	// scope is what the request needs. It names the token in the cache.
	scope string
	// guess is the scope to ask for while no challenge has named one.
	guess string
	// challenged are the scopes of the challenge that is answered; none for a guess.
	challenged []string
	// insufficient says that the challenge asks for more than the token had.
	insufficient bool
	// used is the Authorization header that was refused; "" if none was sent.
	used string
	// since is tokens.fetched when the attempt began: a token fetched later isn't
	// replaced.
	since int64
	// spare says that only the other token of the same answer is wanted.
	spare bool
}

// token returns the token for w, from the cache or from the token server. It returns
// nil without an error if there is no other token than the refused one. A refusal of
// the token server is an *oci.Error.
func (t *tokens) token(ctx context.Context, w wish) (*token, error) {
	key := tokenKey{realm: w.demand.realm.String(), service: w.demand.service, scope: w.scope, who: w.credential.fingerprint()}

	t.mu.Lock()
	h := t.held.get(key)
	if h == nil {
		h = &token{}
	}
	var scopes []string
	switch {
	case w.insufficient:
		scopes = fewScopes(slices.Concat(w.challenged, h.scopes))
	case len(w.challenged) > 0:
		scopes = slices.Clone(w.challenged)
	default:
		scopes = slices.Clone(h.scopes)
	}
	if len(scopes) == 0 {
		scopes = []string{w.guess}
	}
	slices.Sort(scopes)
	scopes = slices.Compact(scopes)
	same, fresh := slices.Equal(scopes, h.scopes), time.Now().Before(h.until)
	refusedNow := w.used != "" && w.used == h.header()
	switch {
	case same && fresh && h.refused != nil:
		t.mu.Unlock()
		return nil, h.refusal()
	case same && fresh && !refusedNow && h.refused == nil:
		t.mu.Unlock()
		return h, nil
	case fresh && refusedNow && h.spare != "" && !h.worked.Load():
		// The answer had two tokens that differ, and this one was the wrong one.
		other := &token{value: h.spare, spareUsed: !h.spareUsed, until: h.until, born: h.born, scopes: h.scopes}
		t.held.put(key, other, time.Now())
		t.mu.Unlock()
		return other, nil
	case w.spare, same && refusedNow && h.born > w.since:
		t.mu.Unlock()
		return nil, nil
	}
	t.mu.Unlock()

	got, err := t.fetchOnce(ctx, key, w.demand, w.credential, scopes, w.used)
	if err == nil && oci.IsRefused(got.refusal()) && len(scopes) > 1 {
		// Some token servers take one scope only.
		got, err = t.fetchOnce(ctx, key, w.demand, w.credential, []string{mainScope(w.challenged, w.guess, scopes)}, w.used)
		if err == nil && got.refused != nil {
			// It is the credentials, then: the next request must not try twice more.
			got = &token{refused: got.refused, born: got.born, until: got.until, scopes: scopes}
			t.mu.Lock()
			t.held.put(key, got, time.Now())
			t.mu.Unlock()
		}
	}
	if err != nil {
		return nil, err
	}
	if err := got.refusal(); err != nil {
		return nil, err
	}
	return got, nil
}

// mainScope picks the one scope to ask for where several are refused: the guess if
// the challenge has it, else the challenge's first.
func mainScope(challenged []string, guess string, all []string) string {
	switch {
	case len(challenged) == 0, slices.Contains(challenged, guess):
		if slices.Contains(all, guess) {
			return guess
		}
		return all[0]
	}
	return challenged[0]
}

// warn says once for each token server that it gets no credentials.
func (t *tokens) warn(host string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.warned[host] || len(t.warned) > 100 {
		return
	}
	t.warned[host] = true
	t.r.log.Warn("the registry names a token server that is not its own; it is asked without the credentials",
		zap.String("host", host), zap.String("setting", "upstreams."+t.r.name+".realms"))
}

// unasked returns the token server in the challenges of h that may not be asked, as judge
// says (see wanted), if there is none that may; else nil.
func unasked(h http.Header, judge func(*url.URL) (ask, withCredentials bool)) *url.URL {
	var found *url.URL
	for _, ch := range rewrite.Challenges(h.Values("WWW-Authenticate")) {
		realm, err := url.Parse(ch.Params["realm"])
		if ch.Scheme != "bearer" || err != nil || realm.Hostname() == "" {
			continue
		}
		if ask, _ := judge(realm); ask {
			return nil
		}
		found = realm
	}
	return found
}

// fetchOnce fetches the token of key, with all who want it at this time.
func (t *tokens) fetchOnce(ctx context.Context, key tokenKey, d *demand, c Credential, scopes []string, used string) (*token, error) {
	flight := fmt.Sprintf("%q %q %q %x", key.realm, key.service, scopes, key.who)
	got, err := t.fly(ctx, flight, func(ctx context.Context) (any, error) {
		// Who came late to a flight that has just landed finds what it brought.
		t.mu.Lock()
		h := t.held.get(key)
		t.mu.Unlock()
		if h != nil && time.Now().Before(h.until) && (h.refused != nil || h.header() != used) && slices.Equal(h.scopes, scopes) {
			return h, nil
		}
		got, err := t.fetch(ctx, d, c, scopes)
		if err != nil {
			return nil, err
		}
		got.scopes, got.born = scopes, t.fetched.Add(1)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.held.put(key, got, time.Now())
		return got, nil
	})
	if err != nil {
		return nil, err
	}
	return got.(*token), nil
}

// fly runs f once for all who call with the same key at this time. f is bound to the
// registry's life, not to a caller's; Close waits for it.
func (t *tokens) fly(ctx context.Context, key string, f func(context.Context) (any, error)) (any, error) {
	if j, ok := t.joins.Load(key); ok {
		j.(*oci.Joins).Note()
	}
	done := t.flight.DoChan(key, func() (any, error) {
		joins := &oci.Joins{}
		t.joins.Store(key, joins)
		defer t.joins.Delete(key)
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			return nil, unavailable(http.StatusServiceUnavailable, nil, "upstream %s is closed", t.r.name)
		}
		t.running.Add(1)
		t.mu.Unlock()
		defer t.running.Done()
		ctx, cancel := context.WithTimeout(t.r.life, flightTimeout)
		defer cancel()
		return f(oci.WithJoins(ctx, joins))
	})
	select {
	case <-ctx.Done():
		return nil, t.r.gaveUp(ctx).err
	case res := <-done:
		return res.Val, res.Err
	}
}

// forget drops the tokens for scope that who was given, so that the next request
// asks the token server whether it still gives one. Refusals stay: to ask again and
// again would be a way to guess passwords through this proxy.
func (t *tokens) forget(scope string, who account) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held.dropIf(func(h *heldToken) bool { return h.key.scope == scope && h.key.who == who && h.token.refused == nil })
}

// breaker gives the breaker of the token server at realm.
func (t *tokens) breaker(realm *url.URL) *breaker {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.breakers[site(realm)]
	if b == nil {
		if len(t.breakers) >= maxTokenServers {
			clear(t.breakers) // each begins anew
		}
		// A token server's name may be a stranger's, so it is no label.
		b = newBreaker(prometheus.NewGauge(prometheus.GaugeOpts{}), prometheus.NewCounter(prometheus.CounterOpts{}))
		t.breakers[site(realm)] = b
	}
	return b
}

// fetch asks the token server, again after a short pause where that is worth it.
func (t *tokens) fetch(ctx context.Context, d *demand, c Credential, scopes []string) (*token, error) {
	p := newPauses()
	b := t.breaker(d.realm)
	for {
		if f := t.r.left(b); f != nil {
			t.r.metrics.UpstreamErrors.WithLabelValues(t.r.name, f.reason).Inc()
			return nil, f.err
		}
		began := time.Now()
		got, f := t.fetchNow(ctx, d, c, scopes)
		t.r.judge(b, d.realm.Host, blamed{repo: strings.Join(scopes, " "), began: began}, f, func(ctx context.Context) health {
			// Without service and scope some answer 500: any answer will do.
			if t.r.knock(ctx, http.MethodGet, d.realm, nil) == nil {
				return healthSilent
			}
			return healthGood
		})
		if f == nil {
			result := "ok"
			if got.refused != nil {
				result = "refused"
			}
			t.r.metrics.TokenFetches.WithLabelValues(t.r.name, result).Inc()
			return got, nil
		}
		t.r.metrics.TokenFetches.WithLabelValues(t.r.name, "error").Inc()
		t.r.metrics.UpstreamErrors.WithLabelValues(t.r.name, f.reason).Inc()
		if f.again != anybody || !p.wait(ctx) {
			return nil, f.err
		}
		t.r.metrics.UpstreamRetries.WithLabelValues(t.r.name).Inc()
	}
}

// fetchNow asks the token server of d once. A refused POST is followed by a GET, which
// older token servers want (containerd#12822), and a password that is not taken by GET goes
// by POST, as containerd sends it first.
func (t *tokens) fetchNow(ctx context.Context, d *demand, c Credential, scopes []string) (*token, *failure) {
	realm := d.realm.String()
	t.mu.Lock()
	post := c.IdentityToken != "" && !t.habits[realm].noPost || c.hasPassword() && t.habits[realm].post
	t.mu.Unlock()
	got, f := t.exchange(ctx, d, c, scopes, post)
	refused := f == nil && got.refused != nil && got.refused.Code != oci.CodeTooManyRequests
	if !post && c.hasPassword() && (refused && got.refused.Answered == http.StatusNotFound || f != nil && f.lacksMethod()) {
		again, f2 := t.exchange(ctx, d, c, scopes, true)
		if f2 == nil && again.refused == nil {
			t.learn(realm, habit{post: true})
			return again, nil
		}
		return got, f
	}
	// A 500 may be a passing failure, or what a server answers to a POST.
	passing := f != nil && f.again == anybody && f.status != http.StatusInternalServerError
	if !post || !refused && (f == nil || f.status < 400 || f.status == http.StatusTooManyRequests || passing) {
		return got, f
	}
	again, f2 := t.exchange(ctx, d, c, scopes, false)
	if f2 == nil && again.refused == nil {
		t.learn(realm, habit{noPost: true})
		return again, nil
	}
	return got, f // the first answer says more
}

// hasPassword reports whether c is a user name and a password.
func (c Credential) hasPassword() bool { return c.Username != "" && c.Password != "" }

// lacksMethod reports whether f is the answer to a method that the server doesn't know.
func (f *failure) lacksMethod() bool {
	return f.status == http.StatusMethodNotAllowed || f.status == http.StatusNotImplemented
}

// exchange sends one request to the token server of d: a POST of the identity token or the
// password, or a GET.
func (t *tokens) exchange(ctx context.Context, d *demand, c Credential, scopes []string, post bool) (*token, *failure) {
	reqCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Token servers limit logins, so nobody probes them: what came back with the registry
	// is taken to have come back too.
	look := t.r.endpoints[0].lookout
	began := time.Now()
	res, at, err := t.r.hedge(reqCtx, look, func(ctx context.Context, cancel context.CancelCauseFunc) (*http.Response, *url.URL, error) {
		req := tokenRequest(ctx, d, c, scopes, post)
		req.Header.Set("User-Agent", t.r.userAgent)
		req.Header.Set("Accept", "application/json")
		req.Header.Set("Accept-Encoding", "identity")
		return t.r.send(req, cancel, nil)
	})
	if err != nil {
		t.r.observe("token", 0, began)
		return nil, t.r.broken(ctx, at.Host, causeOr(reqCtx, err))
	}
	t.r.observe("token", res.StatusCode, began)
	b := newBody(reqCtx, cancel, res.Body, t.r.stall, t.r.metrics.UpstreamBytes.WithLabelValues(t.r.name))
	defer b.Close()
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return t.refused(d, c, res, b, at)
	}
	raw, broken := io.ReadAll(io.LimitReader(b, maxTokenBody+1))
	got, err := readToken(raw, time.Now())
	if broken != nil && err != nil { // what broke off behind the JSON is complete
		return nil, t.r.broken(ctx, at.Host, broken)
	}
	if err != nil {
		return nil, &failure{err: unavailable(http.StatusBadGateway, nil, "upstream %s: its token server %s gave no usable token: %v", t.r.name, at.Host, err), reason: "protocol"}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if got.spare != "" && t.habits[d.realm.String()].accessToken {
		got.value, got.spare, got.spareUsed = got.spare, got.value, true
	}
	return got, nil
}

// habit is what a token server turned out to need.
type habit struct {
	// noPost: it takes no POST, but the same credentials by GET.
	noPost bool
	// post: it takes a password by POST only.
	post bool
	// accessToken: of two tokens that differ, access_token is the good one.
	accessToken bool
}

// learn adds h to what is known of the token server at realm.
func (t *tokens) learn(realm string, h habit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.habits) >= maxTokenServers {
		clear(t.habits) // each is learned anew
	}
	old := t.habits[realm]
	t.habits[realm] = habit{noPost: h.noPost || old.noPost, post: (h.post || old.post) && !h.noPost, accessToken: h.accessToken || old.accessToken}
}

// tokenRequest makes the request of the token specification: GET with Basic
// credentials or none; POST of OAuth2 for an identity token or, without one, the password. An identity token that
// goes by GET is the password, as registries that know no POST take it.
func tokenRequest(ctx context.Context, d *demand, c Credential, scopes []string, post bool) *http.Request {
	u := *d.realm
	req := (&http.Request{Method: http.MethodGet, URL: &u, Header: http.Header{}}).WithContext(ctx)
	if post {
		values := url.Values{"grant_type": {"refresh_token"}, "service": {d.service}, "client_id": {clientID},
			"scope": {strings.Join(scopes, " ")}, "refresh_token": {c.IdentityToken}}
		if c.IdentityToken == "" {
			values.Del("refresh_token")
			values.Set("grant_type", "password")
			values.Set("username", c.Username)
			values.Set("password", c.Password)
		}
		form := values.Encode()
		req.Method = http.MethodPost
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.ContentLength = int64(len(form))
		req.Body = io.NopCloser(strings.NewReader(form))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(form)), nil }
		return req
	}
	q := u.Query()
	if d.service != "" {
		q.Set("service", d.service)
	}
	q["scope"] = scopes
	u.RawQuery = q.Encode()
	switch {
	case c.Username != "" && (c.Password != "" || c.IdentityToken == ""):
		req.SetBasicAuth(c.Username, c.Password)
	case c.IdentityToken != "":
		user := c.Username
		if user == "" {
			user = "<token>" // as docker-credential helpers name the user of an identity token
		}
		req.SetBasicAuth(user, c.IdentityToken)
	}
	return req
}

// refused returns what a token server's answer without a token means: a refusal that
// is remembered for a while, or a failure.
func (t *tokens) refused(d *demand, c Credential, res *http.Response, body io.Reader, at *url.URL) (*token, *failure) {
	s, wait := said{message: tokenServerSays(body)}, retryAfter(res.Header)
	now := time.Now()
	switch status := res.StatusCode; {
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusBadRequest, status == http.StatusNotFound:
		if site(at) != site(d.realm) {
			break // not the word of the one that we asked
		}
		who := "asks for credentials, and there are none that it may have"
		if !c.anonymous() {
			who = "refuses the ones that are there"
		}
		tail := fmt.Sprintf(" (it answered %d)", status)
		if s.message != "" {
			tail = fmt.Sprintf(" (it answered %d: %s)", status, s.message)
		}
		return &token{until: now.Add(refusalTime), refused: &oci.Error{Code: oci.CodeDenied, Status: http.StatusForbidden, Answered: status,
			Message: fmt.Sprintf("upstream %s needs credentials for this, or it does not exist: its token server %s %s%s; see upstreams.%s.credentials", t.r.name, at.Host, who, tail, t.r.name)}}, nil
	case status == http.StatusTooManyRequests:
		// To go on would make it worse: no login until it says so.
		t.r.metrics.UpstreamErrors.WithLabelValues(t.r.name, "ratelimit").Inc()
		if wait == 0 {
			wait = refusalTime
		}
		wait = min(wait, maxHold)
		return &token{until: now.Add(wait), refused: &oci.Error{Code: oci.CodeTooManyRequests, RetryAfter: wait,
			Message: fmt.Sprintf("upstream %s: its token server %s limits the logins from here", t.r.name, at.Host)}}, nil
	}
	f := &failure{reason: "status", status: res.StatusCode, again: elsewhere}
	if res.StatusCode >= 500 {
		f.blame = blameRequest
	}
	switch res.StatusCode {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
		http.StatusRequestTimeout, http.StatusTooEarly:
		if wait <= maxPause {
			f.again = anybody
		}
	}
	f.err = unavailable(http.StatusBadGateway, nil, "upstream %s: its token server %s answered %s", t.r.name, at.Host, strings.TrimSpace(strconv.Itoa(res.StatusCode)+" "+s.message))
	f.err.RetryAfter, f.err.Answered = wait, res.StatusCode
	return nil, f
}

// tokenServerSays returns what a token server's answer says of an error, in one of the
// ways that they have: the registries' error JSON, OAuth2's (RFC 6749, section 5.2), a
// sentence. It is "" if nothing can be read.
func tokenServerSays(body io.Reader) string {
	raw, err := io.ReadAll(io.LimitReader(body, maxErrorBody))
	if err != nil {
		return ""
	}
	var doc struct {
		Errors []struct {
			Message any `json:"message"`
			Code    any `json:"code"`
		} `json:"errors"`
		Description any `json:"error_description"`
		Details     any `json:"details"`
		Detail      any `json:"detail"`
		Message     any `json:"message"`
		Error       any `json:"error"`
	}
	if json.Unmarshal(raw, &doc) != nil {
		if text := strings.TrimSpace(string(raw)); !strings.ContainsAny(text, "<{") {
			return clean(text)
		}
		return ""
	}
	all := []any{doc.Description, doc.Details, doc.Detail, doc.Message, doc.Error}
	if len(doc.Errors) > 0 {
		all = append([]any{doc.Errors[0].Message, doc.Errors[0].Code}, all...)
	}
	for _, v := range all {
		if s, ok := v.(string); ok && s != "" {
			return clean(s)
		}
	}
	return ""
}

// readToken reads a token server's answer, which came at now. The server's own clock
// (issued_at) does not count, because it may be wrong. A proxy on the way may have
// compressed the answer although identity was asked for.
func readToken(raw []byte, now time.Time) (*token, error) {
	var doc struct {
		Token       any `json:"token"`
		AccessToken any `json:"access_token"`
		ExpiresIn   any `json:"expires_in"`
	}
	if bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(raw))
		if err == nil {
			raw, err = io.ReadAll(io.LimitReader(z, maxTokenBody+1))
		}
		if err != nil {
			return nil, errors.New("the answer begins like gzip, and is not")
		}
	}
	if len(raw) > maxTokenBody {
		return nil, fmt.Errorf("the answer has more than %d bytes, and a token may have %d", maxTokenBody, maxToken)
	}
	// Clients don't look at what follows the document.
	if err := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(raw, []byte("\ufeff")))).Decode(&doc); err != nil {
		return nil, errors.New("the answer is not JSON of the token specification")
	}
	first, why := usableToken(doc.Token)
	second, why2 := usableToken(doc.AccessToken)
	got := &token{value: first, spare: second}
	switch {
	case first == "" && second == "":
		if why == nil {
			why = why2
		}
		if why == nil {
			why = errors.New("the answer has neither token nor access_token")
		}
		return nil, why
	case first == "":
		got.value, got.spare = second, ""
	case first == second:
		got.spare = ""
	}
	life := defaultExpiry
	if s := seconds(doc.ExpiresIn); s >= 1 {
		life = maxExpiry
		if s < maxExpiry.Seconds() {
			life = time.Duration(s * float64(time.Second))
		}
	}
	// Renewed a little early, so that it does not expire on the way.
	got.until = now.Add(life - min(10*time.Second, life/4))
	return got, nil
}

// usableToken returns v if it can be sent as a token, and why not if it can't. It
// returns "" without an error if there is none.
func usableToken(v any) (string, error) {
	s, ok := v.(string)
	switch {
	case v == nil, ok && s == "":
		return "", nil
	case !ok:
		return "", errors.New("the token is not a string")
	case len(s) > maxToken:
		return "", fmt.Errorf("the token has %d bytes; at most %d are taken", len(s), maxToken)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return "", errors.New("the token has characters that can not be in a header")
		}
	}
	return s, nil
}

// seconds reads expires_in: a number, or a string with one in it (distribution#1746).
// Anything else is 0.
func seconds(v any) float64 {
	switch v := v.(type) {
	case float64:
		return v
	case string:
		if s, err := strconv.ParseFloat(strings.TrimSpace(v), 64); err == nil && s == s {
			return s
		}
	}
	return 0
}
