package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

const secret = "a-secret-that-must-not-show"

func TestUpstreamsOfEveryKindArePulledFrom(t *testing.T) {
	t.Parallel()
	users := map[string]string{"alice": secret}
	const asAlice = `upstreams: {docker.io: {credentials: {username: alice, password: ` + secret + `}}}`
	for name, c := range map[string]struct {
		hub     hub.Options
		config  string
		private bool
	}{
		"Docker Hub":                   {hub: hub.Options{}},
		"with credentials":             {hub: hub.Options{Users: users}, config: asAlice, private: true},
		"https of a private CA":        {hub: hub.Options{TLS: true}},
		"https with credentials":       {hub: hub.Options{TLS: true, Users: users}, config: asAlice, private: true},
		"Basic":                        {hub: hub.Options{Auth: hub.Basic, Users: users}, config: asAlice, private: true},
		"without authentication":       {hub: hub.Options{Auth: hub.Open}},
		"without a CDN":                {hub: hub.Options{NoCDN: true}},
		"redirecting manifests":        {hub: hub.Options{RedirectManifests: true}},
		"with a relative redirect":     {hub: hub.Options{RelativeRedirect: true}},
		"tokens without expires_in":    {hub: hub.Options{NoExpiresIn: true}},
		"tokens as token alone":        {hub: hub.Options{TokenField: "token"}},
		"tokens as access_token alone": {hub: hub.Options{TokenField: "access_token"}},
		"tokens of two seconds":        {hub: hub.Options{TokenTTL: 2 * time.Second}},
		"another service":              {hub: hub.Options{Service: "container_registry"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := hub.New(t, c.hub)
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: c.config})
			i := image.Index(image.Options{Seed: 1})
			h.Push("alice/app", "1.0", i)
			if c.private {
				h.MakePrivate("alice/app", "alice")
			}
			wantBytes(t, "by tag", i.Bytes(), get(t, p, "/v2/alice/app/manifests/1.0").body)
			pullRaw(t, p, "alice/app", i)
			if h.Counts().Leaks != 0 {
				t.Errorf("an Authorization header went where it does not belong")
			}
			for _, r := range h.Requests() {
				if strings.Contains(r.URL, secret) {
					t.Errorf("the password is in a URL: %s %s", r.Method, r.URL)
				}
			}
			basic := base64.StdEncoding.EncodeToString([]byte("alice:" + secret))
			if log := p.Log(); strings.Contains(log, secret) || strings.Contains(log, basic) {
				t.Errorf("the password is in the log")
			}
		})
	}
}

func TestATokenIsAskedForOncePerRepository(t *testing.T) {
	h, p := start(t, believing)
	for n := range 3 {
		i := image.New(image.Options{Seed: uint64(n), Layers: []image.Layer{{Size: 10}, {Size: 20}, {Size: 30}}})
		name := fmt.Sprintf("library/app-%d", n)
		h.Push(name, "1.0", i)
		get(t, p, "/v2/"+name+"/manifests/1.0")
		pullRaw(t, p, name, i)
	}
	if got := h.Counts().Tokens; got != 3 {
		t.Errorf("want 3 tokens for 3 repositories, got %d", got)
	}
}

func TestATokenThatTheUpstreamForgotIsRenewedOnce(t *testing.T) {
	h, p := start(t, doubting)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	get(t, p, tagPath)
	before := h.Counts()
	h.ExpireTokens()
	wantBytes(t, "tag", i.Bytes(), get(t, p, tagPath).body)
	after := h.Counts()
	if got := after.Tokens - before.Tokens; got != 1 {
		t.Errorf("want 1 token, got %d", got)
	}
	if got := after.Challenges - before.Challenges; got != 1 {
		t.Errorf("want 1 challenge, got %d", got)
	}
}

// The daemon has no way to log in to a mirror: an upstream's refusal must reach
// it as words, never as a challenge.
func TestAnUpstreamsRefusalIsNoChallenge(t *testing.T) {
	h := hub.New(t, hub.Options{Users: map[string]string{"alice": secret}})
	p := proxy.New(t, h)
	h.Push("alice/app", "1.0", image.New(image.Options{}))
	h.MakePrivate("alice/app", "alice")
	for _, path := range []string{"/v2/alice/app/manifests/1.0", "/v2/alice/app/tags/list"} {
		a := ask(t, p, "GET", path)
		a.wantHeader(t, "WWW-Authenticate", "")
		if a.status != 401 && a.status != 403 && a.status != 404 {
			t.Errorf("want a refusal, got %s", a)
		}
		var code string
		for _, c := range []string{"UNAUTHORIZED", "DENIED", "NAME_UNKNOWN", "MANIFEST_UNKNOWN"} {
			if strings.Contains(string(a.body), c) {
				code = c
			}
		}
		if code == "" {
			t.Errorf("want one of the codes of a refusal, got %s", a)
		}
	}
}

func TestAnUpstreamsWrongPasswordIsAFailureInWords(t *testing.T) {
	h := hub.New(t, hub.Options{Users: map[string]string{"alice": "another"}})
	p := proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h},
		Config:    `upstreams: {docker.io: {credentials: {username: alice, password: ` + secret + `}}}`,
	})
	h.Push("library/app", "1.0", image.New(image.Options{}))
	a := ask(t, p, "GET", tagPath)
	if a.status < 400 || a.status == 404 {
		t.Errorf("want a failure that is no 404, got %s", a)
	}
	a.wantHeader(t, "WWW-Authenticate", "")
	if strings.Contains(string(a.body), secret) || strings.Contains(p.Log(), secret) {
		t.Errorf("the password shows: %s", a)
	}
}

func TestASecondEndpointIsAskedWhenTheFirstFails(t *testing.T) {
	first, second := hub.New(t, hub.Options{}), hub.New(t, hub.Options{})
	i := image.Index(image.Options{Seed: 1})
	first.Push("library/app", "1.0", i)
	second.Push("library/app", "1.0", i)
	p := proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": first},
		Config: fmt.Sprintf(`upstreams: {docker.io: {endpoints: [%q, %q], realms: [%q, %q], redirect_hosts: [%q, %q]}}`,
			first.URL(), second.URL(), first.Realm(), second.Realm(), first.CDNHost(), second.CDNHost()),
	})
	first.Down()
	wantBytes(t, "by tag", i.Bytes(), get(t, p, tagPath).body)
	pullRaw(t, p, "library/app", i)
	if second.Counts().ManifestGets == 0 {
		t.Errorf("the second endpoint was not asked")
	}
}

// Some registries leave the digest out; it is made from the bytes then.
func TestAnUpstreamThatTellsNoDigestIsRevalidated(t *testing.T) {
	h, p := start(t, doubting)
	h.Inject(hub.NoDigest())
	first, second := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	for _, i := range []*image.Image{first, second} {
		h.Push("library/app", "1.0", i)
		for range 2 {
			a := get(t, p, tagPath)
			wantBytes(t, "tag", i.Bytes(), a.body)
			a.wantHeader(t, "Docker-Content-Digest", i.Digest.String())
			head := ask(t, p, "HEAD", tagPath)
			head.wantHeader(t, "Docker-Content-Digest", i.Digest.String(), "Content-Length", fmt.Sprint(len(i.Bytes())))
		}
	}
}

func TestCredentialsComeFromWhereTheConfigurationSays(t *testing.T) {
	const password = `{docker.io: {credentials: {username: alice, password_file: %q}}}`
	for name, c := range map[string]struct {
		file   func(h *hub.Hub) string
		config string // with the file's path
		env    []string
	}{
		"a password file": {
			file:   func(*hub.Hub) string { return secret + "\n" },
			config: password,
		},
		"a variable": {
			config: `{docker.io: {credentials: {username: alice, password_env: THE_PASSWORD}}}`,
			env:    []string{"THE_PASSWORD=" + secret},
		},
		"a Docker config.json": {
			file: func(h *hub.Hub) string {
				return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, h.Host(), base64.StdEncoding.EncodeToString([]byte("alice:"+secret)))
			},
			config: `{docker.io: {credentials: {docker_config: %q}}}`,
		},
		"an identity token, by OAuth2": {
			file: func(h *hub.Hub) string {
				return fmt.Sprintf(`{"auths":{%q:{"identitytoken":%q}}}`, h.Host(), h.RefreshToken("alice"))
			},
			config: `{docker.io: {credentials: {docker_config: %q}}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := hub.New(t, hub.Options{Users: map[string]string{"alice": secret}})
			config := c.config
			if c.file != nil {
				path := filepath.Join(t.TempDir(), "credentials")
				if err := os.WriteFile(path, []byte(c.file(h)), 0o600); err != nil {
					t.Fatal(err)
				}
				config = fmt.Sprintf(config, path)
			}
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: "upstreams: " + config, Env: c.env})
			i := image.New(image.Options{Seed: 1})
			h.Push("alice/app", "1.0", i)
			h.MakePrivate("alice/app", "alice")
			wantBytes(t, "private", i.Bytes(), get(t, p, "/v2/alice/app/manifests/1.0").body)
			pullRaw(t, p, "alice/app", i)
			if strings.Contains(p.Log(), secret) {
				t.Errorf("the password is in the log")
			}
		})
	}
}
