package e2e

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// wired starts a proxy whose docker.io is reached over a path that can lose everything.
func wired(t *testing.T, o hub.Options) (*hub.Hub, *hub.Wire, *proxy.Proxy) {
	t.Helper()
	o.Auth, o.NoCDN = hub.Open, true
	h := hub.New(t, o)
	w := hub.NewWire(t, h)
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: fmt.Sprintf(
		`upstreams: {docker.io: {endpoints: [%q], redirect_hosts: [], realms: []}}`, w.URL(h.URL()))})
	return h, w, p
}

// giveUp asks for path as a client that waits for d only.
func giveUp(t *testing.T, p *proxy.Proxy, path string, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := http.DefaultClient.Do(req); err == nil {
		_ = res.Body.Close()
		t.Fatalf("%s: want no answer, got %s", path, res.Status)
	}
}

// A client that asks, once its upstream is back, for what somebody asked for while all
// was lost does not wait for that request. Connections from before are dead for good.
func TestAClientDoesNotWaitForARequestThatWasLost(t *testing.T) {
	for name, o := range map[string]hub.Options{"plain": {}, "TLS": {TLS: true}} {
		for warm, warmed := range map[string]bool{"over a new connection": false, "over one that was used": true} {
			t.Run(name+" "+warm, func(t *testing.T) {
				t.Parallel()
				h, w, p := wired(t, o)
				i, other := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
				h.Push("library/app", "1.0", i)
				h.Push("library/other", "1.0", other)
				if warmed {
					get(t, p, "/v2/library/other/manifests/1.0")
				}
				w.Lose()
				giveUp(t, p, tagPath, 4*time.Second)
				w.Mend()
				began := time.Now()
				wantBytes(t, "the tag", i.Bytes(), get(t, p, tagPath).body)
				took := time.Since(began)
				pullRaw(t, p, "library/app", i)
				t.Logf("the first pull after recovery took %s", took)
				// The request that was lost would take half a minute.
				if took > 20*time.Second {
					t.Errorf("the first pull after recovery took %s", took)
				}
			})
		}
	}
}

// A first endpoint over which everything is lost delays a miss, not each.
func TestAMissIsServedByTheNextEndpointWhileTheFirstIsLost(t *testing.T) {
	t.Parallel()
	plain := hub.Options{Auth: hub.Open, NoCDN: true}
	first, second := hub.New(t, plain), hub.New(t, plain)
	w := hub.NewWire(t, first)
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": first}, Config: fmt.Sprintf(
		`upstreams: {docker.io: {endpoints: [%q, %q], redirect_hosts: [], realms: []}}`, w.URL(first.URL()), second.URL())})
	i := image.New(image.Options{Seed: 1})
	second.Push("library/app", "1.0", i)
	w.Lose()
	began := time.Now()
	wantBytes(t, "the tag", i.Bytes(), get(t, p, tagPath).body)
	one := time.Since(began)
	began = time.Now()
	pullRaw(t, p, "library/app", i)
	rest := time.Since(began)
	t.Logf("the first took %s, the rest %s", one, rest)
	if one > 10*time.Second || rest > one {
		t.Errorf("the first took %s, the rest of the pull %s; want the first far below the header timeout, the rest less", one, rest)
	}
}
