package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/entrepot-dev/entrepot/access"
	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/clouds"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/grants"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/rewrite"
	"github.com/entrepot-dev/entrepot/server"
	"github.com/entrepot-dev/entrepot/upstream"
)

// parts are what a configuration is made into, apart from the listeners.
type parts struct {
	front  *server.Server
	cache  *cache.Cache
	router *rewrite.Router

	environ []string
	build   build
	log     *zap.Logger
	metrics *metrics.Metrics
	// memory bounds what comes from upstreams and is not on its way to the disk.
	memory *semaphore.Weighted
	// quotas keeps what the upstreams' quotas had to serve lately.
	quotas *quotaHistory

	// reloaded holds a token after a reload, for watchCertificates.
	reloaded chan struct{}

	// started is the configuration at the start, as it was loaded.
	started *configs.Config

	mu sync.Mutex // what follows, and one reload at a time
	// level is that of the log.
	level zap.AtomicLevel
	// loaded is the configuration in force, as it was loaded.
	loaded  *configs.Config
	guard   *access.Guard
	mirrors map[string]*mirror
	// members are the upstreams made of patterns, by host; joined counts them all.
	members map[string]*member
	joined  int
	ended   bool
	// outdated ends what the last reload has replaced and requests may still use.
	outdated []func()
}

// configured returns the configuration in force, as it was loaded.
func (p *parts) configured() *configs.Config {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.loaded
}

// mirror is an upstream in force.
type mirror struct {
	configured *configs.Upstream
	live       *upstream.Live
	// leases are those of clients with credentials of their own; else nil.
	leases *grants.Leases
}

// close ends what the upstreams' clients, and the guard, do for several callers.
func (p *parts) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for _, m := range p.mirrors {
		m.live.Close()
		if m.leases != nil {
			m.leases.Close()
		}
	}
	if p.guard != nil {
		p.guard.Close()
	}
	for _, end := range p.outdated {
		end()
	}
}

// wire makes the parts of a configuration and puts them together. It opens the
// cache directory and reads the files that the configuration names; it touches
// no network. Its errors are sentences that name the key. loaded is cfg as it was
// before it was fitted to this machine.
func wire(loaded, cfg *configs.Config, environ []string, b build, log *zap.Logger, m *metrics.Metrics) (_ *parts, err error) {
	p := &parts{
		environ: environ, build: b, log: log, metrics: m, started: loaded, loaded: loaded, mirrors: map[string]*mirror{}, reloaded: make(chan struct{}, 1),
		// One half of it is for what comes from upstreams, the other for the disk.
		memory: semaphore.NewWeighted(int64(cfg.Limits.Manifests) / 2),
		quotas: readQuotaHistory(cfg.Cache.Dir, log),
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	cfg = p.exact(cfg, nil)
	made, err := p.newMirrors(cfg)
	for name, n := range made {
		p.mirrors[name] = n.mirror()
	}
	if err != nil {
		return nil, err
	}
	if p.router, err = rewrite.NewRouter(p.joining(routing(cfg), loaded)); err != nil {
		return nil, err
	}
	secure, err := listenerTLS("tls", cfg.TLS, log)
	if err != nil {
		return nil, err
	}
	if p.guard, err = newGuard(cfg, nil, log, m); err != nil {
		return nil, err
	}
	if p.cache, err = openCache(cfg, p.upstreams(cfg, p.mirrors), log, m); err != nil {
		return nil, err
	}
	p.front = server.New(server.Options{
		Router: p.router, Grants: p.admission(p.mirrors), Content: p.cache, Guard: p.guard, Log: log, Metrics: m, TLS: secure,
		MaxConnections:           cfg.Limits.Connections,
		MaxConnectionsPerAddress: cfg.Limits.PerAddress(),
		SharedAddresses:          prefixes(cfg.Limits.SharedAddresses),
		MaxRequests:              cfg.Limits.Requests,
		BodyMemory:               int64(cfg.Limits.Manifests),
		HeaderTimeout:            cfg.Limits.HeaderTimeout,
		IdleTimeout:              cfg.Limits.IdleTimeout,
		StallTimeout:             cfg.Limits.StallTimeout,
	})
	return p, nil
}

// routing says which upstreams a configuration has.
func routing(cfg *configs.Config) rewrite.Routing {
	r := rewrite.Routing{Default: cfg.DefaultUpstream, Upstreams: map[string][]string{}, Plain: map[string]bool{}}
	for name, u := range cfg.Upstreams {
		r.Upstreams[name] = u.Aliases
		r.Plain[name] = len(u.Endpoints) > 0 && strings.HasPrefix(u.Endpoints[0], "http://")
	}
	return r
}

// completions are the cache's words for the configuration's.
var completions = map[string]cache.Completion{
	configs.CompleteIdle: cache.CompleteIdle, configs.CompleteAlways: cache.CompleteAlways, configs.CompleteNever: cache.CompleteNever,
}

// upstreams are those of a configuration as the cache asks them.
func (p *parts) upstreams(cfg *configs.Config, mirrors map[string]*mirror) map[string]cache.Upstream {
	list := map[string]cache.Upstream{}
	for name, u := range cfg.Upstreams {
		p.metrics.Expect(name)
		list[name] = cache.Upstream{
			Origin: mirrors[name].live, Tags: tagRules(u.Tags), Prefetch: u.Prefetch, Uniform: isUniform(cfg, name, u),
			Complete: completions[u.Complete],
		}
	}
	return list
}

// isUniform reports whether all who may use the cache may have everything of an
// upstream: the proxy's own credentials fetch, and no access rule is about it.
func isUniform(cfg *configs.Config, name string, u *configs.Upstream) bool {
	return u.Access != configs.AccessPassthrough &&
		!slices.ContainsFunc(accessRules(cfg), func(r access.Rule) bool { return r.Concerns(name) })
}

// admission decides about clients with credentials of their own; nil where no
// upstream has such.
func (p *parts) admission(mirrors map[string]*mirror) server.Grants {
	var leases []*grants.Leases
	for _, m := range mirrors {
		if m.leases != nil {
			leases = append(leases, m.leases)
		}
	}
	if leases == nil {
		return nil
	}
	return grants.New(p.router.Upstream, leases...)
}

// newMirror is an upstream that is not in force yet.
type newMirror struct {
	configured *configs.Upstream
	registry   *upstream.Registry
	leases     *grants.Leases
}

// mirror puts n in force.
func (n *newMirror) mirror() *mirror {
	return &mirror{configured: n.configured, live: upstream.NewLive(n.registry), leases: n.leases}
}

// newMirrors makes those upstreams of cfg that are not in force as they are. They
// are to be closed whatever the error.
func (p *parts) newMirrors(cfg *configs.Config) (map[string]*newMirror, error) {
	made := map[string]*newMirror{}
	for name, u := range cfg.Upstreams {
		if old := p.mirrors[name]; old != nil && (old.configured == u || sameRegistry(old.configured, u)) {
			continue
		}
		r, l, err := newRegistry(name, u, p.quotas, p.memory, p.environ, p.build, p.log, p.metrics)
		if err != nil {
			if l != nil {
				l.Close()
			}
			return made, err
		}
		made[name] = &newMirror{configured: u, registry: r, leases: l}
	}
	return made, nil
}

// sameRegistry tells whether the client made for a would do for b. Where files are
// read when it is made it would not: they may have changed.
func sameRegistry(a, b *configs.Upstream) bool {
	x, y := *a, *b
	for _, u := range []*configs.Upstream{&x, &y} {
		u.Aliases, u.Tags, u.Prefetch, u.Complete = nil, nil, 0, "" // of the router and the cache
	}
	return reflect.DeepEqual(x, y) && b.TLS.CA == "" && b.TLS.Cert == "" && b.Credentials.DockerConfig == "" &&
		!slices.ContainsFunc(b.Accounts, func(a configs.Account) bool { return a.Credentials.DockerConfig != "" })
}

// newRegistry makes the client of an upstream, and the leases of its clients where each
// has credentials of its own; those are to be closed whatever the error.
func newRegistry(name string, u *configs.Upstream, history upstream.QuotaHistory, memory *semaphore.Weighted, environ []string, b build, log *zap.Logger, m *metrics.Metrics) (r *upstream.Registry, leases *grants.Leases, err error) {
	credentials, err := newCredentials(u.Credentials, environ, b, log)
	if err != nil {
		return nil, nil, fmt.Errorf("upstreams.%s.credentials.%w", name, err)
	}
	var accounts []upstream.Account
	for i, a := range u.Accounts {
		c, err := newCredentials(a.Credentials, environ, b, log)
		if err != nil {
			return nil, nil, fmt.Errorf("upstreams.%s.accounts[%d].credentials.%w", name, i, err)
		}
		accounts = append(accounts, upstream.Account{Credentials: c, Match: func(repository string) bool {
			return slices.ContainsFunc(a.Repositories, func(p string) bool { return configs.Matches(p, repository) })
		}})
	}
	var lender upstream.Lender
	if u.Access == configs.AccessPassthrough {
		leases = grants.NewLeases(grants.Options{
			Upstream: name, Lease: u.GrantTTL, Stretch: u.GrantStale, Metrics: m,
			MayPull: func(ctx context.Context, c upstream.Credential, repo, ref string, blob bool) error {
				return r.MayPull(ctx, c, repo, ref, blob)
			},
		})
		lender = leases
	}
	r, err = upstream.New(upstream.Options{
		Name:           name,
		Endpoints:      u.Endpoints,
		Credentials:    credentials,
		Accounts:       accounts,
		Lender:         lender,
		Realms:         u.Realms,
		RedirectHosts:  u.RedirectHosts,
		CAFile:         u.TLS.CA,
		CertFile:       u.TLS.Cert,
		KeyFile:        u.TLS.Key,
		InsecureTLS:    u.TLS.Insecure,
		QuotaReserve:   int(u.QuotaReserve),
		QuotaHistory:   history,
		MaxConnections: u.MaxConnections,
		ConnectTimeout: u.ConnectTimeout,
		HeaderTimeout:  u.HeaderTimeout,
		StallTimeout:   u.StallTimeout,
		Memory:         memory,
		UserAgent:      "entrepot/" + b.Version,
		Log:            log,
		Metrics:        m,
	})
	return r, leases, err
}

// newCredentials gives what a registry is shown. Nil is anonymous.
func newCredentials(c configs.Credentials, environ []string, b build, log *zap.Logger) (upstream.Credentials, error) {
	o := clouds.Options{Env: variables(environ), UserAgent: "entrepot/" + b.Version, Log: log}
	switch {
	case c.ECR != nil:
		o.Hosts = c.ECR.Hosts
		return cloudLogins{clouds.NewECR(o, c.ECR.Region)}, nil
	case c.Google != nil:
		o.Hosts = c.Google.Hosts
		return cloudLogins{clouds.NewGoogle(o, c.Google.File)}, nil
	case c.Azure != nil:
		o.Hosts = c.Azure.Hosts
		return cloudLogins{clouds.NewAzure(o, c.Azure.ClientID)}, nil
	case c.Helper != "":
		return upstream.CredentialHelper(c.Helper), nil
	case c.DockerConfig != "":
		credentials, err := upstream.DockerConfig(c.DockerConfig)
		if err != nil {
			return nil, fmt.Errorf("docker_config: %w", err)
		}
		return credentials, nil
	case c.PasswordFile != "":
		credentials := upstream.PasswordFile(c.Username, c.PasswordFile)
		// Asked once to say now, and not with the first pull, that it can not
		// be read.
		if _, err := credentials.Credential(context.Background(), ""); err != nil {
			return nil, fmt.Errorf("password_file: %w", err)
		}
		return credentials, nil
	case c.PasswordEnv != "":
		for _, pair := range environ {
			if password, ok := strings.CutPrefix(pair, c.PasswordEnv+"="); ok && password != "" {
				return upstream.StaticCredentials(upstream.Credential{Username: c.Username, Password: password}), nil
			}
		}
		return nil, fmt.Errorf("password_env: the environment variable %s is not set, or empty", c.PasswordEnv)
	case c.Username != "":
		return upstream.StaticCredentials(upstream.Credential{Username: c.Username, Password: c.Password.Reveal()}), nil
	}
	return nil, nil
}

// cloudLogins are the logins of a cloud as credentials of an upstream, which closes them.
type cloudLogins struct{ *clouds.Provider }

// Credential returns the login for host, nothing for a host that may not have one.
func (c cloudLogins) Credential(ctx context.Context, host string) (upstream.Credential, error) {
	l, err := c.Login(ctx, host)
	return upstream.Credential{Username: l.Username, Password: l.Password, IdentityToken: l.IdentityToken}, err
}

// variables returns a function that gives the variables of environ.
func variables(environ []string) func(string) string {
	m := map[string]string{}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		m[name] = value
	}
	return func(name string) string { return m[name] }
}

func tagRules(rules []configs.TagRule) []cache.TagRule {
	var list []cache.TagRule
	for _, r := range rules {
		list = append(list, cache.TagRule{
			Match: r.Match, TTL: r.TTL, StaleIfError: r.StaleIfError, StaleWhileRevalidate: r.StaleWhileRevalidate,
			Immutable: r.Immutable, KeepDeleted: r.OnUpstreamDelete == "keep",
			KeepHistory: r.KeepHistory, Hold: r.Hold, OnMove: cache.OnMove(r.OnMove),
		})
	}
	return list
}

// openCache opens the cache directory.
func openCache(cfg *configs.Config, upstreams map[string]cache.Upstream, log *zap.Logger, m *metrics.Metrics) (*cache.Cache, error) {
	c, err := cache.Open(cache.Options{
		Settings:       settings(cfg, upstreams),
		Dir:            cfg.Cache.Dir,
		MemoryBytes:    int64(cfg.Cache.Memory),
		Log:            log,
		Metrics:        m,
		MaxFills:       cfg.Limits.Fills,
		ManifestMemory: int64(cfg.Limits.Manifests) / 2,
	})
	var denied *store.DeniedError
	if errors.As(err, &denied) { // it says what to do
		return nil, fmt.Errorf("cache.dir: %w", denied)
	}
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return nil, fmt.Errorf("cache.dir: %w; set cache.dir (--cache-dir, ENTREPOT_CACHE_DIR) to a directory that this user may write to", err)
	}
	if err != nil {
		return nil, fmt.Errorf("cache.dir: %w", err)
	}
	return c, nil
}

// settings are those of the cache that may change while it is in use.
func settings(cfg *configs.Config, upstreams map[string]cache.Upstream) cache.Settings {
	return cache.Settings{
		Platforms:     cfg.Platforms,
		Offline:       cfg.Cache.Offline,
		ReverifyAfter: cfg.Cache.ReverifyAfter,
		ScrubRate:     int64(cfg.Cache.ScrubRate),
		MaxSize:       room(cfg.Cache.MaxSize),
		MinFree:       room(cfg.Cache.MinFree),
		Upstreams:     upstreams,
	}
}

func room(r configs.Room) cache.Room {
	if percent, ok := r.Share(); ok {
		return cache.Room{Percent: percent}
	}
	return cache.Room{Bytes: int64(r.Size())}
}
