package upstream

import (
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

	mu     sync.Mutex
	held   heldTokens
	warned map[string]bool
	// breakers are those of the token servers, by site.
	breakers map[string]*breaker
	closed   bool
	running  sync.WaitGroup
}

// tokenKey is what a token is good for. scope is what we want; the token
// server may have been asked for more, as the registry's challenge says.
type tokenKey struct {
	realm, service, scope string
	who                   account
}

type token struct {
	value string
	until time.Time
	// scopes is what was asked for.
	scopes []string
	// refused, when it is set, is the answer instead of value.
	refused *oci.Error
}

func newTokens(r *Registry, c Credentials, t *trust) *tokens {
	return &tokens{r: r, credentials: c, trust: t, warned: map[string]bool{}, breakers: map[string]*breaker{}}
}

// wait ends the flights; the registry's life must have ended.
func (t *tokens) wait() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.running.Wait()
}

// authorization gives the header for a request to ep within scope, by how ep
// last wanted to be asked, "" where it never did; and whose request that is. The
// credentials are those that from gives.
func (t *tokens) authorization(ctx context.Context, ep *endpoint, scope string, from Credentials) (string, account, error) {
	d := ep.auth.Load()
	if d == nil {
		return "", account{}, nil
	}
	c, err := t.credential(ctx, ep, from)
	if err != nil {
		return "", account{}, err
	}
	a, err := t.answer(ctx, d, c, scope, nil, "")
	return a, c.fingerprint(), err
}

// renew gives the header that answers the challenge in res, which came upon a
// request with the header used, "" where nothing new can be said; and whose
// request that is.
func (t *tokens) renew(ctx context.Context, ep *endpoint, scope string, from Credentials, res *http.Response, used string) (string, account, error) {
	c, err := t.credential(ctx, ep, from)
	if err != nil {
		return "", account{}, err
	}
	d, scopes := wanted(res.Header, t.trust, c)
	if d == nil {
		return "", account{}, nil
	}
	ep.auth.Store(d)
	a, err := t.answer(ctx, d, c, scope, scopes, used)
	if err != nil || a == used {
		return "", account{}, err
	}
	return a, c.fingerprint(), nil
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
	return c, nil
}

// answer gives the header that meets d. A token that was used in vain is not
// given again; the scopes of a challenge are added to what is asked for.
func (t *tokens) answer(ctx context.Context, d *demand, c Credential, scope string, scopes []string, used string) (string, error) {
	if d.realm == nil {
		if c.Username == "" {
			return "", nil
		}
		req := http.Request{Header: http.Header{}}
		req.SetBasicAuth(c.Username, c.Password)
		return req.Header.Get("Authorization"), nil
	}
	ask, withCredentials := t.trust.realm(d.realm)
	if !ask {
		return "", nil
	}
	if !withCredentials && !c.anonymous() {
		t.warn(d.realm.Host)
		c = Credential{}
	}
	key := tokenKey{realm: d.realm.String(), service: d.service, scope: scope, who: c.fingerprint()}

	t.mu.Lock()
	h := t.held.get(key)
	if h == nil {
		h = &token{}
	}
	if slices.ContainsFunc(scopes, func(s string) bool { return !slices.Contains(h.scopes, s) }) && len(h.scopes) > 0 {
		scopes = fewScopes(slices.Concat(scopes, h.scopes))
	} else if len(h.scopes) > 0 {
		scopes = h.scopes
	} else if len(scopes) == 0 {
		scopes = []string{scope}
	}
	slices.Sort(scopes)
	scopes = slices.Compact(scopes)
	fresh := time.Now().Before(h.until)
	switch {
	case fresh && h.refused != nil:
		t.mu.Unlock()
		return "", h.refused
	case fresh && "Bearer "+h.value != used:
		t.mu.Unlock()
		return "Bearer " + h.value, nil
	}
	t.mu.Unlock()

	got, err := t.fetchOnce(ctx, key, d, c, scopes, used)
	if err != nil {
		return "", err
	}
	if got.refused != nil {
		return "", got.refused
	}
	return "Bearer " + got.value, nil
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

// shown tells, for the message of a refusal that came with the header h, which
// credentials ep was shown, and why it was not shown more.
func (t *tokens) shown(ctx context.Context, ep *endpoint, from Credentials, h http.Header) string {
	if host := t.unasked(h); host != "" {
		return fmt.Sprintf(": its token server %s is not asked, for it is plain http and not in upstreams.%s.realms", host, t.r.name)
	}
	if from != nil {
		return "" // a client's own, of which no setting knows
	}
	if c, err := t.credential(ctx, ep, nil); err == nil && c.anonymous() {
		return fmt.Sprintf(", and there are none for %s in upstreams.%s.credentials", ep.host, t.r.name)
	}
	note := fmt.Sprintf(": upstream %[1]s refuses those of upstreams.%[1]s.credentials", t.r.name)
	d := ep.auth.Load()
	t.mu.Lock()
	defer t.mu.Unlock()
	if d == nil || d.realm == nil || !t.warned[d.realm.Host] {
		return note
	}
	return fmt.Sprintf("%s (its token server %s was not shown them, for it is not in upstreams.%s.realms)", note, d.realm.Host, t.r.name)
}

// unasked gives the host of a token server in the challenges of h that may not
// be asked, where there is none that may; else "".
func (t *tokens) unasked(h http.Header) string {
	host := ""
	for _, ch := range rewrite.Challenges(h.Values("WWW-Authenticate")) {
		realm, err := url.Parse(ch.Params["realm"])
		if ch.Scheme != "bearer" || err != nil || realm.Hostname() == "" {
			continue
		}
		if ask, _ := t.trust.realm(realm); ask {
			return ""
		}
		host = clean(realm.Host)
	}
	return host
}

// fetchOnce fetches the token of key, with all who want it at this time. The
// flight is bound to the registry's life, not to a caller's.
func (t *tokens) fetchOnce(ctx context.Context, key tokenKey, d *demand, c Credential, scopes []string, used string) (*token, error) {
	flight := fmt.Sprintf("%q %q %q %x", key.realm, key.service, scopes, key.who)
	done := t.flight.DoChan(flight, func() (any, error) {
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			return nil, unavailable(http.StatusServiceUnavailable, nil, "upstream %s is closed", t.r.name)
		}
		// Who came late to a flight that has just landed finds what it brought.
		if h := t.held.get(key); h != nil && time.Now().Before(h.until) && (h.refused != nil || "Bearer "+h.value != used) && slices.Equal(h.scopes, scopes) {
			t.mu.Unlock()
			return h, nil
		}
		t.running.Add(1)
		t.mu.Unlock()
		defer t.running.Done()
		ctx, cancel := context.WithTimeout(t.r.life, flightTimeout)
		defer cancel()
		got, err := t.fetch(ctx, d, c, scopes)
		if err != nil {
			return nil, err
		}
		got.scopes = scopes
		t.mu.Lock()
		defer t.mu.Unlock()
		t.held.put(key, got, time.Now())
		return got, nil
	})
	select {
	case <-ctx.Done():
		return nil, t.r.gaveUp(ctx).err
	case res := <-done:
		if res.Err != nil {
			return nil, res.Err
		}
		got, ok := res.Val.(*token)
		if !ok {
			return nil, errors.New("a flight for a token brought none")
		}
		return got, nil
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
		t.r.judge(b, d.realm.Host, strings.Join(scopes, " "), began, f, func(ctx context.Context) bool {
			// Without service and scope some answer 500: any answer will do.
			return t.r.knock(ctx, http.MethodGet, d.realm, nil) != nil
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

func (t *tokens) fetchNow(ctx context.Context, d *demand, c Credential, scopes []string) (*token, *failure) {
	reqCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req := tokenRequest(reqCtx, d, c, scopes)
	req.Header.Set("User-Agent", t.r.userAgent)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Accept-Encoding", "identity")

	began := time.Now()
	res, at, err := t.r.send(req, cancel)
	if err != nil {
		t.r.observe("token", 0, began)
		return nil, t.r.broken(ctx, at.Host, causeOr(reqCtx, err))
	}
	t.r.observe("token", res.StatusCode, began)
	b := newBody(reqCtx, cancel, res.Body, t.r.stall, t.r.metrics.UpstreamBytes.WithLabelValues(t.r.name))
	defer b.Close()
	if res.StatusCode != http.StatusOK {
		return t.refused(d, c, res, b, at)
	}
	raw, err := io.ReadAll(io.LimitReader(b, maxTokenBody+1))
	if err != nil {
		return nil, t.r.broken(ctx, at.Host, err)
	}
	got, err := readToken(raw, time.Now())
	if err != nil {
		return nil, &failure{err: unavailable(http.StatusBadGateway, nil, "upstream %s: its token server %s gave no usable token: %v", t.r.name, at.Host, err), reason: "protocol"}
	}
	return got, nil
}

// tokenRequest makes the request of the token specification: GET with Basic
// credentials or none; POST of OAuth2 for an identity token.
func tokenRequest(ctx context.Context, d *demand, c Credential, scopes []string) *http.Request {
	u := *d.realm
	req := (&http.Request{Method: http.MethodGet, URL: &u, Header: http.Header{}}).WithContext(ctx)
	if c.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "service": {d.service}, "client_id": {clientID},
			"scope": {strings.Join(scopes, " ")}, "refresh_token": {c.IdentityToken}}.Encode()
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
	if c.Username != "" {
		req.SetBasicAuth(c.Username, c.Password)
	}
	return req
}

// refused tells what a token server's answer means that holds no token.
func (t *tokens) refused(d *demand, c Credential, res *http.Response, body io.Reader, at *url.URL) (*token, *failure) {
	s, wait := readSaid(body), retryAfter(res.Header)
	switch status := res.StatusCode; {
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusBadRequest, status == http.StatusNotFound:
		if site(at) != site(d.realm) {
			break // not the word of the one that we asked
		}
		who := "asks for credentials, and there are none that it may have"
		if !c.anonymous() {
			who = "refuses the ones that are there"
		}
		return &token{until: time.Now().Add(refusalTime), refused: &oci.Error{Code: oci.CodeDenied, Status: http.StatusForbidden,
			Message: fmt.Sprintf("upstream %s needs credentials for this, or it does not exist: its token server %s %s; see upstreams.%s.credentials", t.r.name, at.Host, who, t.r.name)}}, nil
	case status == http.StatusTooManyRequests:
		// To go on would make it worse: no login until it says so.
		t.r.metrics.UpstreamErrors.WithLabelValues(t.r.name, "ratelimit").Inc()
		return &token{until: time.Now().Add(min(max(wait, refusalTime), maxHold)), refused: &oci.Error{Code: oci.CodeTooManyRequests, RetryAfter: wait,
			Message: fmt.Sprintf("upstream %s: its token server %s limits the logins from here", t.r.name, at.Host)}}, nil
	}
	f := &failure{reason: "status", status: res.StatusCode, again: elsewhere}
	if res.StatusCode >= 500 {
		f.blame = blameRequest
	}
	switch res.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		if wait <= maxPause {
			f.again = anybody
		}
	}
	f.err = unavailable(http.StatusBadGateway, nil, "upstream %s: its token server %s answered %s", t.r.name, at.Host, strings.TrimSpace(strconv.Itoa(res.StatusCode)+" "+s.message))
	f.err.RetryAfter = wait
	return nil, f
}

// readToken reads a token server's answer, which came at now. The server's own clock
// (issued_at) does not count, because it may be wrong.
func readToken(raw []byte, now time.Time) (*token, error) {
	var doc struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"`
	}
	if len(raw) > maxTokenBody {
		return nil, fmt.Errorf("the answer has more than %d bytes, and a token may have %d", maxTokenBody, maxToken)
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, errors.New("the answer is not JSON of the token specification")
	}
	v := doc.Token
	if v == "" {
		v = doc.AccessToken
	}
	if v == "" {
		return nil, errors.New("the answer has neither token nor access_token")
	}
	if len(v) > maxToken {
		return nil, fmt.Errorf("the token has %d bytes; at most %d are taken", len(v), maxToken)
	}
	for i := range len(v) {
		if v[i] <= ' ' || v[i] >= 0x7f {
			return nil, errors.New("the token has characters that can not be in a header")
		}
	}
	life := defaultExpiry
	if s := doc.ExpiresIn; s >= 1 {
		life = maxExpiry
		if s < maxExpiry.Seconds() {
			life = time.Duration(s * float64(time.Second))
		}
	}
	// Renewed a little early, so that it does not expire on the way.
	return &token{value: v, until: now.Add(life - min(10*time.Second, life/4))}, nil
}
