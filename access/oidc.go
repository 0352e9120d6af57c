package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/entrepot-dev/entrepot/oci"
)

// OIDC is an issuer whose signed tokens (JWT) stand for callers.
type OIDC struct {
	// Issuer is its URL, as it stands in the tokens; the keys are found below
	// it (OpenID Connect Discovery).
	Issuer string
	// Audience must be among a token's.
	Audience string
	// NameClaim is the claim that is the caller's name, GroupsClaim the one with
	// the groups; "sub" and "groups" where they are empty.
	NameClaim, GroupsClaim string
	// CA is a PEM file of roots that count beside the system's; empty for none.
	CA string
}

const (
	// issuerTimeout bounds one request to the issuer.
	issuerTimeout = 5 * time.Second
	// issuerPause is the least time between two requests for one URL: whoever
	// sends tokens with keys that nobody knows makes us ask no faster.
	issuerPause = 10 * time.Second
	// keysFor is for how long keys are believed before the issuer is asked again: it
	// may have withdrawn one.
	keysFor = time.Hour
	// maxIssuerBody bounds an answer of the issuer, in bytes.
	maxIssuerBody = 1 << 20
	// maxGroups bounds the groups of a token.
	maxGroups = 256
)

// issuer verifies tokens. It is first asked when the first token comes.
type issuer struct {
	OIDC
	client *http.Client
	log    *zap.Logger

	// verifier is nil until the issuer was found, which flight does once for all
	// who wait for it.
	verifier atomic.Pointer[oidc.IDTokenVerifier]
	flight   singleflight.Group
}

func newIssuer(o OIDC, log *zap.Logger) (*issuer, error) {
	if o.NameClaim == "" {
		o.NameClaim = "sub"
	}
	if o.GroupsClaim == "" {
		o.GroupsClaim = "groups"
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("the issuer's CA: %w", err)
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the issuer's CA: %s holds no PEM certificate", o.CA)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	return &issuer{OIDC: o, log: log, client: &http.Client{
		Timeout:   issuerTimeout,
		Transport: &paced{next: transport, last: map[string]attempt{}},
	}}, nil
}

// outage is where the key set notes that it could not be asked: go-oidc's errors
// do not tell that from a wrong signature.
type outage struct{ err error }

type outageKey struct{}

// keys is the issuer's key set. The issuer is asked for it with the first token, for
// a key that is not in it, and when it is old; an old one does while it can not be
// asked.
type keys struct {
	// empty makes a set that asks.
	empty func() oidc.KeySet

	mu    sync.Mutex
	set   oidc.KeySet
	until time.Time
}

func newKeys(empty func() oidc.KeySet) *keys {
	return &keys{empty: empty, set: empty(), until: time.Now().Add(keysFor)}
}

func (k *keys) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	now := time.Now()
	k.mu.Lock()
	set, old := k.set, !now.Before(k.until)
	k.mu.Unlock()
	if old {
		renewed := k.empty()
		if payload, err := renewed.VerifySignature(ctx, jwt); !isFetch(err) {
			k.mu.Lock()
			k.set, k.until = renewed, now.Add(keysFor)
			k.mu.Unlock()
			return payload, err
		}
	}
	payload, err := set.VerifySignature(ctx, jwt)
	if isFetch(err) && !errors.Is(err, errAskedJustNow) {
		if o, ok := ctx.Value(outageKey{}).(*outage); ok {
			o.err = err
		}
	}
	return payload, err
}

// isFetch tells whether a key set's error is that its keys could not be had.
func isFetch(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "fetching keys") }

// discover asks the issuer where its keys are, once it has answered never again.
func (i *issuer) discover(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	if v := i.verifier.Load(); v != nil {
		return v, nil
	}
	found, err, _ := i.flight.Do("", func() (any, error) { return i.ask(ctx) })
	if err != nil {
		return nil, err
	}
	v := found.(*oidc.IDTokenVerifier)
	i.verifier.Store(v)
	return v, nil
}

func (i *issuer) ask(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	ctx = oidc.ClientContext(ctx, i.client)
	provider, err := oidc.NewProvider(ctx, i.Issuer)
	if err != nil {
		return nil, err
	}
	var more struct {
		Keys       string   `json:"jwks_uri"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := provider.Claims(&more); err != nil {
		return nil, err
	}
	if more.Keys == "" {
		return nil, errors.New("its discovery document names no jwks_uri")
	}
	// Beyond RS256 what the issuer says it signs with, but never a shared secret.
	algorithms := []string{oidc.RS256}
	for _, a := range more.Algorithms {
		switch a {
		case oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA:
			algorithms = append(algorithms, a)
		}
	}
	return oidc.NewVerifier(i.Issuer, newKeys(func() oidc.KeySet { return oidc.NewRemoteKeySet(ctx, more.Keys) }),
		&oidc.Config{ClientID: i.Audience, SupportedSigningAlgs: algorithms}), nil
}

// verify gives who a token stands for, nil where it is not good, and until when
// that holds. An error says that the issuer could not be asked.
func (i *issuer) verify(g *Guard, jwt []byte) (*Caller, time.Time, error) {
	var out outage
	ctx, cancel := context.WithTimeout(context.WithValue(g.ctx, outageKey{}, &out), issuerTimeout)
	defer cancel()
	verifier, err := i.discover(ctx)
	if err != nil {
		return nil, time.Time{}, i.unreachable(err)
	}
	parsed, err := verifier.Verify(ctx, string(jwt))
	if out.err != nil {
		return nil, time.Time{}, i.unreachable(out.err)
	}
	if err != nil {
		// Not for longer: the issuer may have a new key that is not asked for yet.
		i.log.Debug("a token of the issuer is not good", zap.Error(err))
		return nil, time.Now().Add(issuerPause), nil
	}
	var claims map[string]json.RawMessage
	if err := parsed.Claims(&claims); err != nil {
		return nil, time.Time{}, nil
	}
	var name string
	if json.Unmarshal(claims[i.NameClaim], &name) != nil || name == "" {
		i.log.Debug("a token of the issuer does not have the claim for the name", zap.String("claim", i.NameClaim))
		return nil, time.Time{}, nil
	}
	var groups []string
	if json.Unmarshal(claims[i.GroupsClaim], &groups) != nil {
		var one string
		if json.Unmarshal(claims[i.GroupsClaim], &one) == nil && one != "" {
			groups = []string{one}
		}
	}
	return g.proven(FromIssuer, name, prefixed(issuerGroup, groups[:min(len(groups), maxGroups)])...), parsed.Expiry, nil
}

func (i *issuer) unreachable(err error) error {
	return &oci.Error{Code: oci.CodeUnavailable, RetryAfter: issuerPause, Err: err,
		Message: "the issuer of your token, " + i.Issuer + ", can not be asked for its keys just now; ask again"}
}

// paced is a transport that asks for one URL no more often than issuerPause, and
// in between repeats that it failed, or refuses. It reads bodies that are no
// larger than maxIssuerBody.
type paced struct {
	next http.RoundTripper

	mu   sync.Mutex
	last map[string]attempt // by URL: the two that the issuer has
}

// errAskedJustNow is for who wants keys that the issuer did not have just now.
var errAskedJustNow = errors.New("the issuer was asked just now")

// attempt is the last request for a URL.
type attempt struct {
	at  time.Time
	err error
}

func (p *paced) RoundTrip(r *http.Request) (*http.Response, error) {
	url, now := r.URL.String(), time.Now()
	p.mu.Lock()
	last, known := p.last[url]
	if known && now.Sub(last.at) < issuerPause {
		p.mu.Unlock()
		if last.err != nil {
			return nil, last.err
		}
		return nil, errAskedJustNow
	}
	if len(p.last) > 64 { // an issuer that redirects to somewhere else each time
		clear(p.last)
	}
	p.last[url] = attempt{at: now}
	p.mu.Unlock()
	resp, err := p.next.RoundTrip(r)
	if err == nil && resp.StatusCode >= http.StatusInternalServerError {
		_ = resp.Body.Close() // nobody reads it
		err = fmt.Errorf("it answers %s", resp.Status)
	}
	if err != nil {
		p.mu.Lock()
		p.last[url] = attempt{at: now, err: err}
		p.mu.Unlock()
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxIssuerBody), resp.Body}
	return resp, nil
}
