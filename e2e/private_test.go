package e2e

import (
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

const (
	alicesPassword = "alices-password-that-must-not-show"
	bobsPassword   = "bobs-password-that-must-not-show"
)

// basic is the Authorization header of a user.
func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

var asAlice, asBob = basic("alice", alicesPassword), basic("bob", bobsPassword)

// private runs a hub with two users and the program in front of it, to which they
// bring their own credentials; config is more of what is below upstreams.docker.io.
func private(t *testing.T, o hub.Options, config string) (*hub.Hub, *proxy.Proxy) {
	t.Helper()
	o.Users = map[string]string{"alice": alicesPassword, "bob": bobsPassword}
	h := hub.New(t, o)
	return h, proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h},
		Config:    `upstreams: {docker.io: {access: passthrough, tags: [{match: "*", ttl: 1h}], ` + config + `}}`,
	})
}

// pullAs pulls all of an image by plain requests of one user.
func pullAs(t *testing.T, p *proxy.Proxy, repo string, i *image.Image, authorization string) {
	t.Helper()
	for d, m := range i.Manifests {
		wantBytes(t, "manifest", m.Bytes, get(t, p, "/v2/"+repo+"/manifests/"+d.String(), "Accept", anything, "Authorization", authorization).body)
	}
	for d, b := range i.Blobs {
		wantBytes(t, "blob", b, get(t, p, "/v2/"+repo+"/blobs/"+d.String(), "Authorization", authorization).body)
	}
}

// doors are all ways to have something of a repository.
func doors(repo string, i *image.Image) map[string][]string {
	manifest := i.Digest.String()
	var blob string
	for d := range i.Blobs {
		blob = d.String()
	}
	return map[string][]string{
		"tag":                 {"GET", "/v2/" + repo + "/manifests/1.0"},
		"tag, by HEAD":        {"HEAD", "/v2/" + repo + "/manifests/1.0"},
		"negotiated":          {"GET", "/v2/" + repo + "/manifests/1.0", "Accept", "application/vnd.oci.image.manifest.v1+json"},
		"digest":              {"GET", "/v2/" + repo + "/manifests/" + manifest},
		"digest, by HEAD":     {"HEAD", "/v2/" + repo + "/manifests/" + manifest},
		"digest, not changed": {"GET", "/v2/" + repo + "/manifests/" + manifest, "If-None-Match", `"` + manifest + `"`},
		"blob":                {"GET", "/v2/" + repo + "/blobs/" + blob},
		"blob, by HEAD":       {"HEAD", "/v2/" + repo + "/blobs/" + blob},
		"blob, not changed":   {"GET", "/v2/" + repo + "/blobs/" + blob, "If-None-Match", `"` + blob + `"`},
		"range of a blob":     {"GET", "/v2/" + repo + "/blobs/" + blob, "Range", "bytes=0-9"},
		"tags":                {"GET", "/v2/" + repo + "/tags/list"},
		"referrers":           {"GET", "/v2/" + repo + "/referrers/" + manifest},
	}
}

func TestAPrivateImageIsForThoseWhoMayPullIt(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]hub.Options{"tokens": {}, "Basic": {Auth: hub.Basic}} {
		t.Run(name, func(t *testing.T) {
			h, p := private(t, o, "")
			i := image.Index(image.Options{Seed: 1})
			h.Push("alice/app", "1.0", i)
			h.MakePrivate("alice/app", "alice")
			wantBytes(t, "by tag", i.Bytes(), get(t, p, "/v2/alice/app/manifests/1.0", "Authorization", asAlice).body)
			pullAs(t, p, "alice/app", i, asAlice)
			p.WaitIdle(t)
			// All of it is here now, and Alice's lease runs.
			for door, q := range doors("alice/app", i) {
				if a := ask(t, p, q[0], q[1], append(q[2:], "Authorization", asAlice)...); a.status >= 400 {
					t.Errorf("%s, as Alice: want it, got %s", door, a)
				}
				for who, c := range map[string]struct {
					authorization string
					status        int
				}{
					"Bob":                       {asBob, http.StatusForbidden},
					"nobody":                    {"", http.StatusUnauthorized},
					"Alice by a wrong password": {basic("alice", "a guess"), http.StatusForbidden},
					"a stranger's token":        {"Bearer " + base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("x", 60))), http.StatusUnauthorized},
				} {
					headers := q[2:]
					if c.authorization != "" {
						headers = append(headers[:len(headers):len(headers)], "Authorization", c.authorization)
					}
					a := ask(t, p, q[0], q[1], headers...)
					if a.status != c.status || (a.header.Get("WWW-Authenticate") != "") != (c.status == http.StatusUnauthorized) {
						t.Errorf("%s, as %s: want %d, got %s", door, who, c.status, a)
					}
					a.wantHeader(t, "Docker-Content-Digest", "", "ETag", "", "Content-Range", "", "Cache-Control", "private")
					if strings.Contains(string(a.body), i.Digest.String()) || strings.Contains(string(a.body), "1.0") {
						t.Errorf("%s, as %s: it tells what there is: %s", door, who, a)
					}
				}
			}
			for who, want := range map[string]bool{asAlice: true, asBob: false, "": false} {
				var headers []string
				if who != "" {
					headers = []string{"Authorization", who}
				}
				if got := strings.Contains(string(get(t, p, "/v2/_catalog", headers...).body), "alice/app"); got != want {
					t.Errorf("the catalog for %q: alice/app in it: %v, want %v", who, got, want)
				}
			}
			if h.Counts().Leaks != 0 {
				t.Errorf("an Authorization header went where it does not belong")
			}
		})
	}
}

// What is not yours and what does not exist are told in the same words, and found out
// in the same way: that something is here can not be seen by who may not have it.
func TestNotYoursAndNotThereAreAlike(t *testing.T) {
	t.Parallel()
	h, p := private(t, hub.Options{}, "")
	i := image.New(image.Options{Seed: 1})
	h.Push("alice/app", "1.0", i)
	h.MakePrivate("alice/app", "alice")
	pullAs(t, p, "alice/app", i, asAlice)
	other := image.New(image.Options{Seed: 2})
	for _, who := range []string{"", asBob} {
		var headers []string
		if who != "" {
			headers = []string{"Authorization", who}
		}
		for door, q := range doors("alice/app", i) {
			cached := ask(t, p, q[0], q[1], append(q[2:len(q):len(q)], headers...)...)
			for what, q := range map[string][]string{
				"another thing in it": doors("alice/app", other)[door],
				"no repository":       doors("alice/gone", i)[door],
			} {
				a := ask(t, p, q[0], q[1], append(q[2:len(q):len(q)], headers...)...)
				want, got := string(cached.body), strings.ReplaceAll(string(a.body), "alice/gone", "alice/app")
				if a.status != cached.status || got != want {
					t.Errorf("%s, %s, as %q: want %s, got %s", door, what, who, cached, a)
				}
			}
		}
	}
}

func TestAPublicRepositoryIsForAllWhoeverAsks(t *testing.T) {
	t.Parallel()
	h, p := private(t, hub.Options{}, "")
	i := image.Index(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	pullRaw(t, p, "library/app", i)
	get(t, p, tagPath)
	p.WaitIdle(t)
	before := h.Counts()
	pullAs(t, p, "library/app", i, asBob)
	pullAs(t, p, "library/app", i, basic("carol", "not known there"))
	get(t, p, tagPath, "Authorization", asAlice)
	wantUnmoved(t, before, h.Counts())
	for _, r := range h.Requests() {
		if strings.HasPrefix(r.Header.Get("Authorization"), "Basic") {
			t.Errorf("somebody's password was shown for a public repository: %s %s", r.Method, r.URL)
		}
	}
	// A tag that is not there is told as what it is, for who may know.
	ask(t, p, "GET", "/v2/library/app/manifests/none").wantError(t, 404, "MANIFEST_UNKNOWN")
}

func TestOneCheckIsMadeForEachLease(t *testing.T) {
	t.Parallel()
	h, p := private(t, hub.Options{}, "")
	i := image.Index(image.Options{Seed: 1})
	h.Push("alice/app", "1.0", i)
	h.MakePrivate("alice/app", "alice")
	for range 3 {
		pullAs(t, p, "alice/app", i, asAlice)
		get(t, p, "/v2/alice/app/tags/list", "Authorization", asAlice)
	}
	m := p.Metrics(t)
	for _, c := range []struct {
		whose, result string
		want          float64
	}{{"everyone", "refused", 1}, {"client", "granted", 1}, {"client", "refused", 0}} {
		if got := m.Sum("entrepot_grant_checks_total", "upstream", "docker.io", "whose", c.whose, "result", c.result); got != c.want {
			t.Errorf("checks for %s that were %s: want %v, got %v", c.whose, c.result, c.want, got)
		}
	}
}

func TestWhoseRightIsTakenAwayHasItNoLongerThanTheLease(t *testing.T) {
	t.Parallel()
	for name, revoke := range map[string]func(*hub.Hub){
		"the repository": func(h *hub.Hub) { h.MakePrivate("alice/app", "bob") },
		"the password":   func(h *hub.Hub) { h.ChangePassword("alice", "another") },
	} {
		t.Run(name, func(t *testing.T) {
			h, p := private(t, hub.Options{}, "grant_ttl: 2s, grant_stale: 1h")
			i := image.New(image.Options{Seed: 1})
			h.Push("alice/app", "1.0", i)
			h.MakePrivate("alice/app", "alice")
			pullAs(t, p, "alice/app", i, asAlice)
			began := time.Now()
			revoke(h)
			until(t, "Alice to be refused", func() bool {
				a := ask(t, p, "GET", "/v2/alice/app/manifests/"+i.Digest.String(), "Authorization", asAlice)
				return a.status == http.StatusForbidden
			})
			t.Logf("refused after %s", time.Since(began))
		})
	}
}

func TestALeaseIsStretchedOnlyWhereTheSettingsSaySo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		config string
		serves bool
	}{{"grant_ttl: 2s", false}, {"grant_ttl: 2s, grant_stale: 1h", true}} {
		t.Run(c.config, func(t *testing.T) {
			h, p := private(t, hub.Options{}, c.config)
			i := image.New(image.Options{Seed: 1})
			h.Push("alice/app", "1.0", i)
			h.MakePrivate("alice/app", "alice")
			h.Push("library/app", "1.0", image.New(image.Options{Seed: 2}))
			pullAs(t, p, "alice/app", i, asAlice)
			get(t, p, tagPath)
			h.Down()
			path := "/v2/alice/app/manifests/" + i.Digest.String()
			if c.serves {
				until(t, "the lease to be stretched", func() bool {
					get(t, p, path, "Authorization", asAlice)
					return p.Metrics(t).Sum("entrepot_grants_stretched_total") > 0
				})
			} else {
				until(t, "the lease to end", func() bool {
					return ask(t, p, "GET", path, "Authorization", asAlice).status >= 500
				})
			}
			// Bob never had one, and is told nothing but that it can not be found out.
			for _, who := range []string{asBob, basic("alice", "a guess")} {
				if a := ask(t, p, "GET", path, "Authorization", who); a.status < 500 {
					t.Errorf("want a failure of the upstream, got %s", a)
				}
			}
			// What was everyone's is no secret.
			get(t, p, tagPath)
		})
	}
}

// One repository's digests are no key to another's, be that private or public, of the
// same upstream or of another with other rules.
func TestDigestsAreNoKeyAcrossGrants(t *testing.T) {
	t.Parallel()
	users := map[string]string{"alice": alicesPassword, "bob": bobsPassword}
	h, open := hub.New(t, hub.Options{Users: users}), hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h, "ghcr.io": open},
		Config:    `upstreams: {docker.io: {access: passthrough}}`,
	})
	i := image.Index(image.Options{Seed: 1})
	h.Push("alice/app", "1.0", i)
	h.MakePrivate("alice/app", "alice")
	h.Push("bob/app", "1.0", image.New(image.Options{Seed: 2}))
	h.MakePrivate("bob/app", "bob")
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 3}))
	open.Push("org/app", "1.0", image.New(image.Options{Seed: 4}))
	pullAs(t, p, "alice/app", i, asAlice)
	p.WaitIdle(t)
	for _, c := range []struct{ repo, who string }{{"bob/app", asBob}, {"library/app", asBob}, {"ghcr.io/org/app", asBob}, {"ghcr.io/org/app", asAlice}} {
		get(t, p, "/v2/"+c.repo+"/manifests/1.0", "Authorization", c.who)
		for door, q := range doors(c.repo, i) {
			if strings.HasPrefix(door, "tag") || door == "negotiated" {
				continue // its own
			}
			a := ask(t, p, q[0], q[1], append(q[2:], "Authorization", c.who)...)
			if door == "referrers" && a.status == 200 && strings.Contains(string(a.body), `"manifests":[]`) {
				continue
			}
			if a.status != http.StatusNotFound {
				t.Errorf("%s of %s: want 404, got %s", door, c.repo, a)
			}
		}
	}
	for _, r := range open.Requests() {
		if a := r.Header.Get("Authorization"); strings.HasPrefix(a, "Basic") {
			t.Errorf("a password for docker.io reached ghcr.io: %s %s", r.Method, r.URL)
		}
	}
}

func TestATokenFromHereStandsForItsCredentials(t *testing.T) {
	t.Parallel()
	h, p := private(t, hub.Options{}, "")
	i := image.New(image.Options{Seed: 1})
	h.Push("alice/app", "1.0", i)
	h.MakePrivate("alice/app", "alice")
	h.Push("library/app", "1.0", i)
	ping := ask(t, p, "GET", "/v2/")
	ping.wantError(t, http.StatusUnauthorized, "UNAUTHORIZED")
	if want := fmt.Sprintf(`Bearer realm="http://%s/token",service="%s"`, p.Host(), p.Host()); ping.header.Get("WWW-Authenticate") != want {
		t.Errorf("want the challenge %s, got %s", want, ping)
	}
	for who, want := range map[string]int{asAlice: http.StatusOK, asBob: http.StatusForbidden, "": http.StatusUnauthorized} {
		var headers []string
		if who != "" {
			headers = []string{"Authorization", who}
		}
		_, rest, _ := strings.Cut(string(get(t, p, "/token?service=x&scope=repository:alice/app:pull", headers...).body), `"token":"`)
		token, _, _ := strings.Cut(rest, `"`)
		if strings.Contains(token, "alice") || token == "" {
			t.Errorf("want a token that shows nothing, got %q", token)
		}
		bearer := []string{"Authorization", "Bearer " + token}
		get(t, p, "/v2/", bearer...)
		get(t, p, tagPath, bearer...)
		if a := ask(t, p, "GET", "/v2/alice/app/manifests/1.0", bearer...); a.status != want {
			t.Errorf("with the token of %q: want %d, got %s", who, want, a)
		}
		p.Restart(t)
		if a := ask(t, p, "GET", tagPath, bearer...); a.status != http.StatusUnauthorized || !strings.Contains(a.header.Get("WWW-Authenticate"), `error="invalid_token"`) {
			t.Errorf("a token of a process that has ended: want a challenge that says so, got %s", a)
		}
	}
}

func TestNoPasswordIsWrittenAnywhere(t *testing.T) {
	t.Parallel()
	h, p := private(t, hub.Options{}, "")
	i := image.Index(image.Options{Seed: 1})
	h.Push("alice/app", "1.0", i)
	h.MakePrivate("alice/app", "alice")
	pullAs(t, p, "alice/app", i, asAlice)
	ask(t, p, "GET", "/v2/alice/app/manifests/1.0", "Authorization", asBob)
	h.Down()
	ask(t, p, "GET", "/v2/alice/other/manifests/1.0", "Authorization", asBob)
	res, err := raw.Get(p.AdminURL() + "/metrics")
	scrape, err := readAndClose(res.Body, err)
	if err != nil {
		t.Fatal(err)
	}
	p.Stop(t)
	places := map[string]string{"the log": p.Log(), "the metrics": string(scrape)}
	err = filepath.WalkDir(p.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		places[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for place, content := range places {
		for _, secret := range []string{alicesPassword, bobsPassword, strings.TrimPrefix(asAlice, "Basic "), strings.TrimPrefix(asBob, "Basic ")} {
			if strings.Contains(content, secret) {
				t.Errorf("a password is in %s", place)
			}
		}
	}
	for _, r := range h.Requests() {
		if strings.Contains(r.URL, "password") {
			t.Errorf("a password is in a URL: %s", r.URL)
		}
	}
}

// Who is known by network or certificate brings the registry's account beside that:
// both have to say yes.
func TestOwnAccountsGoWithAccessRules(t *testing.T) {
	t.Parallel()
	h := hub.New(t, hub.Options{Users: map[string]string{"alice": alicesPassword, "bob": bobsPassword}})
	p := proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h},
		Config: `
auth: {networks: [{name: here, cidrs: [127.0.0.0/8]}]}
access:
  - {name: not-these, who: [here], repositories: ["alice/secret"], action: deny}
upstreams: {docker.io: {access: passthrough}}`,
	})
	i := image.New(image.Options{Seed: 1})
	for _, repo := range []string{"alice/app", "alice/secret"} {
		h.Push(repo, "1.0", i)
		h.MakePrivate(repo, "alice")
	}
	pullAs(t, p, "alice/app", i, asAlice)
	ask(t, p, "GET", "/v2/alice/app/manifests/1.0", "Authorization", asBob).wantError(t, http.StatusForbidden, "DENIED")
	ask(t, p, "GET", "/v2/alice/app/manifests/1.0").wantError(t, http.StatusUnauthorized, "UNAUTHORIZED")
	if m := ask(t, p, "GET", "/v2/alice/secret/manifests/1.0", "Authorization", asAlice).wantError(t, http.StatusForbidden, "DENIED"); !strings.Contains(m, "not-these") {
		t.Errorf("want the rule that denies it, got %q", m)
	}
}

// What is on its way for one is no more another's than what is here.
func TestAFillThatRunsIsNoKeyToItsContent(t *testing.T) {
	t.Parallel()
	h, p := private(t, hub.Options{}, "")
	i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 300 << 10}}})
	h.Push("alice/app", "1.0", i)
	h.MakePrivate("alice/app", "alice")
	h.Push("bob/app", "1.0", image.New(image.Options{Seed: 2}))
	h.MakePrivate("bob/app", "bob")
	layer := i.Layers("")[0].Digest
	held := make(chan struct{})
	h.Inject(hub.Hold(hub.CDNGet, held))
	pulled := make(chan answer)
	go func() {
		res, err := open(t.Context(), p, "GET", "/v2/alice/app/blobs/"+layer.String(), "Authorization", asAlice)
		a := answer{err: err}
		if err == nil {
			a.body, a.err = readAndClose(res.Body, nil)
		}
		pulled <- a
	}()
	until(t, "the fill to run", func() bool { return p.Metrics(t).Sum("entrepot_fills_in_flight") > 0 })
	for path, want := range map[string]int{"/v2/bob/app/blobs/": http.StatusNotFound, "/v2/alice/app/blobs/": http.StatusForbidden} {
		for _, q := range [][]string{{"GET"}, {"HEAD"}, {"GET", "Range", "bytes=0-9"}} {
			if a := ask(t, p, q[0], path+layer.String(), append(q[1:], "Authorization", asBob)...); a.status != want {
				t.Errorf("Bob joins the fill: want %d, got %s", want, a)
			}
		}
	}
	close(held)
	a := <-pulled
	if a.err != nil {
		t.Fatal(a.err)
	}
	wantBytes(t, "Alice's blob", i.Blobs[layer], a.body)
}
