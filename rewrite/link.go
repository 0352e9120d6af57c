package rewrite

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// What is read of a stranger's Link headers.
const (
	maxLinkBytes = 16 << 10
	maxLinks     = 32
)

// NextPage reads the values of a response's Link headers (RFC 8288) and gives
// the target with rel="next", resolved against page, the URL that was asked;
// nil where there is none. The target is always on page's own scheme and host:
// a link to another host is an error, as the request for it would carry the
// credentials of this one. An http link to an https page's host is taken as
// https, since registries behind a TLS proxy write such links.
func NextPage(headers []string, page *url.URL) (*url.URL, error) {
	target, ok := nextTarget(headers)
	if !ok {
		return nil, nil
	}
	u, err := page.Parse(target)
	if err != nil {
		// The cause would quote the target, query and all.
		return nil, fmt.Errorf("the link to the next page is not a URL")
	}
	if u.User != nil || u.Opaque != "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("the link to the next page is not an http URL")
	}
	if hostPort(u) != hostPort(page) && (!strings.EqualFold(u.Hostname(), page.Hostname()) || u.Port() != page.Port()) {
		return nil, fmt.Errorf("the link to the next page leads to another host, %s", quote(u.Host))
	}
	u.Scheme, u.Host, u.Fragment, u.RawFragment = page.Scheme, page.Host, "", ""
	return u, nil
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// nextTarget finds the first target whose relation types hold "next".
func nextTarget(headers []string) (string, bool) {
	room := maxLinkBytes
	for _, h := range headers {
		if len(h) > room {
			return "", false
		}
		room -= len(h)
		for range maxLinks {
			h = strings.TrimLeft(h, " \t,")
			if h == "" || h[0] != '<' {
				break
			}
			target, rest, ok := strings.Cut(h[1:], ">")
			if !ok {
				break
			}
			var rel string
			rel, h = linkRelation(rest)
			for _, r := range strings.Fields(rel) {
				if strings.EqualFold(r, "next") {
					return strings.TrimSpace(target), true
				}
			}
		}
	}
	return "", false
}

// linkRelation reads the parameters behind a target up to the comma that ends
// them, and gives the first rel and what follows.
func linkRelation(s string) (rel, rest string) {
	found := false
	for {
		s = strings.TrimLeft(s, " \t;")
		if s == "" || s[0] == ',' {
			return rel, s
		}
		n := strings.IndexAny(s, "=;,")
		if n < 0 {
			return rel, ""
		}
		name := strings.TrimSpace(s[:n])
		if s[n] != '=' {
			s = s[n:]
			continue
		}
		r := challengeReader{rest: strings.TrimLeft(s[n+1:], " \t")}
		var value string
		if r.next('"') {
			r.rest = `"` + r.rest
			v, ok := r.value()
			if !ok {
				return rel, ""
			}
			value = v
		} else {
			end := strings.IndexAny(r.rest, ";,")
			if end < 0 {
				end = len(r.rest)
			}
			value, r.rest = strings.TrimSpace(r.rest[:end]), r.rest[end:]
		}
		s = r.rest
		if !found && strings.EqualFold(name, "rel") {
			rel, found = value, true
		}
	}
}
