package e2e

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
)

// client is a registry client, pulling from one repository.
type client interface {
	// resolve gives the digest of a tag.
	resolve(tag string) (digest.Digest, error)
	// manifest and blob pull content by digest.
	manifest(d digest.Digest) ([]byte, error)
	blob(d digest.Digest) ([]byte, error)
}

// connector makes a client that remembers nothing, for a repository at a host
// that speaks plain http.
type connector func(t *testing.T, host, repo string) client

// The clients pull from the hub itself as well: so it is no hub of our
// imagination only. It has no token server and no CDN there, for some of them
// follow nobody to a private address.
func TestClientsPullFromTheHubItself(t *testing.T) {
	for name, connect := range map[string]connector{"crane": connectCrane, "regclient": connectRegClient, "oras": connectORAS} {
		t.Run(name, func(t *testing.T) {
			h := hub.New(t, hub.Options{Auth: hub.Open, NoCDN: true})
			i := image.Index(image.Options{Seed: 1})
			h.Push("org/app", "1.0", i)
			c := connect(t, h.Host(), "org/app")
			d, err := c.resolve("1.0")
			if err != nil || d != i.Digest {
				t.Fatalf("resolve: want %s, got %s, %v", i.Digest, d, err)
			}
			pullAll(t, i, c.manifest, c.blob)
		})
	}
}

// pullsEverything pulls every kind of image by tag and by digest: cold, again
// with the upstream there, and again without it. Each time it is a client that
// remembers nothing. What arrives is what the upstream has; after the first
// pull the upstream is not asked for anything.
func pullsEverything(t *testing.T, connect connector) {
	layers := []image.Layer{{Size: 200 << 10}, {Size: 3000, Compression: image.Zstd}}
	base := image.New(image.Options{Seed: 10})
	subject := base.Descriptor()
	for name, i := range map[string]*image.Image{
		"oci-index":   image.Index(image.Options{Seed: 1, Layers: layers}),
		"docker-list": image.Index(image.Options{Seed: 2, Flavour: image.Docker}),
		"oci":         image.New(image.Options{Seed: 3, Layers: layers}),
		"docker":      image.New(image.Options{Seed: 4, Flavour: image.Docker}),
		"chart":       image.HelmChart(5, "app", "1.2.3"),
		"signature":   image.Signature(6, v1.Descriptor{Digest: base.Digest}, "docker.io/library/app"),
		"artifact":    image.Artifact(7, "application/x.sbom", 50<<10, &subject),
	} {
		t.Run(name, func(t *testing.T) {
			h, p := start(t, believing)
			h.Push("org/app", "1.0", i)
			pull := func() {
				t.Helper()
				c := connect(t, p.Host(), "docker.io/org/app")
				d, err := c.resolve("1.0")
				if err != nil || d != i.Digest {
					t.Fatalf("resolve: want %s, got %s, %v", i.Digest, d, err)
				}
				pullAll(t, i, c.manifest, c.blob)
			}
			pull()
			p.WaitIdle(t)
			first := h.Counts()
			if first.Leaks != 0 {
				t.Errorf("an Authorization header went where it does not belong")
			}
			if want := blobBytes(i); first.CDNBytes != want {
				t.Errorf("the upstream sent %d bytes of blobs, and there are %d", first.CDNBytes, want)
			}
			pull()
			wantUnmoved(t, first, h.Counts())
			h.Down()
			pull()
			wantUnmoved(t, first, h.Counts())
		})
	}
}

func blobBytes(i *image.Image) (n int64) {
	for _, b := range i.Blobs {
		n += int64(len(b))
	}
	return n
}

// referring pushes an image with three referrers, two of them SBOMs, and gives it.
func referring(h *hub.Hub, repo string) *image.Image {
	i := image.New(image.Options{Seed: 20})
	subject := i.Descriptor()
	h.Push(repo, "1.0", i)
	for n, kind := range []string{"application/x.sbom", "application/x.sig", "application/x.sbom"} {
		h.Push(repo, "", image.Artifact(uint64(30+n), kind, 100, &subject))
	}
	return i
}

// manyTags pushes tags that take several pages, and gives them in order.
func manyTags(h *hub.Hub, repo string) []string {
	var tags []string
	for n := range 25 {
		tag := fmt.Sprintf("v%02d", n)
		tags = append(tags, tag)
		h.Push(repo, tag, image.New(image.Options{}))
	}
	return tags
}
