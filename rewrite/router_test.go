package rewrite

import (
	"errors"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
)

func mustRouter(t testing.TB) *Router {
	t.Helper()
	r, err := NewRouter(Routing{
		Default: "docker.io",
		Upstreams: map[string][]string{
			"docker.io":                  nil,
			"ghcr.io":                    {"github.test"},
			"registry.example.test:5443": nil,
			"localhost":                  nil,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRequestIsRoutedByNsThenPrefixThenHostThenDefault(t *testing.T) {
	r := mustRouter(t)
	for _, c := range []struct{ name, ns, host, want string }{
		{"library/nginx", "", "", "docker.io/library/nginx"},
		{"nginx", "", "cache:5000", "docker.io/library/nginx"},
		{"nginx", "docker.io", "", "docker.io/library/nginx"},
		{"nginx", "index.docker.io", "", "docker.io/library/nginx"},
		{"nginx", "REGISTRY-1.docker.io", "", "docker.io/library/nginx"},
		{"nginx", "ghcr.io", "", "ghcr.io/nginx"},
		{"org/app", "ghcr.io", "docker.io", "ghcr.io/org/app"},
		{"org/app", "GitHub.test", "", "ghcr.io/org/app"},
		{"ghcr.io/org/app", "", "", "ghcr.io/org/app"},
		{"ghcr.io/app", "", "docker.io", "ghcr.io/app"},
		{"github.test/org/app", "", "", "ghcr.io/org/app"},
		{"docker.io/nginx", "", "", "docker.io/library/nginx"},
		{"registry.hub.docker.com/library/nginx", "", "", "docker.io/library/nginx"},
		{"registry.example.test:5443/app", "", "", "registry.example.test:5443/app"},
		{"app", "registry.example.test:5443", "", "registry.example.test:5443/app"},
		{"localhost/app", "", "", "localhost/app"},
		// A prefix of the same registry as ns is taken off, another is not.
		{"ghcr.io/org/app", "ghcr.io", "", "ghcr.io/org/app"},
		{"github.test/org/app", "ghcr.io", "", "ghcr.io/org/app"},
		{"docker.io/nginx", "index.docker.io", "", "docker.io/library/nginx"},
		{"docker.io/org/app", "ghcr.io", "", "ghcr.io/docker.io/org/app"},
		// A name alone is a name, whatever it looks like.
		{"ghcr.io", "", "", "docker.io/library/ghcr.io"},
		// What only looks like a registry is part of the name.
		{"quay.io/org/app", "ghcr.io", "", "ghcr.io/quay.io/org/app"},
		{"my.project/app", "localhost", "", "localhost/my.project/app"},
		// The Host header, with and without its port.
		{"org/app", "", "ghcr.io", "ghcr.io/org/app"},
		{"org/app", "", "GHCR.io:443", "ghcr.io/org/app"},
		{"app", "", "registry.example.test:5443", "registry.example.test:5443/app"},
		{"app", "", "localhost:5000", "localhost/app"},
		{"app", "", "[::1]:5000", "docker.io/library/app"},
		// The usual port, and no colon.
		{"org/app", "ghcr.io:443", "", "ghcr.io/org/app"},
		{"nginx", "docker.io:443", "", "docker.io/library/nginx"},
		{"nginx", "registry-1.docker.io:443", "", "docker.io/library/nginx"},
		{"ghcr.io:443/org/app", "GHCR.io", "", "ghcr.io/org/app"},
		{"ghcr.io_443/org/app", "", "", "ghcr.io/org/app"},
		{"registry.example.test_5443/app", "", "", "registry.example.test:5443/app"},
		{"registry.example.test_5443/app", "registry.example.test:5443", "", "registry.example.test:5443/app"},
		// What mirror URLs repeat.
		{"docker.io/docker.io/library/nginx", "", "", "docker.io/library/nginx"},
		{"docker.io/docker.io/docker.io/nginx", "docker.io", "", "docker.io/library/nginx"},
		{"docker.io/index.docker.io/nginx", "", "", "docker.io/library/nginx"},
		{"ghcr.io/ghcr.io/org/app", "", "", "ghcr.io/org/app"},
		{"docker.io/v2/library/nginx", "docker.io", "", "docker.io/library/nginx"},
		{"docker.io/v2/library/nginx", "", "", "docker.io/library/nginx"},
		{"v2/library/nginx", "", "", "docker.io/library/nginx"},
		{"v2/docker.io/library/nginx", "", "", "docker.io/library/nginx"},
		{"v2/ghcr.io/org/app", "", "", "ghcr.io/org/app"},
		{"v2/ghcr.io/org/app", "ghcr.io", "", "ghcr.io/org/app"},
		// What may be a repository's name stays.
		{"v2/app", "", "", "docker.io/v2/app"},
		{"ghcr.io/v2/app", "", "", "ghcr.io/v2/app"},
		{"v2/org/app", "ghcr.io", "", "ghcr.io/v2/org/app"},
		{"localhost/localhost/app", "", "", "localhost/localhost/app"},
		{"ghcr.io/github.test/app", "", "", "ghcr.io/github.test/app"},
	} {
		got, err := r.Route(c.name, c.ns, c.host)
		if err != nil || got.String() != c.want {
			t.Errorf("Route(%q, %q, %q)\n got %v, error %v\nwant %s", c.name, c.ns, c.host, got, err, c.want)
		}
	}
}

func TestUnroutableRequestIsRefused(t *testing.T) {
	r := mustRouter(t)
	for _, c := range []struct {
		name, ns string
		want     oci.Code
		says     string
	}{
		{"app", "quay.io", oci.CodeNameUnknown, "docker.io, ghcr.io, localhost, registry.example.test:5443"},
		{"app", "http://169.254.169.254/", oci.CodeNameUnknown, "configured"},
		{"app", "evil\r\nX: y", oci.CodeNameUnknown, `\r\n`},
		// At Docker Hub it can be nothing but a registry.
		{"quay.io/org/app", "", oci.CodeNameUnknown, `"quay.io" is not configured here; configured are: docker.io`},
		{"other.test:5000/app", "", oci.CodeNameUnknown, "other.test"},
		{"other.test:5000/app", "ghcr.io", oci.CodeNameInvalid, "other.test"},
		{"Upper/app", "", oci.CodeNameInvalid, "lower-case"},
		{"", "ghcr.io", oci.CodeNameInvalid, "name"},
		{"ghcr.io/v2/org/app", "ghcr.io", oci.CodeNameInvalid, "override_path"},
		{"ghcr.io/org/app", "docker.io", oci.CodeNameUnknown, "two registries, docker.io and ghcr.io"},
		{"docker.io/ghcr.io/org/app", "", oci.CodeNameUnknown, "two registries"},
		{"app", "ghcr.io:80", oci.CodeNameUnknown, "configured"},
		{"app", "ghcr.io:8443", oci.CodeNameUnknown, "configured"},
	} {
		_, err := r.Route(c.name, c.ns, "")
		var e *oci.Error
		if !errors.As(err, &e) || e.Code != c.want || !strings.Contains(e.Message, c.says) {
			t.Errorf("Route(%q, %q): %v; want %s with %q", c.name, c.ns, err, c.want, c.says)
		}
	}
	none, err := NewRouter(Routing{Upstreams: map[string][]string{"ghcr.io": nil}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := none.Route("app", "", "cache:5000"); err == nil {
		t.Errorf("without a default: got %v, want an error", got)
	}
}

func TestImpossibleRoutingIsRefused(t *testing.T) {
	for says, routing := range map[string]Routing{
		"not configured":        {Default: "quay.io", Upstreams: map[string][]string{"docker.io": nil}},
		"is not configured; c":  {Default: "index.docker.io", Upstreams: map[string][]string{"docker.io": nil}},
		"already stands":        {Upstreams: map[string][]string{"a.test": {"c.test"}, "b.test": {"c.test"}}},
		"stands for \"b.test\"": {Upstreams: map[string][]string{"a.test": {"b.test"}, "b.test": nil}},
		"not a host name":       {Upstreams: map[string][]string{"https://a.test": nil}},
		"alias \"A.test\"":      {Upstreams: map[string][]string{"a.test": {"A.test"}}},
		"upstream \"a/b\"":      {Upstreams: map[string][]string{"a/b": nil}},
		"upstream \"a.test:\"":  {Upstreams: map[string][]string{"a.test:": nil}},
	} {
		_, err := NewRouter(routing)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("NewRouter(%+v): %v; want an error with %q", routing, err, says)
		}
	}
}

func TestConfiguredAliasOfDockerHubIsItself(t *testing.T) {
	r, err := NewRouter(Routing{Default: "docker.io", Upstreams: map[string][]string{"docker.io": nil, "index.docker.io": nil}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Route("a/b", "index.docker.io", ""); err != nil || got.Upstream != "index.docker.io" {
		t.Errorf("got %v, error %v", got, err)
	}
}

func BenchmarkRoute(b *testing.B) {
	r := mustRouter(b)
	uri := "/v2/library/nginx/manifests/" + sum256 + "?ns=docker.io"
	b.ReportAllocs()
	for b.Loop() {
		req, err := ParseRequest(uri)
		if err != nil {
			b.Fatal(err)
		}
		ns, _ := QueryValue(req.Query, "ns")
		if _, err := r.Route(req.Name, ns, "cache:5000"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestRoutingDoesNotAllocate(t *testing.T) {
	r := mustRouter(t)
	uri := "/v2/ghcr.io/org/app/blobs/" + sum256
	if n := testing.AllocsPerRun(100, func() {
		req, err := ParseRequest(uri)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Route(req.Name, "", "cache:5000"); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a request, want 0", n)
	}
}

func TestTheUsualPortOfPlainHTTPIs80(t *testing.T) {
	r, err := NewRouter(Routing{Upstreams: map[string][]string{"plain.test": nil, "other.test:80": nil, "ghcr.io": nil}, Plain: map[string]bool{"plain.test": true, "other.test:80": true}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"plain.test:80": "plain.test", "plain.test_80": "plain.test", "other.test": "other.test:80", "plain.test:443": "", "ghcr.io:80": ""} {
		if got, _ := r.Upstream(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
