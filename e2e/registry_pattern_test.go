package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// One entry is for all registries whose hosts match it, and for no other host.
func TestUpstreamsByPattern(t *testing.T) {
	t.Parallel()
	h, exact := hub.New(t, hub.Options{Auth: hub.Open, NoCDN: true}), hub.New(t, hub.Options{Auth: hub.Open, NoCDN: true})
	i, j := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	const ecr = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
	h.Push("one.azurecr.io/team/app", "1.0", i)
	h.Push("two.azurecr.io/team/app", "1.0", j)
	h.Push(ecr+"/app", "1.0", i)
	exact.Push("team/app", "1.0", j)
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": exact}, Config: fmt.Sprintf(`{
upstreams: {
  "*.azurecr.io": {endpoints: ["%[1]s/v2/*.azurecr.io"], tags: [{match: "*", ttl: 0s}]},
  "*.dkr.ecr.*.amazonaws.com": {endpoints: ["%[1]s/v2/*.dkr.ecr.*.amazonaws.com"]},
  "exact.azurecr.io": {endpoints: ["%[2]s"]}},
access: [{action: deny, upstreams: ["secret.azurecr.io"]}, {action: allow}]}`, h.URL(), exact.URL())})
	var all sync.WaitGroup
	for range 8 { // the first of them makes the upstream, once
		all.Go(func() {
			if a := ask(t, p, http.MethodGet, "/v2/team/app/manifests/1.0?ns=one.azurecr.io"); a.status != http.StatusOK || string(a.body) != string(i.Bytes()) {
				t.Errorf("want the image, got %s", a)
			}
		})
	}
	all.Wait()
	for path, want := range map[string]*image.Image{
		"/v2/team/app/manifests/1.0?ns=ONE.azurecr.io":    i,
		"/v2/one.azurecr.io/team/app/manifests/1.0":       i,
		"/v2/two.azurecr.io/team/app/manifests/1.0":       j,
		"/two.azurecr.io/v2/team/app/manifests/1.0":       j,
		"/v2/team/app/manifests/1.0?ns=two.azurecr.io:80": j,
		"/v2/app/manifests/1.0?ns=" + ecr:                 i,
		"/v2/" + ecr + "/app/manifests/1.0":               i,
		"/v2/team/app/manifests/1.0?ns=exact.azurecr.io":  j,
		"/v2/exact.azurecr.io/team/app/manifests/1.0":     j,
	} {
		wantBytes(t, path, want.Bytes(), get(t, p, path).body)
	}
	wantBytes(t, "by Host", j.Bytes(), get(t, p, "/v2/team/app/manifests/1.0", "Host", "two.azurecr.io").body)
	if n := strings.Count(p.Log(), "upstream added by its pattern"); n != 3 {
		t.Errorf("%d upstreams were added, want 3", n)
	}
	// Nothing else is reached.
	before := h.Counts().ManifestGets + exact.Counts().ManifestGets
	for _, ns := range []string{"azurecr.io", "a.b.azurecr.io", "one.azurecr.io.evil.test", "evil.test/.azurecr.io", "evil.test%23.azurecr.io", "a%40b.azurecr.io",
		"one.azurecr.io:8443", "*.azurecr.io", "-.azurecr.io", "127.0.0.1", "x.dkr.ecr.amazonaws.com"} {
		if a := ask(t, p, http.MethodGet, "/v2/team/app/manifests/1.0?ns="+ns); a.status != http.StatusNotFound && a.status != http.StatusBadRequest {
			t.Errorf("ns=%s: want a refusal, got %s", ns, a)
		}
	}
	if a := ask(t, p, http.MethodGet, "/v2/team/app/manifests/1.0?ns=secret.azurecr.io"); a.status != http.StatusForbidden && a.status != http.StatusUnauthorized {
		t.Errorf("a denied registry: got %s", a)
	}
	if now := h.Counts().ManifestGets + exact.Counts().ManifestGets; now != before {
		t.Error("an upstream was asked")
	}
	// Many hosts: each works, though no more than some are in force, and those with
	// cached content stay.
	for n := range 70 {
		a := ask(t, p, http.MethodGet, fmt.Sprintf("/v2/team/none/manifests/1.0?ns=n%d.azurecr.io", n))
		a.wantError(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	}
	h.Down()
	wantBytes(t, "stale", i.Bytes(), get(t, p, "/v2/team/app/manifests/1.0?ns=one.azurecr.io").body)
	p.Stop(t)
	p.Restart(t)
	wantBytes(t, "stale after a restart", j.Bytes(), get(t, p, "/v2/two.azurecr.io/team/app/manifests/1.0").body)
}
