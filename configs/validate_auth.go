package configs

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// anonymous is what rules call clients that are known by nothing.
const anonymous = "anonymous"

// checkAuth reports ways to be known that can not be meant.
func (l *loader) checkAuth(a Auth) {
	l.checkWord("auth.anonymous", a.Anonymous, "auto", "allow", "deny")
	l.checkTokens("auth.tokens", a.Tokens)
	for i, n := range a.Networks {
		key := fmt.Sprintf("auth.networks[%d]", i)
		l.checkName(key+".name", n.Name)
		if len(n.CIDRs) == 0 {
			l.reportKey(key+".cidrs", "want at least one range of addresses, such as 10.0.0.0/8")
		}
		l.checkRanges(key+".cidrs", n.CIDRs)
	}
	l.checkRanges("auth.trusted_proxies", a.TrustedProxies)
	for i, g := range a.Groups {
		key := fmt.Sprintf("auth.groups[%d]", i)
		l.checkName(key+".name", g.Name)
		if len(g.Members) == 0 {
			l.reportKey(key+".members", "want at least one name")
		}
	}
	l.checkIssuer("auth.oidc", a.OIDC)
}

func (l *loader) checkTokens(key string, tokens []Token) {
	for i, t := range tokens {
		k := fmt.Sprintf("%s[%d]", key, i)
		l.checkName(k+".name", t.Name)
		if sum, err := hex.DecodeString(t.SHA256); err != nil || len(sum) != 32 {
			// What stands there may be the token itself.
			l.reportKey(k+".sha256", "want the SHA-256 of the token, 64 hex digits; printf %%s TOKEN | sha256sum prints it")
		}
	}
}

// checkName reports what cannot be the name of a client or group, because rules could
// not name it or would take it for something else.
func (l *loader) checkName(key, name string) {
	word := name == "" || strings.TrimSpace(name) != name || strings.EqualFold(name, anonymous) || strings.ContainsAny(name, "*?") ||
		strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f })
	for _, prefix := range prefixes {
		word = word || strings.HasPrefix(name, prefix)
	}
	if word {
		l.reportKey(key, "%q is not a name; write one such as ci, without spaces around it, * or ?, a source in front (user:, group:, …), and other than anonymous", name)
	}
}

func (l *loader) checkRanges(key string, list []string) {
	for i, text := range list {
		if !isRange(text) {
			l.reportKey(fmt.Sprintf("%s[%d]", key, i), "%q is no range of addresses; write 10.0.0.0/8, 2001:db8::/32 or one address", text)
		}
	}
}

func isRange(text string) bool {
	if p, err := netip.ParsePrefix(text); err == nil {
		return !p.Addr().Is4In6()
	}
	a, err := netip.ParseAddr(text)
	return err == nil && a.Zone() == ""
}

func (l *loader) checkIssuer(key string, o OIDC) {
	if o.Issuer == "" {
		if o != (OIDC{}) {
			l.reportKey(key, "has no issuer")
		}
		return
	}
	l.checkURL(key+".issuer", o.Issuer)
	if u, err := url.Parse(o.Issuer); err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
		l.reportKey(key+".issuer", "want https: who is on the path could make tokens")
	}
	if o.Audience == "" {
		l.reportKey(key+".audience", "want the audience that tokens for this cache have: without it a token for any other service would do")
	}
}

func isAddressLike(who string) bool {
	address, _, _ := strings.Cut(who, "/")
	_, err := netip.ParseAddr(address)
	return err == nil
}

// checkServerTLS reports half a certificate, and clients' certificates without
// TLS.
func (l *loader) checkServerTLS(key string, t ServerTLS) {
	l.checkPair(key, t.Cert, t.Key)
	if t.ClientCA != "" && t.Cert == "" {
		l.reportKey(key+".client_ca", "clients can show a certificate over https only; set cert and key too")
	}
}

// checkAdmin reports what is wrong with the settings of the admin listener.
func (l *loader) checkAdmin(a Admin) {
	l.checkTokens("admin.auth.tokens", a.Auth.Tokens)
	l.checkServerTLS("admin.tls", a.TLS)
	for i, name := range a.Hosts {
		if name == "" || strings.ToLower(name) != name || strings.ContainsAny(name, ":/ []*") {
			l.reportKey(fmt.Sprintf("admin.hosts[%d]", i), "%q is no name of a host; write one such as cache.example.com, in small letters and without a port", name)
		}
	}
}

// IsGuarded tells whether operators have credentials of their own, beside the token
// that Entrepot makes at its start. /metrics then asks for them too.
func (a Admin) IsGuarded() bool {
	return a.Auth.Htpasswd != "" || len(a.Auth.Tokens) > 0 || a.Auth.TokenFile != "" || a.TLS.ClientCA != ""
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}
