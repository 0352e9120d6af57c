package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

var alice = StaticCredentials(Credential{Username: "alice", Password: "hunter2"})

// slowHelper has credentials after a while, or fails.
type slowHelper struct {
	after time.Duration
	err   error
}

func (s slowHelper) Credential(ctx context.Context, _ string) (Credential, error) {
	select {
	case <-time.After(s.after):
		return Credential{Username: "alice", Password: "hunter2"}, s.err
	case <-ctx.Done():
		return Credential{}, ctx.Err()
	}
}

func TestSlowCredentialsDelayOnlyWhatNeedsThem(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := hub(w, "https://reg.test:8443/token")
		private := false
		w.host("reg.test:8443", func(rw http.ResponseWriter, req *http.Request) {
			if _, p, _ := req.BasicAuth(); private && p != "hunter2" {
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
			s.serve(rw, req)
		})
		r := w.registry(Options{Credentials: slowHelper{after: 20 * time.Second}, Realms: []string{"reg.test:8443"}})
		began := time.Now()
		wantManifest(t, r, "public")
		if took := time.Since(began); took > 2*helperPatience {
			t.Errorf("a public image took %s", took)
		}
		private = true
		wantManifest(t, r, "private")
	})
}

func TestARegistryThatHidesIsGreetedOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			_, p, _ := req.BasicAuth()
			switch {
			case req.URL.Path == "/v2/":
				rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				rw.WriteHeader(http.StatusUnauthorized)
			case p != "hunter2" || strings.Contains(req.URL.Path, "missing"):
				rw.WriteHeader(http.StatusNotFound)
			default:
				serveImage(rw, req)
			}
		})
		r := w.registry(Options{Credentials: alice})
		_, err := r.Manifest(t.Context(), "a/missing", "latest")
		wantError(t, err, oci.CodeManifestUnknown, 404)
		if r.endpoints[0].auth.Load() != nil {
			t.Error("a login that has brought nothing is remembered")
		}
		wantManifest(t, r, "a")
		wantManifest(t, r, "b")
		w.wantCount("GET reg.test/v2/b/", 1)
		if n := w.count("GET reg.test/v2/") - w.count("GET reg.test/v2/a/") - w.count("GET reg.test/v2/b/"); n != 1 {
			t.Errorf("%d requests for /v2/, want 1", n)
		}
		// Nobody without credentials asks for more.
		other := w.registry(Options{})
		_, err = other.Manifest(t.Context(), "c", "latest")
		wantError(t, err, oci.CodeManifestUnknown, 404)
		w.wantCount("GET reg.test/v2/c/", 1)
	})
}

// A mirror beside the registry isn't shown a password that it never asked for.
func TestOnlyTheOnlyEndpointIsOfferedAPasswordUnasked(t *testing.T) {
	for _, endpoints := range [][]string{{"https://mirror.test"}, {"https://mirror.test", "https://reg.test"}} {
		inWorld(t, func(t *testing.T, w *world) {
			shown := false
			w.host("mirror.test:443", func(rw http.ResponseWriter, req *http.Request) {
				if req.Header.Get("Authorization") != "" {
					shown = true
				}
				if req.URL.Path != "/v2/" {
					rw.WriteHeader(http.StatusNotFound)
				}
			})
			w.host("reg.test:443", serveImage)
			_, _ = w.registry(Options{Endpoints: endpoints, Credentials: alice}).Manifest(t.Context(), "a", "latest")
			if want := len(endpoints) == 1; shown != want {
				t.Errorf("%q: shown %t, want %t", endpoints, shown, want)
			}
		})
	}
}

// That a hidden image isn't there is known only if the registry could be asked to log in.
func TestWhatMayBeHiddenIsNotMissingWhileTheRegistryCannotBeGreeted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/v2/" {
				hangUp(rw, req)
				return
			}
			rw.WriteHeader(http.StatusNotFound)
		})
		_, err := w.registry(Options{Credentials: alice}).Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 502)
	})
}

func TestARefusalSaysWhatTheTokenServerSaid(t *testing.T) {
	for body, want := range map[string]string{
		`{"errors":[{"code":"DENIED","message":"the account is locked"}]}`:                      "it answered 401: the account is locked",
		`{"details":"incorrect username or password"}`:                                          "it answered 401: incorrect username or password",
		`{"error":"invalid_grant","error_description":"the account is locked"}`:                 "it answered 401: the account is locked",
		`{"error":"invalid_grant"}`:                                                             "it answered 401: invalid_grant",
		`the account is locked`:                                                                 "it answered 401: the account is locked",
		`{"errors":[{"code":"DENIED","message":"see https://x.test/?X-Signature=1 for more"}]}`: "it answered 401: see for more",
		`<html>no</html>`: "(it answered 401);",
		``:                "(it answered 401);",
	} {
		inWorld(t, func(t *testing.T, w *world) {
			hub(w, "https://reg.test:8443/token")
			w.host("reg.test:8443", func(rw http.ResponseWriter, _ *http.Request) {
				rw.WriteHeader(http.StatusUnauthorized)
				_, _ = io.WriteString(rw, body)
			})
			_, err := w.registry(Options{Credentials: alice, Realms: []string{"reg.test:8443"}}).Manifest(t.Context(), "a", "latest")
			wantError(t, err, oci.CodeDenied, 403, want, "refuses the ones that are there")
			_, err = w.registry(Options{}).Manifest(t.Context(), "a", "latest")
			if e := wantError(t, err, oci.CodeDenied, 403, want); strings.Contains(e.Message, "refuses the") {
				t.Errorf("%q says that credentials were refused, and none were sent", e.Message)
			}
		})
	}
}

func TestNoRefusalOfCredentialsThatWereNotSent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("WWW-Authenticate", "Negotiate")
			rw.WriteHeader(http.StatusUnauthorized)
		})
		_, err := w.registry(Options{Credentials: alice}).Manifest(t.Context(), "a", "latest")
		if e := wantError(t, err, oci.CodeDenied, 403, "so they were not sent"); strings.Contains(e.Message, "refuses") {
			t.Errorf("got %q", e.Message)
		}
	})
}

func TestATokenServerMayTakeOneScopeOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token"}
		w.host("auth.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if len(req.URL.Query()["scope"]) != 1 {
				rw.WriteHeader(http.StatusBadRequest)
				return
			}
			s.serve(rw, req)
		})
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if !s.good[strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")] {
				rw.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.test/token",scope="repository:base:pull repository:a:pull"`)
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
			serveImage(rw, req)
		})
		wantManifest(t, w.registry(Options{}), "a")
		if want := []string{"repository:a:pull"}; !slices.Equal(s.scopes, want) {
			t.Errorf("scopes %q, want %q", s.scopes, want)
		}
	})
}

func TestScopesAreCombinedOnlyWhenTheTokensWasTooSmall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token"}
		w.host("auth.test:443", s.serve)
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") != "Bearer token-2" {
				rw.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.test/token",scope="repository:other/a:pull"`)
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
			serveImage(rw, req)
		})
		r := w.registry(Options{})
		r.endpoints[0].auth.Store(&demand{realm: mustURL(t, "https://auth.test/token")})
		wantManifest(t, r, "a")
		if want := []string{"repository:a:pull", "repository:other/a:pull"}; !slices.Equal(s.scopes, want) {
			t.Errorf("scopes %q, want %q", s.scopes, want)
		}
	})
}

func TestHowARegistryNamesScopesIsLearned(t *testing.T) {
	for name, c := range map[string]struct {
		endpoint, repo, scope string
		other, want           string
	}{
		"a project in front":      {"https://reg.test", "one", "repository:proj/hub/one:pull", "two/x", "repository:proj/hub/two/x:pull"},
		"taken away":              {"https://reg.test", "proxy/one", "repository:one:pull", "proxy/two", "repository:two:pull"},
		"taken away, elsewhere":   {"https://reg.test", "proxy/one", "repository:one:pull", "two", "repository:two:pull"},
		"exchanged":               {"https://reg.test", "a/one", "repository:b/c/one:pull", "a/two", "repository:b/c/two:pull"},
		"below an endpoint's":     {"https://reg.test/v2/mirror", "one", "repository:one:pull", "two", "repository:two:pull"},
		"the same":                {"https://reg.test", "one", "repository:one:pull", "two", "repository:two:pull"},
		"nothing in common":       {"https://reg.test", "one", "repository:catalog:pull", "two", "repository:two:pull"},
		"half a name in common":   {"https://reg.test", "one", "repository:a/someone:pull", "two", "repository:two:pull"},
		"with a port in the name": {"https://reg.test", "one", "repository:host:5000/one:pull", "two", "repository:host:5000/two:pull"},
		"no repository":           {"https://reg.test", "one", "registry:catalog:*", "two", "repository:two:pull"},
	} {
		ep, err := newEndpoint(c.endpoint)
		if err != nil {
			t.Fatal(err)
		}
		ep.learnScope(c.repo, []string{c.scope})
		if got := ep.guess(c.other); got != c.want {
			t.Errorf("%s: want %s, got %s", name, c.want, got)
		}
	}
}

func TestAnEndpointsPathMayEndInV2(t *testing.T) {
	for endpoint, want := range map[string][2]string{
		"https://reg.test/v2":              {"https://reg.test/v2/a/manifests/1", "https://reg.test/v2/"},
		"https://reg.test/v2/":             {"https://reg.test/v2/a/manifests/1", "https://reg.test/v2/"},
		"https://reg.test/artifactory/v2/": {"https://reg.test/artifactory/v2/a/manifests/1", "https://reg.test/artifactory/v2/"},
		"https://reg.test/artifactory":     {"https://reg.test/artifactory/v2/a/manifests/1", "https://reg.test/artifactory/v2/"},
		"https://reg.test/v2/proj":         {"https://reg.test/v2/proj/a/manifests/1", "https://reg.test/v2/"},
	} {
		ep, err := newEndpoint(endpoint)
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]string{ep.url("a/manifests/1").String(), ep.ping().String()}; got != want {
			t.Errorf("%s: want %s, got %s", endpoint, want, got)
		}
	}
}

// What another registry, to which a redirect leads, wants is answered without the login.
func TestARedirectsTargetGetsNoLogin(t *testing.T) {
	for name, c := range map[string]struct {
		challenge, realm string // of other.test
		redirects        []string
		endpoints        []string
		want             string // what other.test or its token server has seen
	}{
		"its own token server":              {`Bearer realm="https://other.test/token"`, "other.test:443", nil, nil, "anonymous"},
		"our token server":                  {`Bearer realm="https://reg.test:8443/token"`, "", nil, nil, "anonymous"},
		"a plain token server":              {`Bearer realm="http://other.test:80/token"`, "other.test:80", nil, nil, "nothing"},
		"a plain token server, listed":      {`Bearer realm="http://other.test:80/token"`, "other.test:80", []string{"other.test:80"}, nil, "anonymous"},
		"Basic":                             {`Basic realm="x"`, "", nil, nil, "nothing"},
		"an endpoint of ours, Basic":        {`Basic realm="x"`, "", nil, []string{"https://reg.test", "https://other.test"}, "password"},
		"an endpoint of ours, tokens":       {`Bearer realm="https://other.test/token"`, "other.test:443", nil, []string{"https://reg.test", "https://other.test"}, "password"},
		"an endpoint of ours, strangers":    {`Bearer realm="https://evil.test/token"`, "evil.test:443", nil, []string{"https://reg.test", "https://other.test"}, "anonymous"},
		"a token server of another's realm": {`Bearer realm="https://evil.test/token"`, "evil.test:443", nil, nil, "anonymous"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				got := "nothing"
				see := func(req *http.Request) {
					_, p, ok := req.BasicAuth()
					switch {
					case p == "hunter2":
						got = "password"
					case !ok && got == "nothing" && strings.HasPrefix(req.URL.Path, "/token"):
						got = "anonymous"
					}
				}
				s := &tokenServer{}
				token := func(rw http.ResponseWriter, req *http.Request) { see(req); s.serve(rw, req) }
				w.host("reg.test:443", redirectTo("https://other.test/v2/b/manifests/latest"))
				other := func(rw http.ResponseWriter, req *http.Request) {
					if req.URL.Path == "/token" {
						token(rw, req)
						return
					}
					see(req)
					_, p, _ := req.BasicAuth()
					if bearer, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer "); p == "hunter2" || ok && s.good[bearer] {
						serveImage(rw, req)
						return
					}
					rw.Header().Set("WWW-Authenticate", c.challenge)
					rw.WriteHeader(http.StatusUnauthorized)
				}
				w.host("other.test:443", other)
				w.host("reg.test:8443", token)
				if c.realm != "" && c.realm != "other.test:443" {
					w.host(c.realm, token)
				}
				r := w.registry(Options{Credentials: alice, Endpoints: c.endpoints, Realms: []string{"reg.test:8443"}, RedirectHosts: c.redirects})
				_, err := r.Manifest(t.Context(), "a", "latest")
				if got != c.want {
					t.Errorf("other.test got %s, want %s", got, c.want)
				}
				if (err == nil) != (c.want != "nothing") {
					t.Errorf("got %v", err)
				}
				if name == "a plain token server" {
					wantError(t, err, oci.CodeUnavailable, 502, "write http://other.test:80 in upstreams.reg.realms")
				}
			})
		})
	}
}

func TestTheTokenOfAnotherRegistryIsKeptForItsRepository(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token"}
		w.host("auth.test:443", s.serve)
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			redirectTo("https://other.test"+req.URL.Path)(rw, req)
		})
		w.host("other.test:443", s.guard(func(rw http.ResponseWriter, req *http.Request) {
			redirectTo("https://cdn.test/x")(rw, req)
		}))
		w.host("cdn.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") != "" {
				t.Error("the token went on to the CDN")
			}
			serveImage(rw, req)
		})
		r := w.registry(Options{})
		wantManifest(t, r, "a")
		w.wantCount("GET other.test/", 2)
		wantManifest(t, r, "a")
		w.wantCount("GET other.test/", 3)
		s.forget()
		wantManifest(t, r, "a")
		w.wantCount("GET other.test/", 5)
		w.wantCount("GET auth.test/", 2)
		time.Sleep(time.Hour)
		wantManifest(t, r, "a")
		w.wantCount("GET auth.test/", 3)
	})
}

func TestOnlyTheSameHostOverHTTPSKeepsTheLogin(t *testing.T) {
	for location, want := range map[string]bool{
		"https://reg.test/x":     true,
		"https://reg.test:8443":  true,
		"https://sub.reg.test/x": false,
		"https://evil.test/x":    false,
		"http://reg.test:5001/x": false, // another site, in clear
		"http://reg.test:5000/x": true,
	} {
		inWorld(t, func(t *testing.T, w *world) {
			seen := false
			landed := func(rw http.ResponseWriter, req *http.Request) {
				_, p, _ := req.BasicAuth()
				seen = p == "hunter2"
				serveImage(rw, req)
			}
			w.host("reg.test:5000", func(rw http.ResponseWriter, req *http.Request) {
				if _, p, _ := req.BasicAuth(); p != "hunter2" {
					rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					rw.WriteHeader(http.StatusUnauthorized)
					return
				}
				if req.URL.Path == "/x" {
					landed(rw, req)
					return
				}
				redirectTo(location)(rw, req)
			})
			for _, at := range []string{"reg.test:443", "reg.test:8443", "sub.reg.test:443", "evil.test:443", "reg.test:5001"} {
				w.host(at, landed)
			}
			_, err := w.registry(Options{Endpoints: []string{"http://reg.test:5000"}, Credentials: alice}).Manifest(t.Context(), "a", "latest")
			if err != nil || seen != want {
				t.Errorf("%s: %v; got the login: %t, want %t", location, err, seen, want)
			}
		})
	}
}

func TestARevokedTokenIsNotRenewedForWhatItNeverOpened(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := hub(w, "https://auth.test/token")
		w.host("auth.test:443", s.serve)
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") != "" {
				rw.WriteHeader(http.StatusForbidden)
				return
			}
			s.guard(serveImage)(rw, req)
		})
		r := w.registry(Options{})
		for range 5 {
			_, err := r.Manifest(t.Context(), "a", "latest")
			wantError(t, err, oci.CodeDenied, 403)
		}
		w.wantCount("GET auth.test/", 1)
	})
}

func TestARefusedPostIsOnlyFollowedByAGetOfWhatIsWorthIt(t *testing.T) {
	for status, want := range map[int]int{401: 1, 405: 1, 429: 0, 503: 0} {
		inWorld(t, func(t *testing.T, w *world) {
			hub(w, "https://reg.test:8443/token")
			w.host("reg.test:8443", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(status) })
			r := w.registry(Options{Credentials: StaticCredentials(Credential{IdentityToken: "hunter2"}), Realms: []string{"reg.test:8443"}})
			_, err := r.Manifest(t.Context(), "a", "latest")
			if err == nil {
				t.Error("want an error")
			}
			if got := w.count("GET reg.test:8443/"); got != want {
				t.Errorf("%d: %d GETs, want %d", status, got, want)
			}
		})
	}
}

func TestAGuessedScopeIsDroppedHoweverItIsRefused(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 405, 422, 500} {
		inWorld(t, func(t *testing.T, w *world) {
			s := &tokenServer{realm: "https://auth.test/token"}
			w.host("auth.test:443", func(rw http.ResponseWriter, req *http.Request) {
				if req.URL.Query().Get("scope") != "repository:else/x:pull" {
					rw.WriteHeader(status)
					return
				}
				s.serve(rw, req)
			})
			w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
				if !s.good[strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")] {
					rw.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,scope="repository:else/x:pull"`, s.realm))
					rw.WriteHeader(http.StatusUnauthorized)
					return
				}
				serveImage(rw, req)
			})
			r := w.registry(Options{})
			r.endpoints[0].auth.Store(&demand{realm: mustURL(t, s.realm)})
			wantManifest(t, r, "a")
			wantManifest(t, r, "b")
		})
	}
}
