package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
)

// A 429 on one operation refuses no other, whether or not it says for how long.
func TestALimitOnOneOperationRefusesNoPull(t *testing.T) {
	tags := func(n int) string { return fmt.Sprintf("/v2/library/app%d/tags/list", n) }
	referrers := func(n int) string {
		return fmt.Sprintf("/v2/library/app%d/referrers/%s", n, digest.FromString(fmt.Sprint(n)))
	}
	head := func(n int) string { return fmt.Sprintf("/v2/library/app%d/manifests/2.0", n) }
	for name, c := range map[string]struct {
		kinds  []hub.Kind
		asks   []func(n int) string
		method string
	}{
		"tags":               {[]hub.Kind{hub.Tags}, []func(int) string{tags}, http.MethodGet},
		"referrers":          {[]hub.Kind{hub.Referrers}, []func(int) string{referrers}, http.MethodGet},
		"HEAD":               {[]hub.Kind{hub.ManifestHead}, []func(int) string{head}, http.MethodHead},
		"tags and referrers": {[]hub.Kind{hub.Tags, hub.Referrers}, []func(int) string{tags, referrers}, http.MethodGet},
	} {
		for told, retry := range map[string]string{"told": "120", "untold": ""} {
			t.Run(name+" "+told, func(t *testing.T) {
				t.Parallel()
				h, p := start(t, believing)
				const pulls = 10
				for n := range pulls {
					h.Push(fmt.Sprintf("library/app%d", n), "1.0", image.New(image.Options{Seed: uint64(n) + 1}))
				}
				for _, k := range c.kinds {
					f := hub.TooManyRequests(k)
					if retry != "" {
						f = f.With("Retry-After", retry)
					}
					h.Inject(f)
				}
				for n := range pulls {
					for _, path := range c.asks {
						a := ask(t, p, c.method, path(n))
						if a.status == http.StatusOK {
							t.Errorf("want what is limited to fail, got %s", a)
						}
						// Some clients retry for as long as they are told when to.
						if got := a.header.Get("Retry-After"); (got != "") != (retry != "") {
							t.Errorf("the registry says Retry-After %q, and the client is told %q", retry, got)
						}
					}
					get(t, p, fmt.Sprintf("/v2/library/app%d/manifests/1.0", n))
					pullRaw(t, p, fmt.Sprintf("library/app%d", n), image.New(image.Options{Seed: uint64(n) + 1}))
				}
			})
		}
	}
}
