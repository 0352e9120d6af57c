package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const maxRedirects = 10

// refusedRedirect says why a redirect was not followed, in words that name
// hosts only: a Location may be signed.
type refusedRedirect struct{ why string }

func (e *refusedRedirect) Error() string { return e.why }

// send sends req and follows redirects, for registries send blobs, and some
// also manifests, from elsewhere. It returns the URL that answered in the end.
//
// Authorization goes to req's own site only, and to the same host over https if req is
// plain http; once a redirect has left it, no later hop has it, not even one back.
//
// A redirect may lead to another registry, which has a challenge of its own. guest, if it
// isn't nil, answers that.
//
// cancel ends req's context.
func (r *Registry) send(req *http.Request, cancel context.CancelCauseFunc, guest *guest) (*http.Response, *url.URL, error) {
	start := req.URL
	owner := start // of the Authorization header
	if guest != nil {
		start = guest.home
	}
	for hop := 0; ; hop++ {
		res, err := r.hop(req, cancel)
		if err != nil {
			return nil, req.URL, err
		}
		switch res.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		case http.StatusUnauthorized:
			if guest == nil || guest.left == 0 || sameRegistry(start, req.URL) {
				return res, req.URL, nil
			}
			guest.left--
			header, err := r.tokens.visit(req.Context(), req.URL, res.Header, req.Header.Get("Authorization"), guest.since, guest.from)
			if err != nil {
				r.discard(res.Body, cancel)
				return nil, req.URL, err
			}
			if header == "" {
				return res, req.URL, nil
			}
			r.discard(res.Body, cancel)
			req = req.Clone(req.Context())
			req.Header.Set("Authorization", header)
			owner = req.URL
			continue
		default:
			return res, req.URL, nil
		}
		r.discard(res.Body, cancel)
		if hop >= maxRedirects {
			return nil, req.URL, &refusedRedirect{fmt.Sprintf("redirects more than %d times", maxRedirects)}
		}
		next, err := r.target(req, res.Header.Get("Location"))
		if err != nil {
			return nil, req.URL, err
		}
		req = req.Clone(req.Context())
		req.URL, req.Host = next, ""
		if !sameRegistry(owner, next) {
			req.Header.Del("Authorization")
			if guest != nil && !sameRegistry(start, next) {
				if header := r.tokens.abroadToken(next); header != "" {
					req.Header.Set("Authorization", header)
				}
			}
		}
		owner = next
	}
}

// guest is a request's way to answer the challenges of registries that redirects lead to.
type guest struct {
	home  *url.URL // of the endpoint, whose challenges the guest doesn't answer
	left  int      // challenges that may still be answered
	since int64    // see wish
	from  Credentials
}

// sameRegistry says whether what belongs to the site of from may go to to: the same site,
// or the same host over https where from is plain http.
func sameRegistry(from, to *url.URL) bool {
	return site(from) == site(to) || from.Scheme == "http" && to.Scheme == "https" && strings.EqualFold(from.Hostname(), to.Hostname())
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
		why := fmt.Sprintf("redirects to plain http at %s; list it in upstreams.%s.redirect_hosts if that is right", next.Host, r.name)
		if r.routes.trust.otherPort(next) {
			why = fmt.Sprintf("redirects to plain http at %s, which upstreams.%s.redirect_hosts lists for other ports only (without a port it stands for 80 and 443); write %[1]s there if that is right", next.Host, r.name)
		}
		return nil, &refusedRedirect{why}
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
