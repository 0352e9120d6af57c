package upstream

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// failing answers the first n requests with status.
func failing(n, status int, then http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if n > 0 {
			n--
			w.WriteHeader(status)
			return
		}
		then(w, req)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		if code == http.StatusNotFound {
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNKNOWN"}]}`)
		}
	}
}

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func TestFailuresOfAMomentAreTriedAgain(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"500": failing(tries-1, 500, serveImage),
		"502": failing(tries-1, 502, serveImage),
		"503": failing(tries-1, 503, serveImage),
		"504": failing(tries-1, 504, serveImage),
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", h)
				began := time.Now()
				wantManifest(t, w.registry(Options{}), "a")
				w.wantCount("GET ", tries)
				if d := time.Since(began); d < 300*time.Millisecond || d > 3*time.Second {
					t.Errorf("the tries took %s, want short pauses between them", d)
				}
				if got := value(t, w.metrics.UpstreamRetries, "reg"); got != tries-1 {
					t.Errorf("%v retries counted, want %d", got, tries-1)
				}
			})
		})
	}
}

func TestWhatIsNotOfAMomentIsNotTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		h     http.HandlerFunc
		asked int
	}{
		"404":                 {status(404), 1},
		"403":                 {status(403), 1},
		"429":                 {status(429), 1},
		"501":                 {status(501), 1},
		"500 without end":     {status(500), tries},
		"503 for long":        {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "60"); w.WriteHeader(503) }, 1},
		"503 without end":     {status(503), tries},
		"broken off":          {hangUp, tries},
		"no answer in time":   {func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }, 1},
		"not what was wanted": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", c.h)
				if _, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest"); err == nil {
					t.Error("want an error")
				}
				w.wantCount("GET reg.test/v2/a/", c.asked)
			})
		})
	}
}

func TestAManifestThatBreaksOffIsAskedForAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := 0
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if n++; n == 1 {
				rw.Header().Set("Content-Length", "100")
				_, _ = io.WriteString(rw, image[:10])
				panic(http.ErrAbortHandler)
			}
			serveImage(rw, req)
		})
		wantManifest(t, w.registry(Options{}), "a")
		w.wantCount("GET ", 2)
	})
}

func two(w *world) *Registry {
	return w.registry(Options{Endpoints: []string{"https://first.test", "https://second.test"}})
}

func TestTheNextEndpointIsTriedAtOnce(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"503": status(503), "500": status(500), "429": status(429), "broken off": hangUp,
		"not a manifest": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("first.test:443", h)
				w.host("second.test:443", serveImage)
				began := time.Now()
				wantManifest(t, two(w), "a")
				if d := time.Since(began); d != 0 {
					t.Errorf("it took %s, want no pause", d)
				}
				w.wantCount("GET first.test", 1)
				w.wantCount("GET second.test", 1)
			})
		})
	}
}

func TestTheWordOfAnEndpointStands(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("first.test:443", status(404))
		w.host("second.test:443", serveImage)
		_, err := two(w).Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeManifestUnknown, 404)
		w.wantCount("GET second.test", 0)
	})
}

func TestAnEndpointThatFailedIsPassedOverForAWhile(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("second.test:443", serveImage)
		r := two(w)
		wantManifest(t, r, "a") // first.test refuses the connection
		w.host("first.test:443", serveImage)
		wantManifest(t, r, "a")
		w.wantCount("GET first.test", 0)
		time.Sleep(afterFailure)
		wantManifest(t, r, "a")
		w.wantCount("GET first.test", 1)
		w.wantCount("GET second.test", 2)
	})
}

func TestAnEndpointThatRestsIsBetterThanNone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("second.test:443", serveImage)
		r := two(w)
		wantManifest(t, r, "a")
		w.host("first.test:443", serveImage)
		w.gone("second.test:443")
		r.routes.close() // or a kept connection would still serve
		wantManifest(t, r, "a")
		w.wantCount("GET first.test", 1)
	})
}

func TestAnEndpointWithWrongBytesIsPassedOverForLonger(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("first.test:443", serveLayer)
		w.host("second.test:443", serveLayer)
		r := two(w)
		b, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		if b.Source != "first.test" {
			t.Errorf("the source is %q, want first.test", b.Source)
		}
		b.Refuse()
		_ = b.Close()
		wantLayer(t, r)
		time.Sleep(afterRefusal - time.Second)
		wantLayer(t, r)
		w.wantCount("GET second.test", 2)
		time.Sleep(time.Second)
		wantLayer(t, r)
		w.wantCount("GET second.test", 2)
		w.wantCount("GET first.test", 2)
	})
}

func TestAnAnswerDoesNotRedeemAnEndpointWithWrongBytes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("first.test:443", serveLayer)
		r := two(w)
		b, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		b.Refuse()
		_ = b.Close()
		wantLayer(t, r) // the other one is gone
		w.host("second.test:443", serveLayer)
		time.Sleep(afterFailure)
		wantLayer(t, r)
		w.wantCount("GET second.test", 1)
	})
}

func TestARateLimitSaysMoreThanAnotherFailure(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("first.test:443", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Retry-After", "7")
			rw.WriteHeader(http.StatusTooManyRequests)
		})
		_, err := two(w).Manifest(t.Context(), "a", "latest")
		if e := wantError(t, err, oci.CodeTooManyRequests, 429, "reg"); e.RetryAfter != 7*time.Second {
			t.Errorf("RetryAfter is %s, want 7s", e.RetryAfter)
		}
	})
}

func TestACallersDeadlineEndsTheTries(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		hang := func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }
		w.host("first.test:443", hang)
		w.host("second.test:443", serveImage)
		r := two(w)
		const most = hedgeAfter - time.Second/2 // at hedgeAfter the second would be asked
		ctx, cancel := context.WithTimeout(t.Context(), most)
		defer cancel()
		began := time.Now()
		_, err := r.Manifest(ctx, "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 504)
		if d := time.Since(began); d != most {
			t.Errorf("it took %s, want %s", d, most)
		}
		wantManifest(t, r, "a") // the one that hung is now passed over
		w.wantCount("GET first.test/v2/a/", 1)
	})
}

func TestACallerWhoLeavesBlamesNoEndpoint(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("first.test:443", func(rw http.ResponseWriter, req *http.Request) { time.Sleep(time.Second / 2); serveImage(rw, req) })
		w.host("second.test:443", serveImage)
		r := two(w)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/4)
		defer cancel()
		_, err := r.Manifest(ctx, "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 504)
		wantManifest(t, r, "a")
		w.wantCount("GET second.test", 0)
	})
}
