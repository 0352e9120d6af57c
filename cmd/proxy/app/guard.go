package app

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/access"
	"github.com/entrepot-dev/entrepot/admin"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/metrics"
)

// newGuard makes what says who may pull what. before is the guard whose place it takes;
// nil at the start.
func newGuard(cfg *configs.Config, before *access.Guard, log *zap.Logger, m *metrics.Metrics) (*access.Guard, error) {
	o := access.Options{
		Before:         before,
		Anonymous:      access.Policy(cfg.Auth.Anonymous),
		Htpasswd:       cfg.Auth.Htpasswd,
		Tokens:         tokens(cfg.Auth.Tokens),
		TrustedProxies: cfg.Auth.TrustedProxies,
		Certificates:   cfg.TLS.ClientCA != "",
		Log:            log,
	}
	refused := map[string]func(){}
	for _, reason := range access.Reasons {
		refused[reason] = m.Denied.WithLabelValues(reason).Inc
	}
	o.Refused = func(reason string) { refused[reason]() }
	for _, n := range cfg.Auth.Networks {
		o.Networks = append(o.Networks, access.Network{Name: n.Name, CIDRs: n.CIDRs})
	}
	for _, g := range cfg.Auth.Groups {
		o.Groups = append(o.Groups, access.Group{Name: g.Name, Members: g.Members})
	}
	if c := cfg.Auth.OIDC; c.Issuer != "" {
		o.OIDC = &access.OIDC{Issuer: c.Issuer, Audience: c.Audience, NameClaim: c.NameClaim, GroupsClaim: c.GroupsClaim, CA: c.CA}
	}
	o.Rules = accessRules(cfg)
	g, err := access.New(o)
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	return g, nil
}

func accessRules(cfg *configs.Config) []access.Rule {
	var rules []access.Rule
	for _, r := range cfg.Access {
		rules = append(rules, access.Rule{
			Name: r.Name, Who: r.Who, Upstreams: r.Upstreams, Repositories: r.Repositories, Allow: r.Action == "allow",
		})
	}
	return rules
}

// newAdminGuard makes the guard of the admin listener: it takes the token that this
// process has made for itself, and what admin.auth and admin.tls.client_ca name. The
// caller closes it.
func newAdminGuard(a configs.Admin, own admin.Token, log *zap.Logger) (*access.Guard, error) {
	o := access.Options{
		Htpasswd: a.Auth.Htpasswd, Tokens: tokens(a.Auth.Tokens), Certificates: a.TLS.ClientCA != "",
		Realm: "Entrepot operators", Log: log,
		Login: "this is for operators: the commands of entrepot log in by themselves, as its own user or root; " +
			"for curl, -H @admin.token in the cache directory (see docs/admin-api.md)",
	}
	o.Tokens = append(o.Tokens, hashed("operator", own.Secret))
	if a.Auth.TokenFile != "" {
		token, err := readToken(a.Auth.TokenFile)
		if err != nil {
			return nil, err
		}
		o.Tokens = append(o.Tokens, hashed("operator", token))
	}
	g, err := access.New(o)
	if err != nil {
		return nil, fmt.Errorf("admin.auth: %w", err)
	}
	return g, nil
}

// hashed gives a token as guards take it.
func hashed(name, secret string) access.Token {
	sum := sha256.Sum256([]byte(secret))
	return access.Token{Name: name, SHA256: hex.EncodeToString(sum[:])}
}

// adminListener is the admin listener before it serves.
type adminListener struct {
	net.Listener
	guard *access.Guard
	tls   *tls.Config
	token admin.Token
}

// newAdminListener makes the guard and the token of an open listener. The caller closes
// the guard.
func newAdminListener(ln net.Listener, a configs.Admin, log *zap.Logger) (*adminListener, error) {
	l := &adminListener{Listener: ln, token: admin.NewToken(ln.Addr().String())}
	var err error
	if l.tls, err = listenerTLS("admin.tls", a.TLS, log); err != nil {
		return nil, err
	}
	l.guard, err = newAdminGuard(a, l.token, log)
	return l, err
}

// options are what the server of the listener needs of it. This process must hold the
// cache directory, because the token is written there.
func (l *adminListener) options(cfg *configs.Config, log *zap.Logger) admin.Options {
	o := admin.Options{Guard: l.guard.Handler, OpenMetrics: !cfg.Admin.IsGuarded(), Hosts: cfg.Admin.Hosts, TLS: l.tls, Log: log}
	var err error
	if o.TokenFile, err = l.token.Write(admin.TokenPlaces(absolute(cfg.Cache.Dir), l.token.Listener, os.Getenv)); err != nil {
		log.Warn("no place for the admin token file, so the commands of this program cannot use the running one: give it a directory of its own (XDG_RUNTIME_DIR), or set admin.auth.token_file",
			zap.Error(err))
	}
	if filepath.Dir(o.TokenFile) == absolute(cfg.Cache.Dir) {
		if err := store.AdopterFor(cfg.Cache.Dir).Path(o.TokenFile); err != nil {
			log.Warn("the admin token file stays root's", zap.Error(err))
		}
	}
	return o
}

// warnOpen says that strangers can pull here, where they can.
func warnOpen(cfg *configs.Config, anonymous bool, at net.Addr, log *zap.Logger) {
	if !anonymous {
		return
	}
	public := publicAddresses(at)
	if len(public) == 0 {
		return
	}
	warning := "anybody on the internet who reaches this machine can pull through this cache, with its credentials for upstreams and from what it keeps: " +
		"set auth (htpasswd, tokens, oidc, networks) or tls.client_ca, or listen on a private address"
	if cfg.Auth.Anonymous == string(access.AllowAnonymous) {
		warning += "; if the network in front keeps strangers out, this is what auth.anonymous: allow has asked for"
	}
	log.Warn(warning, zap.Strings("public_addresses", public))
}

// publicAddresses gives those of a listener that are neither loopback nor private.
func publicAddresses(at net.Addr) []string {
	tcp, ok := at.(*net.TCPAddr)
	if !ok {
		return nil
	}
	listening := []net.Addr{&net.IPNet{IP: tcp.IP}}
	if tcp.IP.IsUnspecified() {
		var err error
		if listening, err = net.InterfaceAddrs(); err != nil {
			return nil // not known, and no reason to stop
		}
	}
	var public []string
	for _, a := range listening {
		if n, ok := a.(*net.IPNet); ok && isPublic(n.IP) {
			public = append(public, n.IP.String())
		}
	}
	return public
}

// shared is for carriers' networks (RFC 6598), and not reached from the internet.
var shared = netip.MustParsePrefix("100.64.0.0/10")

func isPublic(ip net.IP) bool {
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	return ok && a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a)
}

// readToken reads the token that the program's commands show to its own listener.
func readToken(path string) (string, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return "", fmt.Errorf("admin.auth.token_file: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 16 {
		return "", fmt.Errorf("admin.auth.token_file: %s holds %d characters; a token that can not be guessed has 16 at least", path, len(token))
	}
	return token, nil
}

// prefixes parses ranges of addresses, which the configuration has checked.
func prefixes(list []string) []netip.Prefix {
	var parsed []netip.Prefix
	for _, text := range list {
		if p, err := access.ParsePrefix(text); err == nil {
			parsed = append(parsed, p)
		}
	}
	return parsed
}

func tokens(list []configs.Token) []access.Token {
	var made []access.Token
	for _, t := range list {
		made = append(made, access.Token{Name: t.Name, SHA256: t.SHA256})
	}
	return made
}

// listenerTLS reads the certificate that clients are shown; nil is plain http.
func listenerTLS(key string, c configs.ServerTLS, log *zap.Logger) (*tls.Config, error) {
	if c.Cert == "" {
		return nil, nil
	}
	secure, err := access.TLS(access.TLSFiles{Cert: c.Cert, Key: c.Key, ClientCA: c.ClientCA}, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; set %s.cert and %s.key to PEM files that belong together", key, err, key, key)
	}
	return secure, nil
}
