package configs

import "time"

// The bounds of a lease: a check at each request would be a burden, and a day is too
// long for a right that may have been taken away.
const (
	leastGrant = time.Second
	mostGrant  = 24 * time.Hour
)

// checkAccess reports what does not go with the clients' own credentials: what the
// upstream would take for the proxy's rights, and give to all.
func (l *loader) checkAccess(key string, u *Upstream) {
	l.checkWord(key+".access", u.Access, AccessShared, AccessPassthrough)
	l.checkDuration(key+".grant_ttl", u.GrantTTL, leastGrant)
	if u.GrantTTL > mostGrant {
		l.reportKey(key+".grant_ttl", "want at most %s, got %s", formatDuration(mostGrant), formatDuration(u.GrantTTL))
	}
	l.checkDuration(key+".grant_stale", u.GrantStale, 0)
	if u.Access != AccessPassthrough {
		return
	}
	if len(u.Accounts) > 0 {
		l.reportKey(key+".accounts", "each client has credentials of its own with access: passthrough; leave out accounts")
	}
	if u.Credentials != (Credentials{}) {
		l.reportKey(key+".credentials", "can not be with access: passthrough, where each client brings its own; drop one of the two")
	}
	if u.TLS.Cert != "" {
		l.reportKey(key+".tls.cert", "can not be with access: passthrough: the upstream would take every client for the owner of the certificate")
	}
	if l.cfg.Cache.Offline {
		l.reportKey(key+".access", "can not be passthrough with cache.offline: nobody could ask the upstream who may pull; use shared")
	}
	for _, way := range []struct {
		key string
		set bool
	}{{"auth.htpasswd", l.cfg.Auth.Htpasswd != ""}, {"auth.tokens", len(l.cfg.Auth.Tokens) > 0}, {"auth.oidc", l.cfg.Auth.OIDC != (OIDC{})}} {
		if way.set {
			l.reportKey(key+".access", "can not be passthrough with %s: a request has one Authorization header, and it is for the upstream; know clients by auth.networks or tls.client_ca", way.key)
		}
	}
}
