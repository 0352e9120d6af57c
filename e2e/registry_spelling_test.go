package e2e

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/regclient/regclient/types/ref"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// What mirror URLs with a path, and clients with a port in mind, make of a request.
func TestSpellingsOfARegistryAreServedOrExplained(t *testing.T) {
	t.Parallel()
	hubIO, other := hub.New(t, hub.Options{}), hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": hubIO, "ghcr.io": other, "registry.example:5000": other}})
	i, j := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	hubIO.Push("library/app", "1.0", i)
	other.Push("org/app", "1.0", j)
	for path, want := range map[string]*image.Image{
		"/v2/library/app/manifests/1.0?ns=docker.io:80":                            i, // the hub is plain http
		"/v2/library/app/manifests/1.0?ns=registry-1.docker.io:80":                 i,
		"/v2/org/app/manifests/1.0?ns=GHCR.io:80":                                  j,
		"/v2/docker.io/docker.io/library/app/manifests/1.0":                        i,
		"/v2/docker.io/v2/library/app/manifests/1.0?ns=docker.io":                  i,
		"/v2/docker.io/v2/library/app/manifests/1.0":                               i,
		"/docker.io/v2/library/app/manifests/1.0":                                  i,
		"/docker.io/v2/library/app/manifests/1.0?ns=docker.io":                     i,
		"/docker.io/v2/docker.io/app/manifests/1.0":                                i,
		"/v2/v2/library/app/manifests/1.0":                                         i,
		"/v2/v2/ghcr.io/org/app/manifests/1.0":                                     j,
		"/ghcr.io/v2/org/app/manifests/1.0?ns=ghcr.io":                             j,
		"/registry.example:5000/v2/org/app/manifests/1.0":                          j,
		"/registry.example_5000/v2/org/app/manifests/1.0?ns=registry.example:5000": j,
		"/v2/registry.example:5000/org/app/manifests/1.0":                          j,
		"/v2/registry.example_5000/org/app/manifests/1.0":                          j,
		"/v2/registry.example_5000/org/app/manifests/1.0?ns=registry.example:5000": j,
		"/v2/org/app/manifests/1.0?ns=registry.example:5000":                       j,
	} {
		if a := ask(t, p, http.MethodGet, path); a.status != http.StatusOK || string(a.body) != string(want.Bytes()) {
			t.Errorf("%s: want the image, got %s", path, a)
		}
	}
	for _, path := range []string{"/docker.io/v2/", "/v2/docker.io/v2/", "/v2/v2/"} {
		get(t, p, path)
	}
	for path, want := range map[string]string{
		"/v2/ghcr.io/v2/org/app/manifests/1.0?ns=ghcr.io":  "override_path",
		"/v2/docker.io/ghcr.io/org/app/manifests/1.0":      "two registries",
		"/v2/ghcr.io/org/app/manifests/1.0?ns=docker.io":   "two registries",
		"/docker.io/manifests/1.0":                         "without a path",
		"/v2/other.example_5000/org/app/manifests/1.0":     "other.example_5000",
		"/v2/library/app/manifests/1.0?ns=ghcr.io.evil:80": "not configured",
	} {
		before := hubIO.Counts().ManifestGets + other.Counts().ManifestGets
		a := ask(t, p, http.MethodGet, path)
		if a.status < 400 || a.status >= 500 || !strings.Contains(string(a.body), want) {
			t.Errorf("%s: want a refusal with %q, got %s", path, want, a)
		}
		if hubIO.Counts().ManifestGets+other.Counts().ManifestGets != before {
			t.Errorf("%s: an upstream was asked", path)
		}
	}
}

// Reference grammars take no colon in a path, so the catalog has names without.
func TestClientsReachARegistryWithAPortByAPath(t *testing.T) {
	t.Parallel()
	h := hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"registry.example:5000": h}, Config: `{default_upstream: "registry.example:5000"}`})
	i := image.New(image.Options{Seed: 1})
	h.Push("org/app", "1.0", i)
	for what, connect := range map[string]func(*testing.T, string, string) client{"crane": connectCrane, "regclient": connectRegClient} {
		d, err := connect(t, p.Host(), "registry.example_5000/org/app").resolve("1.0")
		if err != nil || d != i.Digest {
			t.Errorf("%s resolves %s, %v; want %s", what, d, err, i.Digest)
		}
	}
	get(t, p, "/v2/org/app/manifests/1.0")
	h.Push("org/b", "1.0", i)
	get(t, p, "/v2/org/b/manifests/1.0")
	var catalog struct{ Repositories []string }
	if err := json.Unmarshal(get(t, p, "/v2/_catalog").body, &catalog); err != nil {
		t.Fatal(err)
	}
	if want := []string{"registry.example_5000/org/app", "registry.example_5000/org/b"}; !slices.Equal(catalog.Repositories, want) {
		t.Errorf("the catalog is %q, want %q", catalog.Repositories, want)
	}
	for _, r := range catalog.Repositories {
		if _, err := name.NewRepository(p.Host() + "/" + r); err != nil {
			t.Error(err)
		}
		if _, err := ref.New(p.Host() + "/" + r); err != nil {
			t.Error(err)
		}
	}
	a := get(t, p, "/v2/_catalog?n=1")
	if !strings.Contains(string(a.body), "org/app") || !strings.Contains(a.header.Get("Link"), "last=registry.example_5000%2Forg%2Fapp") {
		t.Errorf("the first page is %s", a)
	}
	if a := get(t, p, "/v2/_catalog?n=1&last=registry.example_5000%2Forg%2Fapp"); !strings.Contains(string(a.body), `"registry.example_5000/org/b"`) || strings.Contains(string(a.body), "org/app") {
		t.Errorf("the second page is %s", a)
	}
}
