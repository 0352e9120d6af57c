package hub

import (
	"fmt"
	"net/http"
)

// Quirk is a habit of some registries with which clients live, or some of them.
type Quirk struct {
	Name string
	// Faults are all in force at a time.
	Faults []Fault
	// Large says that it shows with blobs of many megabytes only.
	Large bool
}

// Quirks are the habits that we know, that need no login and that slow no client down. A
// new one belongs here, so that all clients are tried with it.
func Quirks() []Quirk {
	quirks := []Quirk{
		{Name: "none"},
		{Name: "no length of blobs", Faults: []Fault{NoLength()}, Large: true},
		{Name: "ranges ignored", Faults: []Fault{IgnoreRange()}, Large: true},
		{Name: "no digest headers", Faults: []Fault{NoDigest()}},
		{Name: "pulls not counted", Faults: []Fault{Uncounted()}},
		{Name: "pages of two", Faults: []Fault{PagesOf(2)}},
		{Name: "links without brackets", Faults: []Fault{BareLinks()}},
		{Name: "links without rel", Faults: []Fault{UnrelatedLinks()}},
		{Name: "absolute links", Faults: []Fault{AbsoluteLinks()}},
		{Name: "links with an internal host", Faults: []Fault{InternalLinks()}},
		{Name: "tags as Google lists them", Faults: []Fault{GoogleTags()}},
		{Name: "lists redirected", Faults: []Fault{RedirectLists()}},
		{Name: "digests as tags", Faults: []Fault{DigestTags(), Answer(Referrers, http.StatusNotFound)}},
		{Name: "referrers HTML", Faults: []Fault{ReferrersAnswer(http.StatusOK, "text/html", "<html></html>")}},
		{Name: "referrers empty", Faults: []Fault{ReferrersAnswer(http.StatusOK, "application/json", "")}},
		{Name: "referrers other JSON", Faults: []Fault{ReferrersAnswer(http.StatusOK, "application/json", "{}")}},
	}
	each := func(name string, statuses []int, fault func(status int) Fault) {
		for _, status := range statuses {
			quirks = append(quirks, Quirk{Name: fmt.Sprint(name, " ", status), Faults: []Fault{fault(status)}})
		}
	}
	of := func(k Kind) func(int) Fault { return func(status int) Fault { return Answer(k, status) } }
	each("referrers", []int{204, 400, 401, 403, 404, 406, 410, 500}, of(Referrers))
	each("tags", []int{403, 404, 500}, of(Tags))
	each("HEAD of manifests", []int{400, 401, 403, 404, 405, 500}, of(ManifestHead))
	each("HEAD of blobs", []int{400, 403, 404, 405, 500}, of(BlobHead))
	each("ping", []int{403, 404}, of(Ping))
	return quirks
}
