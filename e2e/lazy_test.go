package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

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

// lazily reads so many random pieces of 64 KiB of a blob, eight at a time, and returns the
// bytes that it asked for.
func lazily(t *testing.T, p *proxy.Proxy, path string, content []byte, pieces int) (asked int64) {
	t.Helper()
	const size = 64 << 10
	rnd := rand.New(rand.NewPCG(3, 4)) // the same ones each time
	var g errgroup.Group
	g.SetLimit(8)
	for range pieces {
		from := rnd.Int64N(int64(len(content)) - size)
		asked += size
		g.Go(func() error {
			a := ask(t, p, "GET", path, "Range", fmt.Sprintf("bytes=%d-%d", from, from+size-1))
			if a.status != http.StatusPartialContent || a.err != nil || string(a.body) != string(content[from:from+size]) {
				return fmt.Errorf("from %d: %d, %d bytes, %v", from, a.status, len(a.body), a.err)
			}
			if !strings.Contains(a.header.Get("Cache-Status"), "unverified-range") {
				return fmt.Errorf("from %d: want Cache-Status to say that it is not verified, got %q", from, a.header.Get("Cache-Status"))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	return asked
}

// isHere says whether all of a blob is stored.
func isHere(p *proxy.Proxy, d digest.Digest) bool {
	_, err := os.Stat(blobFile(p, d))
	return err == nil
}

// What clients ask for in pieces is fetched in pieces, once. It outlives a stop and is
// served without the upstream, which a kill doesn't change, and it is completed by what is
// missing only.
func TestPiecesAreFetchedOnceAndCompletedInTheBackground(t *testing.T) {
	h, p := start(t, `upstreams: {docker.io: {complete: never}}`)
	i := image.New(image.Options{Seed: 8, Layers: []image.Layer{{Size: 24 << 20}}})
	h.Push("library/big", "1.0", i)
	layer := i.Layers("")[0]
	content, path := i.Blobs[layer.Digest], "/v2/library/big/blobs/"+layer.Digest.String()
	get(t, p, "/v2/library/big/manifests/1.0", "Accept", v1.MediaTypeImageManifest)
	asked := lazily(t, p, path, content, 24)
	sent := h.Sent(layer.Digest)
	if sent > asked+asked/4 {
		t.Errorf("the upstream sent %d bytes for the %d that were asked for", sent, asked)
	}
	if n := h.Counts().BlobGets; n > 8 {
		t.Errorf("the registry was asked %d times for 24 pieces, want only the first 8, which are read at once", n)
	}
	p.WaitIdle(t)
	h.Down()
	for _, end := range []func(testing.TB){p.Stop, p.Kill} {
		end(t)
		p.Restart(t)
		lazily(t, p, path, content, 24)
		if isHere(p, layer.Digest) {
			t.Fatal("the blob counts as complete")
		}
	}
	if a := ask(t, p, "GET", path); a.err == nil && a.status == http.StatusOK {
		t.Errorf("the whole came, of which only pieces are here")
	}
	if err := h.Up(); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(p.Config())
	if err != nil {
		t.Fatal(err)
	}
	p.Stop(t)
	if err := os.WriteFile(p.Config(), []byte(strings.Replace(string(config), "complete: never", "complete: idle", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Restart(t)
	piece(t, p, path, "bytes=-100")
	until(t, "the blob to be complete", func() bool { return isHere(p, layer.Digest) })
	p.WaitIdle(t)
	if sent := h.Sent(layer.Digest); sent < layer.Size || sent > layer.Size+leads(h) {
		t.Errorf("the upstream sent %d bytes of a blob of %d", sent, layer.Size)
	}
	h.Down()
	wantBytes(t, "from the cache", content, get(t, p, path).body)
}
