package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/configs"
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
	// registries are the upstreams' clients.
	registries []*upstream.Registry
}

// closeUpstreams ends what the upstreams' clients do for several callers.
func (p *parts) closeUpstreams() {
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
	for name, u := range cfg.Upstreams {
		r, err := newRegistry(name, u, environ, b, log, m)
		if err != nil {
			return nil, err
		}
		p.registries = append(p.registries, r)
		routing.Upstreams[name] = u.Aliases
		upstreams[name] = cache.Upstream{Origin: r, Tags: tagRules(u.Tags)}
	}
	router, err := rewrite.NewRouter(routing)
	if err != nil {
		return nil, err
	}
	secure, err := serverTLS(cfg.TLS)
	if err != nil {
		return nil, err
	}
	if p.cache, err = openCache(cfg, upstreams, log, m); err != nil {
		return nil, err
	}
	p.router = router
	p.front = server.New(server.Options{Router: router, Content: p.cache, Log: log, Metrics: m, TLS: secure})
	return p, nil
}

func newRegistry(name string, u *configs.Upstream, environ []string, b build, log *zap.Logger, m *metrics.Metrics) (*upstream.Registry, error) {
	credentials, err := newCredentials(u.Credentials, environ)
	if err != nil {
		return nil, fmt.Errorf("upstreams.%s.credentials.%w", name, err)
	}
	return upstream.New(upstream.Options{
		Name:           name,
		Endpoints:      u.Endpoints,
		Credentials:    credentials,
		Realms:         u.Realms,
		RedirectHosts:  u.RedirectHosts,
		CAFile:         u.TLS.CA,
		CertFile:       u.TLS.Cert,
		KeyFile:        u.TLS.Key,
		InsecureTLS:    u.TLS.Insecure,
		MaxConnections: u.MaxConnections,
		ConnectTimeout: u.ConnectTimeout,
		HeaderTimeout:  u.HeaderTimeout,
		StallTimeout:   u.StallTimeout,
		UserAgent:      "entrepot/" + b.Version,
		Log:            log,
		Metrics:        m,
	})
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
		Dir:         cfg.Cache.Dir,
		MemoryBytes: int64(cfg.Cache.Memory),
		Platforms:   cfg.Platforms,
		Offline:     cfg.Cache.Offline,
		Upstreams:   upstreams,
		Log:         log,
		Metrics:     m,
	})
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return nil, fmt.Errorf("cache.dir: %w; set cache.dir (--cache-dir, ENTREPOT_CACHE_DIR) to a directory that this user may write to", err)
	}
	if err != nil {
		return nil, fmt.Errorf("cache.dir: %w", err)
	}
	return c, nil
}

// serverTLS reads the certificate that clients are shown; nil is plain http.
func serverTLS(c configs.ServerTLS) (*tls.Config, error) {
	if c.Cert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("tls: %w; set tls.cert and tls.key to PEM files that belong together", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"},
	}, nil
}
