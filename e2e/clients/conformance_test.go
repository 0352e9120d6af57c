package clients

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestConformanceSuiteFindsAReadOnlyRegistry runs the distribution-spec's own
// suite: with pushes against a registry, to have all the content that it can
// think of, and then read-only through the program in front of it.
func TestConformanceSuiteFindsAReadOnlyRegistry(t *testing.T) {
	program := need(t, "conformance")
	t.Run("of a hub", func(t *testing.T) {
		h := hub.New(t, hub.Options{Auth: hub.Open, NoCDN: true})
		pushConformance(t, program, h.Host())
		c := h.Content(conformanceRepository)
		if !strings.Contains(joined(c.Manifests), "sha512:") || !strings.Contains(joined(c.Blobs), "sha512:") {
			t.Error("the suite pushed nothing by sha512")
		}
		readConformance(t, program, c, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}})
	})
	t.Run("of the CNCF's registry", func(t *testing.T) {
		r := startCNCFRegistry(t)
		pushConformance(t, program, r.host)
		readConformance(t, program, r.content(t, conformanceRepository), proxy.Options{
			Config: fmt.Sprintf(`upstreams: {docker.io: {endpoints: ["http://%s"]}}`, r.host),
		})
	})
}

const conformanceRepository = "conformance/repo1"

// pushConformance fills a registry. What the suite finds of its pushes is of no
// interest.
func pushConformance(t *testing.T, program, host string) {
	t.Helper()
	runConformance(t, program, "OCI_REGISTRY="+host,
		"OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false")
}

// readConformance runs the suite through the program, with nothing cached, and
// wants each of its tests to pass for all of the content.
func readConformance(t *testing.T, program string, c hub.Content, o proxy.Options) {
	t.Helper()
	if len(c.Tags) < 10 || len(c.Manifests) < 20 || len(c.Blobs) < 20 || len(c.Subjects) < 1 {
		t.Fatalf("the suite pushed %d tags, %d manifests, %d blobs, %d subjects", len(c.Tags), len(c.Manifests), len(c.Blobs), len(c.Subjects))
	}
	for _, version := range []string{"1.1", "dev"} {
		t.Run(version, func(t *testing.T) {
			p := proxy.Start(t, o)
			report := runConformance(t, program,
				"OCI_VERSION="+version, "OCI_REGISTRY="+p.Host(), "OCI_API_PUSH=false",
				"OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false",
				"OCI_API_BLOBS_DIGEST_HEADER=true",
				// The suite reports this one as missing whatever is sent, in a
				// read-only run: wantDigestHeaders looks for it.
				"OCI_API_MANIFESTS_DIGEST_HEADER=false",
				"OCI_RO_DATA_TAGS="+strings.Join(c.Tags, " "), "OCI_RO_DATA_MANIFESTS="+joined(c.Manifests),
				"OCI_RO_DATA_BLOBS="+joined(c.Blobs), "OCI_RO_DATA_REFERRERS="+joined(c.Subjects))
			passed := map[string]int{}
			for _, r := range results(report) {
				switch r.result {
				case "Pass":
					passed[r.name]++
				case "Disabled", "Skip":
				default:
					t.Errorf("%s: %s: %s", r.name, r.result, r.why)
				}
			}
			for name, want := range map[string]int{
				"":                                        1,
				"/ping":                                   1,
				"/missing-manifest/by-digest":             1,
				"/invalid-digest-format/manifest-get":     1,
				"/read-only/tag-list":                     1,
				"/read-only/referrers":                    1,
				"/read-only/pull/blob-get":                len(c.Blobs),
				"/read-only/head/blob-head":               len(c.Blobs),
				"/read-only/pull/manifest-by-digest":      len(c.Manifests),
				"/read-only/head/manifest-head-by-digest": len(c.Manifests),
				"/read-only/pull/manifest-by-tag":         len(c.Tags),
				"/read-only/head/manifest-head-by-tag":    len(c.Tags),
			} {
				if passed[name] != want {
					t.Errorf("%s: %d passed, want %d", name, passed[name], want)
				}
			}
			if t.Failed() {
				t.Log(report)
			}
			wantDigestHeaders(t, p.URL()+"/v2/"+conformanceRepository+"/manifests/", c.Manifests)
		})
	}
}

// TestConformanceSuitePullsWhatItPushed lets the suite push to the hub and pull
// through the program, so that it knows what each answer must hold: content,
// ranges, lists, referrers by type.
func TestConformanceSuitePullsWhatItPushed(t *testing.T) {
	program := need(t, "conformance")
	h := hub.New(t, hub.Options{Auth: hub.Open, NoCDN: true})
	h.Push(conformanceRepository, "first", image.New(image.Options{})) // so that there is something to list
	for _, version := range []string{"1.1", "dev"} {
		t.Run(version, func(t *testing.T) {
			p := proxy.Start(t, proxy.Options{
				Upstreams: map[string]*hub.Hub{"docker.io": h},
				// The suite moves tags and looks at once.
				Config: `upstreams: {docker.io: {tags: [{match: "*", ttl: 0s}]}}`,
			})
			toHub, toProxy := forward(t, h.URL()), forward(t, p.URL())
			both := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead || r.Method == http.MethodGet && !strings.Contains(r.URL.Path, "/blobs/uploads/") {
					toProxy.ServeHTTP(w, r)
					return
				}
				toHub.ServeHTTP(w, r)
			}))
			t.Cleanup(both.Close)
			report := runConformance(t, program, "OCI_VERSION="+version, "OCI_REGISTRY="+both.Listener.Addr().String(),
				"OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false",
				"OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true",
				// The hub does not have these.
				"OCI_API_MANIFESTS_TAG_PARAM=false", "OCI_API_BLOBS_UPLOAD_CANCEL=false")
			passed := map[string]int{}
			for _, r := range results(report) {
				kind := pulls.FindString(r.name)
				switch {
				case kind == "": // a push, or a group
				case r.result == "Pass":
					passed[strings.TrimPrefix(kind, "/")]++
				case r.result != "Disabled" && r.result != "Skip":
					t.Errorf("%s: %s: %s", r.name, r.result, r.why)
				}
			}
			for kind, least := range map[string]int{
				"ping": 1, "blob-get": 80, "blob-head": 80, "range 500-1499": 2, "range 500-": 2, "range -500": 2,
				"pull/manifest-by-digest": 35, "pull/manifest-by-tag": 15, "head/manifest-head-by-digest": 35, "head/manifest-head-by-tag": 15,
				"tag-list": 15, "referrers": 4, "missing-manifest/by-digest": 1, "missing-manifest/by-tag": 1, "get-missing": 2,
			} {
				if passed[kind] < least {
					t.Errorf("%s: %d passed, want %d at least", kind, passed[kind], least)
				}
			}
			if t.Failed() {
				t.Log(report)
			}
		})
	}
}

// pulls are the tests of the suite that only ask.
var pulls = regexp.MustCompile(`/(ping|blob-get|blob-head|get-missing|range [-0-9]+|tag-list|referrers|manifest-get|` +
	`pull/manifest-by-[a-z]+|head/manifest-head-by-[a-z]+|missing-manifest/by-[a-z]+)$`)

func forward(t *testing.T, to string) http.Handler {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }}
}

// wantDigestHeaders looks at Docker-Content-Digest of each manifest, by GET and
// HEAD.
func wantDigestHeaders(t *testing.T, url string, manifests []digest.Digest) {
	t.Helper()
	for _, d := range manifests {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			req, err := http.NewRequestWithContext(t.Context(), method, url+d.String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if got := res.Header.Get("Docker-Content-Digest"); res.StatusCode != http.StatusOK || got != d.String() {
				t.Errorf("%s %s: status %d, Docker-Content-Digest %q", method, d, res.StatusCode, got)
			}
		}
	}
}

func joined(all []digest.Digest) string {
	s := make([]string, len(all))
	for i, d := range all {
		s[i] = d.String()
	}
	return strings.Join(s, " ")
}

func runConformance(t *testing.T, program string, env ...string) (report string) {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "OCI_TLS=disabled",
		"OCI_REPO1=" + conformanceRepository, "OCI_REPO2=conformance/repo2", "OCI_RESULTS_DIR=" + dir}, env...)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%v: %v\n%s", ctx.Err(), err, out)
	}
	return string(out)
}

// result is what the suite reports of one of its tests.
type result struct {
	// name is empty for the whole run, then "/group/test".
	name, result, why string
}

// results reads the suite's report: lines "name: result", indented by depth,
// and below those that failed " - why". The suite may crash once it has printed
// that, so that its exit code says nothing.
func results(report string) []result {
	var all []result
	for line := range strings.Lines(report) {
		line = strings.TrimSpace(line)
		if why, ok := strings.CutPrefix(line, "- "); ok && len(all) > 0 {
			all[len(all)-1].why += why
			continue
		}
		rest, ok := strings.CutPrefix(line, "OCI Conformance Test")
		if i := strings.LastIndex(rest, ": "); ok && i >= 0 {
			all = append(all, result{name: rest[:i], result: strings.TrimSpace(rest[i+2:])})
		}
	}
	return all
}
