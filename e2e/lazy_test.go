package e2e

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// piece asks for a range of a blob, in the words of a Range header, and returns what comes.
func piece(t *testing.T, p *proxy.Proxy, path, rng string) []byte {
	t.Helper()
	res, err := open(t.Context(), p, http.MethodGet, path, "Range", rng)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusPartialContent {
		t.Fatalf("%s of %s: %s, %d bytes, %v", rng, path, res.Status, len(got), err)
	}
	return got
}

// Lazy pullers read the footer of a layer first. It comes although the upstream sends
// nothing of the layer's beginning, whether or not a manifest has told the layer's size,
// and also while another client pulls the whole layer.
func TestTheTailOfAColdBlobNeedsNothingOfWhatComesBefore(t *testing.T) {
	for _, known := range []bool{false, true} {
		for _, whole := range []bool{false, true} {
			t.Run(fmt.Sprintf("known size %v, pulled %v", known, whole), func(t *testing.T) {
				h, p := start(t, "")
				i := image.New(image.Options{Seed: 7, Layers: []image.Layer{{Size: 12 << 20}}})
				h.Push("library/big", "1.0", i)
				layer := i.Layers("")[0]
				content, path := i.Blobs[layer.Digest], "/v2/library/big/blobs/"+layer.Digest.String()
				gate := make(chan struct{})
				h.Inject(hub.StallAfter(1<<20, gate))
				if known {
					res, err := open(t.Context(), p, http.MethodGet, "/v2/library/big/manifests/1.0", "Accept", v1.MediaTypeImageManifest)
					if err != nil {
						t.Fatal(err)
					}
					res.Body.Close()
				}
				if whole {
					res, err := open(t.Context(), p, http.MethodGet, path)
					if err != nil {
						t.Fatal(err)
					}
					defer res.Body.Close()
					if _, err := io.ReadFull(res.Body, make([]byte, 1<<19)); err != nil {
						t.Fatal(err)
					}
				}
				size := layer.Size
				wantBytes(t, "the last 100 bytes", content[size-100:], piece(t, p, path, "bytes=-100"))
				wantBytes(t, "the last 100 bytes, by their offset", content[size-100:], piece(t, p, path, fmt.Sprintf("bytes=%d-", size-100)))
				for at := size - 200_000; at > 3<<20; at -= 1 << 20 {
					wantBytes(t, "a piece", content[at:at+64<<10], piece(t, p, path, fmt.Sprintf("bytes=%d-%d", at, at+64<<10-1)))
				}
				close(gate)
				wantBytes(t, "the whole", content, get(t, p, path).body)
			})
		}
	}
}
