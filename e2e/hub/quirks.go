package hub

import (
	"fmt"
	"net/http"
	"time"
)

// Quirk is a habit of some registries with which clients live, or some of them.
type Quirk struct {
	Name string
	// Faults are all in force at a time.
	Faults []Fault
	// Large says that it shows with blobs of many megabytes only.
	Large bool
	// Tokens says that the registry wants a token for everything, and Login that it wants
	// an account, by Basic unless Tokens is set too.
	Tokens, Login bool
	// RedirectTo, if it isn't zero, is the status with which the registry redirects
	// everything but /v2/ to another registry, which has the content.
	RedirectTo int
	// Beyond says that no client copes with it, though Entrepot does.
	Beyond bool
	// Severed says that connections die silently between two visits of a client.
	Severed bool
}

// silence is longer than the time after which Entrepot looks for another way to get what
// somebody waits for, and shorter than the patience of any client.
const silence = 2500 * time.Millisecond

// Quirks are the habits that we know. A new one belongs here, so that all clients are
// tried with it, directly and through Entrepot.
func Quirks() []Quirk {
	quirks := []Quirk{
		{Name: "none"},
		// These take seconds.
		{Name: "silence before blobs", Faults: []Fault{Delay(BlobGet, silence)}},
		{Name: "silence before manifests", Faults: []Fault{Delay(ManifestGet, silence)}},
		{Name: "silence before HEADs", Faults: []Fault{Delay(ManifestHead, silence), Delay(BlobHead, silence)}},
		{Name: "silence before lists", Faults: []Fault{Delay(Tags, silence), Delay(Referrers, silence)}},
		{Name: "connections that die silently", Severed: true},
	}
	for _, k := range []Kind{Tags, Referrers, ManifestHead, BlobHead, Ping} {
		quirks = append(quirks,
			Quirk{Name: fmt.Sprintf("429 to %s", k), Faults: []Fault{TooManyRequests(k)}},
			Quirk{Name: fmt.Sprintf("429 to %s, for a second", k), Faults: []Fault{Answer(k, http.StatusTooManyRequests).With("Retry-After", "1")}})
	}
	quirks = append(quirks, []Quirk{
		{Name: "no length of blobs", Faults: []Fault{NoLength()}, Large: true},
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
		{Name: "everything redirected by 307", RedirectTo: http.StatusTemporaryRedirect},
		{Name: "everything redirected by 308", RedirectTo: http.StatusPermanentRedirect},
	}...)
	quirks = append(quirks, rangeQuirks()...)
	quirks = append(quirks, loginQuirks()...)
	each := func(name string, statuses []int, fault func(status int) Fault) {
		for _, status := range statuses {
			quirks = append(quirks, Quirk{Name: fmt.Sprint(name, " ", status), Faults: []Fault{fault(status)}})
		}
	}
	of := func(k Kind) func(int) Fault { return func(status int) Fault { return Answer(k, status) } }
	each("referrers", []int{204, 400, 401, 403, 404, 406, 410, 500}, of(Referrers))
	each("tags", []int{403, 404, 500}, of(Tags))
	each("HEAD of manifests", []int{400, 401, 403, 404, 405, 500}, func(status int) Fault { return RefuseHead(ManifestHead, status) })
	each("HEAD of blobs", []int{400, 403, 404, 405, 500}, func(status int) Fault { return RefuseHead(BlobHead, status) })
	each("ping", []int{403, 404}, of(Ping))
	for name, page := range map[string]IngressPage{"Traefik": TraefikPage, "nginx": NginxPage, "a default backend": DefaultPage,
		"Kong": KongPage, "Envoy": EnvoyPage, "untyped": UntypedPage, "HTML as JSON": MislabelPage} {
		quirks = append(quirks, Quirk{Name: "a page of an ingress: " + name,
			Faults: []Fault{Ingress(Referrers, page), Ingress(ManifestHead, page), Ingress(BlobHead, page)}})
	}
	for _, k := range []Kind{Referrers, ManifestHead, BlobHead, Tags} {
		quirks = append(quirks, Quirk{Name: fmt.Sprintf("a bare 404 to %s", k), Faults: []Fault{BareNotFound(k)}})
	}
	for _, k := range []Kind{ManifestGet, BlobGet} {
		for _, encoding := range []string{"gzip", "x-gzip"} {
			quirks = append(quirks, Quirk{Name: fmt.Sprintf("%s compressed as %s", k, encoding), Faults: []Fault{Gzipped(k, encoding)}})
		}
	}
	return quirks
}

// rangeQuirks are what registries do to requests for ranges of blobs. Each is slow enough
// that Entrepot asks for ranges.
func rangeQuirks() []Quirk {
	faults := map[string]Fault{
		"ignored":                IgnoreRange(),
		"without Content-Range":  MislabelRange(""),
		"of another syntax":      MislabelRange("bytes=0-9/10"),
		"all, whatever is asked": MislabelRange("bytes 0-%d/*"),
		"the first bytes":        ShiftRange(1 << 40),
		"one byte late":          ShiftRange(1),
		"closed":                 CloseOnRange(),
		"with an end refused":    RefuseRangeWithEnd(http.StatusBadRequest),
		"never answered":         SilentRange(0, -1),
		"with a header only":     SilentRange(0, 0),
		"and no end":             NoEnd(),
	}
	for _, status := range []int{400, 403, 404, 416, 503} {
		faults[fmt.Sprint("refused by ", status)] = RefuseRange(status)
	}
	var quirks []Quirk
	for name, f := range faults {
		quirks = append(quirks, Quirk{Name: "ranges " + name, Faults: []Fault{Slow(30e6), f}, Large: true})
	}
	return quirks
}

// loginQuirks are how registries ask for a login, and how their token servers answer.
func loginQuirks() []Quirk {
	quirks := []Quirk{
		{Name: "Basic", Login: true},
		{Name: "Basic, /v2/ is open", Login: true, Faults: []Fault{OpenPing()}},
		{Name: "tokens", Tokens: true},
		{Name: "tokens, login", Tokens: true, Login: true},
		{Name: "tokens, /v2/ is open", Tokens: true, Faults: []Fault{OpenPing()}},
		{Name: "scopes of another name", Tokens: true, Faults: []Fault{NameScopes("proj/hub/")}},
		{Name: "scopes of another name only", Beyond: true, Tokens: true, Faults: []Fault{NameScopes("proj/hub/"), RefuseScopes(http.StatusForbidden, "proj/hub/", false)}},
		{Name: "one scope at a time", Tokens: true, Faults: []Fault{RefuseScopes(http.StatusBadRequest, "", true)}},
		{Name: "POST refused for tokens", Tokens: true, Login: true, Faults: []Fault{RefusePost(http.StatusMethodNotAllowed)}},
		{Name: "tokens compressed", Tokens: true, Faults: []Fault{GzipToken()}},
		{Name: "expires_in as a string", Beyond: true, Tokens: true, Faults: []Fault{TokenAnswer(func(a map[string]any) { a["expires_in"] = "300" })}},
		{Name: "access_token only", Tokens: true, Faults: []Fault{TokenAnswer(func(a map[string]any) { delete(a, "token") })}},
		{Name: "another access_token", Tokens: true, Faults: []Fault{TokenAnswer(func(a map[string]any) { a["access_token"] = "stale" })}},
		{Name: "another token", Tokens: true, Faults: []Fault{TokenAnswer(func(a map[string]any) { a["token"] = "stale" })}},
	}
	for _, status := range []int{401, 403, 404} {
		for _, tokens := range []bool{false, true} {
			quirks = append(quirks, Quirk{Name: fmt.Sprintf("%d without a challenge, tokens %v", status, tokens),
				Login: true, Tokens: tokens, Faults: []Fault{Hide(status)}})
		}
	}
	return quirks
}
