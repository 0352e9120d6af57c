package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// Whatever fails at a registry for some requests only, everybody else's first pull
// works: manifest, config and layers.
func TestWhatFailsForSomeRefusesNobodyElsesPull(t *testing.T) {
	broken := image.New(image.Options{Seed: 100})
	layers := func(p *proxy.Proxy, t *testing.T, repo string) {
		for _, l := range broken.Layers("linux/amd64") {
			ask(t, p, http.MethodGet, "/v2/"+repo+"/blobs/"+l.Digest.String())
		}
	}
	for name, c := range map[string]struct {
		faults []hub.Fault
		// bad is what other clients go on asking for.
		bad func(t *testing.T, p *proxy.Proxy, n int)
	}{
		"referrers": {[]hub.Fault{hub.Answer(hub.Referrers, 500)}, func(t *testing.T, p *proxy.Proxy, n int) {
			ask(t, p, http.MethodGet, fmt.Sprintf("/v2/bad/app%d/referrers/%s", n, digest.FromString(fmt.Sprint(n))))
		}},
		"tags": {[]hub.Fault{hub.Answer(hub.Tags, 500)}, func(t *testing.T, p *proxy.Proxy, n int) {
			ask(t, p, http.MethodGet, fmt.Sprintf("/v2/bad/app%d/tags/list", n))
		}},
		"HEAD": {[]hub.Fault{hub.Answer(hub.ManifestHead, 500), hub.Answer(hub.BlobHead, 500)}, func(t *testing.T, p *proxy.Proxy, n int) {
			ask(t, p, http.MethodHead, fmt.Sprintf("/v2/bad/app%d/manifests/1.0", n))
		}},
		"blobs of one repository": {[]hub.Fault{hub.Answer(hub.BlobGet, 500).In("bad/app")}, func(t *testing.T, p *proxy.Proxy, n int) {
			layers(p, t, "bad/app")
		}},
		"all of one project": {[]hub.Fault{hub.Answer(hub.Any, 502).In("bad/app"), hub.Answer(hub.Any, 502).In("bad/two"),
			hub.Answer(hub.Any, 502).In("bad/three"), hub.Answer(hub.Any, 502).In("bad/four")}, func(t *testing.T, p *proxy.Proxy, n int) {
			for _, repo := range []string{"bad/app", "bad/two", "bad/three", "bad/four"} {
				ask(t, p, http.MethodGet, fmt.Sprintf("/v2/%s/manifests/%d", repo, n))
				layers(p, t, repo)
			}
		}},
		"lists at a registry whose ping fails": {[]hub.Fault{hub.Answer(hub.Ping, 500), hub.Answer(hub.Tags, 500), hub.Answer(hub.Referrers, 500)}, func(t *testing.T, p *proxy.Proxy, n int) {
			for i := range 4 {
				ask(t, p, http.MethodGet, fmt.Sprintf("/v2/bad/app%d-%d/tags/list", n, i))
			}
		}},
		"one silent blob": {[]hub.Fault{hub.Hold(hub.BlobGet, nil).In("bad/app")}, func(t *testing.T, p *proxy.Proxy, n int) {
			if n > 1 {
				return // each takes the header timeout
			}
			layers(p, t, "bad/app")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, p := start(t, `upstreams: {docker.io: {header_timeout: 1s}}`)
			h.Push("bad/app", "1.0", broken)
			const rounds = 6
			for n := range rounds {
				h.Push(fmt.Sprintf("good/app%d", n), "1.0", image.New(image.Options{Seed: uint64(n) + 1}))
			}
			get(t, p, "/v2/bad/app/manifests/1.0")
			for _, f := range c.faults {
				h.Inject(f)
			}
			for n := range rounds {
				c.bad(t, p, n)
				get(t, p, fmt.Sprintf("/v2/good/app%d/manifests/1.0", n))
				pullRaw(t, p, fmt.Sprintf("good/app%d", n), image.New(image.Options{Seed: uint64(n) + 1}))
			}
			if _, openings := endpoint(t, p); openings != 0 {
				t.Errorf("the breaker opened %g times, want never", openings)
			}
		})
	}
}
