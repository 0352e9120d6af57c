package clouds

import (
	"net"
	"regexp"
	"slices"
	"strings"
)

// Cloud is a provider of registries.
type Cloud int

// The clouds, by their keys in the configuration.
const (
	ECR Cloud = iota
	Google
	Azure
)

// String returns the name for messages.
func (c Cloud) String() string {
	return [...]string{"Amazon ECR", "Google", "Azure"}[c]
}

// ecrHost is the form of a private ECR registry: IPv4 and dual-stack names, with and without
// FIPS, of the commercial, the Chinese and the European partition (AWS General Reference,
// "Amazon ECR endpoints and quotas").
var ecrHost = regexp.MustCompile(`^[0-9]{12}\.dkr(?:\.ecr|-ecr)(-fips)?\.([a-z]+(?:-[a-z0-9]+)+)\.(amazonaws\.com|amazonaws\.com\.cn|amazonaws\.eu|on\.aws|on\.amazonwebservices\.com\.cn)$`)

// ecrPublic are the hosts of ECR Public.
var ecrPublic = []string{"public.ecr.aws", "ecr-public.aws.com"}

// ownHost reports whether host, without a port, is a registry of the cloud.
func (c Cloud) ownHost(host string) bool {
	switch c {
	case ECR:
		return ecrHost.MatchString(host) || slices.Contains(ecrPublic, host)
	case Google:
		return host == "gcr.io" || isBelow(host, "gcr.io", "pkg.dev")
	case Azure:
		return isBelow(host, "azurecr.io", "azurecr.cn", "azurecr.us")
	}
	return false
}

func isBelow(host string, domains ...string) bool {
	return slices.ContainsFunc(domains, func(d string) bool { return strings.HasSuffix(host, "."+d) })
}

// Has reports whether host is a registry of the cloud: a host name with an optional port, of
// which 443 alone will do. In a pattern of hosts, * stands for a part of the name; Has then
// reports whether a registry of the cloud can match it.
func (c Cloud) Has(host string) bool {
	if name, port, err := net.SplitHostPort(host); err == nil {
		if port != "443" {
			return false
		}
		host = name
	}
	if strings.Contains(host, "*") && c == ECR {
		host = sample(host)
	}
	return c.ownHost(host)
}

// sample returns an ECR host that matches pattern, if there is one.
func sample(pattern string) string {
	labels := strings.Split(pattern, ".")
	for i, l := range labels {
		switch {
		case i == 0: // the account, 12 digits
			l = strings.Replace(l, "*", strings.Repeat("0", max(1, 12-len(l)+1)), 1)
		case l == "*":
			l = "us-east-1"
		default:
			l = strings.Replace(l, "*", "1", 1)
		}
		labels[i] = l
	}
	return strings.Join(labels, ".")
}

// trusted are the hosts that one configuration lets have a cloud's login.
type trusted struct {
	cloud Cloud
	// more are hosts beside the cloud's own, with their scheme.
	more map[string]string
}

// newTrusted reads hosts that are to have the login beside the cloud's own: "host",
// "host:port", or a URL, of which scheme and host count.
func newTrusted(c Cloud, hosts []string) trusted {
	t := trusted{cloud: c, more: map[string]string{}}
	for _, h := range hosts {
		scheme, host := SplitHost(h)
		t.more[host] = scheme
	}
	return t
}

// SplitHost splits an entry of hosts into scheme, https if it names none, and host.
func SplitHost(entry string) (scheme, host string) {
	scheme, host, found := strings.Cut(entry, "://")
	if !found {
		scheme, host = "https", entry
	}
	return scheme, strings.TrimSuffix(host, "/")
}

// scheme returns how host is asked, "" if it may not have the login.
func (t trusted) scheme(host string) string {
	if s := t.more[host]; s != "" {
		return s
	}
	if t.cloud.Has(host) && !strings.Contains(host, "*") {
		return "https"
	}
	return ""
}
