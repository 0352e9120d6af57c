package clients

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
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
			// The suite crashes once it has printed its report, so that its exit
			// code says nothing. Each test is a line "name: result".
			passed := map[string]int{}
			for line := range strings.Lines(report) {
				name, result, ok := strings.Cut(strings.TrimSpace(line), ": ")
				if !ok || !strings.HasPrefix(name, "OCI Conformance") {
					continue
				}
				switch strings.TrimSpace(result) {
				case "Pass":
					passed[name]++
				case "Disabled", "Skip":
				default:
					t.Errorf("%s: %s", name, result)
				}
			}
			for name, want := range map[string]int{
				"OCI Conformance Test":                                        1,
				"OCI Conformance Test/ping":                                   1,
				"OCI Conformance Test/missing-manifest/by-digest":             1,
				"OCI Conformance Test/invalid-digest-format/manifest-get":     1,
				"OCI Conformance Test/read-only/tag-list":                     1,
				"OCI Conformance Test/read-only/referrers":                    1,
				"OCI Conformance Test/read-only/pull/blob-get":                len(c.Blobs),
				"OCI Conformance Test/read-only/head/blob-head":               len(c.Blobs),
				"OCI Conformance Test/read-only/pull/manifest-by-digest":      len(c.Manifests),
				"OCI Conformance Test/read-only/head/manifest-head-by-digest": len(c.Manifests),
				"OCI Conformance Test/read-only/pull/manifest-by-tag":         len(c.Tags),
				"OCI Conformance Test/read-only/head/manifest-head-by-tag":    len(c.Tags),
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
