package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/entrepot-dev/entrepot/e2e/cloud"
	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// cloudCase is a registry of a cloud, and what gives out its logins.
type cloudCase struct {
	user string
	hub  hub.Options
	// credentials are the configuration for an endpoint; env the process's variables.
	credentials func(endpoint string) string
	env         func(t *testing.T, fake string) []string
	// endpoint is the one of the fake whose failure is shown, remedy what the error says then.
	endpoint, remedy string
	// shown are secrets that the endpoint knows, and repeats in its failure.
	shown string
	// identity says that the login is a refresh token.
	identity bool
}

func cloudCases() map[string]cloudCase {
	return map[string]cloudCase{
		"ECR": {
			user: "AWS", hub: hub.Options{Auth: hub.Basic},
			credentials: func(endpoint string) string { return fmt.Sprintf("{ecr: {region: eu-west-1, hosts: [%q]}}", endpoint) },
			env: func(t *testing.T, fake string) []string {
				return []string{"AWS_WEB_IDENTITY_TOKEN_FILE=" + secretIn(t, cloud.PodToken), "AWS_ROLE_ARN=" + cloud.Role,
					"AWS_ENDPOINT_URL_STS=" + fake, "AWS_ENDPOINT_URL_ECR=" + fake}
			},
			endpoint: "ecr", remedy: "allow the role ecr:GetAuthorizationToken", shown: cloud.Secret + " " + cloud.Session,
		},
		"Google": {
			user:        "oauth2accesstoken",
			credentials: func(endpoint string) string { return fmt.Sprintf("{google: {hosts: [%q]}}", endpoint) },
			env: func(t *testing.T, fake string) []string {
				return []string{"GCE_METADATA_HOST=" + strings.TrimPrefix(fake, "http://")}
			},
			endpoint: "google metadata", remedy: "attach a service account",
		},
		"Azure": {
			user: "00000000-0000-0000-0000-000000000000", identity: true,
			credentials: func(endpoint string) string { return fmt.Sprintf("{azure: {hosts: [%q]}}", endpoint) },
			env: func(t *testing.T, fake string) []string {
				return []string{"AZURE_FEDERATED_TOKEN_FILE=" + secretIn(t, cloud.FederatedToken), "AZURE_CLIENT_ID=" + cloud.ClientID,
					"AZURE_TENANT_ID=" + cloud.Tenant, "AZURE_AUTHORITY_HOST=" + fake + "/"}
			},
			endpoint: "exchange", remedy: "AcrPull", shown: cloud.EntraToken,
		},
	}
}

func secretIn(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// registryOf runs a hub and a fake cloud. It returns also the endpoint of the hub, at which
// the exchange of Azure answers too.
func registryOf(t *testing.T, c cloudCase) (h *hub.Hub, f *cloud.Fake, endpoint string) {
	t.Helper()
	c.hub.Users = map[string]string{c.user: "first-password"}
	h = hub.New(t, c.hub)
	f = cloud.New(t, "")
	to, err := url.Parse(h.URL())
	if err != nil {
		t.Fatal(err)
	}
	registry := httputil.NewSingleHostReverseProxy(to)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/oauth2/exchange" {
			f.Config.Handler.ServeHTTP(w, r)
			return
		}
		registry.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	return h, f, front.URL
}

// password returns one that the hub is to take. The refresh token with it is like those of
// Azure, which say in the middle when they end.
func (c cloudCase) password(word string, life time.Duration) string {
	if !c.identity {
		return word
	}
	return word + "." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, time.Now().Add(life).Unix())) + ".signature"
}

// login returns what the cloud gives out for a password.
func (c cloudCase) login(password string) string {
	if c.identity {
		return "refresh:" + c.user + ":" + password
	}
	return password
}

func TestACloudsShortLivedLoginPullsAndIsRenewed(t *testing.T) {
	t.Parallel()
	for name, c := range cloudCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, f, endpoint := registryOf(t, c)
			first, second := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
			h.Push("team/one", "1.0", first)
			h.Push("team/two", "1.0", second)
			h.MakePrivate("team/one", c.user)
			h.MakePrivate("team/two", c.user)
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Env: c.env(t, f.URL),
				Config: docker(fmt.Sprintf("endpoints: [%q]", endpoint), "credentials: "+c.credentials(endpoint))})
			// Now, so that it has not ended when the first request comes.
			password := c.password("first-password", 5*time.Second)
			h.ChangePassword(c.user, password)
			f.Give(c.login(password), 5*time.Second)
			pullsEverywhere(t, p, "team/one", first)
			before := f.Count(c.endpoint)
			if before == 0 {
				t.Fatal("the login did not come from the cloud: this shows nothing")
			}

			// The registry takes another login from now on, which the cloud gives out.
			password = c.password("second-password", time.Hour)
			f.Give(c.login(password), time.Hour)
			h.ChangePassword(c.user, password)
			h.ExpireTokens()
			deadline := time.Now().Add(limit)
			for ask(t, p, "GET", "/v2/team/two/manifests/1.0", "Accept", anything).status != http.StatusOK || f.Count(c.endpoint) == before {
				if time.Now().After(deadline) {
					t.Fatalf("the login is not renewed; %s was asked %d times", c.endpoint, f.Count(c.endpoint))
				}
				time.Sleep(50 * time.Millisecond)
			}
			pullsEverywhere(t, p, "team/two", second)
			wantNoCloudSecret(t, p.Log())
		})
	}
}

func TestACloudThatGivesNoLoginBlocksNothingPublicAndIsNamed(t *testing.T) {
	t.Parallel()
	for name, c := range cloudCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.hub.Auth = hub.Bearer
			h, f, endpoint := registryOf(t, c)
			f.Give(c.login("first-password"), time.Hour)
			f.Fail(c.endpoint, http.StatusForbidden, `{"__type":"AccessDeniedException","message":"not for `+c.shown+`"}`)
			public, private := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
			h.Push("library/app", "1.0", public)
			h.Push("team/app", "1.0", private)
			h.MakePrivate("team/app", c.user)
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Env: c.env(t, f.URL),
				Config: docker(fmt.Sprintf("endpoints: [%q]", endpoint), "credentials: "+c.credentials(endpoint))})
			pullsEverywhere(t, p, "library/app", public)
			ask(t, p, "GET", "/v2/team/app/manifests/1.0").wantError(t, 502, "UNAVAILABLE")
			if n := f.Count(c.endpoint); n != 1 {
				t.Errorf("the cloud was asked %d times within its pause, want 1", n)
			}
			deadline := time.Now().Add(limit)
			for !strings.Contains(p.Log(), c.remedy) {
				if time.Now().After(deadline) {
					t.Fatalf("want the remedy %q in the log, got %s", c.remedy, p.Log())
				}
				time.Sleep(50 * time.Millisecond)
			}
			wantNoCloudSecret(t, p.Log())
		})
	}
}

// wantNoCloudSecret checks that nothing that a cloud wants or gives is in text.
func wantNoCloudSecret(t *testing.T, text string) {
	t.Helper()
	for _, s := range []string{cloud.Secret, cloud.Session, cloud.PodToken, cloud.EntraToken, cloud.FederatedToken, cloud.ContainerToken, "first-password", "second-password"} {
		for _, form := range []string{s, url.QueryEscape(s), base64.StdEncoding.EncodeToString([]byte("AWS:" + s))} {
			if strings.Contains(text, form) {
				t.Errorf("a secret is told: %q", s)
			}
		}
	}
}

// TestTheDoctorAndAReloadKnowCloudLogins has a cloud that gives logins, refuses them, and does not
// answer, and a configuration that changes meanwhile. The doctor asks through the running proxy
// and by itself.
func TestTheDoctorAndAReloadKnowCloudLogins(t *testing.T) {
	t.Parallel()
	for name, c := range cloudCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.hub.Auth = hub.Bearer
			h, f, endpoint := registryOf(t, c)
			password := c.password("first-password", time.Hour)
			h.ChangePassword(c.user, password)
			f.Give(c.login(password), time.Hour)
			private := image.New(image.Options{Seed: 1})
			h.Push("team/app", "1.0", private)
			h.MakePrivate("team/app", c.user)
			env := c.env(t, f.URL)
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Env: env,
				Config: docker(fmt.Sprintf("endpoints: [%q]", endpoint), "credentials: "+c.credentials(endpoint))})
			// examine runs the doctor of the running proxy, and one that asks by itself.
			examine := func(when, want, status string) {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), proxy.Binary(t), "doctor", "-o", "json", "--config", p.Config(), "--cache-dir", filepath.Join(t.TempDir(), "cache"), "--admin-listen", "127.0.0.1:1")
				cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
				own, _ := cmd.Output() // the listener fails
				var d diagnosis
				if err := json.Unmarshal(own, &d); err != nil || d.status("upstream", want) != status {
					t.Errorf("%s, without a proxy: want %s, %q: %v in\n%s", when, status, want, err, own)
				}
				wantNoCloudSecret(t, string(own))
				d, _, out := doctor(t, "--config", p.Config())
				if d.status("upstream", want) != status {
					t.Errorf("%s: want %s, %q in\n%s", when, status, want, out)
				}
				wantNoCloudSecret(t, out)
			}
			examine("logins are given", "it takes the credentials", "ok")
			operate(t, p, "config", "check").want(t, 0, "ok")

			// A reload forgets the login of other settings, and asks for another.
			f.Fail(c.endpoint, http.StatusForbidden, `{"__type":"AccessDeniedException","message":"not for `+c.shown+`"}`)
			change := func(credentials map[string]any) {
				t.Helper()
				reconfigure(t, p, func(all map[string]any) {
					u := all["upstreams"].(map[string]any)["docker.io"].(map[string]any)
					if u["credentials"] = credentials; credentials == nil {
						delete(u, "credentials")
					}
				})
				if changed, later, code, out := reload(t, p); code != 0 || len(later) > 0 || !strings.Contains(fmt.Sprint(changed), "upstreams.docker.io.credentials") {
					t.Errorf("reload: %v, %v, %d: %s", changed, later, code, out)
				}
			}
			change(nil)
			if got := ask(t, p, "GET", "/v2/team/app/manifests/1.0", "Accept", anything); got.status == http.StatusOK {
				t.Error("the image is served without the login that was taken away")
			}
			var back map[string]any
			if err := yaml.Unmarshal([]byte(c.credentials(endpoint)), &back); err != nil {
				t.Fatal(err)
			}
			change(back)
			examine("logins are refused", c.remedy, "failure")
			operate(t, p, "config", "check").want(t, 0, "ok")

			f.Fail(c.endpoint, 0, "")
			f.Give(c.login(password), time.Hour)
			change(nil)
			change(back)
			pullsEverywhere(t, p, "team/app", private)
			f.Server.Close()
			change(nil)
			change(back)
			examine("the cloud does not answer", "get a login", "failure")
			wantNoCloudSecret(t, p.Log())
		})
	}
}
