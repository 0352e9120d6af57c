package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/entrepot-dev/entrepot/access"
	"github.com/entrepot-dev/entrepot/cache"
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
	guard  *access.Guard
	// registries are the upstreams' clients.
	registries []*upstream.Registry
	// leases are those of the upstreams at which clients have credentials of their own.
	leases []*grants.Leases
}

// closeUpstreams ends what the upstreams' clients, and the guard, do for several
// callers.
func (p *parts) closeUpstreams() {
	for _, l := range p.leases {
		l.Close()
	}
	if p.guard != nil {
		p.guard.Close()
	}
	for _, r := range p.registries {
		r.Close()
	}
}

// wire makes the parts of a configuration and puts them together. It opens the
// cache directory and reads the files that the configuration names; it touches
// no network. Its errors are sentences that name the key.
func wire(cfg *configs.Config, environ []string, b build, log *zap.Logger, m *metrics.Metrics) (_ *parts, err error) {
	p := &parts{}
	defer func() {
		if err != nil {
			p.closeUpstreams()
		}
	}()

	routing := rewrite.Routing{Default: cfg.DefaultUpstream, Upstreams: map[string][]string{}}
	upstreams := map[string]cache.Upstream{}
	// One half of it is for what comes from upstreams, the other for the disk.
	memory := semaphore.NewWeighted(int64(cfg.Limits.Manifests) / 2)
	for name, u := range cfg.Upstreams {
		r, l, err := newRegistry(name, u, memory, environ, b, log, m)
		if l != nil {
			p.leases = append(p.leases, l)
		}
		if err != nil {
			return nil, err
		}
		p.registries = append(p.registries, r)
		m.Expect(name)
		routing.Upstreams[name] = u.Aliases
		upstreams[name] = cache.Upstream{Origin: r, Tags: tagRules(u.Tags), Prefetch: u.Prefetch}
	}
	router, err := rewrite.NewRouter(routing)
	if err != nil {
		return nil, err
	}
	secure, err := listenerTLS("tls", cfg.TLS, log)
	if err != nil {
		return nil, err
	}
	if p.guard, err = newGuard(cfg, log, m); err != nil {
		return nil, err
	}
	if p.cache, err = openCache(cfg, upstreams, log, m); err != nil {
		return nil, err
	}
	p.router = router
	var admission server.Grants
	if len(p.leases) > 0 {
		admission = grants.New(router.Upstream, p.leases...)
	}
	p.front = server.New(server.Options{
		Router: router, Grants: admission, Content: p.cache, Guard: p.guard, Log: log, Metrics: m, TLS: secure,
		MaxConnections:           cfg.Limits.Connections,
		MaxConnectionsPerAddress: cfg.Limits.ConnectionsPerAddress,
		MaxRequests:              cfg.Limits.Requests,
		HeaderTimeout:            cfg.Limits.HeaderTimeout,
		IdleTimeout:              cfg.Limits.IdleTimeout,
		StallTimeout:             cfg.Limits.StallTimeout,
	})
	return p, nil
}

// newRegistry makes the client of an upstream, and the leases of its clients where each
// has credentials of its own; they are to be closed whatever the error.
func newRegistry(name string, u *configs.Upstream, memory *semaphore.Weighted, environ []string, b build, log *zap.Logger, m *metrics.Metrics) (r *upstream.Registry, leases *grants.Leases, err error) {
	credentials, err := newCredentials(u.Credentials, environ)
	if err != nil {
		return nil, nil, fmt.Errorf("upstreams.%s.credentials.%w", name, err)
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
		Lender:         lender,
		Realms:         u.Realms,
		RedirectHosts:  u.RedirectHosts,
		CAFile:         u.TLS.CA,
		CertFile:       u.TLS.Cert,
		KeyFile:        u.TLS.Key,
		InsecureTLS:    u.TLS.Insecure,
		QuotaReserve:   u.QuotaReserve,
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
func newCredentials(c configs.Credentials, environ []string) (upstream.Credentials, error) {
	switch {
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

func tagRules(rules []configs.TagRule) []cache.TagRule {
	var list []cache.TagRule
	for _, r := range rules {
		list = append(list, cache.TagRule{
			Match: r.Match, TTL: r.TTL, StaleIfError: r.StaleIfError, StaleWhileRevalidate: r.StaleWhileRevalidate,
			Immutable: r.Immutable, KeepDeleted: r.OnUpstreamDelete == "keep",
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
