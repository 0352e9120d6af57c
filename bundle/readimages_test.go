package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
)

// plain makes an image layout of images, whose index says the annotations that are given.
func plain(images []*image.Image, annotations ...map[string]string) *packed {
	p, index := &packed{}, v1.Index{MediaType: v1.MediaTypeImageIndex}
	seen := map[digest.Digest]bool{}
	add := func(d digest.Digest, b []byte) {
		if !seen[d] {
			seen[d] = true
			p.add("./"+BlobName(d), b)
		}
	}
	for n, i := range images {
		d := i.Descriptor()
		if n < len(annotations) {
			d.Annotations = annotations[n]
		}
		index.Manifests = append(index.Manifests, d)
		for d, m := range i.Manifests {
			add(d, m.Bytes)
		}
		for d, b := range i.Blobs {
			add(d, b)
		}
	}
	// What says what it is comes last, as in many archives.
	p.addSpecial(tar.TypeDir, "./", "")
	p.addSpecial(tar.TypeDir, "./blobs/", "")
	p.addJSON("./"+IndexName, index)
	p.add("./"+LayoutName, layoutFile)
	return p
}

func name(s string) map[string]string { return map[string]string{v1.AnnotationRefName: s} }

func TestAPlainLayoutIsTakenByTheNamesThatItSays(t *testing.T) {
	index, one := image.Index(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	signature := image.Artifact(3, "application/vnd.example.signature", 100, ptr(one.Descriptor()))
	in := newInside(t, nil)
	p := plain([]*image.Image{index, one, signature},
		map[string]string{v1.AnnotationRefName: "1", AnnotationContainerdName: "docker.io/library/index:1"}, name("quay.example.test/org/one:2"))
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(p.bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	done, err := in.take(&packed, "")
	if err != nil || len(done.Images) != 3 {
		t.Fatalf("%+v, %v", done, err)
	}
	in.wantImage("index:1", index)
	in.wantImage("quay.example.test/org/one:2", one)
	target, _ := in.target("quay.example.test/org/one@" + one.Digest.String())
	if list, _, err := in.Referrers(t.Context(), target); err != nil || len(list) != 1 || list[0].Digest != signature.Digest {
		t.Errorf("the referrers are %+v, %v", list, err)
	}
}

func TestAPlainLayoutIsTakenByTheNameThatIsGiven(t *testing.T) {
	one, two := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	signature := image.Artifact(3, "application/vnd.example.signature", 100, ptr(one.Descriptor()))
	for what, c := range map[string]struct {
		archive *packed
		name    string
		want    string
	}{
		"no name":           {plain([]*image.Image{one}), "app:1", ""},
		"a tag alone":       {plain([]*image.Image{one}, name("1")), "app:1", ""},
		"another name":      {plain([]*image.Image{one}, name("docker.io/library/other:1")), "app:1", ""},
		"a signature":       {plain([]*image.Image{signature, one}), "app:1", ""},
		"its digest":        {plain([]*image.Image{one}), "app@" + one.Digest.String(), ""},
		"another's digest":  {plain([]*image.Image{one}), "app@" + two.Digest.String(), "is not the digest of its image"},
		"no name is given":  {plain([]*image.Image{one}, name("1")), "", "say it: --name"},
		"two images":        {plain([]*image.Image{one, two}), "app:1", "--name is for one"},
		"two images, named": {plain([]*image.Image{one, two}, name("docker.io/library/a:1"), name("docker.io/library/b:1")), "app:1", "--name is for one"},
		"one is nameless":   {plain([]*image.Image{one, two}, name("docker.io/library/a:1")), "", "say it: --name"},
	} {
		t.Run(what, func(t *testing.T) {
			in := newInside(t, nil)
			done, err := in.take(bytes.NewReader(c.archive.bytes()), c.name)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("want %q, got %+v, %v", c.want, done, err)
				}
				in.wantNothing()
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			in.wantImage(c.name, one)
		})
	}
}

// TestAPlainLayoutThatIsWrongIsRefused is about what a bundle's contents would say
// before.
func TestAPlainLayoutThatIsWrongIsRefused(t *testing.T) {
	index := image.Index(image.Options{Seed: 1})
	amd64 := index.Parsed(index.Platforms["linux/amd64"])
	layer := "./" + BlobName(amd64.Layers[0].Digest)
	for what, c := range map[string]struct {
		change func(p *packed)
		want   string
	}{
		"no layer":   {func(p *packed) { p.drop(layer) }, "names what is not there: " + amd64.Layers[0].Digest.String()},
		"no config":  {func(p *packed) { p.drop("./" + BlobName(amd64.Config.Digest)) }, "names what is not there"},
		"no index":   {func(p *packed) { p.drop("./" + BlobName(index.Digest)) }, "which is not in it"},
		"extra blob": {func(p *packed) { p.add(BlobName(digest.FromString("evil")), []byte("evil")) }, "none of its images names"},
		"no images":  {func(p *packed) { p.replace("./"+IndexName, []byte(`{"manifests":[]}`)) }, "names no image"},
		"neither":    {func(p *packed) { p.drop("./" + IndexName) }, "no archive of images"},
		"a wrong digest": {func(p *packed) {
			p.replace("./"+IndexName, []byte(`{"manifests":[{"digest":"sha256:beef","size":1}]}`))
		}, "names no image"},
		"no manifests but an index": {func(p *packed) {
			for d := range index.Manifests {
				if d != index.Digest {
					p.drop("./" + BlobName(d))
				}
			}
			for d := range index.Blobs {
				p.drop("./" + BlobName(d))
			}
		}, "none of the manifests is there"},
	} {
		t.Run(what, func(t *testing.T) {
			p := plain([]*image.Image{index}, name("docker.io/library/app:1"))
			c.change(p)
			in := newInside(t, nil)
			if _, err := in.take(bytes.NewReader(p.bytes()), ""); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want %q, got %v", c.want, err)
			}
			in.wantNothing()
		})
	}
}

// saved makes what "docker save" wrote before version 25: three layers, of which two are
// the same, and the last is packed.
func saved(tags ...string) (p *packed, layers [][]byte, config []byte) {
	p = &packed{}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, _ = w.Write([]byte("the third layer"))
	_ = w.Close()
	layers = [][]byte{bytes.Repeat([]byte("layer"), 1000), bytes.Repeat([]byte("layer"), 1000), z.Bytes()}
	image := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "arm64"}}
	for _, l := range layers {
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, digest.FromBytes(l))
	}
	config, err := json.Marshal(image)
	if err != nil {
		panic(err)
	}
	p.addSpecial(tar.TypeDir, "a/", "")
	p.add("a/VERSION", []byte("1.0"))
	p.add("a/json", []byte("{}"))
	p.add("a/layer.tar", layers[0])
	p.addSpecial(tar.TypeSymlink, "b/layer.tar", "../a/layer.tar")
	p.add("c/layer.tar", layers[2])
	configName := digest.FromBytes(config).Encoded() + ".json"
	p.add(configName, config)
	p.addJSON(DockerName, []map[string]any{{"Config": configName, "RepoTags": tags, "Layers": []string{"a/layer.tar", "b/layer.tar", "c/layer.tar"}}})
	p.add("repositories", []byte("{}"))
	return p, layers, config
}

func TestWhatDockerSavesIsTakenAsItIs(t *testing.T) {
	p, layers, config := saved("app:1", "quay.example.test/org/app:2")
	in := newInside(t, nil)
	done, err := in.take(bytes.NewReader(p.bytes()), "")
	if err != nil || len(done.Images) != 2 || !slices.Equal(done.Images[0].Platforms, []string{"linux/arm64"}) {
		t.Fatalf("%+v, %v", done, err)
	}
	for _, ref := range []string{"app:1", "quay.example.test/org/app:2"} {
		target, err := in.target(ref)
		if err != nil {
			t.Fatal(err)
		}
		m, _, err := in.Manifest(t.Context(), target, acceptAll)
		if err != nil {
			t.Fatal(err)
		}
		var manifest v1.Manifest
		if err := json.Unmarshal(m.Bytes, &manifest); err != nil {
			t.Fatal(err)
		}
		wanted := append(slices.Clone(layers), config)
		for n, d := range append(slices.Clone(manifest.Layers), manifest.Config) {
			target.Tag, target.Digest = "", d.Digest
			b, _, err := in.Blob(t.Context(), target, oci.Whole)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if _, err := b.Send(&got, oci.Whole); err != nil || !bytes.Equal(got.Bytes(), wanted[n]) || d.Size != int64(got.Len()) {
				t.Errorf("%s: got %d bytes, want %d, %v", d.Digest, got.Len(), len(wanted[n]), err)
			}
			b.Close()
		}
		var types []string
		for _, l := range manifest.Layers {
			types = append(types, l.MediaType)
		}
		if want := []string{v1.MediaTypeImageLayer, v1.MediaTypeImageLayer, v1.MediaTypeImageLayerGzip}; !slices.Equal(types, want) {
			t.Errorf("got the types %v", types)
		}
	}
}

func TestWhatDockerSavesIsTakenByTheNameThatIsGiven(t *testing.T) {
	p, _, _ := saved()
	in := newInside(t, nil)
	if _, err := in.take(bytes.NewReader(p.bytes()), ""); err == nil || !strings.Contains(err.Error(), "say it: --name") {
		t.Errorf("without a name: %v", err)
	}
	in.wantNothing()
	if done, err := in.take(bytes.NewReader(p.bytes()), "app:3"); err != nil || done.Images[0].Reference != "docker.io/library/app:3" {
		t.Errorf("%+v, %v", done, err)
	}
}

func TestWhatIsWrongOfDockerIsRefused(t *testing.T) {
	for what, c := range map[string]struct {
		change func(p *packed)
		want   string
	}{
		"a layer of another image": {func(p *packed) { p.contents[p.at("a/layer.tar")][0] ^= 1 }, "is not the layer 1"},
		"no layer":                 {func(p *packed) { p.drop("c/layer.tar") }, `names "c/layer.tar", which is not in it`},
		"a link to nothing":        {func(p *packed) { p.headers[p.at("b/layer.tar")].Linkname = "../x/layer.tar" }, `names "x/layer.tar"`},
		"a link to itself":         {func(p *packed) { p.headers[p.at("b/layer.tar")].Linkname = "layer.tar" }, "which is not in it"},
		"a link out":               {func(p *packed) { p.headers[p.at("b/layer.tar")].Linkname = "../../layer.tar" }, "is a link"},
		"a link to a file":         {func(p *packed) { p.headers[p.at("b/layer.tar")].Linkname = "/etc/passwd" }, "is a link"},
		"a layer too many":         {func(p *packed) { p.add("d/layer.tar", []byte("evil")) }, "none of its images names"},
		"no config":                {func(p *packed) { p.replace(DockerName, []byte(`[{"Config":"x.json","RepoTags":["app:1"]}]`)) }, `names "x.json"`},
		"no image":                 {func(p *packed) { p.replace(DockerName, []byte(`[]`)) }, "names no image"},
		"no list":                  {func(p *packed) { p.replace(DockerName, []byte(`{}`)) }, "not what it should be"},
		"a tag that is none": {func(p *packed) {
			p.replace(DockerName, bytes.Replace(p.contents[p.at(DockerName)], []byte("app:1"), []byte("A B"), 1))
		}, "no reference"},
	} {
		t.Run(what, func(t *testing.T) {
			p, _, _ := saved("app:1")
			c.change(p)
			in := newInside(t, nil)
			if _, err := in.take(bytes.NewReader(p.bytes()), ""); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want %q, got %v", c.want, err)
			}
			in.wantNothing()
		})
	}
}

// TestWhatNewDockersAddIsLeftOut is about the documents of layers that nothing names.
func TestWhatNewDockersAddIsLeftOut(t *testing.T) {
	one := image.New(image.Options{Seed: 1})
	p := plain([]*image.Image{one}, name("docker.io/library/app:1"))
	legacy := []byte(`{"id":"` + strings.Repeat("ab", 32) + `","created":"2026-11-01T12:00:00Z","os":"linux"}`)
	p.add(BlobName(digest.FromBytes(legacy)), legacy)
	p.addJSON(DockerName, []map[string]any{{"Config": "x", "Layers": []string{}}})
	in := newInside(t, nil)
	if _, err := in.take(bytes.NewReader(p.bytes()), ""); err != nil {
		t.Fatal(err)
	}
	in.wantImage("app:1", one)
	target, _ := in.target("app@" + digest.FromBytes(legacy).String())
	if _, _, err := in.Blob(t.Context(), target, oci.Whole); err == nil {
		t.Error("the document of a layer was taken in")
	}
	p.add(BlobName(digest.FromString("evil")), []byte("evil"))
	in = newInside(t, nil)
	if _, err := in.take(bytes.NewReader(p.bytes()), ""); err == nil || !strings.Contains(err.Error(), "none of its images names") {
		t.Errorf("want it refused, got %v", err)
	}
	in.wantNothing()
}

// TestWhoGoesAwayEndsTheAdding of images, once all has been read.
func TestWhoGoesAwayEndsTheAdding(t *testing.T) {
	images, _ := carried()
	_, bundle := bundleOf(images)
	small := []*image.Image{image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})}
	docker, _, _ := saved("app:1", "app:2")
	for what, p := range map[string]*packed{"bundle": bundle, "layout": plain(small, name("docker.io/library/a:1"), name("docker.io/library/b:1")), "docker save": docker} {
		t.Run(what, func(t *testing.T) {
			in := newInside(t, nil)
			i, err := in.NewImport()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			gone := &leaving{Import: i, leave: cancel}
			err = Read(ctx, bytes.NewReader(p.bytes()), gone, ReadOptions{
				Resolve: in.target, Route: func(upstream, repo string) (oci.Target, error) { return in.router.Route(repo, upstream, "") },
			})
			if !errors.Is(err, context.Canceled) || gone.added != 1 {
				t.Errorf("after %d images: %v", gone.added, err)
			}
			if err := i.Close(false); err != nil {
				t.Error(err)
			}
			in.wantNothing()
		})
	}
}

// leaving has its owner go away when the first image is added.
type leaving struct {
	*cache.Import
	leave func()
	added int
}

func (l *leaving) Add(t oci.Target, d v1.Descriptor, fetched time.Time) error {
	l.leave()
	l.added++
	return l.Import.Add(t, d, fetched)
}
