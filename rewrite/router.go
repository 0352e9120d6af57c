package rewrite

import (
	"fmt"
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
	t := &table{fallback: routing.Default, names: make(map[string]string)}
	upstreams := make([]string, 0, len(routing.Upstreams))
	for name := range routing.Upstreams {
		if !isHost(name) {
			return nil, fmt.Errorf("upstream %q: not a host name in lower case, with or without a port", name)
		}
		upstreams = append(upstreams, name)
		t.names[name] = name
	}
	slices.Sort(upstreams)
	for _, name := range upstreams {
		for _, alias := range routing.Upstreams[name] {
			if !isHost(alias) {
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
	if t.fallback != "" && t.names[t.fallback] != t.fallback {
		return nil, fmt.Errorf("default upstream %q is not configured; configured are: %s", t.fallback, strings.Join(upstreams, ", "))
	}
	t.configured = strings.Join(upstreams, ", ")
	return t, nil
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
// A name of one component at docker.io gets "library/"; elsewhere never.
func (r *Router) Route(name, ns, host string) (Target, error) {
	t := r.table.Load()
	upstream, repository, err := t.route(name, ns, host)
	if err != nil {
		return Target{}, err
	}
	if upstream == dockerHub {
		first, _, more := strings.Cut(repository, "/")
		if more && strings.ContainsAny(first, ".:") {
			return Target{}, t.unknown("registry " + quote(first))
		}
		if !more {
			repository = "library/" + repository
		}
	}
	if err := CheckName(repository); err != nil {
		return Target{}, err
	}
	return Target{Upstream: upstream, Repository: repository}, nil
}

func (t *table) route(name, ns, host string) (upstream, repository string, err error) {
	first, rest, more := strings.Cut(name, "/")
	prefix := ""
	if more {
		prefix, _ = t.upstream(first)
	}
	if ns != "" {
		named, ok := t.upstream(ns)
		switch {
		case !ok:
			return "", "", t.unknown("registry " + quote(ns))
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

// Upstream gives the configured upstream that a name or alias stands for, in
// any case of its letters.
func (r *Router) Upstream(name string) (string, bool) { return r.table.Load().upstream(name) }

func (t *table) upstream(name string) (string, bool) {
	if up, ok := t.names[name]; ok {
		return up, true
	}
	if len(name) > maxName {
		return "", false
	}
	up, ok := t.names[strings.ToLower(name)]
	return up, ok
}

func (t *table) unknown(what string) error {
	return oci.Errorf(oci.CodeNameUnknown, "%s is not configured here; configured are: %s", what, t.configured)
}
