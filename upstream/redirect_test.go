package upstream

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

const layer = "the bytes of a layer"

var layerDigest = digest.FromString(layer)

func serveLayer(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", fmt.Sprint(len(layer)))
	_, _ = io.WriteString(w, layer)
}

func redirectTo(location string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", location)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
}

// readBlob reads a whole blob.
func readBlob(t *testing.T, r *Registry) (string, error) {
	t.Helper()
	b, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
	if err != nil {
		return "", err
	}
	defer b.Close()
	raw, err := io.ReadAll(b)
	return string(raw), err
}

func wantLayer(t *testing.T, r *Registry) {
	t.Helper()
	if got, err := readBlob(t, r); err != nil || got != layer {
		t.Fatalf("got %q, %v; want %q", got, err, layer)
	}
}

func TestAuthorizationStaysWithTheRegistry(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token"}
		w.host("auth.test:443", s.serve)
		refuses := func(next http.HandlerFunc) http.HandlerFunc { // as S3 does
			return func(rw http.ResponseWriter, req *http.Request) {
				if req.Header.Get("Authorization") != "" {
					t.Errorf("%s got an Authorization", req.Host)
					rw.WriteHeader(http.StatusBadRequest)
					return
				}
				if req.Header.Get("Accept-Encoding") != "identity" || req.UserAgent() != "entrepot" {
					t.Errorf("%s got the header %v, want identity and our name", req.Host, req.Header)
				}
				next(rw, req)
			}
		}
		reg := s.guard(redirectTo("https://cdn.test/blob?X-Signature=1"))
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if strings.HasPrefix(req.URL.Path, "/back") {
				refuses(serveLayer)(rw, req)
				return
			}
			reg(rw, req)
		})
		w.host("cdn.test:443", refuses(redirectTo("https://reg.test/back")))
		r := w.registry(Options{})
		wantLayer(t, r)
		w.wantCount("GET cdn.test/blob", 1)
		w.wantCount("GET reg.test/back", 1)
	})
}

func TestRedirectsWithinTheRegistryKeepAuthorization(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := &tokenServer{realm: "https://auth.test/token"}
		w.host("auth.test:443", s.serve)
		w.host("reg.test:443", s.guard(func(rw http.ResponseWriter, req *http.Request) {
			if strings.HasPrefix(req.URL.Path, "/v2/") {
				redirectTo("../../../storage/x")(rw, req)
				return
			}
			serveLayer(rw, req)
		}))
		wantLayer(t, w.registry(Options{}))
		w.wantCount("GET reg.test/storage/x", 1)
	})
}

func TestManifestsMayBeRedirected(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", redirectTo("https://region.test/v2/a/manifests/latest"))
		w.host("region.test:443", serveImage)
		r := w.registry(Options{})
		wantManifest(t, r, "a")
		d, err := r.Resolve(t.Context(), "a", "latest")
		if err != nil || d.Digest != imageDigest {
			t.Errorf("resolved to %v, %v; want %s", d, err, imageDigest)
		}
		w.wantCount("HEAD region.test/", 1)
	})
}

func TestRedirectsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		location string
		words    []string
	}{
		"endless":          {"https://reg.test/again", []string{"reg.test", "redirects more than 10 times"}},
		"downgrade":        {"http://cdn.test/x?X-Signature=1", []string{"cdn.test", "upstreams.reg.redirect_hosts"}},
		"no location":      {"", []string{"reg.test"}},
		"no URL":           {"https://cdn.test/%zz?X-Signature=1", []string{"reg.test"}},
		"another scheme":   {"file:///etc/passwd", []string{"reg.test"}},
		"an odd host":      {"https://%C2%9B31mcdn.test/", []string{"reg.test"}},
		"a user":           {"https://a:hunter2@cdn.test/", []string{"reg.test"}},
		"private":          {"https://10.0.0.1/x?X-Signature=1", []string{"10.0.0.1", "upstreams.reg.redirect_hosts"}},
		"metadata":         {"https://169.254.169.254/latest", []string{"169.254.169.254", "upstreams.reg.redirect_hosts"}},
		"loopback":         {"https://127.0.0.1:2375/", []string{"127.0.0.1", "upstreams.reg.redirect_hosts"}},
		"loopback of IPv6": {"https://[::1]/", []string{"upstreams.reg.redirect_hosts"}},
		"mapped":           {"https://[::ffff:10.0.0.1]/", []string{"upstreams.reg.redirect_hosts"}},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", redirectTo(c.location))
				w.host("cdn.test:80", serveLayer)
				_, err := readBlob(t, w.registry(Options{}))
				wantError(t, err, oci.CodeUnavailable, 502, c.words...)
				w.wantCount("GET cdn.test", 0)
			})
		})
	}
}

func TestListedHostsMayBePlainHTTPAndPrivate(t *testing.T) {
	for _, c := range []struct{ location, host, listed string }{
		{"http://cdn.test/x", "cdn.test:80", "cdn.test"},
		{"http://cdn.test:9000/x", "cdn.test:9000", "cdn.test:9000"},
		{"http://10.0.0.1:9000/x", "10.0.0.1:9000", "10.0.0.1:9000"},
		{"https://10.0.0.1/x", "10.0.0.1:443", "10.0.0.1"},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", redirectTo(c.location))
			w.host(c.host, serveLayer)
			wantLayer(t, w.registry(Options{RedirectHosts: []string{c.listed}}))
		})
	}
}

// Plain http is for whom the configuration says so: by its scheme for the host of
// an endpoint, by name for others.
func TestPlainHTTPIsOnlyForHostsThatTheConfigurationNames(t *testing.T) {
	for name, c := range map[string]struct {
		location string
		listed   []string
		refused  bool
	}{
		"a stranger":               {"http://cdn.test/x", nil, true},
		"a stranger, named":        {"http://cdn.test/x", []string{"cdn.test"}, false},
		"a stranger, another port": {"http://cdn.test:81/x", []string{"cdn.test:80"}, true},
		"its own host":             {"http://reg.test:9000/x", nil, false},
		"its own name, longer":     {"http://reg.test.evil.test/x", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:5000", redirectTo(c.location))
				for _, host := range []string{"cdn.test:80", "cdn.test:81", "reg.test:9000", "reg.test.evil.test:80"} {
					w.host(host, serveLayer)
				}
				r := w.registry(Options{Endpoints: []string{"http://reg.test:5000"}, RedirectHosts: c.listed})
				if !c.refused {
					wantLayer(t, r)
					return
				}
				_, err := readBlob(t, r)
				wantError(t, err, oci.CodeUnavailable, 502, "plain http", "upstreams.reg.redirect_hosts")
				for _, host := range []string{"cdn.test", "reg.test.evil.test"} {
					w.wantCount("GET "+host, 0)
				}
			})
		})
	}
}

func TestEachResumeAsksTheRegistryForAFreshSignature(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := 0
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			n++
			redirectTo(fmt.Sprintf("https://cdn.test/x?X-Signature=%d", n))(rw, req)
		})
		w.host("cdn.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if got, want := req.URL.Query().Get("X-Signature"), fmt.Sprint(n); got != want {
				t.Errorf("signature %s, want %s", got, want)
			}
			serveLayer(rw, req)
		})
		r := w.registry(Options{})
		wantLayer(t, r)
		wantLayer(t, r)
	})
}

func TestWhatAStoreRefusesIsNotTheRegistrysWord(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 410} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", redirectTo("https://cdn.test/x?X-Signature=1"))
			w.host("cdn.test:443", func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("WWW-Authenticate", `Bearer realm="https://cdn.test/token"`)
				rw.WriteHeader(status)
			})
			_, err := readBlob(t, w.registry(Options{Credentials: StaticCredentials(Credential{Username: "alice", Password: "hunter2"})}))
			wantError(t, err, oci.CodeUnavailable, 502, "cdn.test", fmt.Sprint(status))
			if oci.IsAbsent(err) || oci.IsRefused(err) {
				t.Errorf("a %d of the store is told as the registry's: %v", status, err)
			}
			w.wantCount("GET cdn.test/", tries) // the signature may have expired
		})
	}
}

func TestAnExpiredSignatureIsRenewedAndTheRangeGoesOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := 0
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			n++
			redirectTo(fmt.Sprintf("https://cdn.test/x?X-Signature=%d", n))(rw, req)
		})
		w.host("cdn.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if got, want := req.Header.Get("Range"), "bytes=4-"; got != want {
				t.Errorf("Range is %q, want %q", got, want)
			}
			if req.URL.Query().Get("X-Signature") == "1" {
				rw.WriteHeader(http.StatusForbidden)
				return
			}
			serveContent(rw, req)
		})
		b, err := w.registry(Options{}).Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: oci.Open})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if raw, err := io.ReadAll(b); err != nil || string(raw) != layer[4:] {
			t.Errorf("got %q, %v; want %q", raw, err, layer[4:])
		}
		w.wantCount("GET reg.test", 2)
	})
}

func TestNoURLGetsIntoTheLog(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", redirectTo("https://cdn.test/x?X-Signature=1"))
		w.host("cdn.test:443", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusInternalServerError) })
		if _, err := readBlob(t, w.registry(Options{})); err == nil {
			t.Fatal("want an error")
		}
		if w.logs.Len() == 0 {
			t.Error("nothing was logged, want a warning")
		}
		for _, e := range w.logs.All() {
			if s := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(s, "X-Signature") || strings.Contains(s, "://") {
				t.Errorf("the log tells a URL: %s", s)
			}
		}
	})
}
