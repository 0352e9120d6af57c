package rewrite

import (
	"fmt"
	"slices"
	"strings"

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
// configured: this is no open relay. It is immutable and safe for concurrent
// use.
type Router struct {
	fallback string
	// names maps every name and alias, in lower case, to the upstream.
	names      map[string]string
	configured string // for messages
}

// NewRouter checks a Routing: every name is that of a host, no name stands for
// two upstreams, and the default is one of them.
func NewRouter(routing Routing) (*Router, error) {
	r := &Router{fallback: routing.Default, names: make(map[string]string)}
	upstreams := make([]string, 0, len(routing.Upstreams))
	for name := range routing.Upstreams {
		if !isHost(name) {
			return nil, fmt.Errorf("upstream %q: not a host name in lower case, with or without a port", name)
		}
		upstreams = append(upstreams, name)
		r.names[name] = name
	}
	slices.Sort(upstreams)
	for _, name := range upstreams {
		for _, alias := range routing.Upstreams[name] {
			if !isHost(alias) {
				return nil, fmt.Errorf("upstream %q: alias %q is not a host name in lower case, with or without a port", name, alias)
			}
			if other, taken := r.names[alias]; taken && other != name {
				return nil, fmt.Errorf("upstream %q: its alias %q already stands for %q", name, alias, other)
			}
			r.names[alias] = name
		}
	}
	if _, ok := r.names[dockerHub]; ok {
		for _, alias := range dockerHubAliases {
			if _, taken := r.names[alias]; !taken {
				r.names[alias] = r.names[dockerHub]
			}
		}
	}
	if r.fallback != "" && r.names[r.fallback] != r.fallback {
		return nil, fmt.Errorf("default upstream %q is not configured; configured are: %s", r.fallback, strings.Join(upstreams, ", "))
	}
	r.configured = strings.Join(upstreams, ", ")
	return r, nil
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
	upstream, repository, err := r.route(name, ns, host)
	if err != nil {
		return Target{}, err
	}
	if upstream == dockerHub {
		first, _, more := strings.Cut(repository, "/")
		if more && strings.ContainsAny(first, ".:") {
			return Target{}, r.unknown("registry " + quote(first))
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

func (r *Router) route(name, ns, host string) (upstream, repository string, err error) {
	first, rest, more := strings.Cut(name, "/")
	prefix := ""
	if more {
		prefix, _ = r.Upstream(first)
	}
	if ns != "" {
		named, ok := r.Upstream(ns)
		switch {
		case !ok:
			return "", "", r.unknown("registry " + quote(ns))
		case named == prefix:
			return named, rest, nil
		}
		return named, name, nil
	}
	if prefix != "" {
		return prefix, rest, nil
	}
	if host != "" {
		if named, ok := r.Upstream(host); ok {
			return named, name, nil
		}
		if colon := strings.LastIndexByte(host, ':'); colon > 0 {
			if named, ok := r.Upstream(host[:colon]); ok {
				return named, name, nil
			}
		}
	}
	if r.fallback == "" {
		return "", "", r.unknown("the request names no registry, and a default")
	}
	return r.fallback, name, nil
}

// Upstream gives the configured upstream that a name or alias stands for, in
// any case of its letters.
func (r *Router) Upstream(name string) (string, bool) {
	if up, ok := r.names[name]; ok {
		return up, true
	}
	if len(name) > maxName {
		return "", false
	}
	up, ok := r.names[strings.ToLower(name)]
	return up, ok
}

func (r *Router) unknown(what string) error {
	return oci.Errorf(oci.CodeNameUnknown, "%s is not configured here; configured are: %s", what, r.configured)
}
