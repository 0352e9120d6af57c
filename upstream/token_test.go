package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/oci"
)

// hub lets reg.test want tokens of realm.
func hub(w *world, realm string) *tokenServer {
	s := &tokenServer{realm: realm, service: "registry.test"}
	w.host("reg.test:443", s.guard(serveImage))
	return s
}

func wantManifest(t *testing.T, r *Registry, repo string) {
	t.Helper()
	m, err := r.Manifest(t.Context(), repo, "latest")
	if err != nil {
		t.Fatal(err)
	}
	if string(m.Bytes) != image || m.Digest != imageDigest {
		t.Fatalf("got %s %q, want %s", m.Digest, m.Bytes, imageDigest)
	}
}

func TestOneTokenServesManyRequests(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := hub(w, "https://auth.test/token")
		w.host("auth.test:443", func(rw http.ResponseWriter, req *http.Request) {
			time.Sleep(time.Second) // so that all wait for it
			s.serve(rw, req)
		})
		r := w.registry(Options{})
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { wantManifest(t, r, "library/nginx") })
		}
		all.Wait()
		w.wantCount("GET auth.test/token", 1)
		wantManifest(t, r, "library/nginx")
		w.wantCount("GET auth.test/token", 1)
		if want := []string{"repository:library/nginx:pull"}; !slices.Equal(s.scopes, want) {
			t.Errorf("scopes %q, want %q", s.scopes, want)
		}
		if got := s.queries[0].Get("service"); got != "registry.test" {
			t.Errorf("service %q, want registry.test", got)
		}
		if got := value(t, w.metrics.TokenFetches, "reg", "ok"); got != 1 {
			t.Errorf("%v token fetches counted, want 1", got)
		}
	})
}

func TestTokenOfAKnownRegistryIsSentAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := hub(w, "https://auth.test/token")
		w.host("auth.test:443", s.serve)
		r := w.registry(Options{})
		wantManifest(t, r, "a")
		w.wantCount("GET reg.test/v2/a/", 2)
		wantManifest(t, r, "b")
		w.wantCount("GET reg.test/v2/b/", 1)
		if want := []string{"repository:a:pull", "repository:b:pull"}; !slices.Equal(s.scopes, want) {
			t.Errorf("scopes %q, want %q: one token for each repository", s.scopes, want)
		}
	})
}

func TestTokenIsRenewedOnceAfterA401(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := hub(w, "https://auth.test/token")
		w.host("auth.test:443", s.serve)
		r := w.registry(Options{})
		wantManifest(t, r, "a")
		s.forget()
		wantManifest(t, r, "a")
		w.wantCount("GET auth.test/token", 2)
		w.wantCount("GET reg.test/", 4)
	})
}

func TestAChallengeKeepsItsConnection(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token"}
		w.host("auth.test:443", s.serve)
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") == "" {
				defer func() { _, _ = io.WriteString(rw, `{"errors":[{"code":"UNAUTHORIZED"}]}`) }()
			}
			s.guard(serveImage)(rw, req)
		})
		wantManifest(t, w.registry(Options{}), "a")
		if n := w.dials["reg.test:443"]; n != 1 {
			t.Errorf("%d connections to the registry, want 1", n)
		}
	})
}

func TestTokenIsRenewedOnlyOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token"}
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) { s.forget(); s.guard(serveImage)(rw, req) })
		w.host("auth.test:443", s.serve)
		r := w.registry(Options{})
		_, err := r.Manifest(t.Context(), "a/missing", "latest")
		wantError(t, err, oci.CodeDenied, 403, "a/missing:latest", "does not exist or needs credentials", "upstreams.reg.credentials")
		w.wantCount("GET reg.test/", 2)
		w.wantCount("GET auth.test/", 1)
	})
}

func TestInsufficientScopeRenewsTheTokenWithMore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token"}
		w.host("auth.test:443", s.serve)
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") != "Bearer token-2" && req.Header.Get("Authorization") != "" {
				rw.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.test/token",error="insufficient_scope",scope="repository:base:pull"`)
				rw.WriteHeader(http.StatusForbidden)
				return
			}
			s.guard(serveImage)(rw, req)
		})
		r := w.registry(Options{})
		r.endpoints[0].auth.Store(&demand{realm: mustURL(t, "https://auth.test/token")})
		wantManifest(t, r, "a")
		if want := []string{"repository:a:pull", "repository:a:pull repository:base:pull"}; !slices.Equal(s.scopes, want) {
			t.Errorf("scopes %q, want %q", s.scopes, want)
		}
	})
}

func TestTokenLivesAsLongAsTheServerSays(t *testing.T) {
	for name, c := range map[string]struct {
		body  string
		lives time.Duration // certainly still used
		dies  time.Duration // certainly renewed
	}{
		"expires_in":          {`{"token":"token-%d","expires_in":300}`, 285 * time.Second, 295 * time.Second},
		"none: 60 s":          {`{"token":"token-%d"}`, 45 * time.Second, 55 * time.Second},
		"zero: 60 s":          {`{"token":"token-%d","expires_in":0}`, 45 * time.Second, 55 * time.Second},
		"short":               {`{"token":"token-%d","expires_in":4}`, 2 * time.Second, 4 * time.Second},
		"another clock":       {`{"token":"token-%d","expires_in":300,"issued_at":"1999-01-01T00:00:00Z"}`, 285 * time.Second, 295 * time.Second},
		"access_token":        {`{"access_token":"token-%d","expires_in":300}`, 285 * time.Second, 295 * time.Second},
		"both, and more":      {`{"token":"token-%d","access_token":"other","refresh_token":"x","scope":"y"}`, 45 * time.Second, 55 * time.Second},
		"as if never expires": {`{"token":"token-%d","expires_in":1e300}`, 23 * time.Hour, 25 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s := hub(w, "https://auth.test/token")
				s.answer = func(n int) string { return fmt.Sprintf(c.body, n) }
				w.host("auth.test:443", s.serve)
				r := w.registry(Options{})
				wantManifest(t, r, "a")
				time.Sleep(c.lives)
				wantManifest(t, r, "a")
				w.wantCount("GET auth.test/token", 1)
				time.Sleep(c.dies - c.lives)
				wantManifest(t, r, "a")
				w.wantCount("GET auth.test/token", 2)
				w.wantCount("GET reg.test/", 4) // only the first was a 401
			})
		})
	}
}

func TestUnreadableTokensAreAFailure(t *testing.T) {
	for _, body := range []string{``, `<html>`, `{}`, `{"token":""}`, `{"token":"a b"}`, `{"token":"a\r\nX-Evil: 1"}`, `{"token":7}`} {
		inWorld(t, func(t *testing.T, w *world) {
			s := hub(w, "https://auth.test/token")
			s.answer = func(int) string { return body }
			w.host("auth.test:443", s.serve)
			_, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest")
			wantError(t, err, oci.CodeUnavailable, 502, "auth.test")
		})
	}
}

func TestATokenOfWhichOnlyTheEndOfTheBodyIsMissingIsComplete(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token", service: "reg", good: map[string]bool{"x": true}}
		w.host("auth.test:443", unended(`{"token":"x"}`))
		w.host("reg.test:443", s.guard(serveImage))
		wantManifest(t, w.registry(Options{Realms: []string{"https://auth.test"}}), "a")
		w.wantCount("GET auth.test", 1)
	})
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token", service: "reg"}
		w.host("auth.test:443", unended(`{"token":"x"`))
		w.host("reg.test:443", s.guard(serveImage))
		_, err := w.registry(Options{Realms: []string{"https://auth.test"}}).Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 502, "auth.test", "broke off")
	})
}

func TestIdentityTokenIsPosted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := hub(w, "https://reg.test:8443/oauth2/token")
		w.host("reg.test:8443", s.serve)
		r := w.registry(Options{Credentials: StaticCredentials(Credential{IdentityToken: "hunter2"}), Realms: []string{"https://reg.test:8443/oauth2/token"}})
		wantManifest(t, r, "a")
		w.wantCount("POST reg.test:8443/oauth2/token", 1)
		q := s.queries[0]
		for k, want := range map[string]string{"grant_type": "refresh_token", "refresh_token": "hunter2", "service": "registry.test", "scope": "repository:a:pull", "client_id": "entrepot"} {
			if got := q.Get(k); got != want {
				t.Errorf("%s is %q, want %q", k, got, want)
			}
		}
	})
}

func TestBasicChallengeGetsBasic(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if u, p, _ := req.BasicAuth(); u != "alice" || p != "hunter2" {
				rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
			serveImage(rw, req)
		})
		r := w.registry(Options{Credentials: StaticCredentials(Credential{Username: "alice", Password: "hunter2"})})
		wantManifest(t, r, "a")
		wantManifest(t, r, "b")
		w.wantCount("GET reg.test/", 3)

		wrong := w.registry(Options{Credentials: StaticCredentials(Credential{Username: "alice", Password: "x"})})
		_, err := wrong.Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeDenied, 403, "upstreams.reg.credentials")
		w.wantCount("GET reg.test/", 5)

		none := w.registry(Options{})
		_, err = none.Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeDenied, 403, "upstreams.reg.credentials")
		w.wantCount("GET reg.test/", 6)
	})
}

func TestPasswordGoesOnlyToRealmsThatMayHaveIt(t *testing.T) {
	for name, c := range map[string]struct {
		endpoint, realm string
		realms          []string
		want            string // "password", "anonymous", "nothing"
	}{
		"own host":               {"https://reg.test", "https://reg.test/token", nil, "password"},
		"own host, port written": {"https://reg.test", "https://REG.test:443/token", nil, "password"},
		"own host, plain http":   {"http://reg.test:5000", "http://reg.test:5000/token", nil, "password"},
		"own name, another port": {"https://reg.test", "https://reg.test:8443/token", nil, "anonymous"},
		"own name, upgraded":     {"http://reg.test:5000", "https://reg.test/token", nil, "password"},
		"a stranger, upgraded":   {"http://reg.test:5000", "https://evil.test/token", nil, "anonymous"},
		"own name, downgraded":   {"https://reg.test", "http://reg.test:80/token", nil, "nothing"},
		"a stranger":             {"https://reg.test", "https://evil.test/token", nil, "anonymous"},
		"a stranger, plain http": {"https://reg.test", "http://evil.test:80/token", nil, "nothing"},
		"listed":                 {"https://reg.test", "https://auth.test/token", []string{"https://auth.test/token"}, "password"},
		"listed as host":         {"https://reg.test", "https://auth.test/token", []string{"auth.test"}, "password"},
		"listed, plain http":     {"https://reg.test", "http://auth.test:80/token", []string{"http://auth.test/"}, "password"},
		"listed, downgraded":     {"https://reg.test", "http://auth.test:80/token", []string{"https://auth.test"}, "nothing"},
		"Docker Hub's":           {"https://registry-1.docker.io", "https://auth.docker.io/token", nil, "password"},
		"Docker Hub's elsewhere": {"https://reg.test", "https://auth.docker.io/token", nil, "anonymous"},
		"GitLab's":               {"https://registry.gitlab.com", "https://gitlab.com/jwt/auth", nil, "password"},
		"a user in the URL":      {"https://reg.test", "https://a:b@reg.test/token", nil, "nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s := &tokenServer{realm: c.realm}
				registry := func(rw http.ResponseWriter, req *http.Request) {
					if strings.HasPrefix(req.URL.Path, "/v2/") {
						s.guard(serveImage)(rw, req)
						return
					}
					s.serve(rw, req)
				}
				w.host(hostPort(mustURL(t, c.endpoint)), registry)
				if at := hostPort(mustURL(t, c.realm)); at != hostPort(mustURL(t, c.endpoint)) {
					w.host(at, s.serve)
				}
				r := w.registry(Options{Endpoints: []string{c.endpoint}, Realms: c.realms, Credentials: StaticCredentials(Credential{Username: "alice", Password: "hunter2"})})
				_, err := r.Manifest(t.Context(), "a", "latest")
				got := "nothing"
				if b := s.basics(); len(b) > 0 {
					got = map[string]string{"": "anonymous", "alice:hunter2": "password"}[b[0]]
				}
				if got != c.want {
					t.Errorf("the realm %s of %s got %s, want %s", c.realm, c.endpoint, got, c.want)
				}
				if c.want == "nothing" {
					wantError(t, err, oci.CodeDenied, 403)
				} else if err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestBasicIsPreferredToARealmThatMayNotHaveThePassword(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if _, p, _ := req.BasicAuth(); p == "hunter2" {
				serveImage(rw, req)
				return
			}
			rw.Header().Add("WWW-Authenticate", `Bearer realm="https://evil.test/token"`)
			rw.Header().Add("WWW-Authenticate", `Basic realm="x"`)
			rw.WriteHeader(http.StatusUnauthorized)
		})
		wantManifest(t, w.registry(Options{Credentials: StaticCredentials(Credential{Username: "alice", Password: "hunter2"})}), "a")
	})
}

func TestARefusalSaysThatTheCredentialsWereWithheld(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token"}
		w.host("auth.test:443", s.serve)
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) { s.forget(); s.guard(serveImage)(rw, req) })
		r := w.registry(Options{Credentials: StaticCredentials(Credential{Username: "alice", Password: "hunter2"})})
		for range 3 {
			_, err := r.Manifest(t.Context(), "a", "latest")
			wantError(t, err, oci.CodeDenied, 403, "auth.test", "upstreams.reg.realms")
		}
		if n := w.logs.FilterLevelExact(zap.WarnLevel).Len(); n != 1 {
			t.Errorf("%d warnings, want 1: %v", n, w.logs.All())
		}
	})
}

func TestARefusalSaysWhichCredentialsWereShown(t *testing.T) {
	known := StaticCredentials(Credential{Username: "alice", Password: "hunter2"})
	for name, c := range map[string]struct {
		credentials Credentials
		challenge   string
		want        string
	}{
		"none":          {nil, "", "needs credentials, and there are none for reg.test in upstreams.reg.credentials"},
		"some":          {known, "", "upstream reg refuses those of upstreams.reg.credentials"},
		"plain realm":   {nil, `Bearer realm="http://auth.test/token"`, "its token server auth.test is not asked, for it is plain http and not in upstreams.reg.realms"},
		"and with some": {known, `Bearer realm="http://auth.test/token"`, "its token server auth.test is not asked"},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", func(rw http.ResponseWriter, _ *http.Request) {
				if c.challenge != "" {
					rw.Header().Set("WWW-Authenticate", c.challenge)
				}
				rw.WriteHeader(http.StatusUnauthorized)
			})
			_, err := w.registry(Options{Credentials: c.credentials}).Manifest(t.Context(), "a", "latest")
			if wantError(t, err, oci.CodeDenied, 403, "reg/a:latest does not exist or needs credentials", c.want); t.Failed() {
				t.Log(name)
			}
			w.wantCount("GET auth.test", 0)
		})
	}
}

func TestRefusedCredentialsAreNotTriedAgainAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := hub(w, "https://reg.test:8443/token")
		s.user, s.password = "alice", "right"
		w.host("reg.test:8443", s.serve)
		r := w.registry(Options{Realms: []string{"reg.test:8443"}, Credentials: StaticCredentials(Credential{Username: "alice", Password: "hunter2"})})
		for range 5 {
			_, err := r.Manifest(t.Context(), "a", "latest")
			wantError(t, err, oci.CodeDenied, 403, "upstreams.reg.credentials", "reg.test:8443")
		}
		w.wantCount("GET reg.test:8443/token", 1)
		time.Sleep(refusalTime)
		_, err := r.Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeDenied, 403)
		w.wantCount("GET reg.test:8443/token", 2)
		if got := value(t, w.metrics.TokenFetches, "reg", "refused"); got != 2 {
			t.Errorf("%v refusals counted, want 2", got)
		}
	})
}

func TestAFlightForATokenOutlivesItsFirstCaller(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := hub(w, "https://auth.test/token")
		w.host("auth.test:443", func(rw http.ResponseWriter, req *http.Request) {
			time.Sleep(time.Second)
			s.serve(rw, req)
		})
		r := w.registry(Options{})
		first, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() {
			_, err := r.Manifest(first, "a", "latest")
			left <- err
		}()
		synctest.Wait()
		second := make(chan error, 1)
		go func() {
			_, err := r.Manifest(t.Context(), "a", "latest")
			second <- err
		}()
		synctest.Wait()
		leave()
		wantError(t, <-left, oci.CodeUnavailable, 503)
		if err := <-second; err != nil {
			t.Fatal(err)
		}
		w.wantCount("GET auth.test/token", 1)
	})
}

func TestTokenServersAreAskedAgainWhenTheyFailForAMoment(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := hub(w, "https://auth.test/token")
		n := 0
		w.host("auth.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if n++; n < 3 {
				rw.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			s.serve(rw, req)
		})
		wantManifest(t, w.registry(Options{}), "a")
		w.wantCount("GET auth.test/token", 3)
	})
}

func TestTokenServersFailuresAreTold(t *testing.T) {
	for status, want := range map[int]struct {
		code   oci.Code
		status int
		asked  int
	}{
		401: {oci.CodeDenied, 403, 1},
		403: {oci.CodeDenied, 403, 1},
		404: {oci.CodeDenied, 403, 1},
		429: {oci.CodeTooManyRequests, 429, 1},
		408: {oci.CodeUnavailable, 502, tries},
		500: {oci.CodeUnavailable, 502, tries},
		503: {oci.CodeUnavailable, 502, tries},
		418: {oci.CodeUnavailable, 502, 1},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			hub(w, "https://auth.test/token")
			w.host("auth.test:443", func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Retry-After", "1")
				rw.WriteHeader(status)
				_, _ = io.WriteString(rw, `{"errors":[{"code":"X","message":"see https://x.test/?X-Signature=1"}]}`)
			})
			_, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest")
			e := wantError(t, err, want.code, want.status, "auth.test")
			if status == 429 && e.RetryAfter != time.Second {
				t.Errorf("RetryAfter is %s, want 1s", e.RetryAfter)
			}
			w.wantCount("GET auth.test/token", want.asked)
		})
	}
}

func TestCloseEndsFlights(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		hub(w, "https://auth.test/token")
		w.host("auth.test:443", func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
		r := w.registry(Options{})
		done := make(chan error, 1)
		go func() {
			_, err := r.Manifest(t.Context(), "a", "latest")
			done <- err
		}()
		synctest.Wait()
		r.Close()
		wantError(t, <-done, oci.CodeUnavailable, 503)
	})
}

func TestTokensAreBoundedInNumberAndBytes(t *testing.T) {
	now := time.Now()
	key := func(i int) tokenKey { return tokenKey{scope: fmt.Sprint(i)} }
	var ts heldTokens
	for i := range maxTokens {
		ts.put(key(i), &token{value: "t", until: now.Add(time.Duration(i%2) * time.Hour)}, now)
	}
	ts.put(key(-1), &token{value: "t", until: now.Add(time.Hour)}, now)
	if n := ts.order.Len(); n != maxTokens/2+1 {
		t.Errorf("%d tokens kept, want the %d that are good", n, maxTokens/2+1)
	}
	large := strings.Repeat("x", maxToken)
	for i := range 3 * maxTokenBytes / maxToken {
		if ts.get(key(-1)) == nil { // it is in use
			t.Fatal("the token that was used last is gone")
		}
		ts.put(key(i), &token{value: large, spare: large, until: now.Add(time.Hour)}, now)
		if ts.bytes > maxTokenBytes || ts.order.Len() > maxTokens || ts.order.Len() != len(ts.of) {
			t.Fatalf("%d tokens of %d bytes are kept", ts.order.Len(), ts.bytes)
		}
	}
	if n, most := ts.order.Len(), maxTokenBytes/maxToken/2+1; n < most/2 || n > most {
		t.Errorf("%d tokens are kept that have a spare one, want %d to %d", n, most/2, most)
	}
	ts.dropIf(func(*heldToken) bool { return true })
	if ts.bytes != 0 || len(ts.of) != 0 {
		t.Errorf("nothing is kept, and %d bytes and %d keys are counted", ts.bytes, len(ts.of))
	}
}

func TestATokenThatIsTooLongIsRefusedInWords(t *testing.T) {
	for _, n := range []int{maxToken + 1, maxTokenBody, 900_000, 1 << 30} {
		inWorld(t, func(t *testing.T, w *world) {
			hub(w, "https://auth.test/token")
			w.host("auth.test:443", func(rw http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(rw, `{"token":"`)
				for piece := strings.Repeat("x", 1000); n > 0; n -= len(piece) {
					if _, err := io.WriteString(rw, piece[:min(n, len(piece))]); err != nil {
						return // the other side has read enough
					}
				}
				_, _ = io.WriteString(rw, `"}`)
			})
			r := w.registry(Options{})
			_, err := r.Manifest(t.Context(), "library/nginx", "latest")
			wantError(t, err, oci.CodeUnavailable, 502)
			if !strings.Contains(err.Error(), "32768") {
				t.Errorf("the error does not say the limit: %v", err)
			}
		})
	}
}

func FuzzReadToken(f *testing.F) {
	for _, s := range []string{`{"token":"a","expires_in":300}`, `{"access_token":"a"}`, `{"token":"a","expires_in":-1}`, `{"token":"a","expires_in":1e308}`, `{}`, `[]`} {
		f.Add([]byte(s))
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := readToken(raw, now)
		if err != nil {
			return
		}
		if got.value == "" || strings.ContainsAny(got.value, " \r\n\x00\x7f") || !got.until.After(now) || got.until.After(now.Add(maxExpiry)) {
			t.Fatalf("readToken(%q) = %+v", raw, got)
		}
	})
}
