package upstream

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/entrepot-dev/entrepot/oci"
)

// wantBreaker checks the state of an endpoint of the upstream reg, and how
// often its breaker has opened.
func (w *world) wantBreaker(host string, state breakerState, openings int) {
	w.t.Helper()
	if got := gaugeOf(w.t, w.metrics.EndpointState, "reg", host); got != float64(state) {
		w.t.Errorf("the state of %s is %v, want %d", host, got, state)
	}
	if got := value(w.t, w.metrics.EndpointOpenings, "reg", host); got != float64(openings) {
		w.t.Errorf("the breaker of %s has opened %v times, want %d", host, got, openings)
	}
}

func gaugeOf(t *testing.T, g *prometheus.GaugeVec, labels ...string) float64 {
	t.Helper()
	var d dto.Metric
	if err := g.WithLabelValues(labels...).Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetGauge().GetValue()
}

// dialled tells how often addr was dialled.
func (w *world) dialled(addr string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dials[addr]
}

// blackHole lets addr take connections and say nothing.
func (w *world) blackHole(addr string) {
	w.host(addr, func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
}

func resolve(t *testing.T, r *Registry, ref string) error {
	t.Helper()
	_, err := r.Resolve(t.Context(), "a", ref)
	return err
}

func TestAnEndpointThatIsGoneIsLeftAloneAndProbed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		r := w.registry(Options{})
		w.wantBreaker("reg.test", breakerClosed, 0)
		// Its three tries are three failures in a row.
		wantError(t, resolve(t, r, "1"), oci.CodeUnavailable, 502, "refuses the connection")
		w.wantBreaker("reg.test", breakerOpen, 1)
		dials, began := w.dialled("reg.test:443"), time.Now()
		for range 10 {
			e := wantError(t, resolve(t, r, "1"), oci.CodeUnavailable, 503, "reg.test", "refuses the connection", "left alone")
			if e.RetryAfter < time.Second || e.RetryAfter > 2*time.Second {
				t.Errorf("Retry-After is %s, want about a second", e.RetryAfter)
			}
		}
		if d := time.Since(began); d != 0 || w.dialled("reg.test:443") != dials {
			t.Errorf("it took %s and %d dials, want none", d, w.dialled("reg.test:443")-dials)
		}
		if got := value(t, w.metrics.UpstreamErrors, "reg", "open"); got != 10 {
			t.Errorf("%v refused requests counted, want 10", got)
		}
		w.host("reg.test:443", serveImage)
		time.Sleep(1300 * time.Millisecond)
		w.wantBreaker("reg.test", breakerClosed, 1)
		w.wantCount("GET reg.test/v2/", 1) // the probe
		if err := resolve(t, r, "1"); err != nil {
			t.Error(err)
		}
	})
}

func TestProbesOfAnEndpointThatStaysAwayBecomeRare(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		r := w.registry(Options{})
		if resolve(t, r, "1") == nil {
			t.Fatal("want an error")
		}
		var at []time.Duration
		began, dials := time.Now(), w.dialled("reg.test:443")
		for time.Since(began) < 5*time.Minute {
			time.Sleep(100 * time.Millisecond)
			if n := w.dialled("reg.test:443"); n > dials {
				dials = n
				at = append(at, time.Since(began))
			}
			if e := wantError(t, resolve(t, r, "1"), oci.CodeUnavailable, 503); e.RetryAfter > lastProbe {
				t.Fatalf("Retry-After is %s, want at most %s", e.RetryAfter, lastProbe)
			}
		}
		want := time.Second
		last := time.Duration(0)
		for i, d := range at {
			wait := d - last
			if least, most := time.Duration(float64(want)*(1-probeJitter))-200*time.Millisecond, time.Duration(float64(want)*(1+probeJitter))+200*time.Millisecond; wait < least || wait > most {
				t.Errorf("probe %d came after %s, want %s to %s", i+1, wait, least, most)
			}
			last, want = d, min(2*want, lastProbe)
		}
		if len(at) < 10 {
			t.Errorf("%d probes in five minutes: %s", len(at), at)
		}
		w.wantBreaker("reg.test", breakerOpen, 1)
	})
}

func TestASilentEndpointIsLeftAloneOnceAProbeIsNotAnsweredEither(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.blackHole("reg.test:443")
		r := w.registry(Options{HeaderTimeout: 5 * time.Second})
		began := time.Now()
		wantError(t, resolve(t, r, "1"), oci.CodeUnavailable, 504)
		if d := time.Since(began); d != 5*time.Second {
			t.Errorf("it took %s, want 5s", d)
		}
		time.Sleep(5 * time.Second) // the probe
		synctest.Wait()
		w.wantBreaker("reg.test", breakerOpen, 1)
		began = time.Now()
		wantError(t, resolve(t, r, "2"), oci.CodeUnavailable, 503)
		if d := time.Since(began); d != 0 {
			t.Errorf("the next took %s, want nothing", d)
		}
		// Nobody waits for the next probe, which is not answered either.
		time.Sleep(2 * time.Second)
		w.wantBreaker("reg.test", breakerHalfOpen, 1)
		now := time.Now()
		wantError(t, resolve(t, r, "3"), oci.CodeUnavailable, 503)
		if d := time.Since(now); d != 0 {
			t.Errorf("during the probe it took %s, want nothing", d)
		}
		w.wantCount("HEAD ", 1)
	})
}

func TestASilentRequestOpensNothingIfAProbeIsAnswered(t *testing.T) {
	for name, ping := range map[string]http.HandlerFunc{"200": status(200), "401": status(401), "500": status(500)} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
					switch req.URL.Path {
					case "/v2/":
						ping(rw, req)
					case "/v2/b/manifests/latest":
						serveImage(rw, req)
					default:
						<-req.Context().Done()
					}
				})
				r := w.registry(Options{HeaderTimeout: 5 * time.Second})
				for range 5 {
					_, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
					wantError(t, err, oci.CodeUnavailable, 504)
					wantManifest(t, r, "b")
				}
				time.Sleep(time.Minute)
				w.wantBreaker("reg.test", breakerClosed, 0)
			})
		})
	}
}

func TestOneSlowAnswerAmongOthersOpensNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/v2/a/manifests/slow" {
				<-req.Context().Done()
				return
			}
			serveImage(rw, req)
		})
		r := w.registry(Options{HeaderTimeout: 5 * time.Second})
		failed := make(chan error)
		go func() { _, err := r.Resolve(t.Context(), "a", "slow"); failed <- err }()
		time.Sleep(time.Second)
		if err := resolve(t, r, "1"); err != nil {
			t.Fatal(err)
		}
		wantError(t, <-failed, oci.CodeUnavailable, 504)
		w.wantBreaker("reg.test", breakerClosed, 0)
	})
}

func TestOneThingThatFailsOpensNothing(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{"500": status(500), "503": status(503), "broken off": hangUp} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
					if req.URL.Path == "/v2/a/manifests/bad" {
						h(rw, req)
						return
					}
					serveImage(rw, req)
				})
				r := w.registry(Options{})
				for range 5 {
					if resolve(t, r, "bad") == nil {
						t.Fatal("want an error")
					}
				}
				w.wantBreaker("reg.test", breakerClosed, 0)
				if err := resolve(t, r, "good"); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// pull fetches the manifest of repo by a tag that nobody has asked for.
func pull(t *testing.T, r *Registry, repo string) error {
	t.Helper()
	_, err := r.Manifest(t.Context(), repo, "latest")
	return err
}

func TestWhatFailsForAllRepositoriesOpensIfAProbeFailsToo(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{"500": status(500), "503": status(503), "broken off": hangUp} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", h)
				r := w.registry(Options{})
				for i := range breakAfter {
					w.wantBreaker("reg.test", breakerClosed, 0)
					if pull(t, r, fmt.Sprint(i)) == nil {
						t.Fatal("want an error")
					}
				}
				synctest.Wait()
				w.wantBreaker("reg.test", breakerOpen, 1)
				wantError(t, pull(t, r, "another"), oci.CodeUnavailable, 503, "left alone")
			})
		})
	}
}

// Whatever fails for some requests only refuses nobody else's.
func TestWhatFailsForSomeRequestsOpensNothing(t *testing.T) {
	isOf := func(part string) func(*http.Request) bool {
		return func(req *http.Request) bool { return strings.Contains(req.URL.Path, part) }
	}
	for name, fails := range map[string]func(*http.Request) bool{
		"referrers":          isOf("/referrers/"),
		"tags":               isOf("/tags/list"),
		"HEAD":               func(req *http.Request) bool { return req.Method == http.MethodHead },
		"blobs":              isOf("/blobs/"),
		"one repository":     isOf("/v2/bad/one/"),
		"all of one project": isOf("/v2/bad/"),
		"everything but pings": func(req *http.Request) bool {
			return req.URL.Path != "/v2/" && req.URL.Path != "/v2/good/manifests/latest"
		},
	} {
		for kind, h := range map[string]http.HandlerFunc{"500": status(500), "broken off": hangUp} {
			t.Run(name+" "+kind, func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
						if fails(req) {
							h(rw, req)
							return
						}
						serveImage(rw, req)
					})
					r := w.registry(Options{})
					for i := range 6 {
						repo := "bad/" + []string{"one", "two", "three", "four"}[i%4]
						_ = resolve(t, r, "latest")
						_ = pull(t, r, repo)
						_, _ = r.Blob(t.Context(), repo, digest.FromString(fmt.Sprint(i)), oci.Whole)
						_, _ = r.Tags(t.Context(), repo)
						_, _ = r.Referrers(t.Context(), repo, layerDigest)
						synctest.Wait()
						if err := pull(t, r, "good"); err != nil {
							t.Fatalf("after %d rounds: %v", i+1, err)
						}
					}
					w.wantBreaker("reg.test", breakerClosed, 0)
				})
			})
		}
	}
}

// Optional requests that fail open nothing, also at a registry that answers /v2/ with
// a failure and is asked for nothing else meanwhile.
func TestOptionalRequestsThatFailOpenNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/manifests/latest") {
				serveImage(rw, req)
				return
			}
			rw.WriteHeader(500)
		})
		r := w.registry(Options{})
		for i := range 3 * breakAfter {
			repo := fmt.Sprint("repo", i)
			_, _ = r.Resolve(t.Context(), repo, "latest")
			_, _ = r.Tags(t.Context(), repo)
			_, _ = r.Referrers(t.Context(), repo, layerDigest)
			_, _ = r.Stat(t.Context(), repo, layerDigest)
		}
		synctest.Wait()
		w.wantBreaker("reg.test", breakerClosed, 0)
		wantManifest(t, r, "good")
	})
}

func TestBrokenTLSOpens(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:80", serveImage) // no TLS there
		r := w.registry(Options{Endpoints: []string{"https://reg.test:80"}})
		for range breakAfter {
			err := resolve(t, r, "1")
			wantError(t, err, oci.CodeUnavailable, 502, "does not speak TLS")
			if oci.IsAbsent(err) {
				t.Errorf("broken TLS is told as absence: %v", err)
			}
		}
		w.wantBreaker("reg.test:80", breakerOpen, 1)
	})
}

func TestAnswersThatAreNoFailureOpenNothing(t *testing.T) {
	for _, code := range []int{401, 403, 404, 429, 400, 501} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", status(code))
			r := w.registry(Options{})
			for i := range 3 * breakAfter {
				if _, err := r.Manifest(t.Context(), "a", fmt.Sprint(i)); err == nil {
					t.Fatalf("%d: want an error", code)
				}
				time.Sleep(time.Hour) // until no limit holds
			}
			w.wantBreaker("reg.test", breakerClosed, 0)
		})
	}
}

func TestAStoreThatIsGoneDoesNotCloseTheRegistry(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", redirectTo("https://cdn.test/x"))
		r := w.registry(Options{})
		for i := range 3 {
			if _, err := r.Blob(t.Context(), "a", digest.FromString(fmt.Sprint(i)), oci.Whole); err == nil {
				t.Fatal("want an error")
			}
		}
		w.wantBreaker("reg.test", breakerClosed, 0)
	})
}

func TestAnOpenEndpointIsPassedOverForTheNext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.blackHole("first.test:443")
		w.host("second.test:443", serveImage)
		r := w.registry(Options{Endpoints: []string{"https://first.test", "https://second.test"}, HeaderTimeout: 5 * time.Second})
		wantManifest(t, r, "a")
		time.Sleep(5 * time.Second) // the probe
		synctest.Wait()
		w.wantBreaker("first.test", breakerOpen, 1)
		began := time.Now()
		for range 3 {
			wantManifest(t, r, "a")
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("the next ones took %s, want nothing", d)
		}
		w.wantCount("GET first.test/v2/a/", 1)
		w.wantCount("GET second.test/v2/a/", 4)
		w.host("first.test:443", serveImage)
		time.Sleep(time.Minute)
		w.wantBreaker("first.test", breakerClosed, 1)
		wantManifest(t, r, "a")
		w.wantCount("GET first.test/v2/a/", 2)
	})
}

func TestATokenServerThatIsGoneIsLeftAloneAndItsEndpointIsNot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token", service: "reg"}
		w.host("auth.test:443", s.serve)
		w.host("reg.test:443", s.guard(serveImage))
		r := w.registry(Options{Realms: []string{"https://auth.test"}, HeaderTimeout: 5 * time.Second})
		wantManifest(t, r, "a")
		w.blackHole("auth.test:443")
		r.routes.close()
		began := time.Now()
		_, err := r.Manifest(t.Context(), "b", "latest")
		wantError(t, err, oci.CodeUnavailable, 504, "auth.test")
		if d := time.Since(began); d != 5*time.Second {
			t.Errorf("it took %s, want 5s", d)
		}
		time.Sleep(6 * time.Second) // the probe
		for _, repo := range []string{"b", "c", "d", "e"} {
			began := time.Now()
			_, err := r.Manifest(t.Context(), repo, "latest")
			if e := wantError(t, err, oci.CodeUnavailable, 503, "auth.test", "left alone"); e.RetryAfter < time.Second {
				t.Errorf("Retry-After is %s, want a second or more", e.RetryAfter)
			}
			if d := time.Since(began); d != 0 {
				t.Errorf("%s: it took %s, want nothing", repo, d)
			}
		}
		wantManifest(t, r, "a") // for which there is a token
		w.wantBreaker("reg.test", breakerClosed, 0)
		w.host("auth.test:443", s.serve)
		time.Sleep(time.Minute)
		wantManifest(t, r, "b")
	})
}

func TestAnEndpointThatFailsThePingOnlyComesBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var bad atomic.Bool
		bad.Store(true)
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if bad.Load() || req.URL.Path == "/v2/" {
				rw.WriteHeader(500)
				return
			}
			serveImage(rw, req)
		})
		r := w.registry(Options{})
		for i := range breakAfter {
			if pull(t, r, fmt.Sprint(i)) == nil {
				t.Fatal("want an error")
			}
		}
		synctest.Wait()
		w.wantBreaker("reg.test", breakerOpen, 1)
		bad.Store(false)
		time.Sleep(2 * time.Second)
		w.wantBreaker("reg.test", breakerClosed, 1)
	})
}

// A registry without a working /v2/ whose failures stay is not left alone for good:
// while it answers, if only with failures, one request after each probe is sent.
func TestOneRequestAfterEachProbeIsSentToAnEndpointThatAnswersWithFailures(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if strings.HasPrefix(req.URL.Path, "/v2/good/") {
				serveImage(rw, req)
				return
			}
			rw.WriteHeader(500)
		})
		r := w.registry(Options{})
		for i := range breakAfter {
			_ = pull(t, r, fmt.Sprint(i))
		}
		synctest.Wait()
		w.wantBreaker("reg.test", breakerOpen, 1)
		time.Sleep(2 * time.Second) // a probe
		asked := w.count("GET reg.test/v2/bad/")
		for range 3 {
			_ = pull(t, r, "bad")
		}
		if n := w.count("GET reg.test/v2/bad/") - asked; n != 1 {
			t.Errorf("%d requests were sent after a probe that failed, want 1", n)
		}
		time.Sleep(lastProbe)
		wantManifest(t, r, "good")
		w.wantBreaker("reg.test", breakerClosed, 1)
	})
}

func TestClosingEndsTheProbes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.blackHole("reg.test:443")
		r := w.registry(Options{HeaderTimeout: 5 * time.Second})
		_ = resolve(t, r, "1")
		time.Sleep(7 * time.Second) // a second probe is under way
		w.wantBreaker("reg.test", breakerHalfOpen, 1)
		began := time.Now()
		r.Close()
		if d := time.Since(began); d != 0 {
			t.Errorf("Close took %s, want nothing", d)
		}
		synctest.Wait()
		w.mu.Lock()
		n := w.dials["reg.test:443"]
		w.mu.Unlock()
		time.Sleep(time.Minute)
		if got := w.dialled("reg.test:443"); got != n {
			t.Errorf("%d dials after Close", got-n)
		}
	})
}

func TestABlobGoesOnAtTheNextEndpoint(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("first.test:443", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", fmt.Sprint(len(layer)))
			_, _ = io.WriteString(rw, layer[:4])
			_ = http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		})
		w.host("second.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if got, want := req.Header.Get("Range"), "bytes=4-"; got != want {
				t.Errorf("Range is %q, want %q", got, want)
			}
			serveContent(rw, req)
		})
		r := two(w)
		b, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		head, err := io.ReadAll(b)
		if err == nil {
			t.Fatal("want an error for a body that broke off")
		}
		_ = b.Close()
		b, err = r.Blob(t.Context(), "a", layerDigest, oci.Span{From: int64(len(head)), To: oci.Open})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		tail, err := io.ReadAll(b)
		if got := string(head) + string(tail); err != nil || got != layer {
			t.Errorf("got %q, %v; want %q", got, err, layer)
		}
		if b.Source != "second.test" {
			t.Errorf("the rest came from %s, want second.test", b.Source)
		}
	})
}

func TestPingAsksTheRegistryItself(t *testing.T) {
	for in, want := range map[string]string{
		"https://reg.test":                 "https://reg.test/v2/",
		"https://reg.test/artifactory/hub": "https://reg.test/artifactory/hub/v2/",
		"https://reg.test/v2/proxy/hub":    "https://reg.test/v2/",
	} {
		e, err := newEndpoint(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.ping().String(); got != want {
			t.Errorf("%s is pinged at %s, want %s", in, got, want)
		}
	}
}

func TestWhatCanNotBeSentWaitsForNoSlot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		silent := false
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if silent {
				<-req.Context().Done()
			}
			serveLayer(rw, req)
		})
		r := w.registry(Options{MaxConnections: 2, HeaderTimeout: 5 * time.Second})
		b, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole) // holds one slot
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		silent = true
		wantError(t, resolve(t, r, "1"), oci.CodeUnavailable, 504)
		time.Sleep(6 * time.Second)                      // the probe
		release, err := r.slots.take(t.Context(), false) // and something else the other
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		began := time.Now()
		wantError(t, resolve(t, r, "2"), oci.CodeUnavailable, 503, "left alone")
		if d := time.Since(began); d != 0 {
			t.Errorf("it took %s, want nothing", d)
		}
	})
}

func TestAProbeThatIsLimitedHoldsTheNext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		r := w.registry(Options{})
		_ = resolve(t, r, "1")
		w.wantBreaker("reg.test", breakerOpen, 1)
		w.host("reg.test:443", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Retry-After", "60")
			rw.WriteHeader(http.StatusTooManyRequests)
		})
		time.Sleep(2 * time.Second)
		w.wantBreaker("reg.test", breakerClosed, 1)
		for range 2 {
			wantError(t, pull(t, r, "a"), oci.CodeTooManyRequests, 429)
		}
		wantError(t, resolve(t, r, "1"), oci.CodeTooManyRequests, 429)
		w.wantCount("GET reg.test/v2/a/", 1)
		w.wantCount("HEAD ", 0)
	})
}

// The answer to the probe of an endpoint that was suspected may come when the breaker has
// opened for another reason.
func TestAProbeThatIsAnsweredClosesABreakerThatHasOpenedMeanwhile(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		r := w.registry(Options{})
		b := r.endpoints[0].breaker
		began := time.Now()
		cause := unavailable(502, nil, "it failed")
		if v := b.failure(blamed{how: blameSilent, began: began, cause: cause}); v != suspect {
			t.Fatalf("the verdict is %v, want suspect", v)
		}
		for range breakAfter {
			b.failure(blamed{how: blameGone, began: began, cause: cause})
		}
		if r.left(b) == nil {
			t.Fatal("the breaker is closed")
		}
		b.confirm(began, healthGood, healthSilent)
		if f := r.left(b); f != nil {
			t.Errorf("the breaker is open: %v", f.err)
		}
	})
}
