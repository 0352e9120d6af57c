package upstream

import (
	"context"
	"errors"
	"mime"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// maxBorrowed is with how many clients' credentials one thing is asked for, where
// the upstream refuses one after the other.
const maxBorrowed = 4

// Lender has the credentials of clients that may pull, each for one repository. Its
// methods are safe for concurrent use and do not wait.
type Lender interface {
	// Borrow gives the credential with which repo is asked for now: the zero one
	// where everyone may pull it; false where nobody is known to.
	Borrow(repo string) (Credential, bool)
	// Refused tells that the upstream does not let c, which was borrowed for repo,
	// have what was asked for.
	Refused(repo string, c Credential)
}

// borrow puts a with what the lender has for its repository. That nobody's
// credential serves is a failure to find out, never the upstream's word: it would be
// remembered, and told to those who may.
func (r *Registry) borrow(ctx context.Context, a *ask, take func(*answer) *failure) *failure {
	for range maxBorrowed {
		c, ok := r.lender.Borrow(a.repo)
		if !ok {
			break
		}
		a.who = StaticCredentials(c)
		f := r.put(ctx, a, take)
		if f == nil || !oci.IsRefused(f.err) {
			return f
		}
		// Some registries refuse to everyone an API that they lack. That says nothing about c.
		if (a.op == "referrers" || a.page != nil) && !oci.IsRefused(r.MayPull(ctx, c, a.repo, "", false)) {
			g := *f
			g.err = unavailable(http.StatusBadGateway, nil, "upstream %s refuses to list %s", r.name, a.what)
			g.err.Answered = f.status
			return &g
		}
		r.lender.Refused(a.repo, c)
	}
	return &failure{err: unavailable(http.StatusServiceUnavailable, nil,
		"%s can not be fetched: upstream %s has just refused the clients that may pull it, or none of them has asked for it lately", a.what, r.name)}
}

// MayPull asks the upstream whether c, which is anonymous where it is zero, may pull
// from repo: by a token of its own that was not given out before, and by HEAD of
// what ref names, a tag or the digest of a manifest or blob. Where that is not to be
// had, which may be for that it does not exist, the list of tags decides; ref may be
// empty. It gives nil, an error that oci.IsRefused tells of, or why it can not be found
// out. That repo does not exist is a refusal as well, and so is whatever else the
// upstream does not take: no caller makes its right unknown by what it asks for.
func (r *Registry) MayPull(ctx context.Context, c Credential, repo, ref string, blob bool) error {
	for _, ep := range r.endpoints {
		r.tokens.forget(ep.scope(repo), c.fingerprint())
	}
	asks := []*ask{r.tagsAsk(repo)}
	if blob {
		asks = []*ask{r.blobAsk("stat", http.MethodHead, repo, digest.Digest(ref)), asks[0]}
	} else if ref != "" {
		asks = []*ask{r.manifestAsk("resolve", http.MethodHead, repo, ref), asks[0]}
	}
	var unknown *failure
	for _, a := range asks {
		a.who = StaticCredentials(c)
		f := r.put(ctx, a, func(res *answer) *failure { return r.isYes(ctx, res) })
		if f == nil {
			return nil
		}
		if !isWord(f) && unknown == nil {
			unknown = f
		}
		if unknown != nil && !isHint(f) {
			break // else HEAD alone may not work there
		}
	}
	if unknown != nil {
		return unknown.err
	}
	return oci.Errorf(oci.CodeDenied, "%s/%s does not exist, or may not be pulled", r.name, repo)
}

// isYes gives nil where res is what a registry says to who may pull. A login page, to
// which others are sent, has status 200 as well.
func (r *Registry) isYes(ctx context.Context, res *answer) *failure {
	no := r.garbled(res, "did not say what registries say")
	no.again = nobody // it may say so of this only
	switch {
	case res.StatusCode != http.StatusOK:
		return no
	case res.ask.op == "stat":
		t, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
		if headerDigest(res.Header) == "" && (t == "text/html" || t == "application/json") {
			return no
		}
	case res.ask.op == "resolve":
		if declaredType(res.Header) == "" && headerDigest(res.Header) == "" {
			return no
		}
	default:
		l := &collected[string]{kind: &tagLists, r: r, room: room{memory: r.memory}}
		defer l.leave()
		if f := l.readPage(ctx, res); f != nil {
			if f.status == http.StatusOK && !errors.Is(f.err, errNoRoom) && !f.partial {
				return no
			}
			return f
		}
	}
	return nil
}

// isWord tells whether f, of a question who may pull, is an answer: no yes, but
// neither a failure.
func isWord(f *failure) bool {
	switch {
	case !oci.IsTransient(f.err), f.status == http.StatusNotImplemented:
		return true
	case f.status == http.StatusTooManyRequests, f.status == http.StatusRequestTimeout, f.err.Status == http.StatusServiceUnavailable:
		return false
	}
	return f.status >= 200 && f.status < 500
}
