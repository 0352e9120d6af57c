package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// blobOf pushes an image with one layer of exactly size bytes, and gives the
// layer's digest, its content and its path at the proxy.
func blobOf(h *hub.Hub, repo string, seed uint64, size int) (d digest.Digest, content []byte, path string) {
	i := image.Artifact(seed, "application/x.test", size, nil)
	h.Push(repo, "1.0", i)
	d = i.Layers("")[0].Digest
	return d, i.Blobs[d], "/v2/" + repo + "/blobs/" + d.String()
}

// TestACrowdOfChunksOfAColdBlobIsOneFetch pulls as containerd does from 2.1 on:
// each client asks for eight chunks at once by ranges without an end, and closes
// each connection where its chunk ends.
func TestACrowdOfChunksOfAColdBlobIsOneFetch(t *testing.T) {
	const chunks = 8
	clients := 200
	if proxy.Raced { // slow readers would take more memory for sockets than the kernel gives
		clients = 50
	}
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("size known %v", known), func(t *testing.T) {
			size := 16 << 20
			if known && !testing.Short() {
				size = 36 << 20 // more than one connection to the upstream fetches it
			}
			h, p := start(t, "")
			d, content, path := blobOf(h, "library/big", 1, size)
			if known {
				get(t, p, "/v2/library/big/manifests/1.0")
			}
			// As a crowd on machines of their own: every request has its connection.
			crowd := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}, Timeout: limit}
			// Nothing is sent before the first requests are all there.
			gate := make(chan struct{})
			h.Inject(hub.Hold(hub.CDNGet, gate))
			var right, taken atomic.Int64
			g, ctx := errgroup.WithContext(t.Context())
			for range clients {
				for n := range chunks {
					from, to := n*(size/chunks), (n+1)*(size/chunks)
					g.Go(func() error {
						if err := takeChunk(ctx, crowd, p.URL()+path, content, from, to); err != nil {
							return fmt.Errorf("bytes from %d up to %d: %w", from, to, err)
						}
						right.Add(1)
						taken.Add(int64(to - from))
						return nil
					})
				}
			}
			until(t, "the crowd to be there", func() bool {
				return p.Metrics(t).Sum("entrepot_requests_in_flight") >= float64(clients) || ctx.Err() != nil
			})
			close(gate)
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
			p.WaitIdle(t)
			sent, c := h.Sent(d), h.Counts()
			t.Logf("%d clients took %d chunks, %d bytes, all right; the upstream sent %d bytes of a blob of %d (%.4fx) in %d requests",
				clients, right.Load(), taken.Load(), sent, size, float64(sent)/float64(size), c.CDNGets)
			most := int64(size) + leads(h)
			if !known {
				// The first connection asks for all of it, and is closed where the second
				// begins: what is on its way then is lost.
				most += int64(size) / 4
			}
			if sent < int64(size) || sent > most {
				t.Errorf("the upstream sent %d bytes of a blob of %d: %.4fx", sent, size, float64(sent)/float64(size))
			}
			h.Down()
			wantBytes(t, "from the cache", content, get(t, p, path).body)
		})
	}
}

// takeChunk asks for the bytes from from on, compares those up to to as they
// come, and closes the connection there.
func takeChunk(ctx context.Context, c *http.Client, url string, content []byte, from, to int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if want := fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)); res.StatusCode != http.StatusPartialContent || res.Header.Get("Content-Range") != want {
		return fmt.Errorf("want 206 of %q, got %s of %q", want, res.Status, res.Header.Get("Content-Range"))
	}
	buf := make([]byte, 64<<10)
	for at := from; at < to; {
		n, err := io.ReadFull(res.Body, buf[:min(len(buf), to-at)])
		if !bytes.Equal(buf[:n], content[at:at+n]) {
			return fmt.Errorf("wrong bytes between %d and %d", at, at+n)
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", at+n-from, err)
		}
		at += n
	}
	return nil
}
