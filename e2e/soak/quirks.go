package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
)

// operation is what a client asks for.
type operation string

const (
	opManifest     operation = "manifest"
	opManifestHead operation = "HEAD of a manifest"
	opBlob         operation = "blob"
	opBlobHead     operation = "HEAD of a blob"
	opTags         operation = "tags"
	opReferrers    operation = "referrers"
)

// operations are all of them.
var operations = []operation{opManifest, opManifestHead, opBlob, opBlobHead, opTags, opReferrers}

// quirk is a habit of a registry that comes and goes in a soak.
type quirk struct {
	name   string
	faults []hub.Fault
	// may lists the operations that may fail meanwhile. All others must succeed, as must
	// these in other repositories if the quirk is one repository's.
	may []operation
	// everywhere says that may holds in other repositories too: the upstream limits an
	// operation, or the same blobs may be on their way to both.
	everywhere bool
	// says is the status by which the registry itself denies what is there; 0 for none.
	says int
}

// harmless are the quirks in which everything goes on. Logins, redirects to another
// registry and lost connections need a world of their own. A source that isn't calm flips
// bits of manifests, which nobody can notice in a tag's answer that names no digest.
func harmless(calm bool) []quirk {
	var all []quirk
	for _, q := range hub.Quirks() {
		own := q.Login || q.Tokens || q.Severed || q.RedirectTo != 0
		// What says that there are no tags is not harmless; nor are bytes that aren't
		// the blob's.
		refuses := strings.HasPrefix(q.Name, "tags 4") || strings.HasPrefix(q.Name, "tags 5") ||
			strings.HasPrefix(q.Name, "429 to ") || q.Name == "a bare 404 to tags" || q.Name == "referrers 500" ||
			q.Name == "ranges the first bytes" || q.Name == "ranges one byte late"
		hides := !calm && q.Name == "no digest headers"
		if !own && !refuses && !hides && len(q.Faults) > 0 {
			ours := quirk{name: q.Name, faults: q.Faults}
			if !calm {
				// While a limit keeps a GET from deciding, a client's HEAD gets what the
				// registry says to HEADs.
				ours.says = headStatus(q.Name)
				ours.may = []operation{opManifestHead}
			}
			all = append(all, ours)
		}
	}
	return all
}

// headStatus returns the status by which a registry with the named quirk denies to a HEAD of
// a manifest that the manifest is there, or that the client may have it; 0 if it doesn't.
func headStatus(quirk string) int {
	switch {
	case quirk == "HEAD of manifests 404", quirk == "a bare 404 to manifest HEAD", strings.HasPrefix(quirk, "a page of an ingress"):
		return http.StatusNotFound
	case quirk == "HEAD of manifests 401", quirk == "HEAD of manifests 403":
		return http.StatusForbidden
	}
	return 0
}

// harmful are the quirks in which one repository, or one operation, fails.
func harmful() []quirk {
	all := []quirk{
		{name: "manifests 500", faults: []hub.Fault{hub.Answer(hub.ManifestGet, 500)}, may: []operation{opManifest, opManifestHead}},
		{name: "manifests 503, and their HEADs", faults: []hub.Fault{hub.Answer(hub.ManifestGet, 503), hub.Answer(hub.ManifestHead, 503)}, may: []operation{opManifest, opManifestHead}},
		{name: "blobs 500", faults: []hub.Fault{hub.Answer(hub.BlobGet, 500)}, may: []operation{opBlob, opBlobHead}},
		{name: "blobs and their HEADs 500", faults: []hub.Fault{hub.Answer(hub.BlobGet, 500), hub.Answer(hub.BlobHead, 500)}, may: []operation{opBlob, opBlobHead}},
		{name: "blobs after a long silence", faults: []hub.Fault{hub.Delay(hub.BlobGet, 6*time.Second)}, may: []operation{opBlob}},
		{name: "ranges of other bytes", faults: []hub.Fault{hub.ShiftRange(1)}, may: []operation{opBlob}, everywhere: true},
		{name: "referrers 500", faults: []hub.Fault{hub.Answer(hub.Referrers, 500)}, may: []operation{opReferrers}},
		{name: "tags 500", faults: []hub.Fault{hub.Answer(hub.Tags, 500)}, may: []operation{opTags}},
		{name: "tags 403", faults: []hub.Fault{hub.Answer(hub.Tags, 403)}, may: []operation{opTags}, says: 403},
		{name: "tags 404", faults: []hub.Fault{hub.Answer(hub.Tags, 404)}, may: []operation{opTags}, says: 404},
		{name: "429 to tags", faults: []hub.Fault{hub.TooManyRequests(hub.Tags)}, may: []operation{opTags}, everywhere: true},
		{name: "429 to tags, for a minute", faults: []hub.Fault{hub.Answer(hub.Tags, 429).With("Retry-After", "60")}, may: []operation{opTags}, everywhere: true},
		{name: "429 to referrers", faults: []hub.Fault{hub.TooManyRequests(hub.Referrers)}, may: []operation{opReferrers}, everywhere: true},
	}
	// Of other JSON, or nothing, a 404 stands while /v2/ is answered.
	for name, page := range map[string]hub.IngressPage{"Traefik": hub.TraefikPage, "nginx": hub.NginxPage, "a default backend": hub.DefaultPage, "HTML as JSON": hub.MislabelPage} {
		all = append(all, quirk{name: "nothing but 404 pages: " + name, faults: []hub.Fault{hub.Ingress(hub.Any, page)}, may: operations})
	}
	slices.SortFunc(all, func(a, b quirk) int { return strings.Compare(a.name, b.name) }) // the seed chooses
	return all
}

// afterEffect is for how long a quirk may show after its end: what was asked meanwhile is
// still on its way, and a limit holds for as long as it said.
const afterEffect = 75 * time.Second

// window is the time in which a quirk is in force.
type window struct {
	quirk
	source *source
	repo   string // empty for all
	ended  time.Time
}

// excuses says whether win explains that repo refuses op with status.
func (win *window) excuses(s *source, repo string, op operation, status int, began time.Time) bool {
	if win.source != nil && win.source != s || !win.ended.IsZero() && began.After(win.ended.Add(afterEffect)) {
		return false
	}
	notNow := status == http.StatusTooManyRequests || status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout
	return (win.repo == "" || win.everywhere || win.repo == repo) && (notNow || status == win.says) && slices.Contains(win.may, op)
}

// excused reports whether a quirk explains that repo of the source s refuses op.
func (w *world) excused(s *source, repo string, op operation, status int, began time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.windows, func(win *window) bool { return win.excuses(s, repo, op, status, began) })
}

// open notes that q begins for repo of s, and returns the function that notes its end.
func (w *world) open(q quirk, s *source, repo string) (end func()) {
	win := &window{quirk: q, source: s, repo: repo}
	w.mu.Lock()
	w.windows = append(w.windows, win)
	w.mu.Unlock()
	return func() {
		w.mu.Lock()
		win.ended = time.Now()
		w.mu.Unlock()
	}
}

// asked reads a path of ours: the source, the repository and the operation.
func (w *world) asked(method, path string) (s *source, repo string, op operation) {
	for _, s := range w.sources {
		rest, ok := strings.CutPrefix(path, "/v2/"+s.name+"/")
		if !ok {
			continue
		}
		for word, op := range map[string]operation{"/manifests/": opManifest, "/blobs/": opBlob, "/tags/": opTags, "/referrers/": opReferrers} {
			if repo, _, ok := strings.Cut(rest, word); ok {
				if method == http.MethodHead && op == opManifest {
					op = opManifestHead
				}
				if method == http.MethodHead && op == opBlob {
					op = opBlobHead
				}
				return s, repo, op
			}
		}
	}
	panic(fmt.Sprintf("no path of ours: %s", path))
}

// pester lets a registry have quirks out of list, one at a time with rests in between,
// until ctx ends. repo chooses the repository; "" stands for all.
func (w *world) pester(ctx context.Context, s *source, h *hub.Hub, rnd *rand.Rand, list []quirk, repo func() string) {
	for ctx.Err() == nil {
		q, r := list[rnd.IntN(len(list))], repo()
		w.note(func(rep *report) { rep.quirks[q.name]++ })
		end := w.open(q, s, r)
		var undo []func()
		for _, f := range q.faults {
			undo = append(undo, h.Inject(f.In(r)))
		}
		sleep(ctx, w.o.some(rnd, 6*time.Second))
		for _, u := range undo {
			u()
		}
		end()
		sleep(ctx, w.o.some(rnd, 2*time.Second))
	}
}

// anyRepo chooses among the repositories of s.
func (w *world) anyRepo(s *source, rnd *rand.Rand) func() string {
	var repos []string
	for _, e := range w.corpus.entries {
		if e.source == s {
			repos = append(repos, e.repo)
		}
	}
	return func() string { return repos[rnd.IntN(len(repos))] }
}

func everyRepo() string { return "" }
