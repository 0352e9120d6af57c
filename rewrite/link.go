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

// NextPage reads the values of a response's Link headers (RFC 8288) and gives the URL of
// the next page; nil if there is none. page is the URL that answered, behind redirects,
// and own the one on the endpoint that is configured.
//
// The result always has the scheme and host of page or of own. A link that names another
// host stands for page's: registries behind a proxy often write a host that only they know,
// and no other may have the credentials. A link to the same list by another path stands for
// page's path as well: such registries don't know the proxy's prefix. The error says that
// there is a link that cannot be read, so that the list is not complete.
func NextPage(headers []string, page, own *url.URL) (*url.URL, error) {
	target, ok, err := nextTarget(headers, page)
	if err != nil || !ok {
		return nil, err
	}
	u, err := page.Parse(target)
	if err != nil {
		// The cause would quote the target, query and all.
		return nil, fmt.Errorf("the link to the next page is not a URL")
	}
	if u.Opaque != "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("the link to the next page is not an http URL")
	}
	base := page
	if !sameHost(u, page) && sameHost(u, own) {
		base = own
	}
	next := *base
	next.RawQuery, next.ForceQuery, next.Fragment, next.RawFragment = u.RawQuery, u.ForceQuery, "", ""
	if listName(u.Path) != listName(base.Path) {
		next.Path, next.RawPath = u.Path, u.RawPath
	}
	return &next, nil
}

// sameHost reports whether a and b name the same host and port. An http URL may stand for
// an https one, since registries behind a TLS proxy write such links.
func sameHost(a, b *url.URL) bool {
	return hostPort(a) == hostPort(b) || strings.EqualFold(a.Hostname(), b.Hostname()) && a.Port() == b.Port()
}

// listName gives the last two parts of a path: "tags/list", "referrers/<digest>".
func listName(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[strings.LastIndexByte(path[:i], '/')+1:]
	}
	return path
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// nextTarget finds the first target whose relation types hold "next". Some registries
// leave the angle brackets out, and some the relation, or name another one: then a link to
// the same list as page counts, for clients follow any.
func nextTarget(headers []string, page *url.URL) (target string, ok bool, err error) {
	room := maxLinkBytes
	unrelated := ""
	for _, h := range headers {
		if len(h) > room {
			return "", false, fmt.Errorf("the Link headers have more than %d bytes", maxLinkBytes)
		}
		room -= len(h)
		for n := 0; ; n++ {
			h = strings.TrimLeft(h, " \t,")
			if h == "" {
				break
			}
			if n == maxLinks {
				return "", false, fmt.Errorf("there are more than %d links", maxLinks)
			}
			target, h = linkTarget(h)
			var rel string
			var related bool
			rel, related, h = linkRelation(h)
			known := false
			for _, r := range strings.Fields(rel) {
				switch strings.ToLower(strings.Trim(r, `'"`)) {
				case "next":
					return target, true, nil
				case "prev", "previous", "first", "last", "self", "current", "canonical":
					known = true
				}
			}
			if !(related && known) && unrelated == "" {
				if u, err := page.Parse(target); err == nil && u.RawQuery != "" && listName(u.Path) == listName(page.Path) {
					unrelated = target
				}
			}
		}
	}
	return unrelated, unrelated != "", nil
}

// linkTarget reads a target, with or without its angle brackets, and gives what follows.
func linkTarget(s string) (target, rest string) {
	s, bracket := strings.CutPrefix(s, "<")
	end := -1
	if bracket {
		end = strings.IndexByte(s, '>')
	}
	if end < 0 {
		if end = strings.IndexByte(s, ';'); end < 0 {
			end = len(s)
		}
	}
	target, rest = s[:end], strings.TrimPrefix(s[end:], ">")
	return strings.Trim(target, " \t<>"), rest
}

// linkRelation reads the parameters behind a target up to the comma that ends
// them, and gives the first rel, whether there is one, and what follows.
func linkRelation(s string) (rel string, found bool, rest string) {
	for {
		s = strings.TrimLeft(s, " \t;")
		if s == "" || s[0] == ',' {
			return rel, found, s
		}
		n := strings.IndexAny(s, "=;,")
		if n < 0 {
			return rel, found, ""
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
			if !ok { // the quote is open
				v, r.rest = strings.Trim(r.rest, `"`), ""
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
