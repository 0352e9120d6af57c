package upstream

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// How long an endpoint is passed over where there is another.
const (
	afterFailure = 10 * time.Second
	afterRefusal = 5 * time.Minute
)

// endpoint is one address of an upstream.
type endpoint struct {
	// base is the URL down to /v2, without a slash at its end.
	base *url.URL
	// prefix is put before each repository; it is part of base's path.
	prefix string
	// host is base's host and port as configured: how logs name the endpoint.
	host string
	// label names it in the metrics: host, and the path where it has one.
	label string
	// auth is how the endpoint last said that it wants to be asked.
	auth atomic.Pointer[demand]
	// greeting is its last answer to GET /v2/.
	greeting atomic.Pointer[greeting]
	// scopes says how its challenges name repositories, if not by their paths.
	scopes atomic.Pointer[scopeRule]
	// breaker says whether it is asked at all.
	breaker *breaker
	// governor knows what it grants.
	governor *governor
	// lookout knows whether it answers, while requests to it are silent.
	lookout *lookout
	// retesting is the probe that clients wait for while the breaker is open.
	retesting retest

	// rangeless is until when ranges are known not to work, in Unix nanoseconds.
	rangeless atomic.Int64
	// rangeDoubt is since when parts fail and whole blobs come, in Unix nanoseconds; 0 if
	// they don't.
	rangeDoubt atomic.Int64

	mu    sync.Mutex
	until time.Time // passed over until then
}

func newEndpoint(s string) (*endpoint, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("not a URL; write https://host")
	}
	switch {
	case u.User != nil:
		return nil, errors.New("a URL with a user in it; use credentials")
	case u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "", u.Opaque != "":
		return nil, fmt.Errorf("%q is not an http URL; write https://host", s)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("%s: a URL with a query; write https://host", u.Host)
	}
	u.Host = strings.ToLower(u.Host)
	path := strings.TrimRight(u.Path, "/")
	prefix := ""
	if rest, ok := strings.CutPrefix(path, "/v2"); ok && (rest == "" || rest[0] == '/') {
		prefix = strings.TrimPrefix(rest, "/")
	} else if !strings.HasSuffix(path, "/v2") { // many write it at the end
		path += "/v2"
	}
	u.Path, u.RawPath = path, ""
	return &endpoint{base: u, prefix: prefix, host: u.Host, label: u.Host + strings.TrimSuffix(path, "/v2")}, nil
}

// ping gives the URL that says whether the registry answers
// (distribution-spec, "Determining Support").
func (e *endpoint) ping() *url.URL {
	u := *e.base
	u.Path = strings.TrimSuffix(u.Path, "/"+e.prefix)
	u.Path += "/"
	return &u
}

// url gives the URL of path, which begins with the repository.
func (e *endpoint) url(path string) *url.URL {
	u := *e.base
	u.Path += "/" + path
	return &u
}

// scope returns what a token must allow for pulls from repo, by its path.
func (e *endpoint) scope(repo string) string { return "repository:" + e.path(repo) + ":pull" }

// path returns repo as it is in URLs, below /v2/.
func (e *endpoint) path(repo string) string {
	if e.prefix != "" {
		return e.prefix + "/" + repo
	}
	return repo
}

// scopeRule is how a registry names repositories in the scopes of its challenges, if not
// by their paths: a proxy in front may put a project before them, or take one away.
type scopeRule struct{ cut, put string }

// guess returns the scope that the registry's challenge for repo will probably name.
func (e *endpoint) guess(repo string) string {
	path := e.path(repo)
	if r := e.scopes.Load(); r != nil {
		if rest, ok := strings.CutPrefix(path, r.cut); ok && rest != "" {
			path = r.put + rest
		}
	}
	return "repository:" + path + ":pull"
}

// learnScope notes how a challenge for repo names it in scopes. A challenge that names
// it by its path, or something else altogether, says nothing of other repositories.
func (e *endpoint) learnScope(repo string, scopes []string) {
	if len(scopes) != 1 {
		return
	}
	name, ok := strings.CutPrefix(scopes[0], "repository:")
	i := strings.LastIndexByte(name, ':')
	if !ok || i < 0 {
		return
	}
	name = name[:i]
	path := e.path(repo)
	if name == path {
		return
	}
	// The longest common end, at a slash.
	n := 0
	for i := 1; i <= min(len(path), len(name)) && path[len(path)-i] == name[len(name)-i]; i++ {
		if (i == len(path) || path[len(path)-i-1] == '/') && (i == len(name) || name[len(name)-i-1] == '/') {
			n = i
		}
	}
	if n == 0 {
		return
	}
	rule := scopeRule{path[:len(path)-n], name[:len(name)-n]}
	if old := e.scopes.Load(); old == nil || *old != rule {
		e.scopes.Store(&rule)
	}
}

// rest lets the endpoint be passed over for d, or longer if it was already.
func (e *endpoint) rest(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if until := time.Now().Add(d); until.After(e.until) {
		e.until = until
	}
}

// healed ends a rest after a failure. One after a refusal, for wrong bytes,
// lasts: that the endpoint answers says nothing about them.
func (e *endpoint) healed() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Until(e.until) <= afterFailure {
		e.until = time.Time{}
	}
}

func (e *endpoint) resting() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Now().Before(e.until)
}

// order gives the endpoints as they are to be tried now: those that rest come
// last, since they are better than none. Whether they are tried at all is for
// their breakers to say.
func order(all []*endpoint) []*endpoint {
	if len(all) == 1 {
		return all
	}
	var up, resting []*endpoint
	for _, e := range all {
		if e.resting() || e.lookout.isGone() {
			resting = append(resting, e)
		} else {
			up = append(up, e)
		}
	}
	return append(up, resting...)
}
