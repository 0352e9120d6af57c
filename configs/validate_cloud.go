package configs

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/entrepot-dev/entrepot/clouds"
)

// login is the login of a cloud that is configured.
type login struct {
	key   string
	cloud clouds.Cloud
	hosts []string
	// own names the cloud's registries, for messages.
	own string
}

// logins returns the logins of clouds in c.
func (c Credentials) logins() []login {
	var list []login
	if c.ECR != nil {
		list = append(list, login{"ecr", clouds.ECR, c.ECR.Hosts, "ACCOUNT.dkr.ecr.REGION.amazonaws.com"})
	}
	if c.Google != nil {
		list = append(list, login{"google", clouds.Google, c.Google.Hosts, "REGION-docker.pkg.dev or gcr.io"})
	}
	if c.Azure != nil {
		list = append(list, login{"azure", clouds.Azure, c.Azure.Hosts, "NAME.azurecr.io"})
	}
	return list
}

// checkLogin reports the login of a cloud at an upstream that has no registry of that cloud,
// or one that would have it in clear text.
func (l *loader) checkLogin(key string, c login, endpoints []string) {
	good := true
	listed := map[string]string{}
	for i, h := range c.hosts {
		scheme, host := clouds.SplitHost(h)
		if !upstreamName.MatchString(host) || scheme != "https" && scheme != "http" {
			l.reportKey(fmt.Sprintf("%s.hosts[%d]", key, i), "%q is no host; write one, in small letters, such as registry.example.com, or http://127.0.0.2:5000 for plain http", redact(h))
			good = false
		}
		listed[host] = scheme
	}
	some := false
	for _, e := range endpoints {
		scheme, rest, _ := strings.Cut(e, "://")
		host, _, _ := strings.Cut(rest, "/")
		if !strings.Contains(host, "*") { // of a pattern, which is no URL
			u, err := url.Parse(e)
			if err != nil {
				return // reported as an endpoint
			}
			scheme, host = u.Scheme, u.Host
		}
		wanted, ok := listed[host]
		if !ok && c.cloud.Has(host) {
			wanted, ok = "https", true
		}
		if ok && scheme != wanted {
			l.reportKey(key, "would be sent to %s by %s; write %s://%[1]s in endpoints, or list %[2]s://%[1]s in %[4]s.hosts", host, scheme, wanted, key)
			good = false
		}
		some = some || ok
	}
	if good && !some {
		l.reportKey(key, "is for registries of %s, such as %s, and none of the endpoints (%s) is one; if one is all the same, list its host in %s.hosts",
			c.cloud, c.own, redact(strings.Join(endpoints, ", ")), key)
	}
}

// checkRegion reports a region that is missing or none.
func (l *loader) checkRegion(key string, e *ECR) {
	switch {
	case e == nil:
	case e.Region != "" && !clouds.IsRegion(e.Region):
		l.reportKey(key+".ecr.region", "%q is no region of AWS; write one such as eu-west-1", e.Region)
	case e.Region == "" && slices.ContainsFunc(e.Hosts, func(h string) bool { _, host := clouds.SplitHost(h); return !clouds.ECR.Has(host) }):
		l.reportKey(key+".ecr", "has hosts whose names don't tell their region; set region")
	}
}
