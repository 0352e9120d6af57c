package upstream

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// Registries, and what stands in front of them, get HEAD wrong: some answer 404, 403 or
// 500 to it and 200 to a GET of the same thing. So a refused HEAD is a hint, and callers
// confirm it by a GET (see oci.Error.Hint). A 404 costs no pull.

const (
	// headTime is how long HEAD isn't sent for a repository in which it doesn't work.
	headTime = 10 * time.Minute
	// headDenials is how often in a row a GET must contradict a HEAD before that.
	headDenials = 2
	// headWindow is how soon after a HEAD a GET contradicts it.
	headWindow = 30 * time.Second
	// maxHeads bounds how many repositories are remembered.
	maxHeads = 1000
)

// heads remembers in which repositories HEAD doesn't work. All methods are safe for
// concurrent use. Keys are made by headKey.
type heads struct {
	mu sync.Mutex
	of map[string]*headState
}

type headState struct {
	refused time.Time // the last HEAD, unless a GET has contradicted it
	denials int       // GETs that contradicted a HEAD, in a row
	until   time.Time // no HEAD is sent until then
}

// headKey names a repository's manifests or blobs: op is that of an ask.
func headKey(op, repo string) string { return op + " " + repo }

// refused notes that a HEAD was refused.
func (h *heads) refused(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of[key]
	if s == nil {
		if h.of == nil || len(h.of) >= maxHeads {
			h.of = map[string]*headState{} // each is found out again
		}
		s = &headState{}
		h.of[key] = s
	}
	s.refused = time.Now()
}

// worked notes that a HEAD was answered.
func (h *heads) worked(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.of, key)
}

// contradicted notes that a GET succeeded.
func (h *heads) contradicted(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of[key]
	if s == nil || s.refused.IsZero() || time.Since(s.refused) > headWindow {
		return
	}
	s.refused = time.Time{}
	if s.denials++; s.denials >= headDenials {
		s.until = time.Now().Add(headTime)
	}
}

// useless reports whether HEAD is known not to work.
func (h *heads) useless(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of[key]
	return s != nil && time.Now().Before(s.until)
}

// skipsHead reports whether a HEAD isn't worth sending. It always is if the upstream
// counts pulls: a HEAD that works costs none.
func (r *Registry) skipsHead(key string) bool {
	return r.heads.useless(key) && !r.isMetered()
}

// isMetered reports whether an endpoint has said how many pulls it grants.
func (r *Registry) isMetered() bool {
	for _, ep := range r.endpoints {
		if ep.governor.isMetered() {
			return true
		}
	}
	return false
}

func (g *governor) isMetered() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, q := range g.accounts {
		if q.known || q.limit > 0 {
			return true
		}
	}
	return false
}

// isHint reports whether f, the failure of a HEAD, may be wrong about what a GET gives:
// whatever was answered, unless it is a rate limit.
func isHint(f *failure) bool {
	return f.status != 0 && f.status != http.StatusTooManyRequests && f.err.Code != oci.CodeUnsupported && f.err.Code != oci.CodeTooManyRequests
}

// hint returns the error of f, marked as one that a GET may contradict.
func hint(f *failure) error {
	err := *f.err
	err.Hint = true
	return &err
}

// headless is the error for a HEAD that isn't sent.
func (r *Registry) headless(a *ask) error {
	return &oci.Error{Code: oci.CodeUnavailable, Status: http.StatusBadGateway, Hint: true,
		Message: fmt.Sprintf("upstream %s does not answer HEAD requests for %s", r.name, a.what)}
}

// form is what the body of an error looks like.
type form int

const (
	formErrors form = iota // the error document of the distribution spec
	formOther              // nothing, other JSON, or XML: object stores and API gateways send these
	formPage               // HTML or text, for people
)

// speaksTime is how old an answer to GET /v2/ may be that says whether an endpoint is a
// registry.
const speaksTime = 5 * time.Second

// believe returns f, the failure of an answer, unless that is a 404 that no registry
// sent: an ingress whose backend is gone answers 404 to everything. Such a 404 is a
// failure of the endpoint and says nothing about what exists.
//
// The body tells: an error document is a registry's, a page is not. If it is neither, a
// header that registries send decides, or else whether the endpoint answers GET /v2/.
func (r *Registry) believe(ctx context.Context, res *answer, f *failure) *failure {
	if !oci.IsAbsent(f.err) || res.Request.Method == http.MethodHead || res.ask.op == "referrers" {
		return f // a HEAD is confirmed by a GET; a missing referrers API has a fallback
	}
	switch {
	case f.form == formErrors:
		return f
	case f.form == formPage:
	case res.away, res.Header.Get("Docker-Distribution-Api-Version") != "", r.speaks(ctx, res.ep):
		return f
	case ctx.Err() != nil:
		return r.gaveUp(ctx)
	}
	no := r.garbled(res, "answered 404 with a page that no registry sends; the registry behind it may be gone")
	no.reason = "status"
	return no
}

// speaks reports whether there is a registry at ep: anything but a 404 or a failure to
// GET /v2/ says so.
func (r *Registry) speaks(ctx context.Context, ep *endpoint) bool {
	g, err := r.tokens.greeting(ctx, ep, speaksTime)
	return err == nil && g.status != http.StatusNotFound && g.status < 500
}
