package hub

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Auth is how the registry wants clients to identify themselves.
type Auth int

// The ways that registries have.
const (
	// Bearer wants a token from the token server, anonymous or not, as Docker
	// Hub does.
	Bearer Auth = iota
	// Basic wants user and password on each request, as private ECR does.
	Basic
	// Open wants nothing, as mcr.microsoft.com does. Private repositories are
	// then private to nobody.
	Open
)

// Options say what kind of registry to be. The zero value is Docker Hub over
// plain http.
type Options struct {
	Auth Auth
	// TLS serves https with certificates of the Hub's own CA.
	TLS bool
	// HTTP2 offers HTTP/2 beside HTTP/1.1; it needs TLS.
	HTTP2 bool
	// Service is what the challenge names; "registry.docker.io" if empty.
	Service string
	// TokenTTL is for how long a token is good: five minutes if zero.
	TokenTTL time.Duration
	// NoExpiresIn leaves expires_in out of the token server's answer. Clients
	// must then take a token to be good for 60 seconds.
	NoExpiresIn bool
	// TokenField is "token" or "access_token"; both are sent if it is empty.
	TokenField string
	// Users are names and passwords.
	Users map[string]string
	// NoCDN sends blobs from the registry itself, without a redirect.
	NoCDN bool
	// RelativeRedirect keeps blobs on the registry's listener, behind a
	// redirect whose Location has no host.
	RelativeRedirect bool
	// RedirectManifests answers manifests, too, by a redirect to the CDN, as
	// registry.k8s.io does. The CDN counts them as CDN GETs.
	RedirectManifests bool
	// URLTTL is for how long a signed CDN URL is good: five minutes if zero.
	URLTTL time.Duration
	// PageSize is how many tags or referrers one answer holds at most,
	// whatever is asked for; no limit if zero.
	PageSize int
	// Address is where the registry listens, as in net.Listen; a free port of
	// 127.0.0.1 if empty.
	Address string
}

// Hub is a running fake registry.
type Hub struct {
	o        Options
	registry *face
	auth     *face
	cdn      *face
	ca       *authority // nil without TLS
	key      []byte     // signs CDN URLs
	shape    atomic.Int64
	stop     context.CancelFunc
	done     context.Context // ends with Close: no fault holds a handler beyond it

	users sync.RWMutex // guards o.Users

	mu       sync.Mutex
	repos    map[string]*repository
	tokens   map[string]grant
	epoch    int // of CDN URLs: those signed in an earlier one have expired
	faults   []*rule
	counts   Counts
	sent     map[string]int64
	requests []Request
	quota    quota
	noRefs   bool
	uploads  map[string][]byte
}

// Start starts a hub. Close ends it.
func Start(o Options) (*Hub, error) {
	if o.Service == "" {
		o.Service = "registry.docker.io"
	}
	if o.TokenTTL == 0 {
		o.TokenTTL = 5 * time.Minute
	}
	if o.URLTTL == 0 {
		o.URLTTL = 5 * time.Minute
	}
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	o.Users = maps.Clone(o.Users)
	h := &Hub{
		o: o, key: make([]byte, 32),
		repos: map[string]*repository{}, tokens: map[string]grant{}, sent: map[string]int64{}, uploads: map[string][]byte{},
	}
	_, _ = rand.Read(h.key) // never fails
	h.done, h.stop = context.WithCancel(context.Background())
	var cfg *tls.Config
	if o.TLS {
		ca, err := newAuthority()
		if err != nil {
			return nil, fmt.Errorf("make the hub's CA: %w", err)
		}
		h.ca, cfg = ca, ca.config()
		if o.HTTP2 {
			cfg.NextProtos = []string{"h2", "http/1.1"}
		}
	}
	swallowed := func() { h.count(func(c *Counts) { c.Swallowed++ }) }
	for _, f := range []struct {
		face     **face
		address  string
		fallback string
		handler  http.HandlerFunc
	}{
		// The three have hosts of their own where the system has more than one
		// loopback address (Linux), as a client may trust a host, not a port.
		{&h.registry, o.Address, o.Address, h.serveRegistry},
		{&h.auth, "127.0.0.2:0", "127.0.0.1:0", h.serveToken},
		{&h.cdn, "127.0.0.3:0", "127.0.0.1:0", h.serveCDN},
	} {
		face, err := openFace(f.address, cfg, f.handler, swallowed, h.done, &h.shape)
		if err != nil && f.fallback != f.address {
			face, err = openFace(f.fallback, cfg, f.handler, swallowed, h.done, &h.shape)
		}
		if err != nil {
			_ = h.Close()
			return nil, fmt.Errorf("start the hub: %w", err)
		}
		*f.face = face
	}
	return h, nil
}

// New starts a hub that ends with the test.
func New(t testing.TB, o Options) *Hub {
	t.Helper()
	h, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// Close ends all listeners and connections. No fault survives it.
func (h *Hub) Close() error {
	h.stop()
	var errs []error
	for _, f := range []*face{h.registry, h.auth, h.cdn} {
		if f != nil {
			errs = append(errs, f.close())
		}
	}
	return errors.Join(errs...)
}

// URL is the registry's address, without a trailing slash.
func (h *Hub) URL() string { return h.url(h.registry) }

// Host is the registry's host and port.
func (h *Hub) Host() string { return h.registry.address() }

// Realm is the token server's URL, as challenges name it.
func (h *Hub) Realm() string { return h.url(h.auth) + "/token" }

// CDNURL is the CDN's address, CDNHost its host and port.
func (h *Hub) CDNURL() string { return h.url(h.cdn) }

// CDNHost is the CDN's host and port.
func (h *Hub) CDNHost() string { return h.cdn.address() }

func (h *Hub) url(f *face) string {
	u := url.URL{Scheme: "http", Host: f.address()}
	if h.o.TLS {
		u.Scheme = "https"
	}
	return u.String()
}

// CA gives the PEM of the certificate that signed the hub's; nil without TLS.
func (h *Hub) CA() []byte {
	if h.ca == nil {
		return nil
	}
	return h.ca.pem
}

// Client gives an http.Client that trusts the hub, keeps no connections and
// follows no redirects.
func (h *Hub) Client() *http.Client {
	tr := &http.Transport{DisableKeepAlives: true}
	if h.ca != nil {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(h.ca.pem)
		tr.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return &http.Client{
		Transport:     tr,
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Part is one of the hub's three listeners.
type Part string

// The three parts.
const (
	Registry    Part = "registry"
	TokenServer Part = "token server"
	CDN         Part = "cdn"
)

func (h *Hub) faces(parts []Part) []*face {
	if len(parts) == 0 {
		return []*face{h.registry, h.auth, h.cdn}
	}
	var fs []*face
	for _, p := range parts {
		switch p {
		case Registry:
			fs = append(fs, h.registry)
		case TokenServer:
			fs = append(fs, h.auth)
		case CDN:
			fs = append(fs, h.cdn)
		default:
			panic(fmt.Sprintf("hub: no part %q", p))
		}
	}
	return fs
}

// Down closes the listeners and all connections of the given parts, or of all:
// connections are refused until Up.
func (h *Hub) Down(parts ...Part) {
	for _, f := range h.faces(parts) {
		f.down()
	}
}

// BreakTLS lets the given parts, or all, fail every TLS handshake and drop what
// comes over old connections, until Up. A hub without TLS drops all the same.
func (h *Hub) BreakTLS(parts ...Part) {
	for _, f := range h.faces(parts) {
		f.breakTLS()
	}
}

// Up ends Down, BlackHole and BreakTLS: the parts listen again, at their old addresses.
// It fails where another process has taken a port meanwhile.
func (h *Hub) Up(parts ...Part) error {
	var errs []error
	for _, f := range h.faces(parts) {
		errs = append(errs, f.up())
	}
	return errors.Join(errs...)
}

// BlackHole lets the given parts, or all, accept connections and never answer,
// on old connections too, until Up.
func (h *Hub) BlackHole(parts ...Part) {
	for _, f := range h.faces(parts) {
		f.swallow()
	}
}
