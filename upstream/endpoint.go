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
	// breaker says whether it is asked at all.
	breaker *breaker
	// governor knows what it grants.
	governor *governor

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
	} else {
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

// scope gives what a token must allow for pulls from repo.
func (e *endpoint) scope(repo string) string {
	if e.prefix != "" {
		repo = e.prefix + "/" + repo
	}
	return "repository:" + repo + ":pull"
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
		if e.resting() {
			resting = append(resting, e)
		} else {
			up = append(up, e)
		}
	}
	return append(up, resting...)
}
