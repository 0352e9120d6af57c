package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// The states of an endpoint in the metrics.
const (
	endpointClosed = 0
	endpointOpen   = 2
)

// endpoint gives the state of the endpoint of docker.io, and how often its
// breaker has opened.
func endpoint(t *testing.T, p *proxy.Proxy) (state, openings float64) {
	t.Helper()
	m := p.Metrics(t)
	if m["entrepot_upstream_endpoint_state"] == nil {
		t.Fatal("there is no metric entrepot_upstream_endpoint_state")
	}
	return m.Sum("entrepot_upstream_endpoint_state", "upstream", "docker.io"),
		m.Sum("entrepot_upstream_endpoint_openings_total", "upstream", "docker.io")
}

func TestABlackHoledUpstreamCostsCachedContentOneDeadlineThenNothing(t *testing.T) {
	t.Parallel()
	h, p := start(t, `upstreams: {docker.io: {header_timeout: 4s, tags: [{match: "*", ttl: 0s}]}}`)
	i := image.New(image.Options{Seed: 1})
	const tags = 20
	path := func(n int) string { return fmt.Sprintf("/v2/library/app/manifests/%d", n) }
	for n := range tags {
		h.Push("library/app", strconv.Itoa(n), i)
		get(t, p, path(n))
	}
	pullRaw(t, p, "library/app", i)
	stale := func(n int) time.Duration {
		t.Helper()
		began := time.Now()
		a := get(t, p, path(n))
		wantBytes(t, "stale tag", i.Bytes(), a.body)
		if w := a.header.Get("Warning"); !strings.HasPrefix(w, "110 ") {
			t.Errorf("tag %d: want Warning 110, got %q", n, w)
		}
		return time.Since(began)
	}

	h.BlackHole()
	first := stale(0)
	began := time.Now()
	for n := range tags {
		stale(n)
	}
	rest := time.Since(began)
	t.Logf("the first pull took %s, the next %d took %s together", first, tags, rest)
	if rest > first/2 {
		t.Errorf("the first pull took %s, want the next %d to cost next to nothing; they took %s", first, tags, rest)
	}

	until(t, "the breaker to open", func() bool { state, _ := endpoint(t, p); return state == endpointOpen })
	// What was sent before it opened may still arrive; from now on there are
	// probes and nothing else.
	probes := func() int64 {
		return int64(p.Metrics(t).Sum("entrepot_upstream_requests_total", "upstream", "docker.io", "operation", "probe"))
	}
	probed, swallowed := probes(), h.Counts().Swallowed
	for range 3 {
		for n := range tags {
			stale(n)
		}
	}
	pullRaw(t, p, "library/app", i)
	got, most := h.Counts().Swallowed-swallowed, probes()-probed+1 // one may be under way
	if got > most {
		t.Errorf("with the breaker open %d requests were sent, want none but %d probes", got, most)
	}
	a := ask(t, p, http.MethodGet, "/v2/library/app/manifests/none")
	a.wantError(t, http.StatusServiceUnavailable, "UNAVAILABLE")
	if s, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || s < 1 || s > 30 {
		t.Errorf("a miss: want a Retry-After of up to 30 seconds, got %q", a.header.Get("Retry-After"))
	}

	if err := h.Up(); err != nil {
		t.Fatal(err)
	}
	until(t, "the breaker to close", func() bool { state, _ := endpoint(t, p); return state == endpointClosed })
	if _, openings := endpoint(t, p); openings < 1 {
		t.Errorf("want at least one opening counted, got %g", openings)
	}
	get(t, p, path(0))
	second := image.New(image.Options{Seed: 2})
	h.Push("library/app", "0", second)
	until(t, "the new tag", func() bool { return string(get(t, p, path(0)).body) == string(second.Bytes()) })
}

func TestAMissIsServedByTheNextEndpointWhileTheFirstIsABlackHole(t *testing.T) {
	t.Parallel()
	plain := hub.Options{Auth: hub.Open, NoCDN: true}
	first, second := hub.New(t, plain), hub.New(t, plain)
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": first}, Config: fmt.Sprintf(
		`upstreams: {docker.io: {header_timeout: 1s, endpoints: [%q, %q], redirect_hosts: [], realms: []}}`, first.URL(), second.URL())})
	i := image.New(image.Options{Seed: 1})
	second.Push("library/app", "1.0", i)
	first.BlackHole()
	wantBytes(t, "tag", i.Bytes(), get(t, p, tagPath).body)
	swallowed := first.Counts().Swallowed
	pullRaw(t, p, "library/app", i)
	probes := int64(p.Metrics(t).Sum("entrepot_upstream_requests_total", "operation", "probe"))
	if got := first.Counts().Swallowed - swallowed; got > probes+1 {
		t.Errorf("the first endpoint was asked %d more times, want no more than %d probes", got, probes)
	}
	if got := p.Metrics(t).Sum("entrepot_upstream_endpoint_state", "endpoint", second.Host()); got != endpointClosed {
		t.Errorf("the second endpoint: want state %d, got %g", endpointClosed, got)
	}
}

// counters gives the pulls that docker.io was sent, and those it was spared.
func counters(t *testing.T, p *proxy.Proxy) (sent, saved float64) {
	t.Helper()
	m := p.Metrics(t)
	return m.Sum("entrepot_upstream_pulls_total", "upstream", "docker.io"),
		m.Sum("entrepot_upstream_pulls_saved_total", "upstream", "docker.io")
}

func wantStale(t *testing.T, p *proxy.Proxy, i *image.Image, why string) {
	t.Helper()
	a := get(t, p, tagPath)
	wantBytes(t, "stale tag", i.Bytes(), a.body)
	if w := strings.Join(a.header.Values("Warning"), ", "); !strings.HasPrefix(w, "110 ") || !strings.Contains(w, why) {
		t.Errorf("want Warning 110 and %q, got %q", why, w)
	}
}

func wantLimited(t *testing.T, p *proxy.Proxy, path string, most int) {
	t.Helper()
	a := ask(t, p, http.MethodGet, path)
	a.wantError(t, http.StatusTooManyRequests, "TOOMANYREQUESTS")
	if s, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || s < 1 || s > most {
		t.Errorf("%s: want a Retry-After of 1 to %d seconds, got %q", path, most, a.header.Get("Retry-After"))
	}
}

func TestAUsedUpQuotaServesStaleAndRefusesMisses(t *testing.T) {
	t.Parallel()
	h, p := start(t, `upstreams: {docker.io: {quota_reserve: 0, tags: [{match: "*", ttl: 0s}]}}`)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	h.Push("library/other", "1.0", image.New(image.Options{Seed: 2}))
	h.LimitPulls(100, 100, 21600)
	get(t, p, tagPath)
	const again = 3
	for range again {
		get(t, p, tagPath)
	}
	if sent, saved := counters(t, p); sent != float64(100-h.PullsLeft()) || saved != again {
		t.Errorf("want %d pulls sent and %d saved, got %g and %g", 100-h.PullsLeft(), again, sent, saved)
	}

	h.LimitPulls(100, 0, 21600)
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 3})) // the tag moves
	before := h.Counts()
	wantStale(t, p, i, "pull quota")
	after := h.Counts()
	if after.ManifestHeads == before.ManifestHeads || after.ManifestGets != before.ManifestGets {
		t.Errorf("stale: want HEADs and no GET, got %d and %d", after.ManifestHeads-before.ManifestHeads, after.ManifestGets-before.ManifestGets)
	}
	wantLimited(t, p, "/v2/library/other/manifests/1.0", 60)
	gets := h.Counts().ManifestGets
	for n := range 3 {
		wantLimited(t, p, fmt.Sprintf("/v2/library/other/manifests/%d", n), 60)
	}
	if got := h.Counts().ManifestGets; got != gets {
		t.Errorf("%d GETs were sent that could only be refused", got-gets)
	}
	// A client's HEAD is no pull.
	if a := ask(t, p, http.MethodHead, "/v2/library/other/manifests/1.0"); a.status != http.StatusOK {
		t.Errorf("a HEAD: want 200, got %s", a)
	}
	m := p.Metrics(t)
	if got := m.Sum("entrepot_upstream_ratelimit_remaining", "upstream", "docker.io"); got != 0 {
		t.Errorf("remaining: want 0, got %g", got)
	}
	if got := m.Sum("entrepot_upstream_errors_total", "upstream", "docker.io", "reason", "held"); got != 3 {
		t.Errorf("held requests: want 3, got %g", got)
	}
	if got := m.Sum("entrepot_upstream_ratelimit_reset_timestamp_seconds", "upstream", "docker.io"); got < float64(time.Now().Unix()) {
		t.Errorf("reset: want a time to come, got %g", got)
	}
	if state, openings := endpoint(t, p); state != endpointClosed || openings != 0 {
		t.Errorf("a limit is no failure of the endpoint: want it closed, got state %g after %g openings", state, openings)
	}
}

func TestALimitAgainstAbuseIsGivenWayTo(t *testing.T) {
	t.Parallel()
	h, p := start(t, doubting)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	get(t, p, tagPath)
	pullRaw(t, p, "library/app", i)
	h.Inject(hub.TooManyRequests(hub.Any).With("Retry-After", "60"))
	wantStale(t, p, i, "rate")
	// A second operation that is limited too has all requests held.
	wantLimited(t, p, "/v2/library/app/manifests/2.0", 60)
	before := h.Counts()
	wantStale(t, p, i, "rate")
	pullRaw(t, p, "library/app", i)
	for _, path := range []string{"/v2/library/other/manifests/1.0", "/v2/library/app/tags/list", "/v2/library/app/manifests/sha256:" + strings.Repeat("0", 64)} {
		wantLimited(t, p, path, 60)
	}
	if a := ask(t, p, http.MethodHead, "/v2/library/other/manifests/1.0"); a.status != http.StatusTooManyRequests {
		t.Errorf("a HEAD: want 429, got %s", a)
	}
	wantUnmoved(t, before, h.Counts())
}

func TestTheLastPullsAreKeptForWhatIsNotHere(t *testing.T) {
	t.Parallel()
	h, p := start(t, `upstreams: {docker.io: {quota_reserve: 5, tags: [{match: "*", ttl: 0s}]}}`)
	one, two, three := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2}), image.New(image.Options{Seed: 3})
	other := image.New(image.Options{Seed: 4})
	h.Push("library/app", "1.0", one)
	h.Push("library/other", "1.0", other)
	h.LimitPulls(100, 7, 21600)
	get(t, p, tagPath)
	h.Push("library/app", "1.0", two)
	wantBytes(t, "above the reserve", two.Bytes(), get(t, p, tagPath).body)
	if left := h.PullsLeft(); left != 5 {
		t.Fatalf("want 5 pulls left, got %d", left)
	}
	h.Push("library/app", "1.0", three)
	wantStale(t, p, two, "pull quota is kept")
	wantBytes(t, "a miss", other.Bytes(), get(t, p, "/v2/library/other/manifests/1.0").body)
	if left := h.PullsLeft(); left != 4 {
		t.Errorf("want 4 pulls left, got %d", left)
	}
	sent, _ := counters(t, p)
	if sent != 3 {
		t.Errorf("want 3 pulls counted, got %g", sent)
	}
	// With a quota again, the tag is what it has become.
	h.LimitPulls(100, 90, 21600)
	until(t, "the new tag", func() bool { return string(get(t, p, tagPath).body) == string(three.Bytes()) })
}

func TestBrokenTLSIsNoAbsenceAndDisplacesNothing(t *testing.T) {
	t.Parallel()
	h, stranger := hub.New(t, hub.Options{TLS: true}), hub.New(t, hub.Options{TLS: true})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: doubting})
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	get(t, p, tagPath)
	pullRaw(t, p, "library/app", i)
	p.Stop(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, stranger.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	p = restartWith(t, p, h, fmt.Sprintf(`upstreams: {docker.io: {tls: {ca: %q}, tags: [{match: "*", ttl: 0s}]}}`, ca))
	for range 2 {
		wantStale(t, p, i, "")
		pullRaw(t, p, "library/app", i)
		for _, path := range []string{"/v2/library/none/manifests/1.0", "/v2/library/none/blobs/" + i.Digest.String(), "/v2/library/none/tags/list"} {
			if a := ask(t, p, http.MethodGet, path); a.status < 500 {
				t.Errorf("want a failure, got %s", a)
			}
		}
	}
	until(t, "the breaker to open", func() bool { _, openings := endpoint(t, p); return openings > 0 })
}

// While a breaker is open, the log has one warning for the opening, and none for each
// request that is refused because of it.
func TestAnOpenBreakerWarnsOnce(t *testing.T) {
	h, p := start(t, believing)
	_, _, path := blobOf(h, "library/gone", 1, 100_000)
	get(t, p, "/v2/library/gone/manifests/1.0")
	h.Down()
	until(t, "the breaker to open", func() bool {
		ask(t, p, http.MethodGet, path)
		state, openings := endpoint(t, p)
		return state == endpointOpen && openings > 0
	})
	warnings := func() int { return strings.Count(p.Log(), `"level":"warn"`) }
	_, openings := endpoint(t, p)
	before, refused := warnings(), 0
	for range 100 {
		if ask(t, p, http.MethodGet, path).status == http.StatusServiceUnavailable {
			refused++
		}
	}
	_, now := endpoint(t, p)
	until(t, "the log to have the requests", func() bool { return strings.Count(p.Log(), `"status":503`) >= refused })
	// A probe's success could let the breaker open anew: each opening has its line, and
	// the requests that open it theirs.
	if n := warnings() - before; refused < 50 || now == openings && n > 0 {
		t.Errorf("%d requests were refused, and %d warnings logged", refused, n)
	}
}
