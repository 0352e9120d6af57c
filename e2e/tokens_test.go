package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// A registry and its token server are a stranger's: all tokens of 900 kB were kept,
// and so are as many that are just short enough.
func TestTokensOfAStrangersRegistryTakeBoundedMemory(t *testing.T) {
	i := image.New(image.Options{Seed: 1})
	var length atomic.Int64
	var registry *httptest.Server
	registry = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			fmt.Fprintf(w, `{"token":"%s","expires_in":3600}`, strings.Repeat("t", int(length.Load())))
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="r"`, registry.URL))
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.Header().Set("Content-Type", i.MediaType())
			w.Header().Set("Docker-Content-Digest", i.Digest.String())
			_, _ = w.Write(i.Bytes())
		}
	}))
	registry.Config.MaxHeaderBytes = 1 << 20
	registry.Start()
	t.Cleanup(registry.Close)
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": hub.New(t, hub.Options{})},
		Config: fmt.Sprintf("upstreams: {%q: {endpoints: [%q], realms: [%q]}}\nlog: {level: warn}\n", "strange.test", registry.URL, registry.URL)})
	before := boundsOf(t, p)
	const repositories = 600
	length.Store(900_000)
	a := ask(t, p, http.MethodGet, "/v2/strange.test/a/app/manifests/1")
	if message := a.wantError(t, http.StatusBadGateway, "UNAVAILABLE"); !strings.Contains(message, "32768") {
		t.Errorf("the message does not say how long a token may be: %q", message)
	}
	for n := range repositories {
		if a := ask(t, p, http.MethodGet, fmt.Sprintf("/v2/strange.test/a/app-%d/manifests/1", n)); a.status < 500 {
			t.Fatalf("a token of 900 kB: want an error, got %s", a)
		}
	}
	large := residentBytes(t, p.PID())
	length.Store(30_000)
	served := 0
	for n := range repositories {
		if ask(t, p, http.MethodGet, fmt.Sprintf("/v2/strange.test/b/app-%d/manifests/1", n), "Accept", anything).status == http.StatusOK {
			served++
		}
	}
	if served < repositories/2 {
		t.Errorf("%d of %d asks with tokens of 30 kB were served", served, repositories)
	}
	small := residentBytes(t, p.PID())
	t.Logf("memory: %d MiB before, %d after long tokens, %d after short ones", before.rss>>20, large>>20, small>>20)
	if most := before.rss + 128<<20; !proxy.Raced && (large > most || small > most) {
		t.Errorf("the process has %d MiB, and then %d; want at most %d", large>>20, small>>20, most>>20)
	}
}
