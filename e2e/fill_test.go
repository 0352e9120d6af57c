package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"testing"

	"golang.org/x/sync/errgroup"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// big pushes an image with one layer of about size bytes and gives the layer,
// its content and its path at the proxy.
func big(h *hub.Hub, size int) (layer v1.Descriptor, content []byte, path string) {
	i := image.New(image.Options{Seed: uint64(size), Layers: []image.Layer{{Size: size}}})
	h.Push("library/big", "1.0", i)
	layer = i.Layers("")[0]
	return layer, i.Blobs[layer.Digest], "/v2/library/big/blobs/" + layer.Digest.String()
}

func TestTwoHundredClientsOfAColdBlobAreOneFetch(t *testing.T) {
	const clients = 200
	h, p := start(t, "")
	layer, _, path := big(h, 3<<20)
	// Nobody is served before all are there.
	gate := make(chan struct{})
	h.Inject(hub.Hold(hub.CDNGet, gate))
	var g errgroup.Group
	for range clients {
		g.Go(func() error { return download(t.Context(), p, path, layer) })
	}
	until(t, "all clients to be there", func() bool {
		return p.Metrics(t).Sum("entrepot_requests_in_flight") >= clients
	})
	close(gate)
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	p.WaitIdle(t)
	if got := h.Sent(layer.Digest); got != layer.Size {
		t.Errorf("the upstream sent %d bytes of a blob of %d: %.2fx", got, layer.Size, float64(got)/float64(layer.Size))
	}
	if c := h.Counts(); c.CDNGets != 1 || c.BlobGets > 2 { // the second after a 401
		t.Errorf("want one fetch, got %+v", c)
	}
}

// download gets a whole blob and checks its digest.
func download(ctx context.Context, p *proxy.Proxy, path string, layer v1.Descriptor) error {
	res, err := open(ctx, p, http.MethodGet, path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	hash := sha256.New()
	n, err := io.Copy(hash, res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s after %d bytes: %v", res.Status, n, err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != layer.Digest.Encoded() {
		return fmt.Errorf("want %s, got %d bytes of %s", layer.Digest, n, got)
	}
	return nil
}

func TestAnyMixOfRangesOfAColdBlobIsOneFetch(t *testing.T) {
	h, p := start(t, "")
	layer, content, path := big(h, 40<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	var g errgroup.Group
	for range 24 {
		from := rnd.Int64N(layer.Size - 1)
		to := min(layer.Size, from+1+rnd.Int64N(2<<20))
		g.Go(func() error {
			res, err := open(t.Context(), p, http.MethodGet, path, "Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
			if err != nil {
				return err
			}
			defer res.Body.Close()
			got, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != http.StatusPartialContent {
				return fmt.Errorf("bytes %d-%d: %s, %d bytes, %v", from, to-1, res.Status, len(got), err)
			}
			if sha256.Sum256(got) != sha256.Sum256(content[from:to]) {
				return fmt.Errorf("bytes %d-%d are wrong", from, to-1)
			}
			return nil
		})
	}
	for range 3 {
		g.Go(func() error { return download(t.Context(), p, path, layer) })
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	p.WaitIdle(t)
	// No manifest has told the size, so the first connection asks for all of it. What is on its
	// way when it is cut, because others fetch the rest, is lost.
	if got := h.Sent(layer.Digest); got < layer.Size || got > layer.Size+layer.Size/4+leads(h) {
		t.Errorf("the upstream sent %d bytes of a blob of %d: %.4fx", got, layer.Size, float64(got)/float64(layer.Size))
	}
}

func TestBytesReachTheClientWhileTheUpstreamStillSends(t *testing.T) {
	h, p := start(t, "")
	_, content, path := big(h, 4<<20)
	gate := make(chan struct{})
	h.Inject(hub.StallAfter(2<<20, gate))
	res, err := open(t.Context(), p, http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got := make([]byte, len(content))
	// All that the upstream has sent comes, but for what is held back.
	if _, err := io.ReadFull(res.Body, got[:1<<20]); err != nil {
		t.Fatalf("the first MiB, with the upstream stalled after two: %v", err)
	}
	close(gate)
	if _, err := io.ReadFull(res.Body, got[1<<20:]); err != nil {
		t.Fatalf("the rest: %v", err)
	}
	wantBytes(t, "layer", content, got)
}

func TestTheFillGoesOnWhenItsOnlyClientLeaves(t *testing.T) {
	h, p := start(t, "")
	layer, content, path := big(h, 4<<20)
	gate := make(chan struct{})
	h.Inject(hub.StallAfter(1<<20, gate))
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	res, err := open(ctx, p, http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, res.Body, 64<<10); err != nil {
		t.Fatal(err)
	}
	leave()
	res.Body.Close()
	close(gate)
	p.WaitIdle(t)
	if got := h.Sent(layer.Digest); got != layer.Size {
		t.Errorf("the upstream sent %d bytes of %d", got, layer.Size)
	}
	h.Down()
	wantBytes(t, "layer", content, get(t, p, path).body)
}

func TestAFillIsResumedWithAFreshSignature(t *testing.T) {
	h, p := start(t, "")
	layer, content, path := big(h, 5<<20)
	gate := make(chan struct{})
	undo := h.Inject(hub.StallAfter(1<<20, gate))
	res, err := open(t.Context(), p, http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(content))
	if _, err := io.ReadFull(res.Body, got[:512<<10]); err != nil {
		t.Fatal(err)
	}
	// The CDN drops the transfer and takes no URL that it has taken before.
	h.ExpireURLs()
	h.Down(hub.CDN)
	undo()
	if err := h.Up(hub.CDN); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(res.Body, got[512<<10:]); err != nil {
		t.Errorf("the rest: %v", err)
	}
	res.Body.Close()
	wantBytes(t, "layer", content, got)
	if n := h.Sent(layer.Digest); n < layer.Size || n >= 2*layer.Size {
		t.Errorf("the upstream sent %d bytes of %d", n, layer.Size)
	}
}

func TestAWrongSmallBlobIsRefusedBeforeAByteIsSent(t *testing.T) {
	h, p := start(t, "")
	_, content, path := big(h, 2<<10)
	undo := h.Inject(hub.Flip(100))
	if a := ask(t, p, "GET", path); a.status != http.StatusBadGateway {
		t.Errorf("want 502, got %s", a)
	}
	undo()
	wantBytes(t, "once it is mended", content, get(t, p, path).body)
}

func TestAWrongManifestIsNeverServed(t *testing.T) {
	h, p := start(t, "")
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	undo := h.Inject(hub.Flip(20).Of(hub.ManifestGet))
	for _, ref := range []string{"1.0", i.Digest.String()} {
		if a := ask(t, p, "GET", "/v2/library/app/manifests/"+ref); a.status < 500 {
			t.Errorf("%s: want an error, got %s", ref, a)
		}
	}
	undo()
	for _, ref := range []string{"1.0", i.Digest.String()} {
		wantBytes(t, ref, i.Bytes(), get(t, p, "/v2/library/app/manifests/"+ref).body)
	}
}

func TestManyClientsOfAColdTagAreOnePull(t *testing.T) {
	const clients = 50
	h, p := start(t, believing)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	gate := make(chan struct{})
	h.Inject(hub.Hold(hub.ManifestGet, gate))
	undo := h.Inject(hub.Hold(hub.ManifestHead, gate))
	defer undo()
	var g errgroup.Group
	for range clients {
		g.Go(func() error {
			res, err := open(t.Context(), p, http.MethodGet, "/v2/library/app/manifests/1.0")
			if err != nil {
				return err
			}
			b, err := readAndClose(res.Body, nil)
			if err != nil || string(b) != string(i.Bytes()) {
				return fmt.Errorf("%s: %d bytes, %v", res.Status, len(b), err)
			}
			return nil
		})
	}
	until(t, "all clients to be there", func() bool {
		return p.Metrics(t).Sum("entrepot_requests_in_flight") >= clients
	})
	close(gate)
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if c := h.Counts(); c.ManifestGets > 2 { // the first may have met a 401
		t.Errorf("want one pull, got %+v", c)
	}
}

func TestContentSurvivesAKill(t *testing.T) {
	h, p := start(t, believing)
	i := image.Index(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	get(t, p, "/v2/library/app/manifests/1.0")
	pullRaw(t, p, "library/app", i)
	before := h.Counts()
	h.Down()
	p.Kill(t)
	p.Restart(t)
	wantBytes(t, "by tag", i.Bytes(), get(t, p, "/v2/library/app/manifests/1.0").body)
	pullRaw(t, p, "library/app", i)
	wantUnmoved(t, before, h.Counts())
}

func TestAFillThatAStopInterruptedIsResumedAfterTheStart(t *testing.T) {
	h, p := start(t, "shutdown_timeout: 1s")
	layer, content, path := big(h, 6<<20)
	undo := h.Inject(hub.StallAfter(3<<20, nil))
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	res, err := open(ctx, p, http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.CopyN(io.Discard, res.Body, 2<<20); err != nil {
		t.Fatal(err)
	}
	leave()
	p.Stop(t)
	undo()
	sent := h.Sent(layer.Digest)
	p.Restart(t)
	wantBytes(t, "layer", content, get(t, p, path).body)
	if more := h.Sent(layer.Digest) - sent; more > layer.Size-2<<20 {
		t.Errorf("the upstream sent %d bytes before and %d after, of %d", sent, more, layer.Size)
	}
}
