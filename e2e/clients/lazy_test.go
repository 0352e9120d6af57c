package clients

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"testing"

	soci "github.com/awslabs/soci-snapshotter/config"
	socifs "github.com/awslabs/soci-snapshotter/fs/remote"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	nydus "github.com/containerd/nydus-snapshotter/pkg/remote/remotes/docker"
	"github.com/containerd/stargz-snapshotter/cache"
	stargz "github.com/containerd/stargz-snapshotter/fs/config"
	stargzfs "github.com/containerd/stargz-snapshotter/fs/remote"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestLazyReadersGetPieces reads pieces of a layer with the code of snapshotters that mount images
// before they are pulled. What is cold costs about what was asked for.
func TestLazyReadersGetPieces(t *testing.T) {
	const size = 32 << 20
	type reader = func(p []byte, at int64) (int, error)
	for name, open := range map[string]func(t *testing.T, hosts docker.RegistryHosts, spec reference.Spec, layer v1.Descriptor) reader{
		"stargz": func(t *testing.T, hosts docker.RegistryHosts, spec reference.Spec, layer v1.Descriptor) reader {
			noteLibrary(t, "github.com/containerd/stargz-snapshotter")
			r := stargzfs.NewResolver(stargz.BlobConfig{ChunkSize: 50_000, FetchTimeoutSec: 60}, nil)
			b, err := r.Resolve(t.Context(), func(s reference.Spec) ([]docker.RegistryHost, error) { return hosts(s.Hostname()) }, spec, layer, cache.NewMemoryCache())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.Close() }) // there is nothing to lose
			return func(p []byte, at int64) (int, error) { return b.ReadAt(p, at) }
		},
		"SOCI": func(t *testing.T, hosts docker.RegistryHosts, spec reference.Spec, layer v1.Descriptor) reader {
			noteLibrary(t, "github.com/awslabs/soci-snapshotter")
			all, err := hosts(spec.Hostname())
			if err != nil {
				t.Fatal(err)
			}
			r := socifs.NewResolver(soci.BlobConfig{FetchTimeoutSec: 60}, nil)
			b, err := r.Resolve(t.Context(), all, spec, layer)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.Close() })
			return func(p []byte, at int64) (int, error) { return b.ReadAt(p, at) }
		},
		"nydus": func(t *testing.T, hosts docker.RegistryHosts, spec reference.Spec, layer v1.Descriptor) reader {
			noteLibrary(t, "github.com/containerd/nydus-snapshotter")
			all, err := hosts(spec.Hostname())
			if err != nil {
				t.Fatal(err)
			}
			theirs := func(string) ([]nydus.RegistryHost, error) {
				return []nydus.RegistryHost{{Client: all[0].Client, Host: all[0].Host, Scheme: all[0].Scheme, Path: all[0].Path, Capabilities: nydus.HostCapabilityPull}}, nil
			}
			f, err := nydus.NewResolver(nydus.ResolverOptions{Hosts: theirs}).Fetcher(t.Context(), spec.String())
			if err != nil {
				t.Fatal(err)
			}
			return func(p []byte, at int64) (int, error) {
				body, err := f.Fetch(t.Context(), layer)
				if err != nil {
					return 0, err
				}
				defer body.Close()
				if _, err := body.(io.Seeker).Seek(at, io.SeekStart); err != nil {
					return 0, err
				}
				return io.ReadFull(body, p)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := hub.New(t, hub.Options{})
			i := image.New(image.Options{Seed: 5, Layers: []image.Layer{{Size: size}}})
			h.Push("library/app", "1", i)
			layer := i.Layers("linux/amd64")[0]
			want := i.Blobs[layer.Digest]
			p := proxy.Start(t, proxy.Options{
				Upstreams: map[string]*hub.Hub{"docker.io": h},
				Config:    `upstreams: {docker.io: {complete: never}}`,
			})
			w := &world{hub: h, proxy: p}
			u, err := url.Parse(p.URL())
			if err != nil {
				t.Fatal(err)
			}
			hosts := func(string) ([]docker.RegistryHost, error) {
				return []docker.RegistryHost{{Client: &http.Client{Transport: &http.Transport{}}, Host: u.Host, Scheme: "http", Path: "/v2", Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve}}, nil
			}
			spec, err := reference.Parse("docker.io/library/app:1")
			if err != nil {
				t.Fatal(err)
			}
			// The table of contents names the layer, as for every snapshotter.
			if got, err := http.Get(p.URL() + "/v2/library/app/manifests/1"); err != nil || got.StatusCode != http.StatusOK {
				t.Fatal(got, err)
			}
			read := open(t, hosts, spec, layer)
			var asked int64
			at := func(from, n int64) {
				t.Helper()
				asked += n
				b := make([]byte, n)
				k, err := read(b, from)
				if err != nil && err != io.EOF || !bytes.Equal(b[:k], want[from:from+n]) {
					t.Fatalf("%d bytes at %d: %d, %v", n, from, k, err)
				}
			}
			at(layer.Size-51, 51) // the footer
			at(200_000, 1000)
			at(0, 400_000) // with a hole for who cached the former
			r := rand.New(rand.NewPCG(1, 2))
			for range 8 {
				at(r.Int64N(layer.Size-100_000), 100_000)
			}
			p.WaitIdle(t)
			sent, fetched := int64(w.blobBytes(t)), h.Sent(layer.Digest)
			t.Logf("%d bytes read, %d sent to the client, %d fetched", asked, sent, fetched)
			// Each piece is rounded to 64 KiB at either end. This code of nydus asks for everything from
			// an offset, and closes the connection when it has its piece.
			if bound := asked + 12*2*64<<10; name != "nydus" && fetched > bound+bound/4 {
				t.Errorf("%d bytes were read, %d fetched from the upstream", asked, fetched)
			}
		})
	}
}
