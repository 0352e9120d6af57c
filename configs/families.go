package configs

import (
	"regexp"
	"slices"
	"strings"
)

// familyName is the name of an upstream that stands for many hosts: "*.pkg.dev",
// "*.dkr.ecr.*.amazonaws.com". The last two labels have no wildcard.
var familyName = regexp.MustCompile(`^([a-z0-9*-]+\.)+[a-z0-9]([a-z0-9-]*[a-z0-9])?\.[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// IsFamily reports whether the name of an upstream is a pattern of hosts.
func IsFamily(name string) bool { return strings.Contains(name, "*") }

// FamilyHas reports whether host matches the pattern of a family. Each label of the
// pattern stands for one label of the host, and * for at least one character in it. A host
// with a port never matches.
func FamilyHas(pattern, host string) bool {
	if len(host) > 253 {
		return false
	}
	for more := true; more; {
		var p, l string
		var also bool
		p, pattern, more = strings.Cut(pattern, ".")
		l, host, also = strings.Cut(host, ".")
		before, after, wild := strings.Cut(p, "*")
		switch {
		case more != also || !isLabel(l):
			return false
		case !wild && l != p:
			return false
		case wild && (len(l) <= len(before)+len(after) || !strings.HasPrefix(l, before) || !strings.HasSuffix(l, after)):
			return false
		}
	}
	return true
}

// isLabel reports whether s can be one part of a host's name, in lower case.
func isLabel(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && (c != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// Families returns the patterns among the upstreams.
func (c *Config) Families() []string {
	return slices.DeleteFunc(names(c.Upstreams), func(name string) bool { return !IsFamily(name) })
}

// FamilyOf returns the pattern among the upstreams that host matches, the longest one
// first; empty if none does.
func (c *Config) FamilyOf(host string) string {
	best := ""
	for name := range c.Upstreams {
		if IsFamily(name) && FamilyHas(name, host) && (len(name) > len(best) || len(name) == len(best) && name < best) {
			best = name
		}
	}
	return best
}

// Member returns the upstream that a host of the family pattern is: that of the pattern,
// with the host in its endpoints.
func (c *Config) Member(pattern, host string) *Upstream {
	u := *c.Upstreams[pattern]
	u.Endpoints = slices.Clone(u.Endpoints)
	for i, e := range u.Endpoints {
		u.Endpoints[i] = strings.ReplaceAll(e, pattern, host)
	}
	return &u
}

// Exact returns c without its families, and with more upstreams beside the others.
func (c *Config) Exact(more map[string]*Upstream) *Config {
	exact := *c
	exact.Upstreams = map[string]*Upstream{}
	for name, u := range c.Upstreams {
		if !IsFamily(name) {
			exact.Upstreams[name] = u
		}
	}
	for name, u := range more {
		if exact.Upstreams[name] == nil {
			exact.Upstreams[name] = u
		}
	}
	return &exact
}

// checkFamily reports a pattern of hosts that can't be used, and false.
func (l *loader) checkFamily(key, name string, u *Upstream) bool {
	labels := strings.Split(name, ".")
	once := !slices.ContainsFunc(labels, func(l string) bool { return strings.Count(l, "*") > 1 })
	if !familyName.MatchString(name) || !once {
		l.reportKey(key, "%q is no pattern of hosts; write * for a part between two dots, before the last two parts and without a port, such as *.pkg.dev", name)
		return false
	}
	if len(u.Aliases) > 0 {
		l.reportKey(key+".aliases", "a pattern of hosts has no aliases")
	}
	if u.Credentials.Username != "" || slices.ContainsFunc(u.Accounts, func(a Account) bool { return a.Credentials.Username != "" }) {
		l.reportKey(key+".credentials", "has a password, which every host that matches the pattern would see; use docker_config, helper or the login of a cloud (ecr, google, azure), which know credentials by host")
	}
	if name == l.cfg.DefaultUpstream {
		l.reportKey("default_upstream", "%q is a pattern of hosts; write one of them, and list it in upstreams", name)
	}
	return true
}
