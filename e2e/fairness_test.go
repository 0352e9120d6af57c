package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// crowd has many connections ask for what path and headers give, again and again, each
// on its own, until stop is called. answered counts the answers.
func crowd(t *testing.T, p *proxy.Proxy, size int, path func(n int) string, headers func(n int) []string) (answered *atomic.Int64, stop func()) {
	t.Helper()
	answered = new(atomic.Int64)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var serial atomic.Int64
	for range size {
		all.Go(func() {
			c := http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
			defer c.CloseIdleConnections()
			for ctx.Err() == nil {
				n := int(serial.Add(1))
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL()+path(n), nil)
				if err != nil {
					t.Error(err)
					return
				}
				for list := headers(n); len(list) > 1; list = list[2:] {
					req.Header.Set(list[0], list[1])
				}
				res, err := c.Do(req)
				if err != nil {
					continue
				}
				_, _ = io.Copy(io.Discard, res.Body) // cut off at the end
				_ = res.Body.Close()
				answered.Add(1)
			}
		})
	}
	return answered, func() { cancel(); all.Wait() }
}

func TestACrowdThatAsksForAnythingDoesNotShutOutAnImage(t *testing.T) {
	t.Parallel()
	h, p := private(t, hub.Options{}, "")
	for n := range 10 {
		h.Push(fmt.Sprintf("public/app-%d", n), "1", image.New(image.Options{Seed: uint64(n)}))
	}
	h.Push("alice/app", "1", image.New(image.Options{Seed: 99}))
	h.MakePrivate("alice/app", "alice")
	undo := h.Inject(hub.Delay(hub.Any, 300*time.Millisecond))
	defer undo()
	answered, stop := crowd(t, p, 150, func(n int) string { return fmt.Sprintf("/v2/random/name-%d/manifests/1", n) }, func(int) []string { return nil })
	defer stop()
	until(t, "the crowd to have been answered", func() bool { return answered.Load() > 150 })
	for n := range 10 {
		if a := ask(t, p, http.MethodGet, fmt.Sprintf("/v2/public/app-%d/manifests/1", n), "Accept", anything); a.status != http.StatusOK {
			t.Errorf("a public image that nobody has asked for: want 200, got %s", a)
		}
		if a := ask(t, p, http.MethodGet, "/v2/public/app-0/manifests/1", "Accept", anything); a.status != http.StatusOK {
			t.Errorf("a public image that is known: want 200, got %s", a)
		}
	}
	if a := ask(t, p, http.MethodGet, "/v2/alice/app/manifests/1", "Accept", anything, "Authorization", asAlice); a.status != http.StatusOK {
		t.Errorf("Alice: want 200, got %s", a)
	}
	if n := p.Metrics(t).Sum("entrepot_refused_total", "limit", "grants"); n != 0 {
		t.Errorf("%v checks were refused", n)
	}
}

func TestACrowdThatGuessesPasswordsDoesNotShutOutUsers(t *testing.T) {
	line := func(user, password string) string {
		b, err := bcrypt.GenerateFromPassword([]byte(password), 8)
		if err != nil {
			t.Fatal(err)
		}
		return user + ":" + string(b) + "\n"
	}
	users := htpasswd(t, "")
	write := func(text string) {
		if err := os.WriteFile(users, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	known := ""
	for n := range 5 {
		known += line(fmt.Sprintf("known-%d", n), fmt.Sprintf("password-%d", n))
	}
	fresh := line("fresh", "password")
	write(known + fresh)
	_, p := start(t, "auth: {htpasswd: "+users+"}\nlog: {level: warn}\n")
	ping := func(user, password string) answer {
		return ask(t, p, http.MethodGet, "/v2/", "Authorization", basicAuth(user, password))
	}
	wantKnown := func(when string) {
		t.Helper()
		for n := range 5 {
			if a := ping(fmt.Sprintf("known-%d", n), fmt.Sprintf("password-%d", n)); a.status != http.StatusOK {
				t.Errorf("%s: known-%d: want 200, got %s", when, n, a)
			}
		}
	}
	wantKnown("before")
	answered, stop := crowd(t, p, 150, func(int) string { return "/v2/" }, func(n int) []string {
		return []string{"Authorization", basicAuth([]string{"nobody", "known-1", fmt.Sprint("user-", n)}[n%3], fmt.Sprint("guess-", n))}
	})
	defer stop()
	until(t, "the crowd to have been answered", func() bool { return answered.Load() > 20 })
	wantKnown("under the crowd")
	if a := ping("fresh", "password"); a.status != http.StatusOK {
		t.Errorf("a user who logs in for the first time: want 200, got %s", a)
	}
	write(known + fresh + line("added", "password"))
	until(t, "the new user", func() bool { return ping("added", "password").status == http.StatusOK })
	wantKnown("after an edit of the file")
	// The lines of these have not changed, and a reload makes another guard.
	reconfigure(t, p, func(c map[string]any) {
		c["auth"].(map[string]any)["networks"] = []any{map[string]any{"name": "far", "cidrs": []string{"192.0.2.0/24"}}}
	})
	if _, _, code, out := reload(t, p); code != 0 {
		t.Fatalf("reload: %d, %s", code, out)
	}
	wantKnown("after a reload")
}

// Every address of 127.0.0.0/8 is this machine, so that one can be a crowd and another
// the rest of the world.
func TestOneAddressDoesNotTakeAllConnections(t *testing.T) {
	h, p := start(t, "limits: {connections: 200, header_timeout: 1m}\nlog: {level: warn}\n")
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
	from := func(address string) *net.Dialer {
		return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	}
	for range 400 {
		c, err := from("127.0.0.1").DialContext(t.Context(), "tcp", p.Host())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	const metric = "entrepot_connections"
	until(t, "the crowd's share to be taken", func() bool { return p.Metrics(t).Sum(metric) == 100 })
	for n := range 10 {
		other := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: from(fmt.Sprintf("127.0.0.%d", n+2)).DialContext}}
		res, err := other.Get(p.URL() + tagPath)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("another address: want 200, got %s", res.Status)
		}
	}
	if p.Metrics(t).Sum("entrepot_refused_total", "limit", "connections_per_address") == 0 {
		t.Error("what the crowd had too many was not counted")
	}
}

func TestASharedAddressTakesAsManyConnectionsAsItNeeds(t *testing.T) {
	for name, config := range map[string]string{
		"an address that many share": "limits: {connections: 200, header_timeout: 1m, shared_addresses: [127.0.0.1/32]}\n",
		"a trusted proxy":            "limits: {connections: 200, header_timeout: 1m}\nauth: {trusted_proxies: [127.0.0.1]}\n",
		"no limit":                   "limits: {connections: 200, header_timeout: 1m, connections_per_address: 0}\n",
	} {
		_, p := start(t, config)
		for range 190 {
			c := dial(t, p)
			defer c.Close()
		}
		until(t, name+" to have its connections", func() bool { return p.Metrics(t).Sum("entrepot_connections") >= 190 })
		p.Stop(t)
	}
}
