package operator

import (
	"net/http"
	"time"

	"github.com/entrepot-dev/entrepot/cache"
)

// Asked is the answer to GET asked.
type Asked struct {
	// Since is from when on pulls count.
	Since  time.Time          `json:"since"`
	Images []cache.AskedImage `json:"images"`
}

// asked answers with the images that clients have pulled from ?since= on, a time as of
// RFC 3339.
func (a *API) asked(r *http.Request) (any, error) {
	since, err := time.Parse(time.RFC3339, r.URL.Query().Get("since"))
	if err != nil {
		return nil, invalidf("since is a time, such as %sasked?since=2026-11-01T12:30:00Z", Prefix)
	}
	images, err := a.Cache.Asked(r.Context(), since)
	return Asked{Since: since.UTC(), Images: images}, err
}
