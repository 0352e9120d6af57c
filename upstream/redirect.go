package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

const maxRedirects = 10

// refusedRedirect says why a redirect was not followed, in words that name
// hosts only: a Location may be signed.
type refusedRedirect struct{ why string }

func (e *refusedRedirect) Error() string { return e.why }

// send sends req and follows redirects, for registries send blobs, and some
// also manifests, from elsewhere. It gives the URL that answered in the end.
//
// Authorization goes to req's own site only; once a redirect has left it, no
// later hop has it, not even one back.
//
// cancel ends req's context.
func (r *Registry) send(req *http.Request, cancel context.CancelCauseFunc) (*http.Response, *url.URL, error) {
	start := site(req.URL)
	for hop := 0; ; hop++ {
		res, err := r.routes.roundTrip(req)
		if err != nil {
			return nil, req.URL, err
		}
		switch res.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return res, req.URL, nil
		}
		r.discard(res.Body, cancel)
		if hop == maxRedirects {
			return nil, req.URL, &refusedRedirect{fmt.Sprintf("redirects more than %d times", maxRedirects)}
		}
		next, err := r.target(req, res.Header.Get("Location"))
		if err != nil {
			return nil, req.URL, err
		}
		req = req.Clone(req.Context())
		req.URL, req.Host = next, ""
		if site(next) != start {
			req.Header.Del("Authorization")
		}
	}
}

// target resolves and judges a Location. Where the address behind its host may
// not be dialled, routes will say so.
func (r *Registry) target(req *http.Request, location string) (*url.URL, error) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return nil, &refusedRedirect{"redirects a " + req.Method}
	}
	next, err := req.URL.Parse(location)
	if err != nil || location == "" {
		return nil, &refusedRedirect{"redirects to what is not a URL"}
	}
	next.Fragment, next.RawFragment = "", ""
	if (next.Scheme != "http" && next.Scheme != "https") || next.Hostname() == "" || next.User != nil || !isASCII(next.Host) {
		return nil, &refusedRedirect{"redirects to what is not an http URL"}
	}
	if next.Scheme == "http" && !r.routes.trust.plain(next, req.URL.Scheme == "http") {
		return nil, &refusedRedirect{fmt.Sprintf("redirects to plain http at %s; list it in upstreams.%s.redirect_hosts if that is right", next.Host, r.name)}
	}
	return next, nil
}

// discard reads what little is left of a body, so that its connection can be
// used again, and closes it. A body that stalls ends the request.
func (r *Registry) discard(b io.ReadCloser, cancel context.CancelCauseFunc) {
	t := time.AfterFunc(r.stall, func() { cancel(errStalled) })
	_, _ = io.CopyN(io.Discard, b, 4<<10)
	_ = b.Close()
	t.Stop()
}
