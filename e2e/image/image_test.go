package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
)

func TestEveryKindIsWhole(t *testing.T) {
	base := image.New(image.Options{Seed: 1})
	subject := base.Descriptor()
	mixed := []image.Layer{{Size: 5000}, {Size: 70000, Compression: image.Zstd}, {Size: 10, Compression: image.None}}
	for name, c := range map[string]struct {
		image     *image.Image
		mediaType string
		manifests int
	}{
		"oci":       {image.New(image.Options{Seed: 2, Layers: mixed}), v1.MediaTypeImageManifest, 1},
		"docker":    {image.New(image.Options{Seed: 2, Layers: mixed, Flavour: image.Docker}), oci.MediaTypeDockerManifest, 1},
		"index":     {image.Index(image.Options{Seed: 3}), v1.MediaTypeImageIndex, 4},
		"list":      {image.Index(image.Options{Seed: 3, Flavour: image.Docker}), oci.MediaTypeDockerManifestList, 4},
		"sha512":    {image.New(image.Options{Seed: 4, Algorithm: digest.SHA512}), v1.MediaTypeImageManifest, 1},
		"artifact":  {image.Artifact(5, "application/x.sbom", 99, &subject), v1.MediaTypeImageManifest, 1},
		"chart":     {image.HelmChart(6, "app", "1.2.3"), v1.MediaTypeImageManifest, 1},
		"signature": {image.Signature(7, subject, "docker.io/library/x"), v1.MediaTypeImageManifest, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.image.MediaType(); got != c.mediaType {
				t.Errorf("media type: want %s, got %s", c.mediaType, got)
			}
			if got := len(c.image.Manifests); got != c.manifests {
				t.Errorf("manifests: want %d, got %d", c.manifests, got)
			}
			for d, m := range c.image.Manifests {
				if got := d.Algorithm().FromBytes(m.Bytes); got != d {
					t.Errorf("manifest: want %s, got %s", d, got)
				}
			}
			for d, b := range c.image.Blobs {
				if got := d.Algorithm().FromBytes(b); got != d {
					t.Errorf("blob: want %s, got %s", d, got)
				}
			}
			for d, m := range c.image.Manifests {
				if m.MediaType == v1.MediaTypeImageIndex || m.MediaType == oci.MediaTypeDockerManifestList {
					continue
				}
				p := c.image.Parsed(d)
				for _, l := range append(p.Layers, p.Config) {
					if got := int64(len(c.image.Blobs[l.Digest])); got != l.Size {
						t.Errorf("%s: size %d in the manifest, %d in the blob", l.Digest, l.Size, got)
					}
				}
			}
		})
	}
}

func TestDiffIDsAreThoseOfTheLayersTars(t *testing.T) {
	i := image.New(image.Options{Seed: 9, Platform: "linux/arm/v7", Layers: []image.Layer{
		{Size: 5000}, {Size: 6000, Compression: image.Zstd}, {Size: 10, Compression: image.None},
	}})
	m := i.Parsed(i.Digest)
	var cfg v1.Image
	if err := json.Unmarshal(i.Blobs[m.Config.Digest], &cfg); err != nil {
		t.Fatal(err)
	}
	if cfg.Architecture != "arm" || cfg.Variant != "v7" || cfg.OS != "linux" {
		t.Errorf("platform: want linux/arm/v7, got %+v", cfg.Platform)
	}
	for n, l := range m.Layers {
		plain := unpack(t, l.MediaType, i.Blobs[l.Digest])
		if want, got := cfg.RootFS.DiffIDs[n], digest.FromBytes(plain); want != got {
			t.Errorf("layer %d: want diff ID %s, got %s", n, want, got)
		}
		var names []string
		for tr := tar.NewReader(bytes.NewReader(plain)); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("layer %d: %v", n, err)
			}
			names = append(names, h.Name)
		}
		if want := "opt/layer-" + string(rune('0'+n)); !slices.Contains(names, want) {
			t.Errorf("layer %d: want %s in it, got %v", n, want, names)
		}
	}
}

func unpack(t *testing.T, mediaType string, packed []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(packed)
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		zr, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		r = zr
	case strings.HasSuffix(mediaType, "zstd"):
		zr, err := zstd.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		defer zr.Close()
		r = zr
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheSeedDecidesEveryByte(t *testing.T) {
	o := image.Options{Seed: 1, Layers: []image.Layer{{Size: 100}, {Size: 100, Compression: image.Zstd}}}
	a, again := image.Index(o), image.Index(o)
	if a.Digest != again.Digest {
		t.Errorf("the same seed gave %s and %s", a.Digest, again.Digest)
	}
	o.Seed = 2
	b := image.Index(o)
	for d := range a.Blobs {
		if _, ok := b.Blobs[d]; ok {
			t.Errorf("seeds 1 and 2 share blob %s", d)
		}
	}
}

func TestReferrersTagIsCutForLongDigests(t *testing.T) {
	long := digest.SHA512.FromString("x")
	want := "sha512-" + long.Encoded()[:64]
	if got := image.ReferrersTag(long); got != want {
		t.Errorf("want %s, got %s", want, got)
	}
}
