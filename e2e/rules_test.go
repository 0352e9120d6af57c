package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc/oidctest"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// checkConfig runs `entrepot config check` on a file with the given text.
func checkConfig(t *testing.T, text string) (code int, out string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "entrepot.yml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return runCommand(t, "config", "check", file)
}

// runCommand runs the program and returns its exit code and what it printed.
func runCommand(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), args...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	cmd.Env = append(os.Environ(), "ENTREPOT_CACHE_DIR="+t.TempDir())
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), b.String()
}

func TestATokenThatClaimsTheNameOfANetworkIsNotTheNetwork(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	key := i.rotate(t, "first")
	auth := fmt.Sprintf(`
auth:
  oidc: {issuer: %q, audience: entrepot, ca: %q, name_claim: repository_owner}
  networks: [{name: cluster, cidrs: [192.0.2.0/24]}]
  tokens: [{name: robot, sha256: %s}]
  groups: [{name: staff, members: ["net:cluster"]}]
  trusted_proxies: [127.0.0.1]
access:
  - {name: nobody else, repositories: ["-"], action: allow}
`, i.URL, i.ca, tokenSum(robotToken))
	code, out := checkConfig(t, auth+"  - {name: nodes, who: [cluster], action: allow}\n")
	if code == 0 || !strings.Contains(out, "net:cluster") || !strings.Contains(out, "oidc:cluster") {
		t.Errorf("a name with two meanings: want it refused with what to write, got %d: %s", code, out)
	}
	h, p := start(t, auth+"  - {name: nodes, who: [\"net:cluster\", \"token:robot\", \"group:staff\"], action: allow}\n")
	h.Push("library/app", "1", image.New(image.Options{Seed: 1}))
	const path = "/v2/library/app/manifests/1"
	claim := func(name string) []string {
		claims := i.claims("entrepot", time.Hour, fmt.Sprintf(`,"repository_owner":%q,"groups":["staff"]`, name))
		return []string{"Authorization", "Bearer " + oidctest.SignIDToken(key, "first", "RS256", claims)}
	}
	for name, c := range map[string]struct {
		headers []string
		status  int
	}{
		"the network":                            {[]string{"X-Forwarded-For", "192.0.2.7"}, 200},
		"the token":                              {[]string{"Authorization", "Bearer " + robotToken}, 200},
		"a claim of the network's name":          {claim("cluster"), 403},
		"a claim of the token's name":            {claim("robot"), 403},
		"a claim of a name with its source":      {claim("net:cluster"), 403},
		"a claim of a group, by somebody else":   {claim("staff"), 403},
		"a claim of a group's name with a colon": {claim("group:staff"), 403},
	} {
		if a := ask(t, p, http.MethodGet, path, c.headers...); a.status != c.status {
			t.Errorf("%s: want %d, got %s", name, c.status, a)
		}
	}
	until(t, "the log tells the two clusters apart", func() bool { // a line comes after its answer
		log := p.Log()
		return strings.Contains(log, `"caller":"oidc:cluster"`) && strings.Contains(log, `"caller":"net:cluster"`)
	})
}

func TestAUserWhoIsAddedLaterTakesNobodysName(t *testing.T) {
	t.Parallel()
	users := htpasswd(t, "", "alice", "wonderland")
	h, p := start(t, fmt.Sprintf(`
auth:
  htpasswd: %s
  networks: [{name: office, cidrs: [192.0.2.0/24]}]
access:
  - {name: nobody else, repositories: ["-"], action: allow}
  - {name: office, who: ["net:office", "user:alice"], action: allow}
`, users))
	h.Push("library/app", "1", image.New(image.Options{Seed: 1}))
	const path = "/v2/library/app/manifests/1"
	get(t, p, path, "Authorization", basicAuth("alice", "wonderland"))
	htpasswd(t, users, "alice", "wonderland", "office", "x")
	until(t, "the new user is known", func() bool {
		return ask(t, p, http.MethodGet, "/v2/", "Authorization", basicAuth("office", "x")).status == http.StatusOK
	})
	ask(t, p, http.MethodGet, path, "Authorization", basicAuth("office", "x")).wantError(t, http.StatusForbidden, "DENIED")
}

func TestARuleThatCanNeverMatchIsRefused(t *testing.T) {
	t.Parallel()
	for rule, want := range map[string]string{
		`{repositories: ["ones"], action: deny}`:                                 "library/ones",
		`{repositories: ["docker.io/library/chart"], action: deny}`:              `"library/chart"`,
		`{repositories: ["Library/zstd"], action: deny}`:                         `"library/zstd"`,
		`{upstreams: [docker.io], repositories: ["library/"], action: deny}`:     `"library/*"`,
		`{upstreams: [docker.io], repositories: ["nginx:1.27"], action: deny}`:   `"library/nginx"`,
		`{upstreams: [docker.io/library], repositories: ["*"], action: deny}`:    "write docker.io",
		`{upstreams: [other.test], repositories: ["*"], action: deny}`:           "not among the upstreams",
		`{repositories: [""], action: deny}`:                                     "matches nothing",
		`{repositories: ["-"], action: deny}`:                                    "matches no repository",
		`{who: ["net:office"], repositories: ["library/nginx"], action: deny}`:   "auth.networks is not set",
		`{who: [somebody], repositories: ["library/nginx"], action: deny}`:       "matches nobody",
		`{upstreams: [docker.io], repositories: ["Library/*"], action: allow}`:   `"library/*"`,
		`{upstreams: [docker.io], repositories: ["ghcr.io/x"], action: allow}`:   "begins with a registry",
		`{upstreams: [docker.io], repositories: ["{a,b}/c"], action: deny}`:      "only wildcards",
		`{upstreams: ["*.test"], repositories: ["library/nginx"], action: deny}`: "not among the upstreams",
	} {
		text := "access:\n  - " + rule + "\n"
		code, out := checkConfig(t, text)
		if code == 0 || !strings.Contains(out, want) || !strings.Contains(out, ":2:") {
			t.Errorf("%s: want it refused with its line and %q, got %d: %s", rule, want, code, out)
		}
		file := filepath.Join(t.TempDir(), "entrepot.yml")
		if err := os.WriteFile(file, []byte(text+"listen: 127.0.0.1:0\nadmin: {listen: \"off\"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out := runCommand(t, "serve", "--config", file); code == 0 || !strings.Contains(out, want) {
			t.Errorf("%s: want the start refused with %q, got %d: %s", rule, want, code, out)
		}
	}
}

// A configuration that is short to write and long to parse is refused in a sentence; a
// proxy that is told to read it goes on as it was.
func TestAConfigurationThatNestsTooDeepStopsNothing(t *testing.T) {
	t.Parallel()
	h, p := start(t, "log: {level: warn}\n")
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
	get(t, p, tagPath)
	before := boundsOf(t, p)
	good, err := os.ReadFile(p.Config())
	if err != nil {
		t.Fatal(err)
	}
	for name, bomb := range map[string]string{
		"brackets": strings.Repeat("[", 100_000), "mappings": strings.Repeat("{a: ", 25_000), "dashes": strings.Repeat("- ", 50_000),
		"marks": strings.Repeat("? ", 50_000), "below a key": "log: [" + strings.Repeat("[", 100_000), "hidden": string(good) + "x: " + strings.Repeat("[ # ]\n", 15_000),
	} {
		code, out := checkConfig(t, bomb)
		if code == 0 || len(out) > 500 || !strings.Contains(out, "deep in each other") || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: want one sentence, got %d: %.1000s", name, code, out)
		}
		if err := os.WriteFile(p.Config(), []byte(bomb), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out = runCommand(t, "serve", "--config", p.Config()); code == 0 || !strings.Contains(out, "deep in each other") {
			t.Errorf("%s: want the start refused, got %d: %.1000s", name, code, out)
		}
		// The command needs a good file to find the proxy by; a signal does not.
		if err := syscall.Kill(p.PID(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		until(t, "the log to say why nothing has changed", func() bool { return strings.Contains(p.Log(), "deep in each other") })
	}
	if err := os.WriteFile(p.Config(), good, 0o600); err != nil {
		t.Fatal(err)
	}
	get(t, p, tagPath)
	if now := residentBytes(t, p.PID()); now > before.rss+256<<20 && !proxy.Raced {
		t.Errorf("the process has %d MiB, and had %d", now>>20, before.rss>>20)
	}
	if _, _, code, out := reload(t, p); code != 0 {
		t.Errorf("want the good file taken, got %d: %s", code, out)
	}
}
