package operator

import (
	"context"
	"net/http"
	"strconv"

	"github.com/entrepot-dev/entrepot/cache/index"
)

// scrub verifies all that is stored, at ?rate= bytes a second. Events and result are
// an index.Scrub.
func (a *API) scrub(ctx context.Context, r *http.Request, tell Tell) (any, error) {
	var rate int64
	if text := r.URL.Query().Get("rate"); text != "" {
		var err error
		if rate, err = strconv.ParseInt(text, 10, 64); err != nil || rate < 0 {
			return nil, invalidf("rate is in bytes a second, such as %sscrub?rate=8388608", Prefix)
		}
	}
	return a.Cache.Scrub(ctx, rate, func(s index.Scrub) error { return tell(s) })
}
