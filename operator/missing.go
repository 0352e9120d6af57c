package operator

import (
	"net/http"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// Missing is the answer to GET missing.
type Missing struct {
	// Images are the newest last.
	Images []cache.MissingImage `json:"images"`
}

// missing answers with the images that clients asked for and did not get, because an upstream
// was not asked or did not answer.
func (a *API) missing(*http.Request) (any, error) {
	return Missing{Images: a.Cache.Missing(func(text string) (oci.Target, error) { return Target(a.Router, text) })}, nil
}
