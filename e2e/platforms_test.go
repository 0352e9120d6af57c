package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// Podman and CRI-O pull an index, and then the manifest of their platform from the same place
// only (containers/image#2038). Somebody else's pull of the index is enough to have it there.
func TestAStaleIndexHasItsPlatforms(t *testing.T) {
	t.Parallel()
	h := hub.New(t, hub.Options{})
	i := image.Index(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: "platforms: [linux/amd64, linux/arm64]"})
	wantBytes(t, "the index", i.Bytes(), get(t, p, "/v2/library/app/manifests/1.0", "Accept", anything).body)
	at := func(platform string) string { return "/v2/library/app/manifests/" + i.Platforms[platform].String() }
	for _, platform := range []string{"linux/amd64", "linux/arm64"} {
		// A HEAD fetches nothing.
		for end := time.Now().Add(limit); !strings.Contains(ask(t, p, http.MethodHead, at(platform), "Accept", anything).header.Get("Cache-Status"), "hit"); {
			if time.Now().After(end) {
				t.Fatalf("the manifest of %s was not fetched", platform)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	h.Down()
	get(t, p, "/v2/library/app/manifests/1.0", "Accept", anything)
	for _, platform := range []string{"linux/amd64", "linux/arm64"} {
		wantBytes(t, platform, i.Manifests[i.Platforms[platform]].Bytes, get(t, p, at(platform), "Accept", anything).body)
	}
}
