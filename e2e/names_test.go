package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestManyNamesOfOneManifestStayWithinTheLimit asks for one small manifest under thousands of
// long names, of an upstream that has it under each.
func TestManyNamesOfOneManifestStayWithinTheLimit(t *testing.T) {
	t.Parallel()
	const limit, names = 8 << 20, 4000
	manifest := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` +
		digest.FromString("{}").String() + `","size":2},"layers":[]}`)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
		_, _ = w.Write(manifest)
	}))
	t.Cleanup(server.Close)
	config, err := json.Marshal(map[string]any{
		"upstreams": map[string]any{"reg.test": map[string]any{"endpoints": []string{server.URL}, "prefetch": 0, "tags": []any{map[string]any{"match": "*", "ttl": "1h"}}}},
		"cache":     map[string]any{"max_size": "8MiB"}})
	if err != nil {
		t.Fatal(err)
	}
	p := proxy.Start(t, proxy.Options{Dir: nested(t), Config: string(config)})
	url := func(i int) string {
		return fmt.Sprintf("/v2/reg.test/%s/app%d/manifests/%s%d", strings.Repeat("n", 100), i, strings.Repeat("t", 100), i)
	}
	var next, most atomic.Int64
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for i := next.Add(1); i <= names; i = next.Add(1) {
				if a := get(t, p, url(int(i))); string(a.body) != string(manifest) {
					t.Errorf("name %d: %d %q", i, a.status, a.body)
					return
				}
				if i%100 == 0 {
					if n := allocated(t, p.Dir); n > most.Load() {
						most.Store(n)
					}
				}
			}
		})
	}
	clients.Wait()
	t.Logf("at most %d KiB on disk, %d KiB at the end, of those %d KiB of index", most.Load()>>10, allocated(t, p.Dir)>>10, allocated(t, filepath.Join(p.Dir, "index.db"))>>10)
	if most.Load() > limit/10*11 {
		t.Errorf("the cache took %d KiB on disk, want at most %d", most.Load()>>10, limit/10*11>>10)
	}
	until(t, "the index to be no more than half of the limit", func() bool {
		return allocated(t, filepath.Join(p.Dir, "index.db")) <= limit/2
	})
	// What was asked for last is known still.
	before := p.Metrics(t).Sum("entrepot_upstream_requests_total")
	get(t, p, url(names))
	if after := p.Metrics(t).Sum("entrepot_upstream_requests_total"); after != before {
		t.Errorf("the upstream was asked for the last name again: %g requests", after-before)
	}
}
