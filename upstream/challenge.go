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
	// hides says that the registry answers 404 to who isn't logged in.
	hides bool
}

// What is taken over from a challenge.
const (
	maxService = 512
	maxScopes  = 8
	maxScope   = 512
)

// wanted picks the challenge of a response to answer: Bearer if its token server may be
// asked, and may have the credentials if there are any; else Basic; else Bearer
// anonymously. judge is trust.realm or like it. The demand is nil if none can be answered.
func wanted(h http.Header, judge func(*url.URL) (ask, withCredentials bool), c Credential) (d *demand, scopes []string) {
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
			ask, withCredentials := judge(realm)
			if !ask || len(service) > maxService {
				continue
			}
			realm.Fragment, realm.RawFragment = "", ""
			d, scopes := &demand{realm: realm, service: service}, fewScopes(strings.Fields(ch.Params["scope"]))
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

// challenged says whether an answer asks for (other) credentials: a 401, or a 403 that
// says that the token's scope is too small (RFC 6750, section 3.1).
func challenged(res *http.Response) bool {
	return res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden && insufficient(res)
}

// insufficient says whether an answer's challenge asks for more scopes than the token had.
func insufficient(res *http.Response) bool {
	for _, ch := range rewrite.Challenges(res.Header.Values("WWW-Authenticate")) {
		if ch.Scheme == "bearer" && ch.Params["error"] == "insufficient_scope" {
			return true
		}
	}
	return false
}
