package cache

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/rewrite"
)

func TestTOCsAreReadFromTheRepositorysManifests(t *testing.T) {
	r := newRegistry()
	l := stargz(2<<20, []byte(`{"version":1}`), false)
	push := func(repo, annotated string) (image, layer v1.Descriptor) {
		layer = r.addBlob(repo, l.content)
		layer.MediaType = v1.MediaTypeImageLayerGzip
		layer.Annotations = map[string]string{stargzDigest: annotated}
		config := r.addBlob(repo, []byte("{}"))
		m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: config, Layers: []v1.Descriptor{layer}}
		m.SchemaVersion = 2
		return r.addDocument(repo, v1.MediaTypeImageManifest, m), layer
	}
	right, layer := push("library/right", l.said.digest.String())
	wrong, _ := push("library/wrong", digest.FromString("another").String())
	plain, _ := push("library/plain", "")
	dir := t.TempDir()
	for restarted := range 2 {
		c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": r})
		if restarted == 0 {
			for repo, d := range map[string]digest.Digest{"library/right": right.Digest, "library/wrong": wrong.Digest, "library/plain": plain.Digest} {
				if got := c.tocsOf(t.Context(), digested(repo, layer.Digest)); len(got) > 0 {
					t.Errorf("%s: %v before there is a manifest", repo, got)
				}
				if _, _, err := c.Manifest(t.Context(), digested(repo, d), rewrite.Accept{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for repo, want := range map[string][]toc{
			"library/right": {l.said}, "library/wrong": {{digest: digest.FromString("another")}}, "library/plain": nil, "library/none": nil,
		} {
			for range 2 {
				if got := c.tocsOf(t.Context(), digested(repo, layer.Digest)); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s, restarted %v: got %v, want %v", repo, restarted, got, want)
				}
			}
		}
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
