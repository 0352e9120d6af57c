package operator

import (
	"net/http"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/oci"
)

// pin keeps ?reference= from being evicted, and gives a cache.Pinned.
func (a *API) pin(r *http.Request) (any, error) {
	t, err := a.reference(r, "pin")
	if err != nil {
		return nil, err
	}
	p, err := a.Cache.Pin(r.Context(), t)
	if err == nil && p.Changed {
		a.Log.Info("an image has been pinned", zap.Stringer("reference", t), zap.Stringer("digest", p.Digest))
	}
	return p, err
}

// unpin undoes pin.
func (a *API) unpin(r *http.Request) (any, error) {
	t, err := a.reference(r, "unpin")
	if err != nil {
		return nil, err
	}
	p, err := a.Cache.Unpin(r.Context(), t)
	if err == nil && p.Changed {
		a.Log.Info("an image has been unpinned", zap.Stringer("reference", t))
	}
	return p, err
}

// reference reads ?reference=.
func (a *API) reference(r *http.Request, name string) (oci.Target, error) {
	text := r.URL.Query().Get("reference")
	if text == "" {
		return oci.Target{}, invalidf("name a reference: %s%s?reference=docker.io/library/nginx:1.27", Prefix, name)
	}
	return Target(a.Router, text)
}
