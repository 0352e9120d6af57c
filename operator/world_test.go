package operator_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/operator"
	"github.com/entrepot-dev/entrepot/rewrite"
	"github.com/entrepot-dev/entrepot/upstream"
)

// world is an API on a cache in front of a fake Docker Hub. All that it is asked and
// answers is held to openapi.yaml.
type world struct {
	t      *testing.T
	hub    *hub.Hub
	cache  *cache.Cache
	router *rewrite.Router
	api    *operator.API
	client *operator.Client

	mu sync.Mutex
	// answered holds the routes that were answered with 200.
	answered map[string]bool
}

// newWorld makes a world. change, where it is not nil, changes what the API works on.
func newWorld(t *testing.T, change func(*operator.Options)) *world {
	t.Helper()
	w := &world{t: t, hub: hub.New(t, hub.Options{}), answered: map[string]bool{}}
	m := metrics.Discard()
	r, err := upstream.New(upstream.Options{
		Name: "docker.io", Endpoints: []string{w.hub.URL()}, Realms: []string{w.hub.Realm()}, RedirectHosts: []string{w.hub.CDNHost()},
		Metrics: m,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	w.router, err = rewrite.NewRouter(rewrite.Routing{Default: "docker.io", Upstreams: map[string][]string{"docker.io": nil}})
	if err != nil {
		t.Fatal(err)
	}
	rules := []cache.TagRule{
		{Match: "library/app:*", TTL: time.Nanosecond, StaleIfError: time.Hour, Hold: 24 * time.Hour},
		{Match: "*", TTL: time.Hour, StaleIfError: time.Hour},
	}
	o := operator.Options{Router: w.router, Version: "v1.2.3", CacheDir: t.TempDir()}
	w.cache, err = cache.Open(cache.Options{
		Settings: cache.Settings{Upstreams: map[string]cache.Upstream{"docker.io": {Origin: r, Tags: rules}}},
		Dir:      o.CacheDir, MemoryBytes: 8 << 20, Metrics: m,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := w.cache.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	o.Cache = w.cache
	if change != nil {
		change(&o)
	}
	w.api = operator.New(o)
	s := httptest.NewServer(held{w})
	t.Cleanup(s.Close)
	w.client = &operator.Client{HTTP: s.Client(), Base: s.URL}
	return w
}

// held passes on what the API of a world answers, and holds it to openapi.yaml.
type held struct{ *world }

func (h held) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var request bytes.Buffer
	if r.Header.Get("Content-Type") == "application/json" {
		r.Body = io.NopCloser(io.TeeReader(r.Body, &request))
	}
	rec := &recorder{ResponseWriter: w, status: http.StatusOK}
	h.api.ServeHTTP(rec, r)
	described(h.t).holds(h.t, r, request.Bytes(), rec.status, w.Header().Get("Content-Type"), rec.body.Bytes())
	if rec.status == http.StatusOK {
		h.mu.Lock()
		h.answered[r.Method+" "+r.URL.Path] = true
		h.mu.Unlock()
	}
}

// recorder keeps what is written through it.
type recorder struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.body.Write(b)
	return r.ResponseWriter.Write(b)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// pull has the cache fetch i under reference as a client would: the platform's own of an
// index, all of it where platform is empty.
func (w *world) pull(reference string, i *image.Image, platform string) {
	w.t.Helper()
	t, err := operator.Target(w.router, reference)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	manifest := func() {
		w.t.Helper()
		if _, _, err := w.cache.Manifest(ctx, t, rewrite.ParseAccept([]byte("*/*"))); err != nil {
			w.t.Fatal(err)
		}
	}
	manifest()
	t.Tag, t.Digest = "", i.Digest
	if platform != "" {
		t.Digest = i.Platforms[platform]
		manifest()
	}
	m := i.Parsed(t.Digest)
	for _, l := range append(m.Layers, m.Config) {
		t.Digest = l.Digest
		b, _, err := w.cache.Blob(ctx, t, oci.Whole)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := b.Send(io.Discard, oci.Whole); err != nil {
			w.t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
}
