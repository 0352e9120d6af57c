package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
)

// What a proxy in front of the registry compressed, unasked, arrives as it was.
func TestWhatWasCompressedOnTheWayArrivesAsItWas(t *testing.T) {
	t.Parallel()
	for _, encoding := range []string{"gzip", "x-gzip"} {
		for _, kind := range []hub.Kind{hub.ManifestGet, hub.BlobGet, hub.Token} {
			t.Run(encoding+" of a "+string(kind), func(t *testing.T) {
				h, p := start(t, believing)
				if kind == hub.Token {
					t.Skip("the tests of tokens have it")
				}
				i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 100 << 10}}})
				h.Push("library/app", "1.0", i)
				h.Inject(hub.Gzipped(kind, encoding))
				if kind == hub.BlobGet {
					h.Inject(hub.Gzipped(hub.CDNGet, encoding).On(i.Parsed(i.Digest).Config.Digest))
				}
				wantBytes(t, "tag", i.Bytes(), get(t, p, tagPath, "Accept", anything).body)
				pullRaw(t, p, "library/app", i)
			})
		}
	}
}

// manifestOf makes the JSON of a document.
func manifestOf(t *testing.T, doc any) []byte {
	t.Helper()
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Documents that are no image of the OCI's arrive as they are, with their own type, by tag
// and by digest, from the upstream and from the cache.
func TestManifestsThatAreNotUnderstoodArriveAsTheyAre(t *testing.T) {
	t.Parallel()
	const oras = "application/vnd.cncf.oras.artifact.manifest.v1+json"
	blob := digest.FromString("blob")
	for name, c := range map[string]struct{ mediaType, body string }{
		"ORAS artifact":              {oras, `{"mediaType":"` + oras + `","artifactType":"a/b","blobs":[{"mediaType":"x/y","digest":"` + blob.String() + `","size":4}],"subject":{"mediaType":"x/y","digest":"` + blob.String() + `","size":4}}`},
		"annotation is a number":     {v1.MediaTypeImageManifest, `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `","config":{"mediaType":"a/b","digest":"` + blob.String() + `","size":4},"layers":[],"annotations":{"build":7}}`},
		"annotation of a layer":      {v1.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"` + blob.String() + `","size":4},"layers":[{"mediaType":"a/b","digest":"` + blob.String() + `","size":4,"annotations":{"n":true}}]}`},
		"annotations are a list":     {v1.MediaTypeImageIndex, `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[],"annotations":[1]}`},
		"version is a string":        {oci.MediaTypeDockerManifest, `{"schemaVersion":"2","mediaType":"` + oci.MediaTypeDockerManifest + `","config":{"mediaType":"a/b","digest":"` + blob.String() + `","size":4},"layers":[]}`},
		"size is a string":           {v1.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"` + blob.String() + `","size":"4"},"layers":[]}`},
		"platform is a string":       {v1.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[{"mediaType":"` + v1.MediaTypeImageManifest + `","digest":"` + blob.String() + `","size":4,"platform":"linux/amd64"}]}`},
		"a type of nobody's so far":  {"application/vnd.acme.manifest.v3+json", `{"mediaType":"application/vnd.acme.manifest.v3+json","things":[1,2]}`},
		"that type with OCI's parts": {"application/vnd.acme.manifest.v3+json", `{"mediaType":"application/vnd.acme.manifest.v3+json","config":{},"layers":[]}`},
	} {
		t.Run(name, func(t *testing.T) {
			h, p := start(t, believing)
			d := h.PushManifest("library/app", "1.0", c.mediaType, []byte(c.body))
			for range 2 {
				for _, path := range []string{tagPath, "/v2/library/app/manifests/" + d.String()} {
					for _, method := range []string{http.MethodHead, http.MethodGet} {
						a := ask(t, p, method, path, "Accept", c.mediaType+", "+anything)
						if a.status != http.StatusOK {
							t.Fatalf("want 200, got %s", a)
						}
						a.wantHeader(t, "Content-Type", c.mediaType, "Docker-Content-Digest", d.String())
						if method == http.MethodGet {
							wantBytes(t, path, []byte(c.body), a.body)
						}
					}
				}
				h.Down()
			}
			p.Restart(t)
			a := get(t, p, "/v2/library/app/manifests/"+d.String(), "Accept", c.mediaType+", "+anything)
			wantBytes(t, "after a restart", []byte(c.body), a.body)
			a.wantHeader(t, "Content-Type", c.mediaType)
		})
	}
}

// A client that takes no index asks for an index that does not simply name a manifest for
// the platform.
func TestAnIndexThatDoesNotTellIsResolvedOrGivenAsItIs(t *testing.T) {
	t.Parallel()
	entry := func(i *image.Image, p *v1.Platform) v1.Descriptor { d := i.Descriptor(); d.Platform = p; return d }
	amd64, one, two := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2}), image.New(image.Options{Seed: 3})
	index := func(entries ...v1.Descriptor) []byte {
		return manifestOf(t, map[string]any{"schemaVersion": 2, "mediaType": v1.MediaTypeImageIndex, "manifests": entries})
	}
	linux := &v1.Platform{OS: "linux", Architecture: "amd64"}
	inner := index(entry(amd64, linux), entry(one, &v1.Platform{OS: "linux", Architecture: "arm64"}))
	vague := index(entry(one, nil), entry(two, &v1.Platform{}))
	nest := func(b []byte) v1.Descriptor {
		return v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromBytes(b), Size: int64(len(b))}
	}
	for name, c := range map[string]struct{ index, want []byte }{
		"one empty platform":              {index(entry(one, &v1.Platform{})), one.Bytes()},
		"an empty one beside ours":        {index(entry(one, &v1.Platform{}), entry(amd64, linux)), amd64.Bytes()},
		"two empty platforms":             {index(entry(one, &v1.Platform{}), entry(two, &v1.Platform{})), nil},
		"a nested index":                  {index(nest(inner)), amd64.Bytes()},
		"a nested index beside attested":  {index(nest(inner), entry(two, &v1.Platform{OS: "unknown", Architecture: "unknown"})), amd64.Bytes()},
		"an index nested twice":           {index(nest(index(nest(inner)))), amd64.Bytes()},
		"two nested, the second has it":   {index(nest(vague), nest(inner)), amd64.Bytes()},
		"a nested one that does not tell": {index(nest(vague)), nil},
	} {
		t.Run(name, func(t *testing.T) {
			h, p := start(t, believing)
			for _, i := range []*image.Image{amd64, one, two} {
				h.Push("library/app", "", i)
			}
			for _, b := range [][]byte{inner, vague, index(nest(inner))} {
				h.PushManifest("library/app", "", v1.MediaTypeImageIndex, b)
			}
			h.PushManifest("library/app", "1.0", v1.MediaTypeImageIndex, c.index)
			want := c.want
			if want == nil {
				want = c.index
			}
			for range 2 {
				a := get(t, p, tagPath, "Accept", v1.MediaTypeImageManifest)
				wantBytes(t, "what the client gets", want, a.body)
				head := ask(t, p, http.MethodHead, tagPath, "Accept", v1.MediaTypeImageManifest)
				head.wantHeader(t, "Docker-Content-Digest", digest.FromBytes(want).String())
			}
		})
	}
}

// A manifest carries its empty config inline, and the registry does not hold it.
func TestAnInlineConfigIsTakenFromItsManifest(t *testing.T) {
	h, p := start(t, believing)
	layer := image.Artifact(1, "application/x.test", 1000, nil)
	h.Push("library/app", "", layer)
	empty := []byte("{}")
	d := digest.FromBytes(empty)
	m := map[string]any{"schemaVersion": 2, "mediaType": v1.MediaTypeImageManifest, "artifactType": "a/b",
		"config": v1.Descriptor{MediaType: v1.MediaTypeEmptyJSON, Digest: d, Size: 2, Data: empty},
		"layers": []v1.Descriptor{layer.Layers("")[0]}}
	h.PushManifest("library/app", "1.0", v1.MediaTypeImageManifest, manifestOf(t, m))
	h.Forget("library/app", d)
	operate(t, p, "warm", "library/app:1.0").want(t, 0, "")
	wantBytes(t, "config", empty, get(t, p, "/v2/library/app/blobs/"+d.String()).body)
	operate(t, p, "export", "--bundle", t.TempDir()+"/x.tar", "library/app:1.0").want(t, 0, "")
	h.Down()
	wantBytes(t, "config", empty, get(t, p, "/v2/library/app/blobs/"+d.String()).body)
	ask(t, p, http.MethodGet, "/v2/library/other/blobs/"+d.String()) // another repository's: the upstream decides
}

// Layers with URLs are warmed if the registry has them, and named if it has not.
func TestLayersThatMayLieElsewhereAreWarmedOrNamed(t *testing.T) {
	t.Parallel()
	for _, has := range []bool{true, false} {
		t.Run(fmt.Sprint("the registry has it: ", has), func(t *testing.T) {
			h, p := start(t, believing)
			i := image.Artifact(1, "application/x.test", 1000, nil)
			h.Push("library/app", "", i)
			foreign := i.Layers("")[0]
			foreign.MediaType, foreign.URLs = oci.MediaTypeDockerForeignLayer, []string{"https://vendor.test/layer"}
			config := i.Parsed(i.Digest).Config
			d := h.PushManifest("library/app", "1.0", v1.MediaTypeImageManifest, manifestOf(t, map[string]any{
				"schemaVersion": 2, "mediaType": v1.MediaTypeImageManifest, "config": config, "layers": []v1.Descriptor{foreign}}))
			if !has {
				h.Forget("library/app", foreign.Digest)
			}
			words := []string{}
			if !has {
				words = append(words, "1 layer lies elsewhere: clients fetch "+foreign.Digest.String()+" from https://vendor.test/layer")
			}
			for _, args := range [][]string{{"warm", "--dry-run", "library/app:1.0"}, {"warm", "library/app:1.0"}} {
				out := operate(t, p, args...)
				out.want(t, 0, words...)
				if has && strings.Contains(fmt.Sprint(out), "elsewhere") {
					t.Errorf("%v: %v", args, out)
				}
			}
			out := operate(t, p, "rehearse", "--offline", "library/app:1.0")
			out.want(t, 0, words...)
			h.Down()
			get(t, p, "/v2/library/app/manifests/"+d.String(), "Accept", anything)
			if a := ask(t, p, http.MethodGet, "/v2/library/app/blobs/"+foreign.Digest.String()); has != (a.status == http.StatusOK) {
				t.Errorf("the layer: %s", a)
			}
		})
	}
}

// A manifest that is asked for as a blob has its own type, so that no client keeps it as
// content of no type.
func TestAManifestAskedForAsABlobHasItsType(t *testing.T) {
	h, p := start(t, believing)
	i := image.Index(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	for d, m := range i.Manifests {
		h.PushBlob("library/app", d, m.Bytes) // registries keep them as blobs
	}
	get(t, p, tagPath, "Accept", anything)
	for range 2 {
		for d, m := range i.Manifests {
			for _, method := range []string{http.MethodHead, http.MethodGet} {
				a := ask(t, p, method, "/v2/library/app/blobs/"+d.String())
				if a.status != http.StatusNotFound {
					a.wantHeader(t, "Content-Type", m.MediaType)
				}
			}
		}
	}
}

// Nor may a cache that does not know the manifest yet say that it is anything.
func TestAManifestThatIsFirstAskedForAsABlobHasItsType(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	for n, order := range [][]string{{"HEAD", "GET"}, {"GET", "HEAD"}, {"HEAD of the manifest", "HEAD", "GET"}, {"HEAD of the tag", "GET", "HEAD"}} {
		for _, i := range []*image.Image{image.New(image.Options{Seed: uint64(100 + n)}), image.Index(image.Options{Seed: uint64(100 + n)})} {
			repository := fmt.Sprintf("library/app-%d-%s", n, i.Digest.Encoded()[:8])
			h.Push(repository, "1.0", i)
			h.PushBlob(repository, i.Digest, i.Bytes())
			for _, what := range order {
				method, named := strings.CutSuffix(what, " of the manifest")
				path := "/v2/" + repository + "/manifests/" + i.Digest.String()
				if !named {
					if method, named = strings.CutSuffix(what, " of the tag"); named {
						path = "/v2/" + repository + "/manifests/1.0"
					} else {
						path = "/v2/" + repository + "/blobs/" + i.Digest.String()
					}
				}
				a := ask(t, p, method, path, "Accept", anything)
				if a.status != http.StatusOK || a.header.Get("Content-Type") != i.MediaType() {
					t.Errorf("%v: %s: want 200 and %s, got %s", order, what, i.MediaType(), a)
				}
			}
			for d := range i.Blobs { // a config looks much like a manifest
				for _, method := range order[len(order)-2:] {
					ask(t, p, method, "/v2/"+repository+"/blobs/"+d.String()).wantHeader(t, "Content-Type", oci.MediaTypeOctetStream)
				}
			}
		}
	}
}

func TestARangeOfAManifestIsAnsweredByItsPart(t *testing.T) {
	h, p := start(t, believing)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	b := i.Bytes()
	for range 2 {
		for _, path := range []string{tagPath, "/v2/library/app/manifests/" + i.Digest.String()} {
			a := ask(t, p, http.MethodGet, path, "Range", "bytes=0-99", "Accept", anything)
			if a.status != http.StatusPartialContent {
				t.Fatalf("want 206, got %s", a)
			}
			wantBytes(t, "the beginning", b[:100], a.body)
			a.wantHeader(t, "Content-Range", fmt.Sprintf("bytes 0-99/%d", len(b)), "Content-Type", i.MediaType())
			a = ask(t, p, http.MethodGet, path, "Range", "bytes=100-", "Accept", anything)
			wantBytes(t, "the rest", b[100:], a.body)
		}
	}
	wantBytes(t, "all", b, get(t, p, tagPath, "Range", fmt.Sprintf("bytes=%d-", len(b))).body)
}

// Whoever asks for a manifest as a blob is told its type, whether memory knows it or only the
// index: containerd keeps what it gets as application/octet-stream as an image that it cannot
// read (containerd#13007).
func TestAManifestAskedForAsABlobHasItsMediaType(t *testing.T) {
	for _, memory := range []string{"64MiB", "0"} {
		t.Run("memory "+memory, func(t *testing.T) {
			t.Parallel()
			h, p := start(t, "cache: {memory: "+memory+"}\n"+believing)
			i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 5 << 10}}})
			h.Push("library/app", "1.0", i)
			get(t, p, tagPath, "Accept", anything)
			p.WaitIdle(t)
			wantType := func() {
				t.Helper()
				for _, q := range [][]string{{"HEAD"}, {"GET"}, {"GET", "Range", "bytes=0-9"}, {"GET", "If-None-Match", `"` + i.Digest.String() + `"`}} {
					for _, repo := range []string{"library/app", "docker.io/library/app", "index.docker.io/library/app"} {
						a := ask(t, p, q[0], "/v2/"+repo+"/blobs/"+i.Digest.String(), q[1:]...)
						if a.status >= 400 || a.header.Get("Content-Type") != v1.MediaTypeImageManifest {
							t.Errorf("%s of %s %v: want a status below 400 and the manifest's type, got %s", q[0], repo, q[1:], a)
						}
					}
				}
			}
			wantType()
			p.Restart(t)
			wantType()
			p.Stop(t)
			if err := os.Remove(filepath.Join(p.Dir, "index.db")); err != nil {
				t.Fatal(err)
			}
			if err := p.Launch(); err != nil {
				t.Fatal(err)
			}
			wantType()
			get(t, p, "/v2/library/app/blobs/"+i.Parsed(i.Digest).Config.Digest.String()).wantHeader(t, "Content-Type", oci.MediaTypeOctetStream)
		})
	}
}
