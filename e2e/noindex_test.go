package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// largeIndex pushes an index of 15,000 children or so, of which one is for linux/amd64 if
// one is wanted, and gives that one's bytes.
func largeIndex(t *testing.T, push func(name, tag string, i *image.Image), repo string, amd64 bool) []byte {
	t.Helper()
	child := image.Artifact(4, "application/x.test", 100, nil)
	index := v1.Index{MediaType: v1.MediaTypeImageIndex}
	index.SchemaVersion = 2
	for n := range 15_000 {
		index.Manifests = append(index.Manifests, v1.Descriptor{
			MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(n)), Size: 1000,
			Platform: &v1.Platform{OS: "linux", Architecture: fmt.Sprintf("s390x%05d", n)},
		})
	}
	if amd64 {
		d := child.Descriptor()
		d.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
		index.Manifests = append(index.Manifests, d)
	}
	b, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	i := &image.Image{Digest: digest.FromBytes(b), Manifests: map[digest.Digest]image.Manifest{}, Blobs: child.Blobs}
	i.Manifests[i.Digest] = image.Manifest{MediaType: v1.MediaTypeImageIndex, Bytes: b}
	i.Manifests[child.Digest] = child.Manifests[child.Digest]
	push(repo, "1.0", i)
	return child.Bytes()
}

// Clients that take no index ask for an image whose index has megabytes, again and again:
// what they get out of it is remembered, so that others notice nothing.
func TestALargeIndexCostsLittleForClientsThatTakeNone(t *testing.T) {
	const clients = 32
	h, p := start(t, believing)
	small := smallPaths(t, h, p)
	const accept = v1.MediaTypeImageManifest
	want := largeIndex(t, h.Push, "library/with", true)
	largeIndex(t, h.Push, "library/without", false)
	wantBytes(t, "the manifest out of the index", want, get(t, p, "/v2/library/with/manifests/1.0", "Accept", accept).body)
	ask(t, p, http.MethodGet, "/v2/library/without/manifests/1.0", "Accept", accept).wantError(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	alone := others(t, p, small...)
	for path, status := range map[string]int{"/v2/library/with/manifests/1.0": http.StatusOK, "/v2/library/without/manifests/1.0": http.StatusNotFound} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			stop := make(chan struct{})
			var asked atomic.Int64
			var crowd errgroup.Group
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}, Timeout: limit}
			for range clients {
				crowd.Go(func() error {
					for {
						req, err := http.NewRequestWithContext(t.Context(), method, p.URL()+path, nil)
						if err != nil {
							return err
						}
						req.Header.Set("Accept", accept)
						res, err := client.Do(req)
						if err != nil {
							return err
						}
						_, err = io.Copy(io.Discard, res.Body)
						_ = res.Body.Close()
						if err != nil || res.StatusCode != status {
							return fmt.Errorf("%s %s: %s, %w", method, path, res.Status, err)
						}
						asked.Add(1)
						select {
						case <-stop:
							return nil
						default:
						}
					}
				})
			}
			until(t, "the clients to be at it", func() bool { return asked.Load() >= 10*clients })
			unmoved(t, fmt.Sprintf("32 clients that take no index: %s %s", method, path), alone, others(t, p, small...))
			close(stop)
			if err := crowd.Wait(); err != nil {
				t.Error(err)
			}
			client.CloseIdleConnections()
		}
	}
}
