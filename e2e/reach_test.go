package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// The registry is a stranger's on the internet, which a proxy of the environment
// plays here: so it is not inside, and nothing inside may be reached through what
// it says. The host inside counts what comes to it.
func TestAStrangersRegistryLeadsToNothingInside(t *testing.T) {
	var inside atomic.Int64
	addr := recorder(t, "127.0.0.1:0", &inside)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var asked []string
	internet := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Method+" "+r.Host)
		mu.Unlock()
		if r.Host != "reg.example.com" {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, what, _ := strings.Cut(r.URL.Path, "/v2/")
		how, what, _ := strings.Cut(what, "/")
		to, _, _ := strings.Cut(what, "/")
		host := map[string]string{
			"loopback": "127.0.0.1:" + port, "name": "localhost:" + port, "short": "127.1:" + port, "number": "2130706433:" + port, "mapped": "[::ffff:127.0.0.1]:" + port,
			"unspecified": "0.0.0.0:" + port, "private": "10.0.0.1", "metadata": "169.254.169.254", "shared": "100.64.0.1", "local": "[fe80::1]", "unique": "[fd00::1]", "nat64": "[64:ff9b::7f00:1]:" + port,
		}[to]
		switch how {
		case "redirect":
			w.Header().Set("Location", "https://"+host+"/x?X-Signature=secret")
			w.WriteHeader(http.StatusTemporaryRedirect)
		case "plain":
			w.Header().Set("Location", "http://"+host+"/x")
			w.WriteHeader(http.StatusTemporaryRedirect)
		case "realm":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token",service="x"`, host))
			w.WriteHeader(http.StatusUnauthorized)
		case "link":
			w.Header().Set("Link", fmt.Sprintf(`<http://%s/v2/a/tags/list>; rel="next"`, host))
			_, _ = fmt.Fprint(w, `{"tags":["a"]}`)
		}
	}))
	defer internet.Close()
	const stranger = `default_upstream: reg.example.com
upstreams: {reg.example.com: {endpoints: ["http://reg.example.com"], credentials: {username: alice, password: ` + secret + `}}}`
	p := proxy.Start(t, proxy.Options{Config: stranger, Env: []string{"HTTP_PROXY=" + internet.URL, "HTTPS_PROXY=" + internet.URL}})
	for _, to := range []string{"loopback", "name", "short", "number", "mapped", "unspecified", "private", "metadata", "shared", "local", "unique", "nat64"} {
		for how, below := range map[string]string{"redirect": "blobs/" + zeroes, "plain": "blobs/" + zeroes, "realm": "manifests/1.0", "link": "tags/list"} {
			a := ask(t, p, "GET", "/v2/"+how+"/"+to+"/"+below)
			if a.status != 502 {
				t.Errorf("%s to %s: want 502, got %s", how, to, a)
			}
			a.wantError(t, a.status, "UNAVAILABLE")
			if strings.Contains(string(a.body), "X-Signature") {
				t.Errorf("%s to %s: the answer tells the signature: %s", how, to, a.body)
			}
		}
	}
	if n := inside.Load(); n != 0 {
		t.Errorf("%d connections came to the host inside, want none", n)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) < 48 {
		t.Errorf("the stranger's registry was asked %d times: the test shows nothing", len(asked))
	}
	for _, a := range asked {
		if !strings.HasSuffix(a, " reg.example.com") {
			t.Errorf("the proxy was asked for %s", a)
		}
	}
	if strings.Contains(p.Log(), secret) {
		t.Error("the password is in the log")
	}
}
