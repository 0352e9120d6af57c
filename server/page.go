package server

import (
	"net/url"
	"slices"
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// page cuts a sorted list as the query's n and last ask for, and links to the
// next page where there is one. The link leads back the way the client came:
// its path, and its ns (distribution-spec, "Listing Tags").
func (x *exchange) page(all []string) ([]string, error) {
	if last, ok := rewrite.QueryValue(x.request.Query, "last"); ok && last != "" {
		// A last that is not there starts at what would follow it.
		i, found := slices.BinarySearch(all, last)
		if found {
			i++
		}
		all = all[i:]
	}
	asked, ok := rewrite.QueryValue(x.request.Query, "n")
	if !ok || asked == "" {
		return nonNil(all), nil
	}
	n, err := strconv.ParseUint(asked, 10, 31)
	if err != nil {
		return nil, &oci.Error{Code: "PAGINATION_NUMBER_INVALID", Status: fasthttp.StatusBadRequest, Message: "n is not a number of entries to list"}
	}
	if n == 0 || int(n) >= len(all) {
		return nonNil(all[:min(int(n), len(all))]), nil
	}
	all = all[:n]
	link := "<" + x.request.Path + "?n=" + strconv.FormatUint(n, 10) + "&last=" + url.QueryEscape(all[n-1])
	if x.ns != "" {
		link += "&ns=" + url.QueryEscape(x.ns)
	}
	x.header("Link", link+`>; rel="next"`)
	return all, nil
}

// nonNil keeps an empty list from becoming null in JSON.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
