package oci

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	a256 = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	b256 = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	c256 = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
)

func TestParseFindsWhatADocumentIsMadeOf(t *testing.T) {
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,
		"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":1,"data":"e30="},
		"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":2},
			{"mediaType":%q,"digest":%q,"size":3,"urls":["https://x.test/layer"]},
			{"mediaType":"again","digest":%q,"size":2},
			{"mediaType":"bad","digest":"sha256:../../etc/passwd","size":2},
			{"mediaType":"bad","digest":"md5:d41d8cd98f00b204e9800998ecf8427e","size":2},
			{"mediaType":"bad","digest":%q,"size":-1}],
		"subject":{"mediaType":%q,"digest":%q,"size":7},
		"annotations":{"k":"v"}}`, ociManifest, a256, b256, MediaTypeDockerForeignLayer, sum512, b256, c256, ociManifest, c256)
	p, err := ParseManifest([]byte(manifest), "")
	if err != nil {
		t.Fatal(err)
	}
	if p.Kind != KindManifest || p.MediaType != ociManifest || p.ArtifactType != "application/vnd.oci.image.config.v1+json" || p.Annotations["k"] != "v" {
		t.Errorf("got %+v", p)
	}
	if p.Subject == nil || p.Subject.Digest != c256 || p.Config.Digest != a256 {
		t.Errorf("subject %+v, config %+v", p.Subject, p.Config)
	}
	want := []digest.Digest{a256, b256, sum512}
	if len(p.Children) != len(want) {
		t.Fatalf("children %+v, want %v", p.Children, want)
	}
	for i, c := range p.Children {
		if c.Digest != want[i] || c.Data != nil {
			t.Errorf("child %d: %+v, want %s", i, c, want[i])
		}
		if foreign := i == 2; IsForeign(c) != foreign {
			t.Errorf("child %d is foreign: %v, want %v", i, !foreign, foreign)
		}
	}

	index := fmt.Sprintf(`{"schemaVersion":2,"artifactType":"a/t","manifests":[{"mediaType":%q,"digest":%q,"size":1}]}`, ociManifest, a256)
	p, err = ParseManifest([]byte(index), "text/plain")
	if err != nil || p.Kind != KindIndex || p.MediaType != ociIndex || p.ArtifactType != "a/t" || len(p.Children) != 1 {
		t.Errorf("index: %+v, %v", p, err)
	}

	artifact := fmt.Sprintf(`{"mediaType":%q,"artifactType":"a/t","blobs":[{"mediaType":"x","digest":%q,"size":1}]}`, MediaTypeOCIArtifactManifest, a256)
	p, err = ParseManifest([]byte(artifact), "")
	if err != nil || p.Kind != KindManifest || len(p.Children) != 1 {
		t.Errorf("artifact manifest: %+v, %v", p, err)
	}
}

func TestParseRefusesWhatIsNoManifest(t *testing.T) {
	for body, says := range map[string]string{
		``:               "no valid JSON",
		`{`:              "no valid JSON",
		`null`:           "no media type of a manifest",
		`[]`:             "no valid JSON",
		`{"layers":"x"}`: "no valid JSON",
		fmt.Sprintf(`{"mediaType":%q,"config":{"digest":%q},"manifests":[]}`, ociManifest, a256): "also has the manifests",
		fmt.Sprintf(`{"mediaType":%q,"layers":[],"manifests":[]}`, ociIndex):                     "also has the config or layers",
		`{"schemaVersion":1,"fsLayers":[],"signatures":[]}`:                                      "schema 1",
		`{"schemaVersion":1,"fsLayers":[]}`:                                                      "schema 1",
		`{"config":{}` + strings.Repeat(" ", MaxManifestSize) + `}`:                              "at most",
	} {
		p, err := ParseManifest([]byte(body), "")
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.Message, says) {
			t.Errorf("Parse(%.100s): %+v, %v; want an error with %q", body, p, err, says)
		}
	}
}

func TestMediaTypeIsTheBodysThenTheDeclaredThenTheShapes(t *testing.T) {
	for _, c := range []struct{ body, declared, want string }{
		{`{"mediaType":"` + dockerList + `"}`, ociManifest, dockerList},
		{`{"mediaType":"` + dockerManifest + `"}`, "text/plain", dockerManifest},
		{`{"mediaType":"evil\r\nX: y"}`, ociIndex, ociIndex},
		{`{}`, dockerManifest + "; charset=utf-8", dockerManifest},
		{`{}`, strings.ToUpper(ociManifest), ociManifest},
		{`{"manifests":[]}`, "application/json", ociIndex},
		{`{"config":{}}`, "application/octet-stream", ociManifest},
		{`{"layers":[]}`, "", ociManifest},
		{`{"schemaVersion":1,"fsLayers":[],"signatures":[]}`, "application/json", MediaTypeDockerSchema1Signed},
		{`{"schemaVersion":1,"fsLayers":[]}`, "", MediaTypeDockerSchema1},
		{`not json`, "application/x-thing", "application/x-thing"},
		{`not json`, "evil\r\nX: y", "application/octet-stream"},
		{`not json`, "", "application/octet-stream"},
		{`{}`, "*", "application/octet-stream"},
	} {
		if got := MediaTypeOf([]byte(c.body), c.declared); got != c.want {
			t.Errorf("MediaTypeOf(%s, %q) = %q, want %q", c.body, c.declared, got, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"`+a256+`","size":1},"layers":[{"digest":"`+b256+`"}]}`), "")
	f.Add([]byte(`{"manifests":[{"digest":"`+a256+`","platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`), "application/json")
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), "")
	f.Add([]byte(`{"mediaType":"`+dockerList+`","manifests":null}`), dockerManifest)
	f.Fuzz(func(t *testing.T, b []byte, declared string) {
		before := bytes.Clone(b)
		if m := MediaTypeOf(b, declared); !IsMediaType(m) {
			t.Errorf("media type %q", m)
		}
		p, err := ParseManifest(b, declared)
		if !bytes.Equal(b, before) {
			t.Error("the bytes were changed")
		}
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("error %v is not typed", err)
			}
			return
		}
		for _, c := range p.Children {
			if c.Digest.Validate() != nil || c.Size < 0 {
				t.Errorf("child %+v", c)
			}
		}
		if p.Kind == KindIndex {
			d, err := SelectPlatform(p, "linux/amd64")
			if err == nil && IsAttestation(d) {
				t.Errorf("chose %+v", d)
			}
		}
	})
}

func descriptor(d string, platform *v1.Platform) v1.Descriptor {
	return v1.Descriptor{MediaType: ociManifest, Digest: digest.Digest(d), Platform: platform}
}
