package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// inside is a cache that has no way to any registry.
type inside struct {
	*cache.Cache
	t      *testing.T
	dir    string
	router *rewrite.Router
}

func newInside(t *testing.T, change func(*cache.Options)) *inside {
	t.Helper()
	in := &inside{t: t, dir: t.TempDir()}
	var err error
	in.router, err = rewrite.NewRouter(rewrite.Routing{Default: "docker.io", Upstreams: map[string][]string{"docker.io": nil, "quay.example.test": nil}})
	if err != nil {
		t.Fatal(err)
	}
	o := cache.Options{Dir: in.dir, Settings: cache.Settings{Offline: true, Upstreams: map[string]cache.Upstream{"docker.io": {}, "quay.example.test": {}}}}
	if change != nil {
		change(&o)
	}
	if in.Cache, err = cache.Open(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return in
}

// target reads a reference.
func (in *inside) target(text string) (oci.Target, error) {
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return oci.Target{}, oci.Errorf(oci.CodeNameInvalid, "%q is no reference", text)
	}
	t, err := in.router.Route(reference.Path(named), reference.Domain(named), "")
	switch r := reference.TagNameOnly(named).(type) {
	case reference.Digested:
		t.Digest = r.Digest()
	case reference.Tagged:
		t.Tag = r.Tag()
	}
	return t, err
}

// take imports an archive.
func (in *inside) take(r io.Reader, name string) (*cache.Imported, error) {
	in.t.Helper()
	i, err := in.NewImport()
	if err != nil {
		return nil, err
	}
	var done *cache.Imported
	err = Read(in.t.Context(), r, i, ReadOptions{
		Name: name, Resolve: in.target,
		Route: func(upstream, repo string) (oci.Target, error) { return in.router.Route(repo, upstream, "") },
	})
	if err == nil {
		done, err = i.Finish()
	}
	return done, errors.Join(err, i.Close(false))
}

// wantNothing checks that the cache has nothing, neither visible nor on its disk.
func (in *inside) wantNothing() {
	in.t.Helper()
	if repos, err := in.Repositories(in.t.Context(), "", "", 10); err != nil || len(repos) > 0 {
		in.t.Errorf("there is %v, %v", repos, err)
	}
	for _, sub := range []string{"blobs", "ingest"} {
		err := filepath.WalkDir(filepath.Join(in.dir, sub), func(path string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				in.t.Errorf("%s is left", path)
			}
			return err
		})
		if err != nil {
			in.t.Error(err)
		}
	}
}

// wantImage checks that all of i is served at ref, byte for byte, of the platforms that
// are not in absent.
func (in *inside) wantImage(ref string, i *image.Image, absent ...string) {
	t := in.t
	t.Helper()
	target, err := in.target(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := in.Manifest(t.Context(), target, acceptAll)
	if err != nil {
		t.Errorf("%s: %v", ref, err)
		return
	}
	if !bytes.Equal(m.Bytes, i.Bytes()) || m.MediaType != i.MediaType() {
		t.Errorf("%s: got %s of %d bytes, want %s of %d", ref, m.MediaType, len(m.Bytes), i.MediaType(), len(i.Bytes()))
	}
	without := map[digest.Digest]bool{}
	for _, platform := range absent {
		d := i.Platforms[platform]
		without[d] = true
		p := i.Parsed(d)
		for _, l := range append(p.Layers, p.Config) {
			without[l.Digest] = true
		}
	}
	target.Tag = ""
	for d, want := range i.Manifests {
		target.Digest = d
		m, _, err := in.Manifest(t.Context(), target, acceptAll)
		if without[d] {
			if err == nil {
				t.Errorf("%s: %s is there", ref, d)
			}
		} else if err != nil || !bytes.Equal(m.Bytes, want.Bytes) {
			t.Errorf("%s: manifest %s: %v", ref, d, err)
		}
	}
	for d, want := range i.Blobs {
		if without[d] {
			continue
		}
		target.Digest = d
		b, _, err := in.Blob(t.Context(), target, oci.Whole)
		if err != nil {
			t.Errorf("%s: blob %s: %v", ref, d, err)
			continue
		}
		var got bytes.Buffer
		if _, err := b.Send(&got, oci.Whole); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: blob %s: got %d bytes, want %d, %v", ref, d, got.Len(), len(want), err)
		}
		b.Close()
	}
}

// packed is an archive that is being made.
type packed struct {
	headers  []tar.Header
	contents [][]byte
}

func (p *packed) add(name string, content []byte) {
	p.headers = append(p.headers, tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644})
	p.contents = append(p.contents, content)
}

func (p *packed) addJSON(name string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	p.add(name, b)
}

// addSpecial adds what is no file.
func (p *packed) addSpecial(kind byte, name, to string) {
	p.headers = append(p.headers, tar.Header{Typeflag: kind, Name: name, Linkname: to, Mode: 0o644})
	p.contents = append(p.contents, nil)
}

// at gives the number of the entry of that name.
func (p *packed) at(name string) int {
	return slices.IndexFunc(p.headers, func(h tar.Header) bool { return h.Name == name })
}

func (p *packed) drop(name string) {
	n := p.at(name)
	p.headers, p.contents = slices.Delete(p.headers, n, n+1), slices.Delete(p.contents, n, n+1)
}

func (p *packed) replace(name string, content []byte) {
	n := p.at(name)
	p.contents[n], p.headers[n].Size = content, int64(len(content))
}

func (p *packed) bytes() []byte {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	for n, h := range p.headers {
		if err := t.WriteHeader(&h); err != nil {
			panic(err)
		}
		if _, err := t.Write(p.contents[n]); err != nil {
			panic(err)
		}
	}
	if err := t.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// acceptAll is what a client says that takes every manifest.
var acceptAll = rewrite.ParseAccept([]byte("*/*"))

var layoutFile = []byte(`{"imageLayoutVersion":"1.0.0"}`)

// fetched is when the upstreams were asked of what is in the tests' bundles.
var fetched = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// named is an image under a name.
type named struct {
	upstream, repository, tag string
	image                     *image.Image
}

// bundleOf makes the contents and the files of a bundle, without platforms of absent.
func bundleOf(images []named, absent ...string) (*Contents, *packed) {
	c, p := &Contents{}, &packed{}
	without, all := map[digest.Digest]bool{}, map[digest.Digest][]byte{}
	mediaTypes, homes := map[digest.Digest]string{}, map[digest.Digest][]string{}
	for _, n := range images {
		c.Images = append(c.Images, Image{Upstream: n.upstream, Repository: n.repository, Tag: n.tag, Digest: n.image.Digest,
			MediaType: n.image.MediaType(), Fetched: fetched, Referrer: n.tag == ""})
		for _, platform := range absent {
			if d, ok := n.image.Platforms[platform]; ok {
				m := n.image.Parsed(d)
				without[d], without[m.Config.Digest] = true, true
				for _, l := range m.Layers {
					without[l.Digest] = true
				}
			}
		}
		for d, m := range n.image.Manifests {
			all[d], mediaTypes[d] = m.Bytes, m.MediaType
		}
		maps.Copy(all, n.image.Blobs)
		for d := range all {
			homes[d] = append(homes[d], n.upstream+"/"+n.repository)
		}
	}
	for d, b := range all {
		if !without[d] {
			c.Contents = append(c.Contents, Content{Digest: d, Size: int64(len(b)), MediaType: mediaTypes[d], In: homes[d], Present: true})
		}
	}
	if err := c.seal(); err != nil {
		panic(err)
	}
	p.add(LayoutName, layoutFile)
	p.addJSON(ContentsName, c)
	index := v1.Index{MediaType: v1.MediaTypeImageIndex}
	for _, n := range images {
		index.Manifests = append(index.Manifests, n.image.Descriptor())
	}
	p.addJSON(IndexName, index)
	for _, e := range c.Contents {
		p.add(BlobName(e.Digest), all[e.Digest])
	}
	return c, p
}

// carried is an image for two platforms of three, another one elsewhere, and a signature
// of the first.
func carried() (images []named, absent string) {
	app := image.Index(image.Options{Seed: 1})
	signature := image.Artifact(3, "application/vnd.example.signature", 100, ptr(app.Descriptor()))
	return []named{
		{"docker.io", "library/app", "1.0", app},
		{"docker.io", "library/app", "", signature},
		{"quay.example.test", "org/tool", "2", image.New(image.Options{Seed: 2})},
	}, "linux/arm/v7"
}

func ptr[T any](v T) *T { return &v }

func TestABundleIsServedAsItWasWhereItComesFrom(t *testing.T) {
	images, absent := carried()
	c, p := bundleOf(images, absent)
	in := newInside(t, nil)
	done, err := in.take(bytes.NewReader(p.bytes()), "")
	if err != nil {
		t.Fatal(err)
	}
	if done.Blobs != len(c.Contents) || done.BlobsThere != 0 || len(done.Images) != 3 {
		t.Errorf("want %d blobs of 3 images, got %+v", len(c.Contents), done)
	}
	app := slices.IndexFunc(done.Images, func(i cache.ImportedImage) bool { return i.Reference == "docker.io/library/app:1.0" })
	if got := done.Images[app].Platforms; !slices.Equal(got, []string{"linux/amd64", "linux/arm64"}) {
		t.Errorf("got the platforms %v", got)
	}
	in.wantImage("app:1.0", images[0].image, absent)
	in.wantImage("quay.example.test/org/tool:2", images[2].image)
	target, _ := in.target("app@" + images[0].image.Digest.String())
	list, _, err := in.Referrers(t.Context(), target)
	if err != nil || len(list) != 1 || list[0].Digest != images[1].image.Digest || list[0].ArtifactType != "application/vnd.example.signature" {
		t.Errorf("the referrers are %+v, %v", list, err)
	}
	history, err := in.History(t.Context(), oci.Target{Upstream: "docker.io", Repository: "library/app", Tag: "1.0"})
	if err != nil || len(history.Observations) != 1 || history.Observations[0].How != "import" || !history.Observations[0].First.Equal(fetched) {
		t.Errorf("the ledger says %+v, %v", history, err)
	}
	// Another repository may not serve it.
	target.Repository = "library/other"
	if _, _, err := in.Manifest(t.Context(), target, rewrite.Accept{}); err == nil {
		t.Error("another repository serves it")
	}
	again, err := in.take(bytes.NewReader(p.bytes()), "")
	if err != nil || again.Blobs != 0 || again.BlobsThere != len(c.Contents) || again.BytesThere != done.Bytes {
		t.Errorf("again: %+v, %v", again, err)
	}
}

// TestWhatIsExportedIsImported also imports what is new since, which needs what was
// imported before.
func TestWhatIsExportedIsImported(t *testing.T) {
	w := newWorld(t)
	app, other := image.Index(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	w.push("library/app", "1", app)
	w.pull(target("library/app", "1", ""), app, "linux/amd64")
	first := w.plan(Choice{All: true})
	w.push("library/app", "2", other)
	w.pull(target("library/app", "2", ""), other)
	second := w.plan(Choice{All: true, Since: &Since{Digest: first.Contents.Digest}, Have: contentsOf(first, true)})

	in := newInside(t, nil)
	if _, err := in.take(bytes.NewReader(w.tar(second)), ""); err == nil || !strings.Contains(err.Error(), "import that bundle first") {
		t.Errorf("want the first bundle asked for, got %v", err)
	}
	in.wantNothing()
	for n, p := range []*Plan{first, second} {
		if _, err := in.take(bytes.NewReader(w.tar(p)), ""); err != nil {
			t.Fatalf("bundle %d: %v", n+1, err)
		}
	}
	in.wantImage("app:1", app, "linux/arm64", "linux/arm/v7")
	in.wantImage("app:2", other)
}

// TestWhatIsWrongIsRefusedWhole also holds that nothing of it is left.
func TestWhatIsWrongIsRefusedWhole(t *testing.T) {
	images, absent := carried()
	layer := BlobName(images[2].image.Parsed(images[2].image.Digest).Layers[0].Digest)
	root := BlobName(images[0].image.Digest)
	reseal := func(p *packed, c *Contents) {
		if err := c.seal(); err != nil {
			panic(err)
		}
		b, err := c.Encode()
		if err != nil {
			panic(err)
		}
		p.replace(ContentsName, b)
	}
	find := func(c *Contents, name string) *Content {
		for n := range c.Contents {
			if BlobName(c.Contents[n].Digest) == name {
				return &c.Contents[n]
			}
		}
		panic(name)
	}
	evil := []byte("evil")
	for name, c := range map[string]struct {
		change func(p *packed, c *Contents)
		cut    func(b []byte) []byte
		want   string
	}{
		"absolute name":       {func(p *packed, _ *Contents) { p.add("/etc/passwd", evil) }, nil, "absolute name"},
		"traversal":           {func(p *packed, _ *Contents) { p.add("blobs/../../etc/passwd", evil) }, nil, "leads out"},
		"traversal at end":    {func(p *packed, _ *Contents) { p.add("..", evil) }, nil, "leads out"},
		"long name":           {func(p *packed, _ *Contents) { p.addSpecial(tar.TypeDir, strings.Repeat("d", 300)+"/", "") }, nil, "too long a name"},
		"long name of a file": {func(p *packed, _ *Contents) { p.add(strings.Repeat("d/", 150)+"json", evil) }, nil, "too long a name"},
		"long link":           {func(p *packed, _ *Contents) { p.addSpecial(tar.TypeSymlink, "a/layer.tar", strings.Repeat("b", 300)) }, nil, "too long a name"},
		"odd name":            {func(p *packed, _ *Contents) { p.add("blobs//sha256/x", evil) }, nil, "no name of a file"},
		"symlink":             {func(p *packed, _ *Contents) { p.addSpecial(tar.TypeSymlink, "blobs/sha256/x", "/etc/passwd") }, nil, "is a link"},
		"layer link out":      {func(p *packed, _ *Contents) { p.addSpecial(tar.TypeSymlink, "a/layer.tar", "../../x/layer.tar") }, nil, "is a link"},
		"layer link":          {func(p *packed, _ *Contents) { p.addSpecial(tar.TypeSymlink, "a/layer.tar", "../b/layer.tar") }, nil, "is a link"},
		"hard link":           {func(p *packed, _ *Contents) { p.addSpecial(tar.TypeLink, "blobs/sha256/x", layer) }, nil, "is no file"},
		"device":              {func(p *packed, _ *Contents) { p.addSpecial(tar.TypeBlock, "blobs/sha256/x", "") }, nil, "is no file"},
		"fifo":                {func(p *packed, _ *Contents) { p.addSpecial(tar.TypeFifo, "pipe", "") }, nil, "is no file"},
		"twice":               {func(p *packed, _ *Contents) { p.add(LayoutName, layoutFile) }, nil, "twice"},
		"twice by dot":        {func(p *packed, _ *Contents) { p.add("./"+IndexName, []byte("{}")) }, nil, "twice"},
		"stranger":            {func(p *packed, _ *Contents) { p.add("README.txt", evil) }, nil, "does not belong"},
		"layer by name":       {func(p *packed, _ *Contents) { p.add("x/layer.tar", evil) }, nil, "does not belong"},
		"blob without digest": {func(p *packed, _ *Contents) { p.add("blobs/sha256/beef", evil) }, nil, "no name of a blob"},
		"blob of sha1":        {func(p *packed, _ *Contents) { p.add("blobs/sha1/"+strings.Repeat("0", 40), evil) }, nil, "no name of a blob"},
		"extra blob":          {func(p *packed, _ *Contents) { p.add(BlobName(digest.FromBytes(evil)), evil) }, nil, "does not say"},
		"blob nobody names": {func(p *packed, c *Contents) {
			c.Contents = append(c.Contents, Content{Digest: digest.FromBytes(evil), Size: 4, In: []string{"docker.io/library/app"}, Present: true})
			p.add(BlobName(digest.FromBytes(evil)), evil)
			reseal(p, c)
		}, nil, "none of its images names"},
		"wrong bytes":   {func(p *packed, _ *Contents) { p.contents[p.at(layer)][0] ^= 1 }, nil, "not the digest's"},
		"wrong size":    {func(p *packed, _ *Contents) { p.replace(layer, evil) }, nil, "says"},
		"missing layer": {func(p *packed, _ *Contents) { p.drop(layer) }, nil, "1 blobs are missing"},
		"missing layer unsaid": {func(p *packed, c *Contents) {
			p.drop(layer)
			c.Contents = slices.DeleteFunc(c.Contents, func(e Content) bool { return BlobName(e.Digest) == layer })
			reseal(p, c)
		}, nil, "names what is not there"},
		"missing manifest unsaid": {func(p *packed, c *Contents) {
			p.drop(root)
			c.Contents = slices.DeleteFunc(c.Contents, func(e Content) bool { return BlobName(e.Digest) == root })
			reseal(p, c)
		}, nil, "which entrepot.json does not"},
		"left out and not here": {func(p *packed, c *Contents) {
			p.drop(layer)
			c.Since = &Since{Time: fetched}
			find(c, layer).Present = false
			reseal(p, c)
		}, nil, "import that bundle first"},
		"contents changed": {func(p *packed, c *Contents) {
			c.Images[0].Tag = "9"
			p.addJSON("x", c)
			p.replace(ContentsName, p.contents[len(p.contents)-1])
			p.drop("x")
		}, nil, "has been changed"},
		"newer version": {func(p *packed, c *Contents) {
			p.replace(ContentsName, []byte(`{"version":2}`))
		}, nil, "version 2"},
		"image twice":      {func(p *packed, c *Contents) { c.Images = append(c.Images, c.Images[0]); reseal(p, c) }, nil, "twice"},
		"size below zero":  {func(p *packed, c *Contents) { find(c, layer).Size = -1; reseal(p, c) }, nil, "below zero"},
		"unknown upstream": {func(p *packed, c *Contents) { c.Images[0].Upstream = "evil.example.test"; reseal(p, c) }, nil, "evil.example.test"},
		"bad repository":   {func(p *packed, c *Contents) { c.Images[0].Repository = "../etc"; reseal(p, c) }, nil, "no repository name"},
		"bad tag":          {func(p *packed, c *Contents) { c.Images[0].Tag = "a\x00b"; reseal(p, c) }, nil, "no tag"},
		"no layout":        {func(p *packed, _ *Contents) { p.drop(LayoutName) }, nil, "no file oci-layout"},
		"layout version":   {func(p *packed, _ *Contents) { p.replace(LayoutName, []byte(`{"imageLayoutVersion":"7"}`)) }, nil, `version "7"`},
		"no JSON":          {func(p *packed, _ *Contents) { p.replace(ContentsName, evil) }, nil, "not what it should be"},
		"two documents":    {func(p *packed, _ *Contents) { p.replace(LayoutName, append(bytes.Clone(layoutFile), layoutFile...)) }, nil, "more than one"},
		"large document":   {func(p *packed, _ *Contents) { p.replace(LayoutName, bytes.Repeat([]byte(" "), maxSmall+1)) }, nil, "at most"},
		"large manifest": {func(p *packed, c *Contents) {
			large := bytes.Repeat([]byte(" "), oci.MaxManifestSize+1)
			d := digest.FromBytes(large)
			c.Images[0].Digest = d
			c.Contents = append(c.Contents, Content{Digest: d, Size: int64(len(large)), MediaType: v1.MediaTypeImageManifest, In: []string{"docker.io/library/app"}, Present: true})
			p.add(BlobName(d), large)
			reseal(p, c)
		}, nil, "at most"},
		"content without a digest": {func(p *packed, c *Contents) {
			p.replace(ContentsName, []byte(`{"version":1,"contents":[{}]}`))
		}, nil, "not what it should be"},
		"no manifest": {func(p *packed, c *Contents) {
			c.Images[0].Digest = find(c, layer).Digest
			reseal(p, c)
		}, nil, "manifest"},
		"a number of bytes that there is not": {func(p *packed, c *Contents) {
			find(c, layer).Size = 1 << 62
			find(c, root).Size = 1 << 62
			reseal(p, c)
		}, nil, "room"},
		"truncated in a blob": {nil, func(b []byte) []byte {
			return b[:bytes.Index(b, images[2].image.Blobs[images[2].image.Parsed(images[2].image.Digest).Layers[0].Digest])+10]
		}, "truncated"},
		"truncated between entries": {func(p *packed, _ *Contents) { p.drop(layer) }, func(b []byte) []byte { return b[:len(b)-1024] }, "truncated"},
		"something at the end":      {nil, func(b []byte) []byte { return append(b, evil...) }, "follows the end"},
		"damaged header":            {nil, func(b []byte) []byte { b[600] ^= 1; b[1024+20] ^= 0x41; return b }, ""},
		"empty":                     {nil, func([]byte) []byte { return nil }, "empty"},
		"a list of images":          {nil, func([]byte) []byte { return []byte("nginx:1.27\n") }, "it is no tar of images"},
		"no tar":                    {nil, func([]byte) []byte { return bytes.Repeat([]byte("no tar"), 1000) }, "no tar"},
		"cut gzip": {nil, func(b []byte) []byte {
			var z bytes.Buffer
			w := gzip.NewWriter(&z)
			_, _ = w.Write(b)
			_ = w.Close()
			return z.Bytes()[:z.Len()/2]
		}, "truncated"},
	} {
		t.Run(name, func(t *testing.T) {
			contents, p := bundleOf(images, absent)
			for n := range p.contents {
				p.contents[n] = bytes.Clone(p.contents[n])
			}
			if c.change != nil {
				c.change(p, contents)
			}
			b := p.bytes()
			if c.cut != nil {
				b = c.cut(b)
			}
			in := newInside(t, nil)
			_, err := in.take(bytes.NewReader(b), "")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want %q, got %v", c.want, err)
			}
			if r := (*Refusal)(nil); !errors.As(err, &r) && !errors.Is(err, cache.ErrNoRoom) {
				t.Errorf("it is not refused: %v", err)
			}
			in.wantNothing()
		})
	}
}

// TestSmallArchivesTakeLittleMemory though what they hold is a list of millions of
// nothings.
func TestSmallArchivesTakeLittleMemory(t *testing.T) {
	const size = 8 << 20
	nothings := func(before, each, after string) []byte {
		return []byte(before + strings.Repeat(each+",", size/(len(each)+1)) + each + after)
	}
	for name, c := range map[string]struct {
		file     string
		document []byte
	}{
		"contents":     {ContentsName, nothings(`{"version":1,"contents":[`, "{}", "]}")},
		"images":       {ContentsName, nothings(`{"version":1,"images":[`, "{}", "]}")},
		"repositories": {ContentsName, nothings(`{"version":1,"contents":[{"digest":"sha256:`+strings.Repeat("0", 64)+`","in":[`, `""`, `]}]}`)},
		"saved images": {DockerName, nothings("[", "{}", "]")},
		"saved layers": {DockerName, nothings(`[{"Config":"c","Layers":[`, `""`, "]}]")},
		"saved names":  {DockerName, nothings(`[{"Config":"c","RepoTags":[`, `""`, "]}]")},
		"index":        {IndexName, nothings(`{"manifests":[`, "{}", "]}")},
	} {
		t.Run(name, func(t *testing.T) {
			p := &packed{}
			p.add(LayoutName, layoutFile)
			p.add(c.file, c.document)
			b := p.bytes()
			in := newInside(t, nil)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := in.take(bytes.NewReader(b), "")
			runtime.ReadMemStats(&after)
			if r := (*Refusal)(nil); !errors.As(err, &r) {
				t.Errorf("it is not refused: %v", err)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 8*size {
				t.Errorf("it took %d MiB for %d MiB: %v", took>>20, size>>20, err)
			}
		})
	}
}
