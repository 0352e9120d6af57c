package upstream

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/entrepot-dev/entrepot/rewrite"
)

// demand is how a registry wants to be asked: the part of its challenge that is
// the same for all repositories.
type demand struct {
	// realm is the token server; nil where Basic is wanted.
	realm   *url.URL
	service string
}

// What is taken over from a challenge.
const (
	maxService = 512
	maxScopes  = 8
	maxScope   = 512
)

// wanted picks out of a response's challenges the one to answer: Bearer where
// its token server may be asked, and may have the credentials if there are any;
// else Basic; else Bearer all the same, anonymously. It gives nil where none
// can be answered.
func wanted(h http.Header, t *trust, c Credential) (d *demand, scopes []string) {
	var basic, anonymous *demand
	var anonymousScopes []string
	for _, ch := range rewrite.Challenges(h.Values("WWW-Authenticate")) {
		switch ch.Scheme {
		case "basic":
			basic = &demand{}
		case "bearer":
			realm, err := url.Parse(ch.Params["realm"])
			if err != nil || realm.Hostname() == "" || realm.User != nil || !isASCII(realm.Host) || (realm.Scheme != "https" && realm.Scheme != "http") {
				continue
			}
			service := ch.Params["service"]
			ask, withCredentials := t.realm(realm)
			if !ask || len(service) > maxService {
				continue
			}
			realm.Fragment, realm.RawFragment = "", ""
			d, scopes := &demand{realm, service}, fewScopes(strings.Fields(ch.Params["scope"]))
			if withCredentials || c.anonymous() {
				return d, scopes
			}
			if anonymous == nil {
				anonymous, anonymousScopes = d, scopes
			}
		}
	}
	if basic != nil && c.Username != "" {
		return basic, nil
	}
	return anonymous, anonymousScopes
}

func fewScopes(all []string) []string {
	var some []string
	for _, s := range all {
		if len(s) <= maxScope && len(some) < maxScopes {
			some = append(some, s)
		}
	}
	return some
}

// challenged tells whether an answer asks for (other) credentials: a 401, or a
// 403 that says that the token's scope is too small (RFC 6750, section 3.1).
func challenged(res *http.Response) bool {
	if res.StatusCode == http.StatusUnauthorized {
		return true
	}
	if res.StatusCode != http.StatusForbidden {
		return false
	}
	for _, ch := range rewrite.Challenges(res.Header.Values("WWW-Authenticate")) {
		if ch.Scheme == "bearer" && ch.Params["error"] == "insufficient_scope" {
			return true
		}
	}
	return false
}
