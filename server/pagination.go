package server

import (
	"errors"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// pageQuery says which page of a sorted list a client asks for
// (distribution-spec, "Listing Tags").
type pageQuery struct {
	last string // the page begins behind it; empty for the first page
	n    int    // the number of entries; -1 for all
}

// pageQuery reads n and last of the query.
func (x *exchange) pageQuery() (pageQuery, error) {
	p := pageQuery{n: -1}
	p.last, _ = rewrite.QueryValue(x.request.Query, "last")
	asked, ok := rewrite.QueryValue(x.request.Query, "n")
	if !ok || asked == "" {
		return p, nil
	}
	n, err := strconv.ParseUint(asked, 10, 31)
	if errors.Is(err, strconv.ErrRange) && strings.Trim(asked, "0123456789") == "" {
		return p, nil // no list has so many entries
	}
	if err != nil {
		return p, &oci.Error{Code: "PAGINATION_NUMBER_INVALID", Status: fasthttp.StatusBadRequest, Message: "n is not a number of entries to list"}
	}
	p.n = int(n)
	return p, nil
}

// most gives the number of entries that the page has at most.
func (p pageQuery) most() int {
	if p.n < 0 {
		return math.MaxInt - 1
	}
	return p.n
}

// behind gives the entries of a sorted list behind p.last, which need not be one of
// them.
func (p pageQuery) behind(all []string) []string {
	if p.last == "" {
		return all
	}
	i, found := slices.BinarySearch(all, p.last)
	if found {
		i++
	}
	return all[i:]
}

// cut leaves of the entries from the page's first on those of the page, and links to
// the next page if there are more. The link leads back the way the client came: its
// path, and its ns.
func (x *exchange) cut(from []string, p pageQuery) []string {
	if len(from) <= p.most() {
		return from
	}
	if p.n == 0 {
		return nil
	}
	from = from[:p.n]
	link := "<" + x.request.Path + "?n=" + strconv.Itoa(p.n) + "&last=" + url.QueryEscape(from[p.n-1])
	if x.ns != "" {
		link += "&ns=" + url.QueryEscape(x.ns)
	}
	x.header("Link", link+`>; rel="next"`)
	return from
}
