package configs

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
)

// upstreamName is a registry's name as it stands in references: a host, maybe
// with a port.
var upstreamName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$`)

// helperName is the suffix of a credential helper: it becomes part of the name
// of a program, and must not lead out of the search path.
var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// validate reports every value that is of the right type and yet impossible.
func (l *loader) validate() {
	c := l.cfg
	l.checkAddress("listen", c.Listen)
	if c.Admin.Listen != AdminOff {
		l.checkAddress("admin.listen", c.Admin.Listen)
		l.checkListeners(c.Listen, c.Admin.Listen)
	}
	l.checkRoom(c.Cache)
	l.checkServerTLS("tls", c.TLS)
	l.checkAdmin(c.Admin)
	l.checkAuth(c.Auth)
	l.bindNames()
	l.checkRules(c.Access)
	l.checkDuration("cache.reverify_after", c.Cache.ReverifyAfter, 0)
	if c.DefaultUpstream != "" && c.Upstreams[c.DefaultUpstream] == nil {
		l.reportKey("default_upstream", "%q is not among the upstreams; %s", c.DefaultUpstream, didYouMean(c.DefaultUpstream, names(c.Upstreams)))
	}
	if len(c.Platforms) == 0 {
		l.reportKey("platforms", "want at least one, such as linux/amd64")
	}
	for i, p := range c.Platforms {
		if _, err := platforms.Parse(p); err != nil || !strings.Contains(p, "/") {
			l.reportKey(fmt.Sprintf("platforms[%d]", i), "%q is no platform; write os/architecture or os/architecture/variant, such as linux/arm64/v8", p)
		}
	}
	for _, name := range names(c.Upstreams) {
		l.checkUpstream("upstreams."+name, name, c.Upstreams[name])
	}
	l.checkAliases()
	l.checkLimits(c.Limits)
	l.checkWord("log.level", c.Log.Level, "debug", "info", "warn", "error")
	l.checkWord("log.format", c.Log.Format, "auto", "console", "json")
	l.checkDuration("shutdown_timeout", c.ShutdownTimeout, 0)
}

// leastManifests is room for the largest page of a list, 8 MiB, from an upstream,
// and as much from disk.
const leastManifests = 16 << 20

func (l *loader) checkLimits(c Limits) {
	for _, n := range []struct {
		key          string
		value, least int
	}{
		{"connections", c.Connections, 1}, {"connections_per_address", c.ConnectionsPerAddress, 0},
		{"requests", c.Requests, 1}, {"fills", c.Fills, 1},
	} {
		if n.value < n.least {
			l.reportKey("limits."+n.key, "want at least %d, got %d", n.least, n.value)
		}
	}
	l.checkRanges("limits.shared_addresses", c.SharedAddresses)
	if c.Manifests < leastManifests {
		l.reportKey("limits.manifests", "want at least %s, got %s", Bytes(leastManifests), c.Manifests)
	}
	l.checkDuration("limits.header_timeout", c.HeaderTimeout, time.Millisecond)
	l.checkDuration("limits.idle_timeout", c.IdleTimeout, time.Millisecond)
	l.checkDuration("limits.stall_timeout", c.StallTimeout, time.Millisecond)
}

func (l *loader) checkUpstream(key, name string, u *Upstream) {
	if IsFamily(name) {
		if !l.checkFamily(key, name, u) {
			return
		}
	} else if !upstreamName.MatchString(name) {
		l.reportKey(key, "%q is no registry's name; write its host, in small letters, with a port where it has one: registry.example.com:5000", name)
		return
	}
	if len(u.Endpoints) == 0 {
		l.reportKey(key+".endpoints", "want at least one URL, such as https://%s", name)
	}
	for i, e := range u.Endpoints {
		l.checkURL(fmt.Sprintf("%s.endpoints[%d]", key, i), e)
	}
	for i, r := range u.Realms {
		if !upstreamName.MatchString(r) {
			l.checkURL(fmt.Sprintf("%s.realms[%d]", key, i), r)
		}
	}
	for i, h := range u.RedirectHosts {
		if !upstreamName.MatchString(h) {
			l.reportKey(fmt.Sprintf("%s.redirect_hosts[%d]", key, i), "%q is no host; write it without scheme and path, such as cdn.example.com or 10.0.0.7:9000", redact(h))
		}
	}
	l.checkCredentials(key+".credentials", u.Credentials, u.Endpoints)
	for i, a := range u.Accounts {
		k := fmt.Sprintf("%s.accounts[%d]", key, i)
		if len(a.Repositories) == 0 {
			l.reportKey(k+".repositories", "want at least one pattern, such as \"team-a/*\"")
		}
		for j, p := range a.Repositories {
			if !canMatch(p, "") {
				l.reportKey(fmt.Sprintf("%s.repositories[%d]", k, j), "%q matches no repository; write its name without the registry, such as \"team-a/*\"", p)
			}
		}
		l.checkCredentials(k+".credentials", a.Credentials, u.Endpoints)
	}
	l.checkAccess(key, u)
	for i, t := range u.Tags {
		k := fmt.Sprintf("%s.tags[%d]", key, i)
		if t.Match == "" {
			l.reportKey(k+".match", "want a pattern of repository:tag, such as \"library/*:*\"; \"*\" matches all")
		}
		l.checkDuration(k+".ttl", t.TTL, 0)
		l.checkDuration(k+".stale_if_error", t.StaleIfError, 0)
		l.checkDuration(k+".stale_while_revalidate", t.StaleWhileRevalidate, 0)
		l.checkWord(k+".on_upstream_delete", t.OnUpstreamDelete, "follow", "keep")
		l.checkMoves(k, t)
	}
	l.checkPair(key+".tls", u.TLS.Cert, u.TLS.Key)
	if u.MaxConnections < 1 {
		l.reportKey(key+".max_connections", "want at least 1, got %d", u.MaxConnections)
	}
	if u.Prefetch < 0 {
		l.reportKey(key+".prefetch", "want 0 (none) or more, got %d", u.Prefetch)
	}
	l.checkWord(key+".complete", u.Complete, CompleteAlways, CompleteIdle, CompleteNever)
	l.checkDuration(key+".connect_timeout", u.ConnectTimeout, time.Millisecond)
	l.checkDuration(key+".header_timeout", u.HeaderTimeout, time.Millisecond)
	l.checkDuration(key+".stall_timeout", u.StallTimeout, time.Millisecond)
}

// checkMoves reports what can not be meant of tags that move.
func (l *loader) checkMoves(key string, t TagRule) {
	l.checkDuration(key+".keep_history", t.KeepHistory, 0)
	l.checkDuration(key+".hold", t.Hold, 0)
	l.checkWord(key+".on_move", t.OnMove, "follow", "warn", "hold", "block")
	if t.Immutable && (t.Hold > 0 || t.OnMove != "follow") {
		l.reportKey(key+".immutable", "an immutable tag is not asked for again, so that no move of it is seen; leave out immutable, or hold and on_move")
	}
	if t.Hold > 0 && t.OnMove == "block" {
		l.reportKey(key+".hold", "on_move: block refuses a tag that has moved, so that it can not be held; leave out one of them")
	}
}

// checkCredentials reports what can not be meant: two ways at once, or half of
// one. endpoints are those of the upstream.
func (l *loader) checkCredentials(key string, c Credentials, endpoints []string) {
	var passwords, ways []string
	for _, p := range []struct{ name, value string }{
		{"password", c.Password.Reveal()}, {"password_file", c.PasswordFile}, {"password_env", c.PasswordEnv},
	} {
		if p.value != "" {
			passwords = append(passwords, p.name)
		}
	}
	for _, w := range []struct{ name, value string }{
		{"username", c.Username}, {"docker_config", c.DockerConfig}, {"helper", c.Helper},
	} {
		if w.value != "" {
			ways = append(ways, w.name)
		}
	}
	l.checkRegion(key, c.ECR)
	for _, login := range c.logins() {
		ways = append(ways, login.key)
		l.checkLogin(key+"."+login.key, login, endpoints)
	}
	switch {
	case c.Password == hidden:
		l.reportKey(key+".password", "is %s, which stands in the place of a secret where one is shown; write the password itself, or use password_file", hidden)
	case len(ways) > 1:
		l.reportKey(key, "has %s; want one of them", strings.Join(ways, " and "))
	case len(passwords) > 1:
		l.reportKey(key, "has %s; want one of them", strings.Join(passwords, " and "))
	case len(passwords) == 1 && c.Username == "":
		l.reportKey(key, "has a %s but no username", passwords[0])
	case len(passwords) == 0 && c.Username != "":
		l.reportKey(key, "has a username but no password, password_file or password_env")
	case c.Helper != "" && !helperName.MatchString(c.Helper):
		l.reportKey(key+".helper", "%q is no credential helper; write what follows docker-credential- in its name, such as ecr-login", c.Helper)
	}
}

// checkAliases reports names that stand for two upstreams.
func (l *loader) checkAliases() {
	owner := map[string]string{}
	for _, name := range names(l.cfg.Upstreams) {
		for i, alias := range l.cfg.Upstreams[name].Aliases {
			key := fmt.Sprintf("upstreams.%s.aliases[%d]", name, i)
			switch other := owner[alias]; {
			case !upstreamName.MatchString(alias):
				l.reportKey(key, "%q is no registry's name; write a host, in small letters", alias)
			case l.cfg.Upstreams[alias] != nil:
				l.reportKey(key, "%q is an upstream itself", alias)
			case other != "":
				l.reportKey(key, "%q is an alias of %s already", alias, other)
			}
			owner[alias] = name
		}
	}
}

// leastSize is the smallest size of a cache that is not a mistake: a manifest
// alone may have 4 MiB.
const leastSize = 8 << 20

// checkRoom reports a cache that could keep nothing.
func (l *loader) checkRoom(c Cache) {
	if _, share := c.MaxSize.Share(); !share && c.MaxSize.Size() < leastSize {
		l.reportKey("cache.max_size", "want at least %s or 1%%, got %s", Bytes(leastSize), c.MaxSize)
	}
	if p, share := c.MinFree.Share(); share && p == 100 {
		l.reportKey("cache.min_free", "100%% leaves no room for the cache")
	}
}

// checkAddress reports what can not be listened on.
func (l *loader) checkAddress(key, address string) {
	_, port, err := net.SplitHostPort(address)
	if n, portErr := strconv.Atoi(port); err != nil || portErr != nil || n < 0 || n > 65535 {
		l.reportKey(key, "%q is no address to listen on; write host:port or :port, such as 127.0.0.1:5000 or :5000", address)
	}
}

// checkListeners reports two listeners of which the second could never be
// opened.
func (l *loader) checkListeners(front, admin string) {
	host, port, err := net.SplitHostPort(front)
	adminHost, adminPort, adminErr := net.SplitHostPort(admin)
	if err != nil || adminErr != nil || port != adminPort || port == "0" {
		return
	}
	if host != adminHost && !isEveryAddress(host) && !isEveryAddress(adminHost) {
		return
	}
	key := "admin.listen"
	if _, set := l.where[key]; !set {
		key = "listen"
	}
	if l.placeOf(key).line == lineFlag {
		// Commands that listen on neither have one of the flags only. Serving
		// says it when the port is taken.
		return
	}
	l.reportKey(key, "listen is %q and admin.listen is %q, which can not share a port; give one of them another", front, admin)
}

func isEveryAddress(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// checkURL reports what is no base URL of a server. User and password in a URL
// would end up in logs and error messages.
func (l *loader) checkURL(key, text string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		l.reportKey(key, "%q is no URL of a server; write https://host or http://host:port", redact(text))
	case u.User != nil:
		l.reportKey(key, "has a user or password in the URL; set credentials instead")
	case u.RawQuery != "" || u.Fragment != "":
		l.reportKey(key, "%q has a query or fragment; want only scheme, host and maybe a path", redact(text))
	}
}

// redact cuts what may be a secret out of something that may be a URL: the user
// and the query.
func redact(text string) string {
	text, _, _ = strings.Cut(text, "?")
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		scheme, rest = "", text
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = hidden + rest[i:]
	}
	if found {
		return scheme + "://" + rest
	}
	return rest
}

// checkPair reports a certificate without its key, or the reverse.
func (l *loader) checkPair(key, cert, pem string) {
	switch {
	case cert != "" && pem == "":
		l.reportKey(key, "has cert but no key")
	case cert == "" && pem != "":
		l.reportKey(key, "has key but no cert")
	}
}

func (l *loader) checkDuration(key string, d, least time.Duration) {
	if d < least {
		l.reportKey(key, "want at least %s, got %s", formatDuration(least), formatDuration(d))
	}
}

func (l *loader) checkWord(key, word string, allowed ...string) {
	if !slices.Contains(allowed, word) {
		l.reportKey(key, "%q is not one of %s", word, strings.Join(allowed, ", "))
	}
}
