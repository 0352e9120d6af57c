package hub

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// listQuirk changes how lists of tags and referrers are answered.
type listQuirk struct {
	// page is the number of entries on a page, whatever the request says.
	page int
	// link writes the Link header, "" for none; next is the URL of the next page on
	// this registry, and nil on the last page.
	link func(r *http.Request, next *url.URL) string
	// gcr answers tags as Google's registries do.
	gcr bool
	// elsewhere redirects the list to the CDN's listener, under another path.
	elsewhere bool
}

// PagesOf splits lists of tags and referrers into pages of n entries.
func PagesOf(n int) Fault { return Fault{kind: lists, list: &listQuirk{page: n}} }

// linked is lists in pages of two whose Link headers link writes.
func linked(link func(r *http.Request, next *url.URL) string) Fault {
	return Fault{kind: lists, list: &listQuirk{page: 2, link: link}}
}

// ifMore gives a link function that writes nothing on the last page.
func ifMore(link func(next *url.URL) string) func(*http.Request, *url.URL) string {
	return func(_ *http.Request, next *url.URL) string {
		if next == nil {
			return ""
		}
		return link(next)
	}
}

// BareLinks writes Link headers without the angle brackets, as old versions of Quay do.
func BareLinks() Fault {
	return linked(ifMore(func(next *url.URL) string { return next.RequestURI() + `; rel="next"` }))
}

// UnrelatedLinks writes Link headers without rel="next".
func UnrelatedLinks() Fault {
	return linked(ifMore(func(next *url.URL) string { return "<" + next.RequestURI() + ">" }))
}

// AbsoluteLinks writes Link headers with the host that was asked.
func AbsoluteLinks() Fault {
	return linked(func(r *http.Request, next *url.URL) string {
		if next == nil {
			return ""
		}
		return "<http://" + r.Host + next.RequestURI() + `>; rel="next"`
	})
}

// InternalLinks writes Link headers that name a host that only the registry knows.
func InternalLinks() Fault {
	return linked(ifMore(func(next *url.URL) string {
		return "<http://registry-core.internal:8080" + next.RequestURI() + `>; rel="next"`
	}))
}

// LinksWithout writes Link headers whose paths lack a prefix, as a registry behind a
// proxy does that adds it: LinksWithout("/proxy") makes "/v2/app/…" of "/v2/proxy/app/…".
func LinksWithout(prefix string) Fault {
	return linked(ifMore(func(next *url.URL) string {
		return "<" + strings.Replace(next.RequestURI(), "/v2"+prefix+"/", "/v2/", 1) + `>; rel="next"`
	}))
}

// LinkLoop links each page to itself.
func LinkLoop() Fault {
	return linked(func(r *http.Request, _ *url.URL) string { return "<" + r.URL.RequestURI() + `>; rel="next"` })
}

// LinkSpiral links each page to the first one, by a URL that is always another.
func LinkSpiral() Fault {
	return linked(func(r *http.Request, _ *url.URL) string {
		n, _ := strconv.Atoi(r.URL.Query().Get("token")) // zero where it is absent
		return fmt.Sprintf(`<%s?token=%d>; rel="next"`, r.URL.Path, n+1)
	})
}

// BrokenLink writes a Link header in which no URL can be found.
func BrokenLink() Fault {
	return linked(ifMore(func(*url.URL) string { return `<%zz>; rel="next"` }))
}

// GoogleTags lists all tags on one page, between maps of all manifests and children, as
// gcr.io and pkg.dev do.
func GoogleTags() Fault { return Fault{kind: Tags, list: &listQuirk{gcr: true}} }

// RedirectLists redirects lists to another host, where they have another path and
// links relative to it, as registry.k8s.io does.
func RedirectLists() Fault { return Fault{kind: lists, list: &listQuirk{page: 2, elsewhere: true}} }

// OnLaterPages narrows a fault to the pages of a list behind the first.
func (f Fault) OnLaterPages() Fault { f.later = true; return f }

// ReferrersAnswer answers the referrers API with something else than an index.
func ReferrersAnswer(status int, contentType, body string) Fault {
	return Answer(Referrers, status).With("Content-Type", contentType).Saying(body)
}

// DigestTags resolves the tag "sha256-<hex>" to the manifest of that digest, as
// registry.gitlab.com does.
func DigestTags() Fault { return Fault{kind: manifests, digestTags: true} }

// digestTag gives the digest that a tag "sha256-<hex>" spells, where faults want it
// resolved; else ref.
func digestTag(ref string, met []*rule) string {
	for _, f := range met {
		if alg, hex, ok := strings.Cut(ref, "-"); ok && f.digestTags {
			if d, err := digest.Parse(alg + ":" + hex); err == nil {
				return d.String()
			}
		}
	}
	return ref
}

// lists stands for both kinds of list in a Fault.
const lists Kind = "list"

// isLater reports whether r asks for a page behind the first.
func isLater(r *http.Request) bool {
	q := r.URL.Query()
	return q.Has("last") || q.Has("page") || q.Has("token")
}

// elsewhere is where RedirectLists moves lists, in place of /v2/.
const elsewhere = "/v2/eu-artifacts/images/"

// movedList redirects a list if faults want it elsewhere.
func (h *Hub) movedList(w http.ResponseWriter, r *http.Request, met []*rule) bool {
	for _, f := range met {
		if f.list != nil && f.list.elsewhere {
			// The query is lost, as at registry.k8s.io.
			w.Header().Set("Location", h.CDNURL()+elsewhere+strings.TrimPrefix(r.URL.Path, "/v2/"))
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}
	}
	return false
}

// serveMovedList answers for a list that movedList moved.
func (h *Hub) serveMovedList(w http.ResponseWriter, r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, elsewhere)
	if !ok {
		return false
	}
	rt := parseRoute(r.Method, "/v2/"+rest)
	h.note(rt.kind, r)
	met := h.trouble(ask{kind: rt.kind, repo: rt.repo, later: isLater(r)})
	if r.Header.Get("Authorization") != "" {
		h.count(func(c *Counts) { c.Leaks++ })
	}
	if h.before(w, r, met) {
		return true
	}
	switch rt.kind {
	case Tags:
		h.serveTags(w, r, rt, met)
	case Referrers:
		h.serveReferrers(w, r, rt, met)
	default:
		return false
	}
	return true
}

// pageSize gives the number of entries on a page; zero for no limit.
func (h *Hub) pageSize(met []*rule) int {
	for _, f := range met {
		if f.list != nil && f.list.page > 0 {
			return f.list.page
		}
	}
	return h.o.PageSize
}

// linkPage sets the Link header of a page: next is the query of the next one, nil on
// the last page.
func (h *Hub) linkPage(w http.ResponseWriter, r *http.Request, next url.Values, met []*rule) {
	var u *url.URL
	if next != nil {
		u = &url.URL{Path: r.URL.Path, RawQuery: next.Encode()}
	}
	for _, f := range met {
		if f.list != nil && f.list.link != nil {
			if l := f.list.link(r, u); l != "" {
				w.Header().Set("Link", l)
			}
			return
		}
	}
	if u != nil {
		w.Header().Set("Link", "<"+u.RequestURI()+`>; rel="next"`)
	}
}

// serveGoogleTags answers with all tags of a repository on one page.
func (h *Hub) serveGoogleTags(w http.ResponseWriter, rt route, tags []string) {
	type entry struct {
		ImageSizeBytes string   `json:"imageSizeBytes"`
		LayerID        string   `json:"layerId"`
		MediaType      string   `json:"mediaType"`
		Tag            []string `json:"tag"`
		TimeCreatedMs  string   `json:"timeCreatedMs"`
		TimeUploadedMs string   `json:"timeUploadedMs"`
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"child":["base","tools"],"manifest":{`) // the client may be gone, here and below
	for i, tag := range tags {
		comma := ","
		if i == 0 {
			comma = ""
		}
		b, err := json.Marshal(entry{"31415926", "", "application/vnd.docker.distribution.manifest.v2+json", []string{tag}, "1700000000000", "1700000000001"})
		if err != nil {
			panic(err)
		}
		_, _ = fmt.Fprintf(w, "%s%q:%s", comma, digest.FromString(tag), b)
	}
	list, err := json.Marshal(slices.Clone(tags))
	if err != nil {
		panic(err)
	}
	_, _ = fmt.Fprintf(w, `},"name":%q,"tags":%s}`, rt.repo, list)
}
