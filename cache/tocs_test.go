package cache

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/rewrite"
)

func TestTOCsAreReadFromTheRepositorysManifests(t *testing.T) {
	r := newRegistry()
	stored, toc := content(91, 1<<20), digest.FromString("a table of contents")
	said := func(sum digest.Digest) fill.TOC {
		toc, ok := fill.TOCOf(v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Annotations: map[string]string{fill.StargzDigest: sum.String()}})
		if !ok {
			t.Fatalf("a descriptor with %s says nothing", sum)
		}
		return toc
	}
	push := func(repo, annotated string) (image, layer v1.Descriptor) {
		layer = r.addBlob(repo, stored)
		layer.MediaType = v1.MediaTypeImageLayerGzip
		layer.Annotations = map[string]string{fill.StargzDigest: annotated}
		config := r.addBlob(repo, []byte("{}"))
		m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: config, Layers: []v1.Descriptor{layer}}
		m.SchemaVersion = 2
		return r.addDocument(repo, v1.MediaTypeImageManifest, m), layer
	}
	right, layer := push("library/right", toc.String())
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
		for repo, want := range map[string][]fill.TOC{
			"library/right": {said(toc)}, "library/wrong": {said(digest.FromString("another"))}, "library/plain": nil, "library/none": nil,
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
