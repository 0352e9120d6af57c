package e2e

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// htpasswd writes a file of users, given as user, password, user, password.
func htpasswd(t *testing.T, path string, users ...string) string {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "htpasswd")
	}
	var lines strings.Builder
	for i := 0; i+1 < len(users); i += 2 {
		hash, err := bcrypt.GenerateFromPassword([]byte(users[i+1]), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&lines, "%s:%s\n", users[i], hash)
	}
	if err := os.WriteFile(path, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func basicAuth(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func tokenSum(token string) string {
	s := sha256.Sum256([]byte(token))
	return hex.EncodeToString(s[:])
}

const robotToken = "a-token-that-nobody-guesses-1234567890"

func TestOnlyWhoIsKnownMayPull(t *testing.T) {
	users := htpasswd(t, "", "alice", "wonderland")
	h, p := start(t, fmt.Sprintf(`
auth:
  htpasswd: %s
  tokens: [{name: robot, sha256: %s}]
`, users, tokenSum(robotToken)))
	i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 5000}}})
	h.Push("library/app", "1", i)
	const path = "/v2/library/app/manifests/1"
	layer := "/v2/library/app/blobs/" + i.Layers("linux/amd64")[0].Digest.String()
	for _, path := range []string{"/v2/", path, layer, "/v2/_catalog", "/v2/library/app/tags/list"} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for name, auth := range map[string][]string{
				"nothing": nil, "a wrong password": {"Authorization", basicAuth("alice", "x")}, "a wrong token": {"Authorization", "Bearer x"},
			} {
				a := ask(t, p, method, path, auth...)
				if a.status != http.StatusUnauthorized {
					t.Errorf("%s: want 401, got %s", name, a)
				}
				a.wantHeader(t, "WWW-Authenticate", `Basic realm="Entrepot"`, "Docker-Distribution-Api-Version", "registry/2.0")
				if method == http.MethodGet {
					a.wantError(t, http.StatusUnauthorized, "UNAUTHORIZED")
				}
			}
		}
	}
	if c := h.Counts(); c.Total() != 0 {
		t.Errorf("the upstream was asked for who may not pull: %+v", c)
	}
	for _, auth := range []string{basicAuth("alice", "wonderland"), "Bearer " + robotToken, basicAuth("x", robotToken)} {
		get(t, p, "/v2/", "Authorization", auth)
		wantBytes(t, "the manifest", i.Bytes(), get(t, p, path, "Authorization", auth, "Accept", anything).body)
		get(t, p, layer, "Authorization", auth)
	}
	// What is cached is guarded as well.
	ask(t, p, http.MethodGet, layer).wantError(t, http.StatusUnauthorized, "UNAUTHORIZED")
	if c := h.Counts(); c.Leaks != 0 {
		t.Errorf("clients' credentials reached the upstream: %+v", c)
	}
	log := p.Log()
	for _, secret := range []string{"wonderland", robotToken, basicAuth("alice", "wonderland")[6:]} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has the secret %q", secret)
		}
	}
	if !strings.Contains(log, `"caller":"user:alice"`) || !strings.Contains(log, `"caller":"token:robot"`) {
		t.Error("the log does not say who asked")
	}
	m := p.Metrics(t)
	for _, reason := range []string{"anonymous", "credentials"} {
		if m.Sum("entrepot_denied_total", "reason", reason) == 0 {
			t.Errorf("refusals by %s were not counted", reason)
		}
	}

	htpasswd(t, users, "bob", "builder")
	until(t, "the new user is known", func() bool {
		return ask(t, p, http.MethodGet, "/v2/", "Authorization", basicAuth("bob", "builder")).status == http.StatusOK
	})
	ask(t, p, http.MethodGet, layer, "Authorization", basicAuth("alice", "wonderland")).wantError(t, http.StatusUnauthorized, "UNAUTHORIZED")
}

func TestForeignCredentialsAreIgnoredWhereNetworksAreLetIn(t *testing.T) {
	h, p := start(t, fmt.Sprintf(`
auth:
  tokens: [{name: robot, sha256: %s}]
  networks: [{name: here, cidrs: [127.0.0.0/8]}]
  trusted_proxies: ["::1"]
`, tokenSum(robotToken)))
	h.Push("library/app", "1", image.New(image.Options{}))
	get(t, p, "/v2/library/app/manifests/1", "Authorization", basicAuth("hub-user", "hub-password"))
	// Nobody here is a trusted proxy, so that this is but noise.
	get(t, p, "/v2/", "X-Forwarded-For", "203.0.113.9")
	until(t, "the log says who asked", func() bool { return strings.Contains(p.Log(), `"caller":"net:here"`) })
}

func TestAClientBehindATrustedProxyIsKnownByItsOwnAddress(t *testing.T) {
	h, p := start(t, `
auth:
  networks: [{name: office, cidrs: [192.0.2.0/24]}]
  trusted_proxies: [127.0.0.1]
`)
	h.Push("library/app", "1", image.New(image.Options{}))
	const path = "/v2/library/app/manifests/1"
	get(t, p, path, "X-Forwarded-For", "192.0.2.7")
	for _, from := range []string{"203.0.113.9", "192.0.2.7, 203.0.113.9", "192.0.2.7, garbage"} {
		a := ask(t, p, http.MethodGet, path, "X-Forwarded-For", from)
		if message := a.wantError(t, http.StatusForbidden, "DENIED"); !strings.Contains(message, "auth.networks") {
			t.Errorf("%s: the message does not say what to set: %q", from, message)
		}
		a.wantHeader(t, "WWW-Authenticate", "")
	}
	until(t, "the log has the client's address", func() bool { return strings.Contains(p.Log(), `"client":"192.0.2.7"`) })
}

func TestAccessRulesHoldForEveryRequest(t *testing.T) {
	docker, github := hub.New(t, hub.Options{}), hub.New(t, hub.Options{Service: "ghcr.io"})
	p := proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": docker, "ghcr.io": github},
		Config: fmt.Sprintf(`
auth:
  htpasswd: %s
  anonymous: allow
  groups: [{name: staff, members: ["user:alice"]}]
access:
  - {name: official, upstreams: [docker.io], repositories: ["library/*"], action: allow}
  - {name: ours, who: ["group:staff"], upstreams: [ghcr.io], repositories: ["org/*"], action: allow}
  - {name: secrets, repositories: ["*/secret"], action: deny}
`, htpasswd(t, "", "alice", "wonderland", "bob", "builder"))})
	i := image.New(image.Options{Layers: []image.Layer{{Size: 5000}}})
	for _, repo := range []string{"library/app", "library/secret", "other/app"} {
		docker.Push(repo, "1", i)
	}
	github.Push("org/app", "1", i)
	github.Push("org/secret", "1", i)
	alice, bob := []string{"Authorization", basicAuth("alice", "wonderland")}, []string{"Authorization", basicAuth("bob", "builder")}
	for _, c := range []struct {
		who    []string
		repo   string
		status int
		rule   string
	}{
		{nil, "library/app", 200, ""}, {bob, "library/app", 200, ""}, {alice, "library/app", 200, ""},
		{alice, "ghcr.io/org/app", 200, ""},
		{bob, "ghcr.io/org/app", 403, "official"}, {bob, "other/app", 403, "official"}, {bob, "library/secret", 403, "secrets"},
		{alice, "ghcr.io/org/secret", 403, "secrets"}, {alice, "other/app", 403, "official"},
		{nil, "ghcr.io/org/app", 401, "official"}, // who logs in may have it
	} {
		for _, path := range []string{"manifests/1", "manifests/" + i.Digest.String(), "blobs/" + i.Layers("linux/amd64")[0].Digest.String(), "tags/list", "referrers/" + i.Digest.String()} {
			a := ask(t, p, http.MethodGet, "/v2/"+c.repo+"/"+path, append([]string{"Accept", anything}, c.who...)...)
			if a.status != c.status {
				t.Errorf("%v: want %d, got %s", c.who, c.status, a)
			}
			if c.rule != "" {
				code := "DENIED"
				if c.status == 401 {
					code = "UNAUTHORIZED"
				}
				if message := a.wantError(t, c.status, code); !strings.Contains(message, "rule "+c.rule) {
					t.Errorf("%v: %s: want rule %s named, got %q", c.who, a.url, c.rule, message)
				}
			}
		}
	}
	// The second way to say an upstream is held to the same rules.
	ask(t, p, http.MethodGet, "/v2/org/app/manifests/1?ns=ghcr.io", bob...).wantError(t, http.StatusForbidden, "DENIED")
	for name, c := range map[string]struct{ who, want []string }{
		"bob":   {bob, []string{"docker.io/library/app"}},
		"alice": {alice, []string{"docker.io/library/app", "ghcr.io/org/app"}},
	} {
		var got struct{ Repositories []string }
		if err := json.Unmarshal(get(t, p, "/v2/_catalog", c.who...).body, &got); err != nil || !slices.Equal(got.Repositories, c.want) {
			t.Errorf("%s: want %v, got %v, %v", name, c.want, got.Repositories, err)
		}
	}
	if p.Metrics(t).Sum("entrepot_denied_total", "reason", "rule") == 0 {
		t.Error("refusals by a rule were not counted")
	}
}
