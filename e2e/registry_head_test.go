package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// headRefusals are what registries without a working HEAD answer to it.
var headRefusals = []int{400, 401, 403, 404, 405, 500, 501, 503}

// A registry refuses HEAD and answers GET: clients get what a GET says, by tag and by
// digest, whichever of both they send, and see tags move.
func TestGETDecidesWhatHEADRefuses(t *testing.T) {
	t.Parallel()
	for _, status := range headRefusals {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			h, p := start(t, doubting)
			h.Inject(hub.RefuseHead(hub.ManifestHead, status))
			first, second := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
			h.Push("library/app", "1.0", first)
			head := ask(t, p, http.MethodHead, tagPath)
			if head.status != http.StatusOK {
				t.Errorf("cold HEAD: want 200, got %s", head)
			}
			head.wantHeader(t, "Docker-Content-Digest", first.Digest.String())
			wantBytes(t, "after the HEAD", first.Bytes(), get(t, p, tagPath).body)
			h.Push("library/app", "1.0", second)
			for range 3 {
				a := get(t, p, tagPath)
				wantBytes(t, "the tag that moved", second.Bytes(), a.body)
				a.wantHeader(t, "Warning", "")
			}
			h.Push("library/other", "1.0", image.New(image.Options{Seed: 3}))
			byDigest := "/v2/library/other/manifests/" + image.New(image.Options{Seed: 3}).Digest.String()
			if a := ask(t, p, http.MethodHead, byDigest); a.status != http.StatusOK {
				t.Errorf("cold HEAD by digest: want 200, got %s", a)
			}
			get(t, p, byDigest)
			// What is gone is gone by GET, too.
			h.Untag("library/app", "1.0")
			ask(t, p, http.MethodGet, tagPath).wantError(t, 404, "MANIFEST_UNKNOWN")
		})
	}
}

// Each check of a tag costs one request once it is known that HEAD does not work, and
// none costs a pull where a quota is known and HEAD works.
func TestARegistryWithoutHEADIsRememberedAsSuch(t *testing.T) {
	h, p := start(t, doubting)
	undo := h.Inject(hub.RefuseHead(hub.ManifestHead, 404))
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
	for range 3 {
		get(t, p, tagPath)
	}
	before := h.Counts()
	const asks = 5
	for range asks {
		get(t, p, tagPath)
	}
	after := h.Counts()
	if heads := after.ManifestHeads - before.ManifestHeads; heads != 0 {
		t.Errorf("HEAD was refused three times and is sent %d more times in %d checks", heads, asks)
	}
	if gets := after.ManifestGets - before.ManifestGets; gets != asks {
		t.Errorf("want %d GETs, got %d", asks, gets)
	}
	undo()
}

// A tag that really is gone costs no pull, and is known by its GET.
func TestAHEADOfWhatIsNotThereCostsNoPull(t *testing.T) {
	h, p := start(t, doubting)
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
	h.LimitPulls(100, 100, 21600)
	get(t, p, tagPath)
	left := h.PullsLeft()
	for range 3 {
		if a := ask(t, p, http.MethodHead, "/v2/library/app/manifests/none"); a.status != http.StatusNotFound {
			t.Errorf("want 404, got %s", a)
		}
	}
	if h.PullsLeft() != left {
		t.Errorf("%d pulls were left, and now %d", left, h.PullsLeft())
	}
}

// pages are the 404 pages that no registry sent.
var pages = map[string]hub.IngressPage{
	"Traefik": hub.TraefikPage, "nginx": hub.NginxPage, "default backend": hub.DefaultPage, "Kong": hub.KongPage,
	"Envoy": hub.EnvoyPage, "untyped": hub.UntypedPage, "HTML as JSON": hub.MislabelPage,
}

func TestAnIngressPageIsNoRegistrysWord(t *testing.T) {
	t.Parallel()
	for name, page := range pages {
		t.Run(name, func(t *testing.T) {
			h, p := start(t, doubting)
			i := image.New(image.Options{Seed: 1})
			h.Push("library/app", "1.0", i)
			h.Push("library/other", "1.0", image.New(image.Options{Seed: 2}))
			get(t, p, tagPath)
			h.Inject(hub.Ingress(hub.Any, page))
			for range 2 {
				a := get(t, p, tagPath)
				wantBytes(t, "stale tag", i.Bytes(), a.body)
				if !strings.HasPrefix(a.header.Get("Warning"), "110 ") {
					t.Errorf("want Warning 110, got %v", a.header)
				}
			}
			for _, path := range []string{"/v2/library/other/manifests/1.0", "/v2/library/other/manifests/" + image.New(image.Options{Seed: 2}).Digest.String(),
				"/v2/library/other/blobs/" + image.New(image.Options{Seed: 2}).Digest.String()} {
				for _, method := range []string{http.MethodHead, http.MethodGet} {
					if a := ask(t, p, method, path); a.status != http.StatusBadGateway && a.status != http.StatusServiceUnavailable {
						t.Errorf("want 502, got %s", a)
					}
				}
			}
			h.Mend()
			until(t, "the backend to be seen again", func() bool {
				return ask(t, p, http.MethodGet, "/v2/library/other/manifests/1.0").status == http.StatusOK
			})
			until(t, "the tag to be fresh again", func() bool { return get(t, p, tagPath).header.Get("Warning") == "" })
		})
	}
}

// A registry's own 404 is believed, however little it says.
func TestARegistrysBareNotFoundIsBelieved(t *testing.T) {
	h, p := start(t, doubting)
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
	get(t, p, tagPath)
	h.Inject(hub.BareNotFound(hub.ManifestHead))
	h.Inject(hub.BareNotFound(hub.ManifestGet))
	ask(t, p, http.MethodGet, tagPath).wantError(t, 404, "MANIFEST_UNKNOWN")
}

// A registry that says neither what it is nor why, but answers /v2/: its 404 stands.
func TestAnEmptyNotFoundOfAHealthyRegistryIsBelieved(t *testing.T) {
	h, p := start(t, doubting)
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
	get(t, p, tagPath)
	h.Inject(hub.Ingress(hub.ManifestHead, hub.EnvoyPage))
	h.Inject(hub.Ingress(hub.ManifestGet, hub.EnvoyPage))
	ask(t, p, http.MethodGet, tagPath).wantError(t, 404, "MANIFEST_UNKNOWN")
}

// The first of two endpoints fails and the second lags behind: its 404 is no word on
// what the upstream has.
func TestANotFoundBesideAFailedEndpointIsNoNotFound(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*hub.Hub){
		"is down":     func(h *hub.Hub) { h.Down() },
		"answers 503": func(h *hub.Hub) { h.Inject(hub.Answer(hub.Any, 503)) },
	} {
		t.Run("the first "+name, func(t *testing.T) {
			first, second := hub.New(t, hub.Options{Auth: hub.Open, NoCDN: true}), hub.New(t, hub.Options{Auth: hub.Open, NoCDN: true})
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": first}, Config: fmt.Sprintf(
				`upstreams: {docker.io: {endpoints: [%q, %q], tags: [{match: "*", ttl: 0s}]}}`, first.URL(), second.URL())})
			i := image.New(image.Options{Seed: 1})
			first.Push("library/app", "1.0", i)
			second.Push("library/app", "old", image.New(image.Options{Seed: 2}))
			get(t, p, tagPath)
			fail(first)
			for range 4 {
				a := get(t, p, tagPath)
				wantBytes(t, "stale tag", i.Bytes(), a.body)
				if a := ask(t, p, http.MethodGet, "/v2/library/app/manifests/2.0"); a.status < 500 {
					t.Errorf("want a failure, got %s", a)
				}
			}
			get(t, p, "/v2/library/app/manifests/old") // the second has it
		})
	}
}

// A layer is cached for one repository. For another the upstream's HEAD fails, at the
// registry or at its CDN, while GET works.
func TestGETDecidesWhatTheHEADOfABlobRefuses(t *testing.T) {
	t.Parallel()
	for _, status := range append(headRefusals, 502) {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			h, p := start(t, believing)
			_, content, path := blobOf(h, "library/app", 1, 100_000)
			blobOf(h, "library/other", 1, 100_000)
			get(t, p, "/v2/library/app/manifests/1.0")
			wantBytes(t, "layer", content, get(t, p, path).body)
			p.WaitIdle(t)
			h.Inject(hub.RefuseHead(hub.BlobHead, status))
			other := strings.Replace(path, "/app/", "/other/", 1)
			if a := ask(t, p, http.MethodHead, other); a.status != http.StatusOK {
				t.Errorf("HEAD: want 200, got %s", a)
			} else {
				a.wantHeader(t, "Content-Length", fmt.Sprint(len(content)))
			}
			wantBytes(t, "layer for another", content, get(t, p, other).body)
			// What is not there is not there by GET, too.
			ask(t, p, http.MethodGet, strings.Replace(path, "/app/", "/none/", 1)).wantError(t, 404, "BLOB_UNKNOWN")
		})
	}
}

// What appears right after it was asked for is there when it is next asked for; what
// is asked for again and again is asked of the upstream less and less.
func TestWhatAppearsLateIsFoundSoon(t *testing.T) {
	h, p := start(t, believing)
	h.Push("library/app", "old", image.New(image.Options{Seed: 9}))
	_, content, _ := blobOf(h, "library/src", 1, 1000)
	i := image.Artifact(1, "application/x.test", 1000, nil)
	blob := "/v2/library/app/blobs/" + i.Layers("")[0].Digest.String()
	for _, path := range []string{tagPath, blob, "/v2/library/app/manifests/" + i.Digest.String()} {
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			if a := ask(t, p, method, path); a.status != http.StatusNotFound {
				t.Fatalf("want 404, got %s", a)
			}
		}
	}
	began := time.Now()
	h.Push("library/app", "1.0", i)
	for _, path := range []string{tagPath, blob} {
		until(t, "it to be found", func() bool { return ask(t, p, http.MethodGet, path).status == http.StatusOK })
	}
	if d := time.Since(began); d > 9*time.Second {
		t.Errorf("it took %s to be found", d) // ten seconds if it is remembered for as long as what is asked for again and again
	}
	wantBytes(t, "blob", content, get(t, p, blob).body)
}
