package rewrite

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/entrepot-dev/entrepot/oci"
)

const dockerHub = "docker.io"

// dockerHubAliases are names under which clients know Docker Hub. They count
// where docker.io is configured and they are not themselves.
var dockerHubAliases = [...]string{"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}

// Routing says which upstreams there are.
type Routing struct {
	// Default is the upstream of a request that names none. Empty: such a
	// request is refused.
	Default string
	// Upstreams maps each configured name to further names that stand for it.
	Upstreams map[string][]string
	// Plain are the upstreams reached by plain http. A name stands for the same registry
	// with and without the usual port: 80 of these, 443 of the others.
	Plain map[string]bool
	// Member reports whether a host that isn't configured may join the upstreams. It must
	// be quick. Join then reports whether it has replaced the routing by one with that
	// host. Nil is none.
	Member, Join func(host string) bool
}

// Router finds the upstream of a request. It never names one that is not
// configured: this is no open relay. It is safe for concurrent use.
type Router struct{ table atomic.Pointer[table] }

// table is what a Routing says.
type table struct {
	fallback string
	// names maps every name and alias, in lower case, to the upstream.
	names      map[string]string
	configured string // for messages
	// member and join are those of the Routing.
	member, join func(string) bool
}

// NewRouter checks a Routing: every name is that of a host, no name stands for
// two upstreams, and the default is one of them.
func NewRouter(routing Routing) (*Router, error) {
	r := &Router{}
	return r, r.Replace(routing)
}

// Replace checks routing as NewRouter does, and has the requests that come after it
// routed so; with an error nothing changes.
func (r *Router) Replace(routing Routing) error {
	t, err := newTable(routing)
	if err != nil {
		return err
	}
	r.table.Store(t)
	return nil
}

func newTable(routing Routing) (*table, error) {
	t := &table{member: routing.Member, join: routing.Join, fallback: routing.Default, names: make(map[string]string)}
	upstreams := make([]string, 0, len(routing.Upstreams))
	for name := range routing.Upstreams {
		if !oci.IsHost(name) {
			return nil, fmt.Errorf("upstream %q: not a host name in lower case, with or without a port", name)
		}
		upstreams = append(upstreams, name)
		t.names[name] = name
	}
	slices.Sort(upstreams)
	for _, name := range upstreams {
		for _, alias := range routing.Upstreams[name] {
			if !oci.IsHost(alias) {
				return nil, fmt.Errorf("upstream %q: alias %q is not a host name in lower case, with or without a port", name, alias)
			}
			if other, taken := t.names[alias]; taken && other != name {
				return nil, fmt.Errorf("upstream %q: its alias %q already stands for %q", name, alias, other)
			}
			t.names[alias] = name
		}
	}
	if _, ok := t.names[dockerHub]; ok {
		for _, alias := range dockerHubAliases {
			if _, taken := t.names[alias]; !taken {
				t.names[alias] = t.names[dockerHub]
			}
		}
	}
	t.addSpellings(routing.Plain)
	if t.fallback != "" && t.names[t.fallback] != t.fallback {
		return nil, fmt.Errorf("default upstream %q is not configured; configured are: %s", t.fallback, strings.Join(upstreams, ", "))
	}
	t.configured = strings.Join(upstreams, ", ")
	return t, nil
}

// addSpellings adds other spellings of the names: with and without the usual port, and
// without a colon (PathName). A configured name is never replaced.
func (t *table) addSpellings(plain map[string]bool) {
	more := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(t.names)) {
		upstream := t.names[name]
		port := ":443"
		if plain[upstream] {
			port = ":80"
		}
		spellings := []string{name + port}
		if bare, ok := strings.CutSuffix(name, port); ok {
			spellings = []string{bare}
		} else if strings.LastIndexByte(name, ':') > strings.LastIndexByte(name, ']') {
			spellings = nil
		}
		for _, s := range append(spellings, name) {
			for _, s := range []string{s, PathName(s)} {
				if _, taken := t.names[s]; !taken && more[s] == "" {
					more[s] = upstream
				}
			}
		}
	}
	maps.Copy(t.names, more)
}

// Route gives the upstream and the full repository name of a request for name,
// as Target without a reference. The first of these that applies decides:
//
//  1. ns, the value of the query's ns. It must be configured, else
//     NAME_UNKNOWN. A first component of name that stands for the same upstream
//     is taken off: clients that rewrite paths send both.
//  2. The first component of name, where it is configured and more follows.
//     One that only looks like a registry is a part of the name, but at
//     docker.io, where no namespace has a dot or a port: there it can only be
//     a registry that is not configured, and is refused as such.
//  3. host, the Host header, as it is and without its port, where configured.
//  4. The default.
//
// Names of registries may have the usual port, and may be spelled as by PathName. What
// mirror URLs with a path repeat is taken off: the registry's name, and "v2" where it
// can't be a part of the repository's name. Where it could be, the error says what is wrong.
//
// A name of one component at docker.io gets "library/"; elsewhere never.
func (r *Router) Route(name, ns, host string) (oci.Target, error) {
	t := r.table.Load()
	if t.member != nil && t.joins(name, ns, host) {
		t = r.table.Load()
	}
	upstream, repository, err := t.route(name, ns, host)
	if err != nil {
		return oci.Target{}, err
	}
	if repository, err = t.trim(upstream, name, repository, ns); err != nil {
		return oci.Target{}, err
	}
	if upstream == dockerHub {
		first, _, more := strings.Cut(repository, "/")
		if more && strings.ContainsAny(first, ".:") {
			if other, ok := t.upstream(first); ok {
				return oci.Target{}, oci.Errorf(oci.CodeNameUnknown, "the request names two registries, %s and %s; leave one of them out "+
					"(a mirror whose URL ends with a registry's name is for the images of that registry only)", upstream, other)
			}
			return oci.Target{}, t.unknown("registry " + oci.Quote(first))
		}
		if !more {
			repository = "library/" + repository
		}
	}
	if err := oci.CheckName(repository); err != nil {
		return oci.Target{}, err
	}
	return oci.Target{Upstream: upstream, Repository: repository}, nil
}

// trim takes off repository, which is name without its registry, what the URLs of mirrors
// repeat: the name of upstream, and "v2".
func (t *table) trim(upstream, name, repository, ns string) (string, error) {
	for {
		first, rest, more := strings.Cut(repository, "/")
		switch {
		case !more:
			return repository, nil
		case first == "v2" && upstream == dockerHub && strings.Contains(rest, "/"):
			// Docker Hub's names have two parts.
		case first == "v2" && ns != "" && len(repository) < len(name):
			return "", oci.Errorf(oci.CodeNameInvalid, "the path of the request has /v2 twice: give the mirror a URL without a path, "+
				"or set override_path = true in hosts.toml")
		case strings.ContainsAny(first, ".:_") && t.isName(first, upstream):
		default:
			return repository, nil
		}
		repository = rest
	}
}

// isName reports whether word names upstream and nothing else: not by an alias, which may
// be a project there. At Docker Hub no namespace looks like a registry.
func (t *table) isName(word, upstream string) bool {
	if up, ok := t.upstream(word); !ok || up != upstream {
		return false
	}
	return upstream == dockerHub || strings.EqualFold(word, upstream) || strings.EqualFold(word, PathName(upstream))
}

func (t *table) route(name, ns, host string) (upstream, repository string, err error) {
	first, rest, more := strings.Cut(name, "/")
	if first == "v2" && more {
		// A mirror whose URL ends with /v2 sends /v2/v2/ghcr.io/….
		second, behind, more := strings.Cut(rest, "/")
		if up, ok := t.upstream(second); ok && more && strings.ContainsAny(second, ".:_") {
			if named, _ := t.upstream(ns); ns == "" || named == up {
				return up, behind, nil
			}
		}
	}
	prefix := ""
	if more {
		prefix, _ = t.upstream(first)
	}
	if ns != "" {
		named, ok := t.upstream(ns)
		switch {
		case !ok:
			return "", "", t.unknown("registry " + oci.Quote(ns))
		case named == prefix:
			return named, rest, nil
		}
		return named, name, nil
	}
	if prefix != "" {
		return prefix, rest, nil
	}
	if host != "" {
		if named, ok := t.upstream(host); ok {
			return named, name, nil
		}
		if colon := strings.LastIndexByte(host, ':'); colon > 0 {
			if named, ok := t.upstream(host[:colon]); ok {
				return named, name, nil
			}
		}
	}
	if t.fallback == "" {
		return "", "", t.unknown("the request names no registry, and a default")
	}
	return t.fallback, name, nil
}

// joins has the registry that a request names join, if it isn't configured and may. It
// reports whether one has.
func (t *table) joins(name, ns, host string) bool {
	first, rest, _ := strings.Cut(name, "/")
	if first == "v2" {
		first, _, _ = strings.Cut(rest, "/")
	}
	if ns != "" {
		first = ns
	}
	if _, known := t.upstream(first); known {
		return false
	}
	// The usual port is of no account.
	for _, port := range []string{":443", "_443", ":80", "_80"} {
		first = strings.TrimSuffix(first, port)
	}
	if t.member(first) {
		return t.join(first)
	}
	if ns != "" {
		return false
	}
	if colon := strings.LastIndexByte(host, ':'); colon > 0 {
		host = host[:colon]
	}
	_, known := t.upstream(host)
	return !known && t.member(host) && t.join(host)
}

// Upstream gives the configured upstream that a name or alias stands for, in
// any case of its letters.
func (r *Router) Upstream(name string) (string, bool) { return r.table.Load().upstream(name) }

// Default returns the upstream of requests that name none; empty if there is none.
func (r *Router) Default() string { return r.table.Load().fallback }

func (t *table) upstream(name string) (string, bool) {
	if up, ok := t.names[name]; ok {
		return up, true
	}
	if len(name) > oci.MaxName {
		return "", false
	}
	up, ok := t.names[strings.ToLower(name)]
	return up, ok
}

func (t *table) unknown(what string) error {
	return oci.Errorf(oci.CodeNameUnknown, "%s is not configured here; configured are: %s", what, t.configured)
}
