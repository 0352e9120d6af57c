package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	gcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/content/oci"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestOthersReadABundle with the libraries of which crane and oras are made: the one
// reads it as a layout in a directory and as what "docker save" writes, the other as a
// layout in a tar, with what refers to an image.
func TestOthersReadABundle(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	index, list, signed := image.Index(image.Options{Seed: 1}), image.Index(image.Options{Seed: 2, Flavour: image.Docker}), image.New(image.Options{Seed: 3})
	subject := signed.Descriptor()
	sbom := image.Artifact(4, "application/x.sbom", 100, &subject)
	tagAndPull(t, h, p, "library/index", "1", index)
	tagAndPull(t, h, p, "library/list", "1", list)
	h.Push("library/signed", "", sbom)
	tagAndPull(t, h, p, "library/signed", "1", signed)
	get(t, p, "/v2/library/signed/referrers/"+signed.Digest.String())
	pullRaw(t, p, "library/signed", sbom)
	p.WaitIdle(t)
	file := filepath.Join(t.TempDir(), "bundle.tar")
	operate(t, p, "export", "--bundle", file, "index:1", "list:1", "signed:1").want(t, 0, "4 images")
	images := map[string]*image.Image{"docker.io/library/index:1": index, "docker.io/library/list:1": list, "docker.io/library/signed:1": signed}

	t.Run("oras", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		from, err := oci.NewFromTar(ctx, file)
		if err != nil {
			t.Fatal(err)
		}
		to := memory.New()
		for ref, i := range images {
			if d, err := oras.ExtendedCopy(ctx, from, ref, to, ref, oras.DefaultExtendedCopyOptions); err != nil || d.Digest != i.Digest {
				t.Errorf("%s: got %s, %v; want %s", ref, d.Digest, err, i.Digest)
			}
		}
		referrers, err := to.Predecessors(ctx, signed.Descriptor())
		if err != nil || len(referrers) != 1 || referrers[0].Digest != sbom.Digest {
			t.Errorf("referrers: got %v, %v; want %s", referrers, err, sbom.Digest)
		}
	})
	t.Run("crane", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "layout")
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", `mkdir "$1" && tar -xf "$0" -C "$1"`, file, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		all, err := layout.ImageIndexFromPath(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range []*image.Image{index, list} {
			h, err := gcr.NewHash(i.Digest.String())
			if err != nil {
				t.Fatal(err)
			}
			one, err := all.ImageIndex(h)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Index(one); err != nil {
				t.Error(err)
			}
		}
		for ref, i := range images {
			tag, err := name.NewTag(ref)
			if err != nil {
				t.Fatal(err)
			}
			saved, err := tarball.ImageFromPath(file, &tag)
			if err != nil {
				t.Fatalf("%s: %v", ref, err)
			}
			root := i.Digest
			if len(i.Platforms) > 1 {
				root = i.Platforms["linux/amd64"]
			}
			if got, err := saved.ConfigName(); err != nil || got.String() != i.Parsed(root).Config.Digest.String() {
				t.Errorf("%s: config %s, %v", ref, got, err)
			}
		}
	})
}

// TestWhatCranePullsIsImported writes an image with the library of which crane is made, in its
// two formats of a tar, and imports it where the registry is out of reach.
func TestWhatCranePullsIsImported(t *testing.T) {
	t.Parallel()
	h, online := start(t, "")
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	tag, err := name.NewTag(strings.TrimPrefix(online.URL(), "http://")+"/library/app:1.0", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(tag, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	for format, save := range map[string]func(file string) error{
		"tarball": func(file string) error { return crane.Save(img, "docker.io/library/app:1.0", file) },
		"legacy":  func(file string) error { return crane.SaveLegacy(img, "docker.io/library/app:1.0", file) },
	} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "app.tar")
			if err := save(file); err != nil {
				t.Fatal(err)
			}
			p := proxy.Start(t, proxy.Options{Config: "cache: {offline: true}"})
			operate(t, p, "import", file).want(t, 0, "docker.io/library/app:1.0")
			got := get(t, p, "/v2/library/app/manifests/1.0")
			var m v1.Manifest
			if err := json.Unmarshal(got.body, &m); err != nil {
				t.Fatal(err)
			}
			if m.Config.Digest != i.Parsed(i.Digest).Config.Digest || len(m.Layers) == 0 {
				t.Errorf("got %+v", m)
			}
			for _, l := range append(m.Layers, m.Config) {
				if b := get(t, p, "/v2/library/app/blobs/"+l.Digest.String()).body; digest.FromBytes(b) != l.Digest {
					t.Errorf("%s: got %d bytes of something else", l.Digest, len(b))
				}
			}
		})
	}
}
