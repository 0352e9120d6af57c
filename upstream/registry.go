package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/entrepot-dev/entrepot/metrics"
)

// Options describe one upstream. The zero value of each field but Name and
// Endpoints is useful.
type Options struct {
	// Name is the configured name, "docker.io": for messages and metrics.
	Name string
	// Endpoints are the URLs of registries that hold the same content, tried
	// in order. "https://host:port" stands for its /v2; a path is put before
	// /v2, unless it begins with /v2 itself: then what follows is put before
	// each repository.
	Endpoints []string
	// Credentials are asked for by the host of an endpoint. Nil is anonymous. Those here and
	// in Accounts that are an io.Closer are closed with the registry.
	Credentials Credentials
	// Accounts are other credentials for some repositories. The first that matches counts.
	Accounts []Account
	// Lender, where it is set, has the credentials instead: those of clients, each
	// for the repositories that it may pull. Credentials is nil then.
	Lender Lender
	// Realms are token servers that may have the credentials, beside the
	// endpoints themselves and those known for a registry: URLs or hosts, of
	// which scheme (https where there is none) and host count.
	Realms []string
	// RedirectHosts may be redirected to although they are private or plain
	// http: "host" for the usual ports, or "host:port".
	RedirectHosts []string
	// CAFile holds PEM certificates that are trusted beside the system's.
	CAFile string
	// CertFile and KeyFile are shown to endpoints, Realms and RedirectHosts
	// that ask for a client certificate.
	CertFile, KeyFile string
	// InsecureTLS accepts any certificate of endpoints, Realms and
	// RedirectHosts; other hosts are verified as ever.
	InsecureTLS bool
	// QuotaReserve is how many of the pulls that the upstream still grants are
	// kept for what is not here (see SparePull); at most half of all that it
	// grants. AutoReserve learns the number.
	QuotaReserve int
	// QuotaHistory keeps what AutoReserve has learned; nil keeps it in memory only.
	QuotaHistory QuotaHistory
	// MaxConnections bounds parallel requests, bodies included. Default 64.
	MaxConnections int
	// ConnectTimeout bounds connecting, and the TLS handshake after it.
	// Default 10 s.
	ConnectTimeout time.Duration
	// HeaderTimeout bounds the wait for a response's header. Default 30 s. A blob is waited
	// for longer while its host answers other requests.
	HeaderTimeout time.Duration
	// StallTimeout ends a body of which no byte came for that long. A body
	// that moves may take for ever. Default 30 s.
	StallTimeout time.Duration
	// Memory bounds the bytes of manifests and lists that are being read, of
	// all who share it; what finds no room fails with 503. Nil is no bound.
	Memory *semaphore.Weighted
	// UserAgent is sent to the upstream. Default "entrepot".
	UserAgent string
	// Log and Metrics may be nil.
	Log     *zap.Logger
	Metrics *metrics.Metrics
}

// Account is the credentials for the repositories that Match reports.
type Account struct {
	Match       func(repository string) bool
	Credentials Credentials // nil is anonymous
}

// Registry is a client of one upstream. Its methods are safe for concurrent
// use, honour ctx and give *oci.Error. Close it when it is no longer used.
type Registry struct {
	name      string
	userAgent string
	stall     time.Duration
	patience  time.Duration // with a response's header; see attend for blobs
	endpoints []*endpoint
	routes    *routes
	tokens    *tokens
	lender    Lender
	accounts  []Account
	slots     *slots
	heads     heads
	shortcuts shortcuts
	memory    *semaphore.Weighted
	large     *semaphore.Weighted // see largeList
	log       *zap.Logger
	metrics   *metrics.Metrics

	// life ends with Close; what serves several callers is bound to it.
	life    context.Context
	end     context.CancelFunc
	closing sync.Once

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // what spawn started
}

// dialer connects, as net.Dialer.DialContext does.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// New makes a client of the upstream that o describes. It reads the certificate
// files and touches no network. Its errors name the setting that is wrong.
func New(o Options) (*Registry, error) { return build(o, nil, http.ProxyFromEnvironment) }

// build is New with the network in the caller's hand: dial, where it is not
// nil, makes all connections.
func build(o Options, dial dialer, proxy func(*http.Request) (*url.URL, error)) (*Registry, error) {
	if o.Name == "" {
		return nil, errors.New("an upstream needs a name")
	}
	at := "upstreams." + o.Name
	if len(o.Endpoints) == 0 {
		return nil, fmt.Errorf("%s.endpoints: there is none", at)
	}
	if o.Lender != nil && (o.Credentials != nil || len(o.Accounts) > 0) {
		return nil, fmt.Errorf("%s.credentials: they are the clients' own with access: passthrough", at)
	}
	if o.Credentials == nil {
		o.Credentials = StaticCredentials(Credential{})
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Metrics == nil {
		o.Metrics = metrics.Discard()
	}
	o.MaxConnections = orDefault(o.MaxConnections, 64)
	o.ConnectTimeout = orDefault(o.ConnectTimeout, 10*time.Second)
	o.HeaderTimeout = orDefault(o.HeaderTimeout, 30*time.Second)
	o.StallTimeout = orDefault(o.StallTimeout, 30*time.Second)
	if o.UserAgent == "" {
		o.UserAgent = "entrepot"
	}

	r := &Registry{
		name:      o.Name,
		userAgent: o.UserAgent,
		stall:     o.StallTimeout,
		patience:  o.HeaderTimeout,
		slots:     newSlots(o.MaxConnections),
		memory:    o.Memory,
		large:     semaphore.NewWeighted(1),
		lender:    o.Lender,
		accounts:  o.Accounts,
		log:       o.Log.With(zap.String("upstream", o.Name)),
		metrics:   o.Metrics,
	}
	for _, e := range o.Endpoints {
		ep, err := newEndpoint(e)
		if err != nil {
			return nil, fmt.Errorf("%s.endpoints: %w", at, err)
		}
		ep.breaker = newBreaker(r.metrics.EndpointState.WithLabelValues(r.name, ep.label), r.metrics.EndpointOpenings.WithLabelValues(r.name, ep.label))
		ep.governor = newGovernor(r.name, r.metrics, reserve{fixed: o.QuotaReserve, history: o.QuotaHistory, key: r.name + " " + ep.label})
		ep.lookout = &lookout{r: r, probe: func(ctx context.Context) health { return r.ping(ctx, ep, nil) }, answered: ep.breaker.end}
		r.endpoints = append(r.endpoints, ep)
	}
	trust, err := newTrust(r.endpoints, o.Realms, o.RedirectHosts)
	if err != nil {
		return nil, fmt.Errorf("%s.%w", at, err)
	}
	if r.routes, err = newRoutes(o, trust, dial, proxy); err != nil {
		return nil, fmt.Errorf("%s.%w", at, err)
	}
	r.metrics.UpstreamPulls.WithLabelValues(r.name) // there at zero
	r.life, r.end = context.WithCancel(context.Background())
	r.tokens = newTokens(r, o.Credentials, trust)
	return r, nil
}

// orDefault gives v, or d where v is not positive.
func orDefault[T int | time.Duration](v, d T) T {
	if v > 0 {
		return v
	}
	return d
}

// account returns the credentials for a repository; nil stands for the registry's own.
func (r *Registry) account(repository string) Credentials {
	for _, a := range r.accounts {
		if !a.Match(repository) {
			continue
		}
		if a.Credentials == nil {
			return StaticCredentials(Credential{})
		}
		return a.Credentials
	}
	return nil
}

// Close ends what runs for several callers and drops idle connections. Requests
// and bodies under way are their callers' to end.
func (r *Registry) Close() {
	r.closing.Do(func() {
		r.end()
		r.mu.Lock()
		r.closed = true
		r.mu.Unlock()
		r.running.Wait()
		r.tokens.wait()
		for _, a := range append([]Account{{Credentials: r.tokens.credentials}}, r.accounts...) {
			if c, ok := a.Credentials.(io.Closer); ok {
				_ = c.Close()
			}
		}
		for _, ep := range r.endpoints {
			ep.governor.close()
		}
		r.routes.close()
	})
}

// spawn runs f, which ends with the registry's life, in a goroutine for which Close
// waits. It returns false if the registry is closed; f is not run then.
func (r *Registry) spawn(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.running.Go(f)
	}
	return !r.closed
}
