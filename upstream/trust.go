package upstream

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// trust says what each host may be used for. It is made from the
// configuration and never changes.
type trust struct {
	// own, realms: scheme://host:port of the endpoints, and of the token
	// servers that may have the credentials.
	own, realms map[string]bool
	// redirects: host:port that may be private or plain http.
	redirects map[string]bool
	// plainHosts: hosts of own and realms that are asked over plain http.
	plainHosts map[string]bool
	// plainOwn: those of own alone.
	plainOwn map[string]bool
}

// knownRealms are the token servers of registries whose realm is another host
// than their own, by the registry's host.
func knownRealms(host string) []string {
	switch host {
	case "registry-1.docker.io", "index.docker.io", "docker.io":
		return []string{"https://auth.docker.io"}
	case "registry.gitlab.com":
		return []string{"https://gitlab.com"}
	case "docker.elastic.co":
		return []string{"https://docker-auth.elastic.co"}
	}
	return nil
}

func newTrust(endpoints []*endpoint, realms, redirects []string) (*trust, error) {
	t := &trust{own: map[string]bool{}, realms: map[string]bool{}, redirects: map[string]bool{}, plainHosts: map[string]bool{}, plainOwn: map[string]bool{}}
	for _, e := range endpoints {
		t.own[site(e.base)] = true
		t.notePlain(e.base)
		if e.base.Scheme == "http" {
			t.plainOwn[strings.ToLower(e.base.Hostname())] = true
		}
		realms = slices.Concat(realms, knownRealms(e.base.Hostname()))
	}
	for _, s := range realms {
		if !strings.Contains(s, "://") {
			s = "https://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" || u.User != nil || (u.Scheme != "https" && u.Scheme != "http") {
			return nil, fmt.Errorf("realms: one is not a URL of a token server; write https://host")
		}
		t.realms[site(u)] = true
		t.notePlain(u)
	}
	for _, s := range redirects {
		u, err := url.Parse("//" + s)
		if err != nil || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" {
			return nil, fmt.Errorf("redirect_hosts: one is not a host; write host or host:port")
		}
		ports := []string{u.Port()}
		if ports[0] == "" {
			ports = []string{"80", "443"}
		}
		for _, p := range ports {
			t.redirects[net.JoinHostPort(strings.ToLower(u.Hostname()), p)] = true
		}
	}
	return t, nil
}

func (t *trust) notePlain(u *url.URL) {
	if u.Scheme == "http" {
		t.plainHosts[strings.ToLower(u.Hostname())] = true
	}
}

// hostPort gives u's host and port, the usual one where u has none.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if u.Scheme == "http" {
			port = "80"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// isASCII tells whether a stranger's host may stand in a message: url.Parse lets
// escaped bytes of any kind through.
func isASCII(host string) bool {
	for i := range len(host) {
		if host[i] <= ' ' || host[i] > '~' {
			return false
		}
	}
	return true
}

// site is what credentials are bound to: scheme, host and port.
func site(u *url.URL) string { return strings.ToLower(u.Scheme) + "://" + hostPort(u) }

// named tells whether the configuration names u's host: it may then be
// anywhere, and the upstream's TLS settings are for it.
func (t *trust) named(u *url.URL) bool {
	return t.own[site(u)] || t.realms[site(u)] || t.redirects[hostPort(u)] || t.upgraded(u)
}

// plain tells whether a redirect may lead to u, which is plain http: to a host
// that redirect_hosts names, and, from plain http, to a host whose endpoint or
// token server was configured to be asked so, at whatever port.
func (t *trust) plain(u *url.URL, fromPlain bool) bool {
	return t.redirects[hostPort(u)] || fromPlain && t.plainHosts[strings.ToLower(u.Hostname())]
}

// realm says whether u may be asked for tokens at all, and whether with the registry's
// credentials. A token server that nobody named gets no password, and is asked over https
// only. The host of an endpoint that is asked over plain http may have over https what
// it may have in clear.
func (t *trust) realm(u *url.URL) (ask, withCredentials bool) {
	if t.own[site(u)] || t.realms[site(u)] || t.upgraded(u) {
		return true, true
	}
	return u.Scheme == "https", false
}

// guestRealm says whether u may be asked for anonymous tokens for a registry that a
// redirect led to: over https, or where a redirect might lead as well. It never has
// credentials.
func (t *trust) guestRealm(u *url.URL) (ask, withCredentials bool) {
	ask, _ = t.realm(u)
	return ask || t.redirects[hostPort(u)], false
}

// upgraded says whether u is the host of a plain http endpoint, over https.
func (t *trust) upgraded(u *url.URL) bool {
	return u.Scheme == "https" && t.plainOwn[strings.ToLower(u.Hostname())]
}

// otherPort says whether redirect_hosts names u's host, though not with u's port.
func (t *trust) otherPort(u *url.URL) bool {
	for at := range t.redirects {
		if host, _, _ := net.SplitHostPort(at); host == strings.ToLower(u.Hostname()) {
			return true
		}
	}
	return false
}
