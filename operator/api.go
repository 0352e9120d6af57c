// Package operator is the JSON API for whoever runs a cache: what is here, what to
// keep, fetch, carry over or remove. The admin listener of a running proxy serves
// it, and the commands of the program use it, also on a cache directory that no
// process holds: then they serve it to themselves. So a command does the same and
// prints the same either way.
//
// An answer is one JSON document, or, of what takes long, lines of JSON as they
// come (see Line), or the bytes of a file. Errors are problem details (RFC 9457).
package operator

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/rewrite"
	"github.com/entrepot-dev/entrepot/upstream"
)

// Prefix is where the API is, with the slash at its end.
const Prefix = "/api/v1/"

// Options are what the API works on.
type Options struct {
	Cache  *cache.Cache
	Router *rewrite.Router
	// Version is the program's.
	Version string
	// CacheDir is the directory of Cache.
	CacheDir string
	// Reload reads the configuration again; nil where there is none to read.
	Reload func() (Reloaded, error)
	// Examine asks all upstreams whether they answer.
	Examine func(ctx context.Context) []upstream.Examination
	// Configuration tells the one in force.
	Configuration func() Configuration
	// Watch tells of the clients' requests from now on that are of interest, until ctx
	// ends; began is called once, before the first. It gives how many it could not tell
	// of. Nil where nothing is served.
	Watch func(ctx context.Context, i Interest, began func() error, tell func(*Request) error) (dropped int64, err error)
	// Counts are what the server and the upstreams have counted; nil where nothing is
	// served.
	Counts *metrics.Metrics
	// Process is what this process can tell of itself, but for the cache.
	Process Process
	// Private tells of an upstream that not everyone may have what is there; nil where
	// everyone may.
	Private func(upstream string) bool
	// Log takes what an operator has changed; nil drops it.
	Log *zap.Logger
}

// API answers requests below Prefix. It may be used by several goroutines.
type API struct {
	Options
	mux     *http.ServeMux
	routes  []route
	started time.Time
}

// route is a method and a path that the API answers. openapi.yaml describes each.
type route struct{ method, path string }

// New makes the API of a cache.
func New(o Options) *API {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	a := &API{Options: o, mux: http.NewServeMux(), started: time.Now()}
	a.mux.HandleFunc(Prefix, a.refuse)
	a.handle("GET", "openapi.yaml", describe)
	a.get("status", a.status)
	a.get("explain", a.explain)
	a.stream("scrub", a.scrub)
	a.upload("import", a.importArchive)
	a.post("reload", a.reload)
	a.get("history", a.history)
	a.get("diff", a.diff)
	a.post("accept", a.accept)
	a.get("process", a.process)
	a.get("configuration", a.configuration)
	a.get("upstreams", a.upstreams)
	a.stream("watch", a.watch)
	a.download("GET", "images", "application/json", a.images)
	a.get("inspect", a.inspect)
	a.stream("verify", a.verify)
	a.get("manifest", a.manifest)
	a.post("pin", a.pin)
	a.post("unpin", a.unpin)
	a.get("asked", a.asked)
	a.get("missing", a.missing)
	a.stream("warm", a.warm)
	a.stream("rehearse", a.rehearse)
	a.post("export/plan", a.planExport)
	a.download("POST", "export", "application/octet-stream", a.export)
	a.post("purge", a.purge)
	a.stream("gc", a.collectGarbage)
	a.get("stats", a.stats)
	return a
}

// ServeHTTP answers a request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	a.mux.ServeHTTP(w, r)
}

// handle has h answer requests for name, which stands below Prefix. All that the API
// answers is registered here.
func (a *API) handle(method, name string, h http.HandlerFunc) {
	a.routes = append(a.routes, route{method, Prefix + name})
	a.mux.HandleFunc(method+" "+Prefix+name, h)
}

// refuse answers what is not there, or not by that method.
func (a *API) refuse(w http.ResponseWriter, r *http.Request) {
	var methods []string
	for _, known := range a.routes {
		if known.path == r.URL.Path {
			methods = append(methods, known.method)
		}
	}
	if methods != nil {
		w.Header().Set("Allow", strings.Join(methods, ", "))
		writeError(w, Errorf(http.StatusMethodNotAllowed, "%s takes %s, not %s", r.URL.Path, strings.Join(methods, " and "), r.Method))
		return
	}
	writeError(w, Errorf(http.StatusNotFound, "there is no %s; %sopenapi.yaml says what there is", r.URL.Path, Prefix))
}

// get serves what f gives as JSON.
func (a *API) get(name string, f func(r *http.Request) (any, error)) { a.document("GET", name, f) }

// post is get for what changes something.
func (a *API) post(name string, f func(r *http.Request) (any, error)) { a.document("POST", name, f) }

func (a *API) document(method, name string, f func(r *http.Request) (any, error)) {
	a.handle(method, name, func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, v)
	})
}

// stream serves lines while f runs; it ends f's context when the client goes away.
func (a *API) stream(name string, f func(ctx context.Context, r *http.Request, tell Tell) (any, error)) {
	a.handle("POST", name, func(w http.ResponseWriter, r *http.Request) {
		writeLines(w, r, f)
	})
}

// download serves the bytes that f writes; it ends f's context when the client goes away.
func (a *API) download(method, name, contentType string, f func(ctx context.Context, r *http.Request, w io.Writer) error) {
	a.handle(method, name, func(w http.ResponseWriter, r *http.Request) {
		writeBytes(w, r, contentType, f)
	})
}

// upload is stream for what reads the body while it tells how far it has come. f may
// call cut at any time until it ends, which ends the reading of the body.
func (a *API) upload(name string, f func(ctx context.Context, r *http.Request, cut func(), tell Tell) (any, error)) {
	a.handle("POST", name, func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex() // HTTP/2 can do nothing else, and knows no such call
		cut := func() { _ = control.SetReadDeadline(time.Now()) }
		writeLines(w, r, func(ctx context.Context, r *http.Request, tell Tell) (any, error) { return f(ctx, r, cut, tell) })
	})
}

// Status says what answers.
type Status struct {
	Version  string    `json:"version"`
	CacheDir string    `json:"cacheDir"`
	Offline  bool      `json:"offline"`
	Started  time.Time `json:"started"`
}

func (a *API) status(*http.Request) (any, error) {
	return Status{Version: a.Version, CacheDir: a.CacheDir, Offline: a.Cache.Offline(), Started: a.started}, nil
}
