package operator

import (
	"net/http"
	"strconv"

	"github.com/entrepot-dev/entrepot/cache"
)

// images answers with the cache.Images that ?pattern= takes; with ?pinned=true, of those
// that are pinned.
func (a *API) images(r *http.Request) (any, error) {
	f := cache.ImagesFilter{Pattern: r.URL.Query().Get("pattern")}
	var err error
	if f.Pinned, err = flag(r, "pinned"); err != nil {
		return nil, err
	}
	return a.Cache.Images(r.Context(), f)
}

// flag reads a parameter that is true or false; false where it is not there.
func flag(r *http.Request, name string) (bool, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, invalidf("%s is true or false", name)
	}
	return v, nil
}
