package clouds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Login is what a registry is shown.
type Login struct {
	// Username and Password go together.
	Username, Password string
	// IdentityToken is a refresh token for the registry's token server.
	IdentityToken string
}

// String keeps secrets out of whatever prints a Login.
func (Login) String() string { return "login (hidden)" }

// GoString is String, for %#v.
func (l Login) GoString() string { return l.String() }

// Options say where logins come from.
type Options struct {
	// Hosts may have the login beside the cloud's own registries: "host", "host:port", or a
	// URL, of which scheme and host count. Nothing else than https is spoken without a URL.
	Hosts []string
	// Env gives environment variables, "" for one that is not set.
	Env func(string) string
	// UserAgent is sent with each request.
	UserAgent string
	// Log may be nil.
	Log *zap.Logger
}

const (
	// flightTime bounds getting one login, all requests and repetitions included.
	flightTime = 30 * time.Second
	// mostUse is after how long a login is renewed, however long it would be good: one that
	// was revoked is not used for longer.
	mostUse = time.Hour
	// defaultLife counts where the cloud does not say how long a login is good.
	defaultLife = 15 * time.Minute
	// leastLife is for how long a login is used that has ended already by this clock, which
	// may be wrong.
	leastLife = time.Minute
	// firstRest and mostRest are the pauses after a failure; each is twice the last.
	firstRest = 10 * time.Second
	mostRest  = 2 * time.Minute
)

// Provider gets logins for the hosts of one cloud, and keeps them. Its methods are safe for
// concurrent use. Close it when it is no longer used.
type Provider struct {
	trusted
	fetch fetch
	log   *zap.Logger

	life    context.Context
	end     context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
	held   map[string]*held // by host; the hosts are the configuration's
}

// fetch gets the login for a host from the cloud, and until when it is good; the zero time
// if the cloud does not say. The error holds no secret.
type fetch func(ctx context.Context, scheme, host string) (Login, time.Time, error)

// held is the login of one host.
type held struct {
	login Login
	// renew is from when on a new login is fetched, until the end of this one.
	renew, until time.Time
	// err is the last failure, which has come failures times in a row; nothing is fetched
	// before retry.
	err      error
	failures int
	retry    time.Time
	// flight is closed when the fetch that is under way ends; nil if none is.
	flight chan struct{}
}

func newProvider(c Cloud, o Options, f fetch) *Provider {
	p := &Provider{trusted: newTrusted(c, o.Hosts), fetch: f, log: o.Log, held: map[string]*held{}}
	if p.log == nil {
		p.log = zap.NewNop()
	}
	p.life, p.end = context.WithCancel(context.Background())
	return p
}

// Close ends what runs, and waits for it. Login fetches nothing from then on. The error is nil.
func (p *Provider) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.end()
	p.running.Wait()
	return nil
}

// Login returns the login for host, with its port if that is not 443. It returns the zero
// Login for a host that may not have one. All who ask at a time wait for one fetch; nobody
// waits while the last login is still good. The error names what failed, where, and what to
// do; after it, nothing is fetched for a while.
func (p *Provider) Login(ctx context.Context, host string) (Login, error) {
	scheme := p.scheme(host)
	if scheme == "" {
		return Login{}, nil
	}
	p.mu.Lock()
	h := p.held[host]
	if h == nil {
		h = &held{}
		p.held[host] = h
	}
	now := time.Now()
	good := now.Before(h.until)
	switch due := !now.Before(h.renew) && !now.Before(h.retry); {
	case !due || h.flight != nil:
	case p.closed:
		h.err = errors.New("the login is no longer used")
	default:
		h.flight = make(chan struct{})
		p.running.Go(func() { p.fly(h, scheme, host) })
	}
	if login, err, flight := h.login, h.err, h.flight; good || flight == nil {
		p.mu.Unlock()
		if good {
			return login, nil
		}
		return Login{}, err
	}
	flight := h.flight
	p.mu.Unlock()
	select {
	case <-ctx.Done():
		return Login{}, context.Cause(ctx)
	case <-flight:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.err != nil && !time.Now().Before(h.until) {
		return Login{}, h.err
	}
	return h.login, nil
}

// fly fetches the login of host into h.
func (p *Provider) fly(h *held, scheme, host string) {
	ctx, cancel := context.WithTimeout(p.life, flightTime)
	defer cancel()
	login, until, err := p.fetch(ctx, scheme, host)
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { close(h.flight); h.flight = nil }()
	if err != nil {
		h.err = fmt.Errorf("get a login of %s for %s: %w", p.cloud, host, err)
		h.retry = now.Add(min(firstRest<<min(h.failures, 10), mostRest))
		h.failures++
		if now.Before(h.until) && h.failures == 1 && p.life.Err() == nil {
			p.log.Warn("a registry login can't be renewed yet; the last one is used until it ends",
				zap.String("host", host), zap.Time("ends", h.until), zap.Error(h.err))
		}
		return
	}
	life := defaultLife
	if !until.IsZero() {
		if life = until.Sub(now); life <= 0 {
			life = leastLife
		}
		life = max(life, time.Second)
	}
	h.login, h.err, h.failures, h.retry = login, nil, 0, time.Time{}
	h.renew = now.Add(min(life*3/4, mostUse))
	h.until = now.Add(life - min(life/10, 30*time.Second))
}
