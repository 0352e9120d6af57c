package admin

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/entrepot-dev/entrepot/metrics"
)

func TestPagesOfOtherSitesAreRefused(t *testing.T) {
	scrubs := 0
	o := Options{
		Metrics: metrics.Discard(), Hosts: []string{"cache.example.com"},
		API: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { scrubs++ }),
	}
	open := New(o)
	o.Guard = func(h http.Handler) http.Handler { return h }
	guarded := New(o)
	const here = "127.0.0.1:5001"
	link := []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}
	for name, c := range map[string]struct {
		s            *Server
		method, path string
		host         string
		headers      []string
		status       int
	}{
		"curl":                             {open, "POST", "/api/v1/scrub", here, nil, 200},
		"the listener's own page":          {open, "POST", "/api/v1/scrub", here, []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://" + here}, 200},
		"typed into the browser":           {open, "GET", "/", here, []string{"Sec-Fetch-Site", "none"}, 200},
		"a form of another site":           {open, "POST", "/api/v1/scrub", here, []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"}, 403},
		"a form of another port":           {open, "POST", "/api/v1/scrub", here, []string{"Sec-Fetch-Site", "same-site", "Origin", "http://127.0.0.1:8080"}, 403},
		"a form that looks like a link":    {open, "POST", "/api/v1/scrub", here, append([]string{"Sec-Fetch-Site", "cross-site"}, link...), 403},
		"an old browser":                   {open, "POST", "/api/v1/scrub", here, []string{"Origin", "https://evil.example"}, 403},
		"an old browser, same origin":      {open, "POST", "/api/v1/scrub", here, []string{"Origin", "http://" + here}, 200},
		"a sandboxed page":                 {open, "POST", "/api/v1/scrub", here, []string{"Origin", "null"}, 403},
		"a picture of another site":        {open, "GET", "/debug/pprof/profile?seconds=30", here, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"}, 403},
		"a frame in another site":          {open, "GET", "/", here, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, 403},
		"a question ahead of one":          {open, "OPTIONS", "/api/v1/scrub", here, []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"}, 403},
		"a link on another site":           {open, "GET", "/", here, append([]string{"Sec-Fetch-Site", "cross-site"}, link...), 200},
		"localhost":                        {open, "GET", "/metrics", "localhost:5001", nil, 200},
		"localhost, spelled out":           {open, "GET", "/metrics", "LOCALHOST.", nil, 200},
		"IPv6":                             {open, "GET", "/metrics", "[::1]:5001", nil, 200},
		"a configured name":                {open, "GET", "/metrics", "Cache.example.com:5001", nil, 200},
		"no name":                          {open, "GET", "/metrics", "", nil, 200},
		"a name that was rebound":          {open, "GET", "/metrics", "evil.example:5001", []string{"Sec-Fetch-Site", "same-origin"}, 421},
		"a name that was rebound, scrub":   {open, "POST", "/api/v1/scrub", "evil.example:5001", []string{"Origin", "http://evil.example:5001"}, 421},
		"a name that looks like localhost": {open, "GET", "/metrics", "localhost.evil.example", nil, 421},
		"a name that looks like one here":  {open, "GET", "/metrics", "x.cache.example.com", nil, 421},
		"health by any name":               {open, "GET", "/healthz", "evil.example", nil, 200},
		"readiness by any name":            {open, "GET", "/readyz", "evil.example", nil, 200},
		"guarded, any name":                {guarded, "GET", "/metrics", "prometheus.example", nil, 200},
		"guarded, a form of another site":  {guarded, "POST", "/api/v1/scrub", "cache.example", []string{"Origin", "https://evil.example"}, 403},
	} {
		r := httptest.NewRequest(c.method, c.path, nil)
		r.Host = c.host
		for i := 0; i+1 < len(c.headers); i += 2 {
			r.Header.Set(c.headers[i], c.headers[i+1])
		}
		before, w := scrubs, httptest.NewRecorder()
		c.s.http.Handler.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%s: want %d, got %d, %q", name, c.status, w.Code, w.Body)
		}
		if c.status != 200 && scrubs != before {
			t.Errorf("%s: was refused, and done", name)
		}
		if c.path != "/healthz" && c.path != "/readyz" && w.Header().Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s: the answer may stand in a frame: %v", name, w.Header())
		}
	}
}
