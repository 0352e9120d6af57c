package e2e

import (
	"net/http"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// Ollama asks for a blob, expects a redirect to the registry's storage, and sends all
// further requests to the Location of the last answer (server/download.go).
func TestABlobSaysWhereItIs(t *testing.T) {
	t.Parallel()
	h := hub.New(t, hub.Options{})
	i := image.New(image.Options{})
	h.Push("library/app", "1.0", i)
	p := proxy.New(t, h)
	blob := i.Layers("")[0].Digest.String()
	for _, state := range []string{"cold", "warm"} {
		for _, path := range []string{
			"/v2/library/app/blobs/" + blob,
			"/v2/docker.io/library/app/blobs/" + blob,
			"/v2/library/app/blobs/" + blob + "?ns=docker.io",
			"/v2/app/blobs/" + blob,
			"/docker.io/v2/library/app/blobs/" + blob,
			"/v2/index.docker.io/library/app/blobs/" + blob,
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := raw.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			at, err := res.Location()
			if res.StatusCode != 200 || err != nil || at.String() != p.URL()+path {
				t.Errorf("%s, %s: want 200 and its own URL, got %d, %v, %v", state, path, res.StatusCode, at, err)
				continue
			}
			part := ask(t, p, http.MethodGet, at.RequestURI(), "Range", "bytes=0-99")
			if part.status != http.StatusPartialContent || len(part.body) != 100 {
				t.Errorf("%s, %s: want the first 100 bytes from there, got %s", state, path, part)
			}
			ask(t, p, http.MethodHead, path).wantHeader(t, "Location", path)
		}
	}
}
