package operator

import (
	"net/http"

	"github.com/entrepot-dev/entrepot/cache"
)

// images answers with the cache.Images that ?pattern= takes.
func (a *API) images(r *http.Request) (any, error) {
	return a.Cache.Images(r.Context(), cache.ImagesFilter{Pattern: r.URL.Query().Get("pattern")})
}
