package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

const alicesCredentials = `credentials: {username: alice, password: ` + secret + `}`

// docker lays settings over upstreams.docker.io.
func docker(settings ...string) string {
	return `upstreams: {docker.io: {` + strings.Join(settings, ", ") + `}}`
}

// craneAs is crane with an account, directly at a hub.
func craneAs(t *testing.T, h *hub.Hub, repo string, a authn.Authenticator) client {
	t.Helper()
	r, err := name.NewRepository(h.Host()+"/"+repo, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return craneClient{r, []remote.Option{remote.WithContext(ctx), remote.WithAuth(a), remote.WithTransport(h.Client().Transport)}}
}

// pullsEverywhere pulls an image by tag and whole, with its tags and a missing tag.
func pullsEverywhere(t *testing.T, p *proxy.Proxy, repo string, i *image.Image) {
	t.Helper()
	head := ask(t, p, "HEAD", "/v2/"+repo+"/manifests/1.0", "Accept", anything)
	if head.status != 200 {
		t.Fatalf("want 200, got %s", head)
	}
	wantBytes(t, "by tag", i.Bytes(), get(t, p, "/v2/"+repo+"/manifests/1.0", "Accept", anything).body)
	pullRaw(t, p, repo, i)
	if a := get(t, p, "/v2/"+repo+"/tags/list"); !strings.Contains(string(a.body), "1.0") {
		t.Errorf("want the tag, got %s", a)
	}
}

// wantSecret checks that the password went where it may, and is in no log and no URL.
func wantSecret(t *testing.T, p *proxy.Proxy, hubs ...*hub.Hub) {
	t.Helper()
	encoded := base64.StdEncoding.EncodeToString([]byte("alice:" + secret))
	if log := p.Log(); strings.Contains(log, secret) || strings.Contains(log, encoded) {
		t.Errorf("the password is in the log")
	}
	for _, h := range hubs {
		if n := h.Counts().Leaks; n != 0 {
			t.Errorf("an Authorization header went where it does not belong, %d times", n)
		}
		for _, r := range h.Requests() {
			if strings.Contains(r.URL, secret) {
				t.Errorf("the password is in a URL: %s", r.Method)
			}
		}
	}
}

// Registries that hide everything from strangers, or refuse them without a challenge, say
// only upon GET /v2/ how to log in.
func TestCredentialsAreOfferedToRegistriesThatHide(t *testing.T) {
	t.Parallel()
	users := map[string]string{"alice": secret}
	for name, c := range map[string]struct {
		hub    hub.Options
		faults []hub.Fault
	}{
		"404, Basic":                     {hub.Options{Auth: hub.Basic, Users: users}, []hub.Fault{hub.Hide(404)}},
		"403, Basic":                     {hub.Options{Auth: hub.Basic, Users: users}, []hub.Fault{hub.Hide(403)}},
		"401 without challenge, Basic":   {hub.Options{Auth: hub.Basic, Users: users}, []hub.Fault{hub.Hide(401)}},
		"404, tokens":                    {hub.Options{Users: users}, []hub.Fault{hub.Hide(404)}},
		"403, tokens":                    {hub.Options{Users: users}, []hub.Fault{hub.Hide(403)}},
		"401 without challenge, tokens":  {hub.Options{Users: users}, []hub.Fault{hub.Hide(401)}},
		"404, and /v2/ is open":          {hub.Options{Auth: hub.Basic, Users: users}, []hub.Fault{hub.Hide(404), hub.OpenPing()}},
		"403, and /v2/ is open":          {hub.Options{Auth: hub.Basic, Users: users}, []hub.Fault{hub.Hide(403), hub.OpenPing()}},
		"401, and /v2/ is open":          {hub.Options{Auth: hub.Basic, Users: users}, []hub.Fault{hub.Hide(401), hub.OpenPing()}},
		"404, without a CDN":             {hub.Options{Auth: hub.Basic, Users: users, NoCDN: true}, []hub.Fault{hub.Hide(404)}},
		"404, manifests redirected":      {hub.Options{Users: users, RedirectManifests: true}, []hub.Fault{hub.Hide(404)}},
		"404, over TLS, tokens":          {hub.Options{Users: users, TLS: true}, []hub.Fault{hub.Hide(404)}},
		"404, and tokens of two seconds": {hub.Options{Users: users, TokenTTL: 2 * time.Second}, []hub.Fault{hub.Hide(404)}},
	} {
		t.Run(name, func(t *testing.T) {
			h := hub.New(t, c.hub)
			for _, f := range c.faults {
				h.Inject(f)
			}
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(alicesCredentials)})
			for n := range 2 {
				i := image.Index(image.Options{Seed: uint64(n)})
				repo := fmt.Sprintf("alice/app-%d", n)
				h.Push(repo, "1.0", i)
				h.MakePrivate(repo, "alice")
				// Of a token server at another private address crane wants none.
				if c.hub.Auth == hub.Basic {
					if _, err := craneAs(t, h, repo, &authn.Basic{Username: "alice", Password: secret}).resolve("1.0"); err != nil {
						t.Fatalf("directly: %v", err)
					}
				}
				h.ResetCounts()
				for client, connect := range map[string]func(*testing.T, string, string) client{"crane": connectCrane, "regclient": connectRegClient, "oras": connectORAS} {
					if got, err := connect(t, p.Host(), repo).resolve("1.0"); err != nil || got != i.Digest {
						t.Errorf("%s, through the proxy: got %s, %v", client, got, err)
					}
				}
				pullsEverywhere(t, p, repo, i)
				if got := h.Counts().Pings; got != int64(1-n) {
					t.Errorf("repository %d: %d requests for /v2/, want %d: what it says is remembered", n, got, 1-n)
				}
			}
			ask(t, p, "GET", "/v2/alice/app-0/manifests/none").wantError(t, 404, "MANIFEST_UNKNOWN")
			wantSecret(t, p, h)
		})
	}
}

// Without credentials some registries still want an anonymous token first.
func TestAnonymousTokensAreFetchedFromRegistriesThatRefuseWithoutAChallenge(t *testing.T) {
	for _, status := range []int{401, 403} {
		h, p := start(t, "")
		h.Inject(hub.Hide(status))
		i := image.New(image.Options{Seed: 1})
		h.Push("library/app", "1.0", i)
		pullsEverywhere(t, p, "library/app", i)
	}
}

func TestAWrongLoginAtARegistryThatHidesIsARefusal(t *testing.T) {
	for _, a := range []hub.Auth{hub.Basic, hub.Bearer} {
		h := hub.New(t, hub.Options{Auth: a, Users: map[string]string{"alice": "another"}})
		h.Inject(hub.Hide(404))
		p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(alicesCredentials)})
		h.Push("alice/app", "1.0", image.New(image.Options{}))
		h.MakePrivate("alice/app", "alice")
		got := ask(t, p, "GET", "/v2/alice/app/manifests/1.0")
		if a == hub.Bearer {
			if m := got.wantError(t, 403, "DENIED"); !strings.Contains(m, "incorrect username or password") {
				t.Errorf("want what the token server said, got %q", m)
			}
		} else if got.status != 404 && got.status != 403 { // it says 404 to a wrong password, too
			t.Errorf("want a refusal, got %s", got)
		}
		wantSecret(t, p, h)
	}
}

// A proxy in front of registries names repositories in scopes by its own paths.
func TestScopesAreNamedAsTheRegistryNamesThem(t *testing.T) {
	t.Parallel()
	users := map[string]string{"alice": secret}
	for name, faults := range map[string][]hub.Fault{
		"another name":                         {hub.NameScopes("proj/hub/")},
		"unknown scopes are refused":           {hub.NameScopes("proj/hub/"), hub.RefuseScopes(403, "proj/hub/", false)},
		"unknown scopes are refused with 401":  {hub.NameScopes("proj/hub/"), hub.RefuseScopes(401, "proj/hub/", false)},
		"unknown scopes are refused with 400":  {hub.NameScopes("proj/hub/"), hub.RefuseScopes(400, "proj/hub/", false)},
		"unknown scopes are refused with 404":  {hub.NameScopes("proj/hub/"), hub.RefuseScopes(404, "proj/hub/", false)},
		"one scope at a time":                  {hub.NameScopes("proj/hub/"), hub.RefuseScopes(400, "", true)},
		"one scope at a time, by its own name": {hub.NameScopes("proj/hub/"), hub.RefuseScopes(400, "proj/hub/", true)},
		"one scope at a time, no other name":   {hub.RefuseScopes(400, "", true)},
	} {
		for who, config := range map[string]string{"anonymous": "", "with a login": docker(alicesCredentials)} {
			t.Run(name+", "+who, func(t *testing.T) {
				h := hub.New(t, hub.Options{Users: users, TokenTTL: 2 * time.Second})
				for _, f := range faults {
					h.Inject(f)
				}
				p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: config})
				for n, repo := range []string{"one/a", "two/b", "three", "one/c", "four/five/six"} {
					i := image.New(image.Options{Seed: uint64(n)})
					h.Push(repo, "1.0", i)
					if repo == "three" {
						repo = "docker.io/three" // another way to ask: library/three
						h.Push("library/three", "1.0", i)
					}
					pullsEverywhere(t, p, repo, i)
				}
				// A token more for a wrong guess, once.
				h.ResetCounts()
				i := image.New(image.Options{Seed: 99})
				h.Push("nine/x", "1.0", i)
				get(t, p, "/v2/nine/x/manifests/1.0")
				if got := h.Counts().Tokens; got != 1 {
					t.Errorf("%d requests for tokens of a new repository, want 1: it is known how scopes are named", got)
				}
			})
		}
	}
}

func TestTokenAnswersAsTheyAre(t *testing.T) {
	t.Parallel()
	edit := func(f func(a map[string]any)) []hub.Fault { return []hub.Fault{hub.TokenAnswer(f)} }
	for name, faults := range map[string][]hub.Fault{
		"expires_in a string":            edit(func(a map[string]any) { a["expires_in"] = "300" }),
		"expires_in a float":             edit(func(a map[string]any) { a["expires_in"] = 299.5 }),
		"expires_in a float in a string": edit(func(a map[string]any) { a["expires_in"] = "300.0" }),
		"expires_in null":                edit(func(a map[string]any) { a["expires_in"] = nil }),
		"expires_in a word":              edit(func(a map[string]any) { a["expires_in"] = "never" }),
		"expires_in empty":               edit(func(a map[string]any) { a["expires_in"] = "" }),
		"expires_in an object":           edit(func(a map[string]any) { a["expires_in"] = map[string]int{} }),
		"token is not good":              edit(func(a map[string]any) { a["token"] = "stale" }),
		"access_token is not good":       edit(func(a map[string]any) { a["access_token"] = "stale" }),
		"token can't be sent":            edit(func(a map[string]any) { a["token"] = "a b\n" }),
		"token is a number":              edit(func(a map[string]any) { a["token"] = 7 }),
		"gzip":                           {hub.GzipToken()},
		"gzip, token is not good":        {hub.GzipToken(), hub.TokenAnswer(func(a map[string]any) { a["token"] = "stale" })},
		"hidden, token is not good":      {hub.Hide(403), hub.TokenAnswer(func(a map[string]any) { a["token"] = "stale" })},
	} {
		t.Run(name, func(t *testing.T) {
			h := hub.New(t, hub.Options{Users: map[string]string{"alice": secret}})
			for _, f := range faults {
				h.Inject(f)
			}
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(alicesCredentials)})
			for n := range 2 {
				repo, i := fmt.Sprintf("alice/app-%d", n), image.New(image.Options{Seed: uint64(n)})
				h.Push(repo, "1.0", i)
				h.MakePrivate(repo, "alice")
				h.ResetCounts()
				pullsEverywhere(t, p, repo, i)
				if got := h.Counts().Tokens; got != 1 {
					t.Errorf("%d requests for tokens, want 1", got)
				}
			}
		})
	}
}

// dockerConfigWith writes a config.json that holds an entry for the hub.
func dockerConfigWith(t *testing.T, h *hub.Hub, entry string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"auths":{%q:%s}}`, h.Host(), entry), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestARefusedPostOfAnIdentityTokenFallsBackToGet(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 401, 403, 404, 405, 415, 500, 501} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			h := hub.New(t, hub.Options{Users: map[string]string{"alice": secret}})
			h.Inject(hub.RefusePost(status))
			h.Push("alice/app", "1.0", image.New(image.Options{}))
			h.Push("alice/other", "1.0", image.New(image.Options{Seed: 2}))
			h.MakePrivate("alice/app", "alice")
			h.MakePrivate("alice/other", "alice")
			file := dockerConfigWith(t, h, fmt.Sprintf(`{"auth":%q,"identitytoken":%q}`,
				base64.StdEncoding.EncodeToString([]byte("alice:"+secret)), h.RefreshToken("alice")))
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(`credentials: {docker_config: ` + file + `}`)})
			get(t, p, "/v2/alice/app/manifests/1.0")
			h.ResetCounts()
			get(t, p, "/v2/alice/other/manifests/1.0")
			if got := h.Counts().Tokens; got != 1 {
				t.Errorf("%d requests for tokens, want 1: it is known that POST is refused", got)
			}
			wantSecret(t, p, h)
		})
	}
}

func TestATokenServersRetryAfterIsKept(t *testing.T) {
	h, p := start(t, "")
	h.Push("library/app", "1.0", image.New(image.Options{}))
	undo := h.Inject(hub.Answer(hub.Token, 429).With("Retry-After", "3"))
	limited := time.Now()
	a := ask(t, p, "GET", tagPath)
	a.wantError(t, 429, "TOOMANYREQUESTS")
	a.wantHeader(t, "Retry-After", "3")
	undo()
	until(t, "the token server to be asked again", func() bool { return ask(t, p, "GET", tagPath).status == 200 })
	if took := time.Since(limited); took < 2*time.Second {
		t.Errorf("it was asked again after %s, and wanted 3 s", took)
	}
	if n := h.Counts().Tokens; n != 2 {
		t.Errorf("%d requests for tokens, want 2", n)
	}
}

func TestARevokedTokenIsRenewedOnceThoughNoChallengeComes(t *testing.T) {
	for _, status := range []int{401, 403, 404} {
		h := hub.New(t, hub.Options{Users: map[string]string{"alice": secret}})
		h.Inject(hub.Hide(status))
		p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(alicesCredentials, `tags: [{match: "*", ttl: 0s}]`)})
		i := image.New(image.Options{})
		h.Push("alice/app", "1.0", i)
		h.MakePrivate("alice/app", "alice")
		get(t, p, "/v2/alice/app/manifests/1.0")
		h.ExpireTokens()
		h.ResetCounts()
		pullsEverywhere(t, p, "alice/app", i)
		if n := h.Counts().Tokens; n != 1 {
			t.Errorf("%d: %d requests for tokens, want 1", status, n)
		}
		// An account that may no longer pull is told so, without a new token each time.
		h.MakePrivate("alice/app", "bob")
		h.ResetCounts()
		for range 5 {
			if a := ask(t, p, "GET", "/v2/alice/app/manifests/2.0"); a.status != 403 && a.status != 404 {
				t.Errorf("%d: want a refusal, got %s", status, a)
			}
		}
		if n := h.Counts().Tokens; n > 1 {
			t.Errorf("%d: %d requests for tokens, want 1", status, n)
		}
	}
}

// redirecting runs two registries, of which the first sends everything to the second.
func redirecting(t *testing.T, status int, front, back hub.Options, settings ...string) (a, b *hub.Hub, p *proxy.Proxy) {
	t.Helper()
	a, b = hub.New(t, front), hub.New(t, back)
	a.Inject(hub.RedirectAll(status, b.URL()))
	settings = append(settings, fmt.Sprintf(`realms: [%q, %q], redirect_hosts: [%q, %q]`, a.Realm(), b.Realm(), b.Host(), b.CDNHost()))
	return a, b, proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": a}, Config: docker(settings...)})
}

// lscr.io sends to ghcr.io, which wants a token of its own.
func TestRedirectsToAnotherRegistryAreFollowedWithItsOwnToken(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 307, 308} {
		for name, c := range map[string]struct {
			back     hub.Options
			faults   []hub.Fault
			settings []string
		}{
			"":                          {},
			", with a login":            {settings: []string{alicesCredentials}},
			", without a CDN":           {back: hub.Options{NoCDN: true}},
			", tokens of two seconds":   {back: hub.Options{TokenTTL: 2 * time.Second}},
			", where scopes are named":  {faults: []hub.Fault{hub.NameScopes("proj/"), hub.RefuseScopes(403, "proj/", true)}},
			", where the token differs": {faults: []hub.Fault{hub.TokenAnswer(func(a map[string]any) { a["token"] = "stale" })}},
			", which redirects as well": {back: hub.Options{RedirectManifests: true}},
		} {
			t.Run(fmt.Sprint(status, name), func(t *testing.T) {
				a, b, p := redirecting(t, status, hub.Options{Auth: hub.Open, Users: map[string]string{"alice": secret}}, c.back, c.settings...)
				for _, f := range c.faults {
					b.Inject(f)
				}
				for n := range 2 {
					i := image.Index(image.Options{Seed: uint64(n)})
					repo := fmt.Sprintf("linuxserver/app-%d", n)
					b.Push(repo, "1.0", i)
					pullsEverywhere(t, p, repo, i)
				}
				b.ExpireTokens()
				ask(t, p, "GET", "/v2/linuxserver/app-0/manifests/none").wantError(t, 404, "MANIFEST_UNKNOWN")
				wantSecret(t, p, a, b)
				for _, r := range b.Requests() {
					if strings.HasPrefix(r.Header.Get("Authorization"), "Basic") {
						t.Errorf("the other registry was shown the login: %s %s", r.Method, r.URL)
					}
				}
			})
		}
	}
}

func TestWhatAnotherRegistryRefusesAnonymouslyIsARefusal(t *testing.T) {
	_, b, p := redirecting(t, 307, hub.Options{Auth: hub.Open}, hub.Options{Users: map[string]string{"alice": secret}}, alicesCredentials)
	b.Push("alice/app", "1.0", image.New(image.Options{}))
	b.MakePrivate("alice/app", "alice")
	if a := ask(t, p, "GET", "/v2/alice/app/manifests/1.0"); a.status < 400 || a.status == 404 {
		t.Errorf("want a refusal, got %s", a)
	}
	wantSecret(t, p, b)
}

// An endpoint over plain http may redirect to itself over https; the other way the login
// would leave in clear.
func TestARedirectToHTTPSKeepsTheLogin(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		back   hub.Options
		status int
		faults []hub.Fault
	}{
		"Basic":           {hub.Options{TLS: true, Auth: hub.Basic}, 301, nil},
		"Basic, 308":      {hub.Options{TLS: true, Auth: hub.Basic}, 308, nil},
		"Basic, hidden":   {hub.Options{TLS: true, Auth: hub.Basic}, 301, []hub.Fault{hub.Hide(404)}},
		"tokens":          {hub.Options{TLS: true}, 307, nil},
		"tokens, hidden":  {hub.Options{TLS: true}, 302, []hub.Fault{hub.Hide(404)}},
		"Basic, no CDN":   {hub.Options{TLS: true, Auth: hub.Basic, NoCDN: true}, 302, nil},
		"Basic, relative": {hub.Options{TLS: true, Auth: hub.Basic, RelativeRedirect: true}, 302, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c.back.Users = map[string]string{"alice": secret}
			h := hub.New(t, c.back)
			for _, f := range c.faults {
				h.Inject(f)
			}
			front := hub.Redirector(t, c.status, h.URL())
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(alicesCredentials, fmt.Sprintf("endpoints: [%q]", front))})
			for n := range 2 {
				repo, i := fmt.Sprintf("alice/app-%d", n), image.New(image.Options{Seed: uint64(n)})
				h.Push(repo, "1.0", i)
				h.MakePrivate(repo, "alice")
				pullsEverywhere(t, p, repo, i)
			}
			wantSecret(t, p, h)
		})
	}
}

func TestARedirectFromHTTPSToHTTPNeverKeepsTheLogin(t *testing.T) {
	plain := hub.New(t, hub.Options{Auth: hub.Basic, Users: map[string]string{"alice": secret}, NoCDN: true})
	plain.Push("alice/app", "1.0", image.New(image.Options{}))
	h := hub.New(t, hub.Options{TLS: true, Auth: hub.Basic, Users: map[string]string{"alice": secret}})
	h.Push("alice/app", "1.0", image.New(image.Options{}))
	undo := h.Inject(hub.RedirectAll(307, plain.URL()).After(1))
	defer undo()
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(alicesCredentials, fmt.Sprintf("redirect_hosts: [%q]", plain.Host()))})
	for range 2 {
		ask(t, p, "GET", "/v2/alice/app/manifests/1.0")
		ask(t, p, "GET", "/v2/alice/app/tags/list")
	}
	for _, r := range plain.Requests() {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s %s came with the login, in clear", r.Method, r.URL)
		}
	}
	if len(plain.Requests()) == 0 {
		t.Error("the redirect was not followed: this shows nothing")
	}
}

func TestCredentialsThatCannotBeReadBlockNothingPublic(t *testing.T) {
	t.Parallel()
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "docker-credential-broken"), []byte("#!/bin/sh\necho the vault is sealed >&2\nexit 1\n"), 0o700); err != nil { // #nosec G306 -- a program
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		credentials string
		hub         hub.Options
	}{
		"a helper that is missing":      {`credentials: {helper: nonexistent}`, hub.Options{}},
		"a helper that fails":           {`credentials: {helper: broken}`, hub.Options{}},
		"a helper, and no login wanted": {`credentials: {helper: broken}`, hub.Options{Auth: hub.Open}},
		"a password file":               {`credentials: {username: alice, password_file: ` + filepath.Join(broken, "gone") + `}`, hub.Options{}},
	} {
		t.Run(name, func(t *testing.T) {
			gone := filepath.Join(broken, "gone")
			if err := os.WriteFile(gone, []byte(secret), 0o600); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(c.credentials, "broken") {
				if _, err := exec.LookPath("sh"); err != nil {
					t.Skip("there is no shell")
				}
			}
			c.hub.Users = map[string]string{"alice": secret}
			h := hub.New(t, c.hub)
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(c.credentials), Env: []string{"PATH=" + broken + ":" + os.Getenv("PATH")}})
			if err := os.Remove(gone); err != nil {
				t.Fatal(err)
			}
			for n := range 3 {
				repo, i := fmt.Sprintf("library/app-%d", n), image.New(image.Options{Seed: uint64(n)})
				h.Push(repo, "1.0", i)
				pullsEverywhere(t, p, repo, i)
			}
			if c.hub.Auth == hub.Open {
				return
			}
			ask(t, p, "GET", "/v2/library/app-0/manifests/none").wantError(t, 404, "MANIFEST_UNKNOWN")
			h.Push("alice/app", "1.0", image.New(image.Options{}))
			h.MakePrivate("alice/app", "alice")
			if m := ask(t, p, "GET", "/v2/alice/app/manifests/1.0").wantError(t, 502, "UNAVAILABLE"); !strings.Contains(m, "upstreams.docker.io.credentials can not be read") {
				t.Errorf("want the true cause, got %q", m)
			}
			if n := strings.Count(p.Log(), "credentials unavailable"); n != 1 {
				t.Errorf("the failure is logged %d times, want 1", n)
			}
		})
	}
}

// A forward proxy's refusal is its own, not the registry's.
func TestAForwardProxysRefusalIsNamed(t *testing.T) {
	for _, status := range []int{403, 407, 502} {
		for _, scheme := range []string{"https", "http"} {
			if scheme == "http" && status != 407 {
				continue // the same answer could be the registry's
			}
			forward := forwardProxy(t, status)
			h := hub.New(t, hub.Options{})
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h},
				Config: `upstreams: {docker.io: {endpoints: ["` + scheme + `://registry.example.test"]}}`,
				Env:    []string{"HTTPS_PROXY=http://" + forward, "HTTP_PROXY=http://" + forward}})
			m := ask(t, p, "GET", tagPath).wantError(t, 502, "UNAVAILABLE")
			for _, word := range []string{"proxy " + forward, fmt.Sprint(status), "registry.example.test"} {
				if !strings.Contains(m, word) {
					t.Errorf("%s, %d: want %q in the message, got %q", scheme, status, word, m)
				}
			}
		}
	}
}

// forwardProxy runs a proxy that refuses everything. It returns its address.
func forwardProxy(t *testing.T, status int) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status, http.StatusText(status))
			}
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

func TestAnEndpointMayBeWrittenWithV2AtItsEnd(t *testing.T) {
	for _, end := range []string{"/v2", "/v2/", "/", ""} {
		h := hub.New(t, hub.Options{})
		i := image.New(image.Options{})
		h.Push("library/app", "1.0", i)
		p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(fmt.Sprintf("endpoints: [%q]", h.URL()+end))})
		pullsEverywhere(t, p, "library/app", i)
	}
}

// Clients bring their own credentials to a registry that hides as well.
func TestClientsLoginsReachARegistryThatHides(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hub    hub.Options
		faults []hub.Fault
	}{
		"Basic":                  {hub.Options{Auth: hub.Basic}, []hub.Fault{hub.Hide(404)}},
		"Basic, /v2/ is open":    {hub.Options{Auth: hub.Basic}, []hub.Fault{hub.Hide(403), hub.OpenPing()}},
		"tokens":                 {hub.Options{}, []hub.Fault{hub.Hide(404)}},
		"tokens, other scopes":   {hub.Options{}, []hub.Fault{hub.NameScopes("proj/"), hub.RefuseScopes(403, "proj/", true)}},
		"tokens, and 401 simply": {hub.Options{}, []hub.Fault{hub.Hide(401)}},
	} {
		t.Run(name, func(t *testing.T) {
			h, p := private(t, c.hub, "")
			for _, f := range c.faults {
				h.Inject(f)
			}
			for n := range 2 {
				repo, i := fmt.Sprintf("alice/app-%d", n), image.New(image.Options{Seed: uint64(n)})
				h.Push(repo, "1.0", i)
				if !strings.Contains(name, "scopes") {
					h.MakePrivate(repo, "alice")
				}
				pullAs(t, p, repo, i, asAlice)
				get(t, p, "/v2/"+repo+"/tags/list", "Authorization", asAlice)
				if !strings.Contains(name, "scopes") {
					ask(t, p, "GET", "/v2/"+repo+"/manifests/1.0", "Authorization", asBob).wantError(t, 403, "DENIED")
					ask(t, p, "GET", "/v2/"+repo+"/manifests/1.0").wantError(t, 401, "UNAUTHORIZED")
				}
			}
		})
	}
}

// A helper that hangs holds up only what needs a login.
func TestAHelperThatHangsBlocksNothingPublic(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("there is no shell")
	}
	dir := t.TempDir()
	done := filepath.Join(dir, "done")
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-hangs"), []byte("#!/bin/sh\nexec 2>/dev/null\nsleep 20\n: > "+done+"\nexit 1\n"), 0o700); err != nil { // #nosec G306 -- a program
		t.Fatal(err)
	}
	h := hub.New(t, hub.Options{})
	i := image.New(image.Options{})
	h.Push("library/app", "1.0", i)
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(`credentials: {helper: hangs}`), Env: []string{"PATH=" + dir + ":" + os.Getenv("PATH")}})
	get(t, p, tagPath)
	pullRaw(t, p, "library/app", i)
	if _, err := os.Stat(done); err == nil {
		t.Error("the requests have waited for the helper")
	}
}

// Homebrew sends ghcr.io's token for nobody to mirrors, too.
func TestTheTokenForNobodyIsNobody(t *testing.T) {
	h, p := private(t, hub.Options{}, "")
	i := image.New(image.Options{})
	h.Push("library/app", "1.0", i)
	h.Push("alice/app", "1.0", image.New(image.Options{Seed: 2}))
	h.MakePrivate("alice/app", "alice")
	for _, token := range []string{"Bearer QQ==", "bearer QQ=="} {
		wantBytes(t, "public", i.Bytes(), get(t, p, tagPath, "Authorization", token).body)
		get(t, p, "/v2/", "Authorization", token)
		ask(t, p, "GET", "/v2/alice/app/manifests/1.0", "Authorization", token).wantError(t, 401, "UNAUTHORIZED")
	}
}

func TestARefusedRedirectSaysWhichPortToList(t *testing.T) {
	a := hub.New(t, hub.Options{Auth: hub.Open})
	b := hub.New(t, hub.Options{Auth: hub.Open})
	a.Inject(hub.RedirectAll(307, b.URL()))
	host, _, err := net.SplitHostPort(b.Host())
	if err != nil {
		t.Fatal(err)
	}
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": a},
		Config: `upstreams: {docker.io: {endpoints: ["http://localhost` + a.URL()[strings.LastIndex(a.URL(), ":"):] + `"], redirect_hosts: [` + host + `]}}`})
	m := ask(t, p, "GET", tagPath).wantError(t, 502, "UNAVAILABLE")
	if !strings.Contains(m, "write "+b.Host()) || !strings.Contains(m, "80 and 443") {
		t.Errorf("want the port rule, got %q", m)
	}
	for _, line := range strings.Split(p.Log(), "\n") {
		if strings.Count(line, "redirects to plain http") > 1 {
			t.Errorf("the cause is twice in one line: %s", line)
		}
	}
}

func TestAPlainRealmWrittenWithoutASchemeIsExplained(t *testing.T) {
	h := hub.New(t, hub.Options{})
	h.Push("library/app", "1.0", image.New(image.Options{}))
	host := strings.TrimSuffix(strings.TrimPrefix(h.Realm(), "http://"), "/token")
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(fmt.Sprintf("realms: [%q]", host))})
	if m := ask(t, p, "GET", tagPath).wantError(t, 403, "DENIED"); !strings.Contains(m, "write http://"+host) {
		t.Errorf("want what to write, got %q", m)
	}
	out, err := exec.Command(proxy.Binary(t), "config", "check", p.Config()).CombinedOutput() // #nosec G204 -- the program under test
	if err != nil || !strings.Contains(string(out), "write http://"+host) {
		t.Errorf("config check says %q, %v; want what to write", out, err)
	}
}
