package upstream

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// notFound answers 404 to everything but, if greets is set, to GET /v2/.
func notFound(greets bool, contentType, body, version string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if greets && req.URL.Path == "/v2/" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if version != "" {
			w.Header().Set("Docker-Distribution-Api-Version", version)
		}
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, body)
	}
}

func TestA404IsBelievedOnTheEvidenceOfItsBody(t *testing.T) {
	const document = `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`
	for name, c := range map[string]struct {
		h        http.HandlerFunc
		believed bool
		pings    int
	}{
		"an error document":                    {notFound(false, "application/json", document, ""), true, 0},
		"an error document as text":            {notFound(false, "text/plain", document, ""), true, 0},
		"nothing, with a registry's header":    {notFound(false, "", "", "registry/2.0"), true, 0},
		"nothing, and it answers /v2/":         {notFound(true, "", "", ""), true, 1},
		"nothing, and it has no /v2/":          {notFound(false, "", "", ""), false, 1},
		"other JSON, and it answers /v2/":      {notFound(true, "application/json", `{"message":"not found"}`, ""), true, 1},
		"other JSON, and it has no /v2/":       {notFound(false, "application/json", `{"message":"no Route matched"}`, ""), false, 1},
		"an object store, and it answers /v2/": {notFound(true, "application/xml", `<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>`, ""), true, 1},
		"text":                                 {notFound(true, "text/plain", "404 page not found\n", ""), false, 0},
		"HTML":                                 {notFound(true, "text/html", "<html><h1>404</h1></html>", ""), false, 0},
		"XHTML":                                {notFound(true, "text/html", `<?xml version="1.0"?><!DOCTYPE html><html/>`, ""), false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", c.h)
				r := w.registry(Options{})
				for range 3 {
					_, err := r.Manifest(t.Context(), "a", "latest")
					if oci.IsAbsent(err) != c.believed || err == nil {
						t.Errorf("got %v; believed: want %v", err, c.believed)
					}
				}
				w.wantCount("GET reg.test/v2/a/", 3)
				if got := w.count("GET reg.test/v2/"); got != 3+c.pings {
					t.Errorf("/v2/ was asked for %d times, want %d", got-3, c.pings)
				}
			})
		})
	}
}

// What an endpoint said to GET /v2/ a while ago says nothing about a 404 now.
func TestA404IsNotBelievedBecauseThereWasARegistryBefore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		gone := false
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if gone {
				rw.WriteHeader(http.StatusNotFound)
				return
			}
			rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			if req.URL.Path != "/v2/" {
				rw.Header().Del("WWW-Authenticate")
			}
			rw.WriteHeader(http.StatusUnauthorized)
		})
		r := w.registry(Options{})
		_, err := r.Manifest(t.Context(), "a", "latest") // asks GET /v2/ how to log in
		wantError(t, err, oci.CodeDenied, 403)
		time.Sleep(time.Minute)
		gone = true
		_, err = r.Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 502, "no registry sends")
	})
}

func TestHEADThatGETContradictsIsLeftOutForAWhile(t *testing.T) {
	for name, limit := range map[string]string{"no quota": "", "a quota": "100;w=3600"} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
					if limit != "" {
						rw.Header().Set("RateLimit-Limit", limit)
						rw.Header().Set("RateLimit-Remaining", limit)
					}
					if req.Method == http.MethodHead {
						rw.WriteHeader(http.StatusNotFound)
						return
					}
					serveImage(rw, req)
				})
				r := w.registry(Options{})
				check := func() {
					t.Helper()
					if _, err := r.Resolve(t.Context(), "a", "latest"); !oci.IsHint(err) {
						t.Errorf("got %v, want a hint", err)
					}
					wantManifest(t, r, "a")
				}
				const checks = 10
				for range checks {
					check()
				}
				want := headDenials
				if limit != "" {
					want = checks // it costs no pull
				}
				w.wantCount("HEAD", want)
				time.Sleep(headTime + time.Second)
				check()
				if limit == "" {
					w.wantCount("HEAD", want+1)
				}
			})
		})
	}
}

func TestHeadsAreBounded(t *testing.T) {
	var h heads
	for i := range 5 * maxHeads {
		h.refused(fmt.Sprint(i))
	}
	if len(h.of) > maxHeads {
		t.Errorf("%d repositories are remembered, want at most %d", len(h.of), maxHeads)
	}
}
