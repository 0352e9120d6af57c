package bundle

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// sample fills a cache with an index of which one platform is here, and an image whose
// content is addressed by SHA-512, and gives a bundle of both.
func sample(w *world) (index, other *image.Image, p *Plan) {
	w.t.Helper()
	index = image.Index(image.Options{Seed: 1, Layers: []image.Layer{{Size: 100_000}, {Size: 3}, {Size: 3}}})
	other = image.New(image.Options{Seed: 2, Algorithm: digest.SHA512})
	w.push("library/index", "1", index)
	w.push("library/other", "1", other)
	w.pull(target("library/index", "1", ""), index, "linux/arm64")
	w.pull(target("library/other", "1", ""), other)
	return index, other, w.plan(Choice{All: true})
}

// entries reads a tar.
func entries(t *testing.T, b []byte) (names []string, files map[string][]byte) {
	t.Helper()
	files = map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg || h.Mode != 0o644 || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || h.ModTime.Unix() != 0 {
			t.Errorf("%s: got %+v", h.Name, h)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		names, files[h.Name] = append(names, h.Name), content
	}
}

func TestTarIsALayoutWithAllContentByteForByte(t *testing.T) {
	w := newWorld(t)
	index, other, p := sample(w)
	names, files := entries(t, w.tar(p))
	wantList(t, "the first files", names[:4], []string{"oci-layout", "entrepot.json", "index.json", "manifest.json"})
	if got := string(files[LayoutName]); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: got %s", got)
	}
	arm64 := index.Platforms["linux/arm64"]
	manifests := []string{BlobName(index.Digest), BlobName(arm64), BlobName(other.Digest)}
	slices.SortFunc(manifests, func(a, b string) int {
		return strings.Compare(a[strings.Index(a, "/")+1:], b[strings.Index(b, "/")+1:])
	})
	wantList(t, "manifests", names[4:7], manifests)
	for _, i := range []*image.Image{index, other} {
		for d, m := range i.Manifests {
			if got := files[BlobName(d)]; !bytes.Equal(got, m.Bytes) && (got != nil || i == other) {
				t.Errorf("manifest %s: got %q", d, got)
			}
		}
	}
	for _, d := range whole(index, "linux/arm64") {
		if b, ok := index.Blobs[d]; ok && !bytes.Equal(files[BlobName(d)], b) {
			t.Errorf("blob %s: got %d bytes, want %d", d, len(files[BlobName(d)]), len(b))
		}
	}

	var layout v1.Index
	if err := json.Unmarshal(files[IndexName], &layout); err != nil || len(layout.Manifests) != 2 {
		t.Fatalf("index.json: %v, %s", err, files[IndexName])
	}
	d := layout.Manifests[0]
	fetched := p.Contents.Images[0].Fetched.Format("2006-01-02T15:04:05Z")
	want := map[string]string{
		v1.AnnotationRefName: "docker.io/library/index:1", AnnotationContainerdName: "docker.io/library/index:1",
		AnnotationUpstream: "docker.io", AnnotationRepository: "library/index", AnnotationTag: "1", AnnotationFetched: fetched,
	}
	for k, v := range want {
		if d.Annotations[k] != v {
			t.Errorf("annotation %s: want %q, got %q", k, v, d.Annotations[k])
		}
	}
	if d.Digest != index.Digest || d.Size != int64(len(index.Bytes())) || d.MediaType != index.MediaType() || len(d.Annotations) != len(want) {
		t.Errorf("descriptor: got %+v", d)
	}

	var docker []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files[DockerName], &docker); err != nil || len(docker) != 2 {
		t.Fatalf("manifest.json: %v, %s", err, files[DockerName])
	}
	m := index.Parsed(arm64)
	if docker[0].Config != BlobName(m.Config.Digest) || len(docker[0].Layers) != len(m.Layers) || docker[0].Layers[2] != BlobName(m.Layers[2].Digest) {
		t.Errorf("manifest.json: got %+v", docker[0])
	}
	wantList(t, "tags for Docker", docker[0].RepoTags, []string{"docker.io/library/index:1"})
}

func TestTarIsTheSameFromEveryPlace(t *testing.T) {
	w := newWorld(t)
	_, _, p := sample(w)
	want := w.tar(p)
	if again := w.tar(w.plan(Choice{All: true})); !bytes.Equal(again, want) {
		t.Error("the same cache gives another bundle")
	}
	f, err := Lay(p.Contents, p.Docker)
	if err != nil {
		t.Fatal(err)
	}
	places := []int64{0, 1, f.Size - 1, f.Size}
	for _, file := range f.List {
		places = append(places, file.Start, file.Start+1, file.Begin, file.Begin+1, file.Begin+file.Size, file.End)
	}
	for _, from := range places {
		var b bytes.Buffer
		if err := f.WriteTar(t.Context(), &b, from, w); err != nil || !bytes.Equal(b.Bytes(), want[from:]) {
			t.Errorf("from %d: %d bytes, %v, want the last %d", from, b.Len(), err, int64(len(want))-from)
		}
	}
	for _, c := range []struct {
		place  int64
		file   string
		before int
	}{{0, LayoutName, 0}, {f.List[1].Start, ContentsName, 1}, {f.List[1].End - 1, ContentsName, 1}, {f.Size, "", len(f.List)}} {
		file, before := f.At(c.place)
		if before != c.before || (file == nil) != (c.file == "") || file != nil && file.Name != c.file {
			t.Errorf("at %d: want %q after %d, got %+v after %d", c.place, c.file, c.before, file, before)
		}
	}
}

func TestDamagedContentEndsTheBundleAndIsSetAside(t *testing.T) {
	w := newWorld(t)
	index, _, p := sample(w)
	layer := index.Layers("linux/arm64")[0].Digest
	b := readFile(t, w.file(layer))
	b[len(b)/2] ^= 1
	if err := os.WriteFile(w.file(layer), b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Lay(p.Contents, p.Docker)
	if err != nil {
		t.Fatal(err)
	}
	err = f.WriteTar(t.Context(), io.Discard, 0, w)
	if e := (*ContentError)(nil); !errors.As(err, &e) || e.Digest != layer || !strings.Contains(err.Error(), "the stored bytes are not the digest's: fetch its image again (entrepot warm)") {
		t.Errorf("want what is damaged, and what to do, got %v", err)
	}
	if _, err := os.Stat(w.file(layer)); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	err = f.WriteTar(t.Context(), io.Discard, 0, w)
	if err == nil || !strings.Contains(err.Error(), "it is not here any more") {
		t.Errorf("want that it is gone, got %v", err)
	}
}

func TestContentsThatMakeNoSenseAreNotLaid(t *testing.T) {
	for _, c := range []Content{{Digest: "sha256:../../etc", Present: true}, {Digest: digest.FromString("x"), Size: -1, Present: true}} {
		if _, err := Lay(&Contents{Contents: []Content{c}}, nil); !errors.Is(err, ErrContents) {
			t.Errorf("%+v: want ErrContents, got %v", c, err)
		}
	}
}

// TestWhatNoImportTakesIsNotLaid: who carries a bundle over is to learn that before.
func TestWhatNoImportTakesIsNotLaid(t *testing.T) {
	long := strings.Repeat("a", maxDocument/4)
	for what, c := range map[string]struct {
		contents Contents
		docker   []byte
	}{
		"files":      {contents: Contents{Contents: make([]Content, maxEntries)}},
		"a document": {contents: Contents{Contents: []Content{{Digest: digest.FromString("x"), In: []string{long, long, long, long}}}}},
		"the index":  {contents: Contents{Images: []Image{{Repository: long}, {Repository: long}}}},
		"for Docker": {docker: make([]byte, maxDocument+1)},
	} {
		if _, err := Lay(&c.contents, c.docker); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: want ErrTooLarge, got %v", what, err)
		}
	}
}
