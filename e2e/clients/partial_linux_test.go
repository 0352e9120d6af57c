package clients

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// containersImage builds the program that copies images with the libraries of Podman and Skopeo.
func containersImage(t *testing.T) string {
	t.Helper()
	if !required() && os.Getenv("NEWEST_CLIENTS") == "" {
		missing(t, "the libraries of Podman take long to build: NEWEST_CLIENTS is not set")
	}
	path := filepath.Join(t.TempDir(), "containersimage")
	ctx, cancel := context.WithTimeout(t.Context(), 5*limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "containers_image_openpgp,exclude_graphdriver_btrfs", "-o", path, "./containersimage")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return path
}

// filesImage gives an image for one platform with one layer of 40 files of 256 KiB, those of
// which seed says more are others.
func filesImage(t *testing.T, program string, others int) *image.Image {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for i := range 40 {
		seed := uint64(i)
		if i%8 == 3 && i/8 < others {
			seed += 1000
		}
		content := make([]byte, 256<<10)
		r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
		_, _ = r.Read(content) // it never fails
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: fmt.Sprintf("file-%02d", i), Mode: 0o644, Size: int64(len(content))}), second(w.Write(content))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// An OCI layout with the plain tar, which the library compresses in its own way.
	dir := t.TempDir()
	blob := func(mediaType string, content []byte) v1.Descriptor {
		d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
		write(t, dir, "blobs/sha256/"+d.Digest.Encoded(), string(content))
		return d
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	config := v1.Image{Platform: v1.Platform{Architecture: "amd64", OS: "linux"}, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer.Bytes())}}}
	root := blob(v1.MediaTypeImageManifest, encode(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: blob(v1.MediaTypeImageConfig, encode(config)), Layers: []v1.Descriptor{blob(v1.MediaTypeImageLayer, layer.Bytes())},
	}))
	write(t, dir, "index.json", string(encode(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{root}})))
	write(t, dir, "oci-layout", `{"imageLayoutVersion": "1.0.0"}`)
	to := t.TempDir()
	run(t, nil, program, "-zstd-chunked", "oci:"+dir, "oci:"+to+":1")

	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(to, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var index v1.Index
	if err := json.Unmarshal(read("index.json"), &index); err != nil || len(index.Manifests) != 1 {
		t.Fatal(err, index)
	}
	m := index.Manifests[0]
	manifest := image.Manifest{MediaType: m.MediaType, Bytes: read("blobs/sha256/" + m.Digest.Encoded())}
	i := &image.Image{Digest: m.Digest, Manifests: map[digest.Digest]image.Manifest{m.Digest: manifest}, Blobs: map[digest.Digest][]byte{}, Platforms: map[string]digest.Digest{"linux/amd64": m.Digest}}
	parsed := i.Parsed(m.Digest)
	for _, d := range append(parsed.Layers, parsed.Config) {
		i.Blobs[d.Digest] = read("blobs/sha256/" + d.Digest.Encoded())
	}
	if parsed.Layers[0].Annotations["io.github.containers.zstd-chunked.manifest-checksum"] == "" {
		t.Fatalf("the layer is not zstd:chunked: %+v", parsed.Layers[0])
	}
	return i
}

func second[T any](_ T, err error) error { return err }

// TestPodmansLibraryPullsTheFilesThatItLacks pulls an image, and then one that differs in 5 of 40
// files, into a store that takes parts of layers. What it is sent the second time is the 5 files.
func TestPodmansLibraryPullsTheFilesThatItLacks(t *testing.T) {
	needRoot(t, "a store with overlay mounts")
	program := containersImage(t)
	noteLibrary(t, "go.podman.io/image/v5")
	noteLibrary(t, "go.podman.io/storage")
	first, next := filesImage(t, program, 0), filesImage(t, program, 5)
	layer := func(i *image.Image) v1.Descriptor { return i.Layers("linux/amd64")[0] }
	// What it lacks: 5 files that don't compress, and the layer's table of contents.
	lacks := int64(5*256<<10 + 40<<10)

	for _, state := range []string{"cold", "warm"} {
		t.Run(state, func(t *testing.T) {
			h := hub.New(t, hub.Options{})
			h.Push("library/app", "1", first)
			h.Push("library/app", "2", next)
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}})
			w := &world{hub: h, proxy: p}
			registries := registriesConf(t, p.Host())
			store := shortDir(t)
			pull := func(tag string) {
				run(t, []string{"XDG_RUNTIME_DIR=" + store}, program, "-registries", registries, "-store", store, "-arch", "amd64", "docker://docker.io/library/app:"+tag, "localhost/app:"+tag)
			}
			pull("1")
			if state == "warm" {
				resp, err := http.Get(p.URL() + "/v2/docker.io/library/app/blobs/" + layer(next).Digest.String())
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.Copy(io.Discard, resp.Body)
				if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK {
					t.Fatal(resp.Status, err)
				}
			}
			p.WaitIdle(t)
			sent, fetched := w.blobBytes(t), h.Sent(layer(next).Digest)
			pull("2")
			config := float64(len(next.Blobs[next.Parsed(next.Digest).Config.Digest]))
			if got := w.blobBytes(t) - sent - config; got > 1.1*float64(lacks) {
				t.Errorf("the client was sent %.0f bytes of a layer of %d for %d that it lacked", got, layer(next).Size, lacks)
			} else {
				t.Logf("the client was sent %.0f bytes of a layer of %d for %d that it lacked: %.2fx", got, layer(next).Size, lacks, got/float64(lacks))
			}
			if got := h.Sent(layer(next).Digest) - fetched; state == "warm" && got > 0 {
				t.Errorf("the upstream sent %d bytes of what was cached", got)
			}
		})
	}
}
