package upstream

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
)

// meter is a registry that counts pulls, as Docker Hub does.
type meter struct {
	mu        sync.Mutex
	limit     int
	remaining int
	window    int
	retry     string // Retry-After of a 429
}

func (m *meter) serve(w http.ResponseWriter, req *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	over := false
	if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/manifests/") {
		if over = m.remaining == 0; !over {
			m.remaining--
		}
	}
	w.Header().Set("ratelimit-limit", fmt.Sprintf("%d;w=%d", m.limit, m.window))
	w.Header().Set("ratelimit-remaining", fmt.Sprintf("%d;w=%d", m.remaining, m.window))
	w.Header().Set("docker-ratelimit-source", "192.0.2.1")
	if over {
		if m.retry != "" {
			w.Header().Set("Retry-After", m.retry)
		}
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	serveImage(w, req)
}

func (m *meter) set(remaining int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remaining = remaining
}

func series(c prometheus.Collector) int {
	all := make(chan prometheus.Metric, 10)
	c.Collect(all)
	return len(all)
}

func TestAUsedUpQuotaHoldsPullsButNotHeads(t *testing.T) {
	for name, c := range map[string]struct {
		retry string
		wait  time.Duration
	}{
		"for as long as it says": {"600", 10 * time.Minute},
		"until the date it says": {time.Date(2000, 1, 1, 0, 30, 0, 0, time.UTC).Format(http.TimeFormat), 30 * time.Minute},
		"for a minute":           {"", pullPause},
		"for an hour at most":    {"86400", maxHold},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				m := &meter{limit: 100, remaining: 1, window: 21600, retry: c.retry}
				w.host("reg.test:443", m.serve)
				r := w.registry(Options{})
				wantManifest(t, r, "a")
				_, err := r.Manifest(t.Context(), "a", "latest")
				e := wantError(t, err, oci.CodeTooManyRequests, 429, "quota")
				if e.RetryAfter < c.wait {
					t.Errorf("Retry-After is %s, want at least %s", e.RetryAfter, c.wait)
				}
				w.wantCount("GET ", 2)
				time.Sleep(c.wait - time.Second)
				_, err = r.Manifest(t.Context(), "a", "latest")
				if e := wantError(t, err, oci.CodeTooManyRequests, 429, "quota"); e.RetryAfter != time.Second {
					t.Errorf("a second before its end Retry-After is %s, want 1s", e.RetryAfter)
				}
				w.wantCount("GET ", 2)
				if err := resolve(t, r, "latest"); err != nil {
					t.Errorf("a HEAD is no pull: %v", err)
				}
				time.Sleep(2 * time.Second)
				m.set(5)
				wantManifest(t, r, "a")
				if got := value(t, w.metrics.UpstreamPulls, "reg"); got != 2 {
					t.Errorf("%v pulls counted, want 2", got)
				}
				if got := value(t, w.metrics.UpstreamErrors, "reg", reasonHeld); got != 1 {
					t.Errorf("%v held requests counted, want 1", got)
				}
				w.wantBreaker("reg.test", breakerClosed, 0)
			})
		})
	}
}

func TestAHeadThatTellsOfPullsEndsAGuessedHold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := &meter{limit: 100, window: 21600}
		w.host("reg.test:443", m.serve)
		r := w.registry(Options{})
		_, err := r.Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeTooManyRequests, 429)
		m.set(5)
		_, err = r.Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeTooManyRequests, 429)
		if err := resolve(t, r, "latest"); err != nil {
			t.Fatal(err)
		}
		wantManifest(t, r, "a")
	})
}

func TestALimitAgainstAbuseHoldsEverything(t *testing.T) {
	for name, c := range map[string]struct {
		retry string
		wait  time.Duration
	}{
		"for as long as it says": {"60", time.Minute},
		"for a moment":           {"", abusePause},
		"for an hour at most":    {"86400", maxHold},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				n := 0
				w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
					if n++; n > 2 {
						serveImage(rw, req)
						return
					}
					if c.retry != "" {
						rw.Header().Set("Retry-After", c.retry)
					}
					rw.WriteHeader(http.StatusTooManyRequests)
				})
				r := w.registry(Options{})
				_, err := r.Manifest(t.Context(), "a", "latest")
				if e := wantError(t, err, oci.CodeTooManyRequests, 429, "limits the requests"); e.RetryAfter < c.wait {
					t.Errorf("Retry-After is %s, want at least %s", e.RetryAfter, c.wait)
				}
				// A second operation is limited too, so that all are.
				_, err = r.Blob(t.Context(), "a", layerDigest, oci.Whole)
				wantError(t, err, oci.CodeTooManyRequests, 429, "limits the requests from here")
				ask := func() []error {
					_, manifest := r.Manifest(t.Context(), "a", "latest")
					_, blob := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
					return []error{manifest, blob, resolve(t, r, "latest")}
				}
				time.Sleep(c.wait - time.Second)
				for _, err := range ask() {
					if e := wantError(t, err, oci.CodeTooManyRequests, 429); e.RetryAfter != time.Second {
						t.Errorf("a second before its end Retry-After is %s, want 1s", e.RetryAfter)
					}
				}
				w.wantCount("", 2)
				time.Sleep(time.Second)
				for _, err := range ask()[:1] {
					if err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

func TestALimitThatIsNotToldIsTriedMoreAndMoreRarely(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", status(http.StatusTooManyRequests))
		r := w.registry(Options{})
		for range 600 { // ten minutes
			_ = resolve(t, r, "latest")
			time.Sleep(time.Second)
		}
		// At 0, 5, 15, 35, 75, 155, 275, 395 and 515 seconds.
		w.wantCount("HEAD ", 9)
	})
}

// A 429 holds what was limited, for as long as it says, and nothing else.
func TestALimitOnOneOperationHoldsNoOther(t *testing.T) {
	asks := map[string]func(t *testing.T, r *Registry) error{
		"/tags/": func(t *testing.T, r *Registry) error { _, err := r.Tags(t.Context(), "a"); return err },
		"/referrers/": func(t *testing.T, r *Registry) error {
			_, err := r.Referrers(t.Context(), "a", layerDigest)
			return err
		},
		"HEAD": func(t *testing.T, r *Registry) error { return resolve(t, r, "latest") },
		"/manifests/": func(t *testing.T, r *Registry) error {
			_, err := r.Manifest(t.Context(), "a", "latest")
			return err
		},
		"/blobs/": func(t *testing.T, r *Registry) error { _, err := readBlob(t, r); return err },
	}
	serve := func(rw http.ResponseWriter, req *http.Request) {
		switch {
		case strings.Contains(req.URL.Path, "/tags/"):
			fmt.Fprint(rw, `{"tags":["1"]}`)
		case strings.Contains(req.URL.Path, "/referrers/"):
			fmt.Fprint(rw, `{"manifests":[]}`)
		case strings.Contains(req.URL.Path, "/blobs/"):
			serveLayer(rw, req)
		default:
			serveImage(rw, req)
		}
	}
	for limitedBy, limitedAsk := range asks {
		for name, retry := range map[string]string{"told": "120", "untold": ""} {
			t.Run(limitedBy+" "+name, func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
						is := req.Method == http.MethodGet && strings.Contains(req.URL.Path, limitedBy)
						if is || req.Method == limitedBy {
							if retry != "" {
								rw.Header().Set("Retry-After", retry)
							}
							rw.WriteHeader(http.StatusTooManyRequests)
							return
						}
						serve(rw, req)
					})
					r := w.registry(Options{})
					tries := 0
					for range 120 {
						asked := w.count("")
						e := wantError(t, limitedAsk(t, r), oci.CodeTooManyRequests, 429)
						if most := 120 * time.Second; e.RetryAfter > most || retry == "" && e.RetryAfter > abusePause {
							t.Fatalf("Retry-After is %s", e.RetryAfter)
						}
						if w.count("") > asked {
							tries++
						}
						for kind, ask := range asks {
							if kind != limitedBy {
								if err := ask(t, r); err != nil {
									t.Fatalf("%s is held by a limit on %s: %v", kind, limitedBy, err)
								}
							}
						}
						time.Sleep(time.Second)
					}
					if most := 120/int(abusePause/time.Second) + 1; tries > most || retry != "" && tries > 1 {
						t.Errorf("what is limited was asked for %d times in two minutes", tries)
					}
				})
			})
		}
	}
}

// Lists that are limited, all of them, hold no pull before one is limited too.
func TestLimitedListsHoldNoPull(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if strings.Contains(req.URL.Path, "/manifests/") {
				serveImage(rw, req)
				return
			}
			rw.Header().Set("Retry-After", "120")
			rw.WriteHeader(http.StatusTooManyRequests)
		})
		r := w.registry(Options{})
		for range 3 {
			_, err := r.Tags(t.Context(), "a")
			wantError(t, err, oci.CodeTooManyRequests, 429)
			_, err = r.Referrers(t.Context(), "a", layerDigest)
			wantError(t, err, oci.CodeTooManyRequests, 429)
		}
		wantManifest(t, r, "a")
	})
}

func TestAHeldEndpointIsPassedOverForTheNext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("first.test:443", (&meter{limit: 100, window: 21600}).serve)
		w.host("second.test:443", serveImage)
		r := two(w)
		for range 3 {
			wantManifest(t, r, "a")
		}
		w.wantCount("GET first.test", 1)
		w.wantCount("GET second.test", 3)
	})
}

func TestTheLimitOfAStoreHoldsNothingAtTheRegistry(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if strings.Contains(req.URL.Path, "/blobs/") {
				redirectTo("https://cdn.test/x")(rw, req)
				return
			}
			serveImage(rw, req)
		})
		w.host("cdn.test:443", status(http.StatusTooManyRequests))
		r := w.registry(Options{})
		_, err := readBlob(t, r)
		wantError(t, err, oci.CodeTooManyRequests, 429)
		wantManifest(t, r, "a")
	})
}

func TestEachAccountHasItsOwnQuota(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		accounts := map[string]*meter{"alice": {limit: 100, window: 21600}, "bob": {limit: 100, remaining: 5, window: 21600}}
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			user, _, ok := req.BasicAuth()
			if !ok {
				rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
			accounts[user].serve(rw, req)
		})
		who := &changing{c: Credential{Username: "alice", Password: "hunter2"}}
		r := w.registry(Options{Credentials: who})
		for range 2 {
			_, err := r.Manifest(t.Context(), "a", "latest")
			wantError(t, err, oci.CodeTooManyRequests, 429)
		}
		w.wantCount("GET ", 2) // the challenge, and one that was refused
		who.set(Credential{Username: "bob", Password: "hunter2"})
		wantManifest(t, r, "a")
	})
}

// spares tells whether r would spare a pull.
func spares(t *testing.T, r *Registry) bool {
	t.Helper()
	err := r.SparePull(t.Context())
	if err != nil {
		wantError(t, err, oci.CodeTooManyRequests, 429, "quota_reserve")
	}
	return err == nil
}

func TestPullsAreSparedDownToTheReserve(t *testing.T) {
	for _, c := range []struct {
		limit, reserve int
		remaining      int // after the last pull that is spared
	}{
		{100, 10, 10},
		{100, 0, 0},
		{10, 10, 5}, // no more than half of it
		{6, 100, 3},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			m := &meter{limit: c.limit, remaining: c.limit, window: 21600}
			w.host("reg.test:443", m.serve)
			r := w.registry(Options{QuotaReserve: c.reserve})
			if !spares(t, r) {
				t.Error("nothing is known, and no pull is spared")
			}
			for spares(t, r) {
				wantManifest(t, r, "a")
			}
			if m.remaining != c.remaining {
				t.Errorf("of %d with a reserve of %d, %d pulls were left, want %d", c.limit, c.reserve, m.remaining, c.remaining)
			}
			if m.remaining > 0 {
				wantManifest(t, r, "a") // what is not here is fetched all the same
			}
		})
	}
}

func TestAQuotaIsUnknownOnceItsWindowHasEnded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := &meter{limit: 100, remaining: 6, window: 3600}
		w.host("reg.test:443", m.serve)
		r := w.registry(Options{QuotaReserve: 10})
		wantManifest(t, r, "a")
		if got, want := gaugeOf(t, w.metrics.RateReset, "reg"), float64(time.Now().Add(time.Hour).Unix()); got != want {
			t.Errorf("the reset is at %v, want %v", got, want)
		}
		time.Sleep(59 * time.Minute)
		if spares(t, r) {
			t.Error("a pull is spared below the reserve")
		}
		if n := series(w.metrics.RateRemaining); n != 1 {
			t.Errorf("%d series of what remains, want 1", n)
		}
		time.Sleep(2 * time.Minute)
		if !spares(t, r) {
			t.Error("no pull is spared though the window has ended")
		}
		if n := series(w.metrics.RateRemaining) + series(w.metrics.RateReset); n != 0 {
			t.Errorf("%d series of what remains and when it ends, want none: it is not known", n)
		}
	})
}

func TestATokenServersLimitIsHonoured(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := 0
		s := &tokenServer{realm: "https://auth.test/token", service: "reg"}
		w.host("auth.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if n++; n == 1 {
				rw.Header().Set("Retry-After", "60")
				rw.WriteHeader(http.StatusTooManyRequests)
				return
			}
			s.serve(rw, req)
		})
		w.host("reg.test:443", s.guard(serveImage))
		r := w.registry(Options{Realms: []string{"https://auth.test"}})
		for range 3 {
			_, err := r.Manifest(t.Context(), "a", "latest")
			wantError(t, err, oci.CodeTooManyRequests, 429, "auth.test")
		}
		w.wantCount("GET auth.test", 1)
		time.Sleep(time.Minute)
		wantManifest(t, r, "a")
	})
}

func TestQuotaHeadersAreRead(t *testing.T) {
	for in, want := range map[string]struct {
		n      int
		window time.Duration
		ok     bool
	}{
		"100;w=21600":                     {100, 6 * time.Hour, true},
		"100":                             {100, 0, true},
		" 7 ; comment=x; w=60":            {7, time.Minute, true},
		"10, 10;w=1, 50;w=60":             {10, 0, true},
		"100;w=99999999999999999999":      {100, 0, true},
		"100;w=2000000000":                {100, maxWindow, true},
		"":                                {},
		"-1;w=60":                         {},
		"many":                            {},
		"99999999999999999999999999;w=60": {},
	} {
		n, window, ok := readQuota(in)
		if n != want.n || window != want.window || ok != want.ok {
			t.Errorf("%q is %d in %s, %v; want %d in %s, %v", in, n, window, ok, want.n, want.window, want.ok)
		}
	}
}

func TestRateLimitsAreExposed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", serve(image, "Content-Type: "+ociImage, "ratelimit-limit: 100;w=21600", "ratelimit-remaining: 76;w=21600"))
		r := w.registry(Options{})
		wantManifest(t, r, "a")
		if got := gaugeOf(t, w.metrics.RateLimit, "reg"); got != 100 {
			t.Errorf("limit %v, want 100", got)
		}
		if got := gaugeOf(t, w.metrics.RateRemaining, "reg"); got != 76 {
			t.Errorf("remaining %v, want 76", got)
		}
	})
}

func TestTheRateLimitOfAStoreIsNotTheRegistrys(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", redirectTo("https://region.test/"))
		w.host("region.test:443", serve(image, "Content-Type: "+ociImage, "ratelimit-limit: 7"))
		wantManifest(t, w.registry(Options{}), "a")
		all := make(chan prometheus.Metric, 10)
		w.metrics.RateLimit.Collect(all)
		if n := len(all); n != 0 {
			t.Errorf("%d series, want none", n)
		}
	})
}

func TestAnUpstreamWithoutARateLimitHasNone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", serve(image, "Content-Type: "+ociImage, "ratelimit-limit: many"))
		wantManifest(t, w.registry(Options{}), "a")
		all := make(chan prometheus.Metric, 10)
		w.metrics.RateLimit.Collect(all)
		if n := len(all); n != 0 {
			t.Errorf("%d series, want none", n)
		}
	})
}

// changing is a Credentials that a test changes.
type changing struct {
	mu sync.Mutex
	c  Credential
}

func (c *changing) set(to Credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.c = to
}

func (c *changing) Credential(context.Context, string) (Credential, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.c, nil
}

// counting is a governor with a reserve of 10, and the answers of its upstream.
type counting struct {
	*governor
	t *testing.T
}

func newCounting(t *testing.T) counting {
	g := newGovernor("docker.io", metrics.Discard(), reserve{fixed: 10})
	t.Cleanup(g.close)
	return counting{g, t}
}

func says(left int) *answer {
	return &answer{Response: &http.Response{StatusCode: http.StatusOK, Header: http.Header{
		"Ratelimit-Limit": {"100;w=21600"}, "Ratelimit-Remaining": {fmt.Sprintf("%d;w=21600", left)}}}}
}

// head begins a HEAD; call answered with what its answer says.
func (c counting) head() (answered func(left int)) {
	turn := c.turn(account{})
	return func(left int) { c.note(account{}, turn, "resolve", false, http.StatusOK, says(left).Header) }
}

// get begins a pull; call answered with what its answer says.
func (c counting) get() (answered func(left int)) {
	c.t.Helper()
	s, _, held := c.spend(account{}, "a")
	if held {
		c.t.Fatal("a pull is held")
	}
	turn := c.turn(account{})
	return func(left int) {
		c.note(account{}, turn, "manifest", true, http.StatusOK, says(left).Header)
		c.settle(account{}, s, says(left))
	}
}

func (c counting) wantLeft(want int) {
	c.t.Helper()
	if s, _ := c.spare(1, true); s.left != want {
		c.t.Errorf("%d pulls are left, want %d", s.left, want)
	}
}

// The answer of a HEAD that was sent before a pull began may come after the pull's,
// and says what was left before it.
func TestLateAnswerGrantsNoPullTwice(t *testing.T) {
	g := newCounting(t)
	g.head()(12)
	head := g.head()
	g.get()(11)
	head(12)
	g.wantLeft(11)
	// What is sent after it and says more is believed, and so is a new window.
	g.head()(12)
	g.wantLeft(12)
	head = g.head()
	g.get()
	head(100)
	g.wantLeft(100)
}

// The upstream counts pulls that are sent beside each other in any order, and their
// answers come in any order.
func TestAnswersOfPullsBesideEachOtherGrantNoPullTwice(t *testing.T) {
	for name, known := range map[string]bool{"what remains is known": true, "nothing is known yet": false} {
		t.Run(name, func(t *testing.T) {
			g := newCounting(t)
			if known {
				g.head()(13)
			}
			a, b := g.get(), g.get()
			head := g.head()
			a(11) // counted after b
			b(12)
			g.wantLeft(11)
			head(13) // counted before both
			g.wantLeft(11)
			g.head()(11)
			g.wantLeft(11)
		})
	}
}

func TestPullsUnderWayArentSparedTwiceWhileNothingIsKnown(t *testing.T) {
	g := newCounting(t)
	a := g.get()
	g.get() // the upstream counts it later
	a(12)
	if _, ok := g.spare(2, true); ok {
		t.Error("two more pulls are spared, though 11 of 12 are left for them and 10 are kept")
	}
	if _, ok := g.spare(1, true); !ok {
		t.Error("no pull is spared of the one beyond the reserve")
	}
}

// A pull without an answer may have been counted, and is under way no longer.
func TestAFailedPullIsUnderWayNoLonger(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := &meter{limit: 100, remaining: 50, window: 21600}
		broken := true
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if broken {
				panic(http.ErrAbortHandler)
			}
			m.serve(rw, req)
		})
		r := w.registry(Options{QuotaReserve: 10})
		_, err := r.Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 502)
		broken = false
		wantManifest(t, r, "a")
		q := r.endpoints[0].governor.of(r.endpoints[0].governor.last)
		if q.begun != q.ended || q.unread != 0 || q.remaining != 49 {
			t.Errorf("%d of %d pulls have ended, %d weren't taken off, %d remain; want all, none and 49", q.ended, q.begun, q.unread, q.remaining)
		}
	})
}

// A probe shows no credentials. What it is told says nothing about the account that pulls.
func TestAProbeThatIsLimitedDoesNotOpenTheReserve(t *testing.T) {
	g := newCounting(t)
	alice := account{1}
	g.note(alice, g.turn(alice), "resolve", false, http.StatusOK, says(5).Header)
	g.note(account{}, 0, "probe", false, http.StatusTooManyRequests, http.Header{})
	if _, ok := g.spare(1, false); ok {
		t.Error("a pull is spared, though 5 are left and 10 are kept")
	}
}
