package operator

import (
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// history answers with a cache.History of ?reference=, a tag.
func (a *API) history(r *http.Request) (any, error) {
	t, err := a.tag(r, "history")
	if err != nil {
		return nil, err
	}
	return a.Cache.History(r.Context(), t)
}

// accept has the tag of ?reference= served as it stands, and gives a cache.Acceptance.
func (a *API) accept(r *http.Request) (any, error) {
	t, err := a.tag(r, "accept")
	if err != nil {
		return nil, err
	}
	done, err := a.Cache.Accept(r.Context(), t)
	if err == nil && done.From != "" {
		a.Log.Info("the move of a tag has been accepted", zap.Stringer("reference", t), zap.Stringer("from", done.From), zap.Stringer("to", done.To))
	}
	return done, err
}

// tag reads ?reference= of a request for what is about a tag.
func (a *API) tag(r *http.Request, name string) (oci.Target, error) {
	text := r.URL.Query().Get("reference")
	if text == "" {
		return oci.Target{}, invalidf("name a tag: %s%s?reference=docker.io/library/nginx:1.27", Prefix, name)
	}
	t, err := Target(a.Router, text)
	if err == nil && t.Tag == "" {
		err = invalidf("%q names a digest, which never changes; name a tag", text)
	}
	return t, err
}

// Diff is the answer to GET diff.
type Diff struct {
	// Since is from when on moves are listed, Until when that was asked.
	Since time.Time    `json:"since"`
	Until time.Time    `json:"until"`
	Moves []cache.Move `json:"moves"`
}

// diff answers with the tags that were seen to move from ?since= on, a time as of
// RFC 3339; ?upstream= and ?repository= are patterns.
func (a *API) diff(r *http.Request) (any, error) {
	q := r.URL.Query()
	since, err := time.Parse(time.RFC3339, q.Get("since"))
	if err != nil {
		return nil, invalidf("since is a time, such as %sdiff?since=2026-11-01T12:30:00Z", Prefix)
	}
	d := Diff{Since: since.UTC(), Until: time.Now().UTC()}
	d.Moves, err = a.Cache.Moves(r.Context(), cache.MovesFilter{Since: since, Upstream: q.Get("upstream"), Repository: q.Get("repository")})
	return d, err
}
