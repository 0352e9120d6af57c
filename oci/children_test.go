package oci

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// registrysChildren reads a document as distribution does, field by field with the
// types of image-spec: these are the digests that a registry may have checked when
// the document was pushed.
func registrysChildren(b []byte, mediaType string) (ds []digest.Digest, err error) {
	var list []v1.Descriptor
	switch mediaType {
	case ociIndex, dockerList:
		var doc struct {
			Manifests []v1.Descriptor `json:"manifests"`
		}
		err = json.Unmarshal(b, &doc)
		list = doc.Manifests
	case MediaTypeOCIArtifactManifest:
		var doc struct {
			Blobs []v1.Descriptor `json:"blobs"`
		}
		err = json.Unmarshal(b, &doc)
		list = doc.Blobs
	default:
		var doc struct {
			Config v1.Descriptor   `json:"config"`
			Layers []v1.Descriptor `json:"layers"`
		}
		err = json.Unmarshal(b, &doc)
		list = append([]v1.Descriptor{doc.Config}, doc.Layers...)
	}
	for _, d := range list {
		if d.Size >= 0 && checkDigest(string(d.Digest)) == nil && !slices.Contains(ds, d.Digest) {
			ds = append(ds, d.Digest)
		}
	}
	return ds, err
}

// sameChildren checks that Parse finds the children in b that a registry does.
func sameChildren(t *testing.T, b []byte, declared string) {
	t.Helper()
	p, err := ParseManifest(b, declared)
	if err != nil || p.Doubled {
		return // nothing is taken for named
	}
	var ours []digest.Digest
	for _, c := range p.Children {
		ours = append(ours, c.Digest)
	}
	theirs, err := registrysChildren(b, p.MediaType)
	if err != nil || !slices.Equal(ours, theirs) {
		t.Errorf("%s names %v here; to a registry it names %v, %v", b, ours, theirs, err)
	}
}

// misleading are documents that name the content a256 or b256 in some odd way, and
// whether it counts.
var misleading = []struct {
	body  string
	names bool
}{
	{fmt.Sprintf(`{"mediaType":%q,"config":{"digest":%q,"size":1},"layers":[]}`, ociManifest, a256), true},
	{fmt.Sprintf(`{"mediaType":%q,"CONFIG":{"DIGEST":%q,"size":1}}`, ociManifest, a256), true},
	{fmt.Sprintf(`{"mediaType":%q,"Layers":[{"Digest":%q,"size":1}]}`, dockerManifest, a256), true},
	{fmt.Sprintf(`{"mediaType":%q,"config":{"digest":%q,"size":1},"blobs":[{"digest":%q,"size":1}]}`, ociManifest, b256, a256), false},
	{fmt.Sprintf(`{"mediaType":%q,"layers":[],"blobs":[{"digest":%q,"size":1}]}`, dockerManifest, a256), false},
	{fmt.Sprintf(`{"mediaType":%q,"layers":[],"blobs":"no list"}`, ociManifest), false},
	{fmt.Sprintf(`{"mediaType":%q,"manifests":[],"blobs":[{"digest":%q,"size":1}]}`, ociIndex, a256), false},
	{fmt.Sprintf(`{"mediaType":%q,"blobs":[],"layers":[{"digest":%q,"size":1}]}`, MediaTypeOCIArtifactManifest, a256), false},
	{fmt.Sprintf(`{"mediaType":%q,"blobs":[],"config":{"digest":%q,"size":1}}`, MediaTypeOCIArtifactManifest, a256), false},
	{fmt.Sprintf(`{"mediaType":%q,"blobs":[{"digest":%q,"size":1}]}`, MediaTypeOCIArtifactManifest, a256), true},
	{fmt.Sprintf(`{"mediaType":%q,"layers":[{"digest":%q,"size":1}],"layers":[]}`, ociManifest, a256), false},
	{fmt.Sprintf(`{"mediaType":%q,"layers":[{"urls":["https://a.test"]}],"layers":[{"digest":%q,"size":1}]}`, ociManifest, a256), false},
	{fmt.Sprintf(`{"mediaType":%q,"layers":[],"LAYERS":[{"digest":%q,"size":1}]}`, ociManifest, a256), false},
	{fmt.Sprintf(`{"mediaType":%q,"config":{"digest":%q,"size":1},"Config":{"size":1}}`, ociManifest, a256), false},
	{fmt.Sprintf(`{"mediaType":%q,"manifests":[{"digest":%q,"size":1}],"Manifests":[]}`, ociIndex, a256), false},
	{fmt.Sprintf(`{"mediaType":%q,"layerſ":[{"digest":%q,"size":1}]}`, ociManifest, a256), true}, // json folds ſ to s
	{fmt.Sprintf(`{"mediaType":%q,"layers":[{"digest":%q,"digest":%q,"size":1}]}`, ociManifest, a256, b256), false},
	{fmt.Sprintf(`{"mediaType":%q,"nested":{"layers":[{"digest":%q,"size":1}]}}`, ociManifest, a256), false},
}

func TestADocumentNamesWhatRegistriesCheck(t *testing.T) {
	for _, c := range misleading {
		p, err := ParseManifest([]byte(c.body), "")
		if err != nil {
			t.Errorf("%s: %v", c.body, err)
			continue
		}
		named := !p.Doubled && slices.ContainsFunc(p.Children, func(d v1.Descriptor) bool { return d.Digest == a256 })
		if named != c.names {
			t.Errorf("%s names %s: %v, want %v", c.body, a256, named, c.names)
		}
		sameChildren(t, []byte(c.body), "")
	}
}

func FuzzChildrenAreThoseThatARegistrySees(f *testing.F) {
	for _, c := range misleading {
		f.Add([]byte(c.body), "")
		f.Add([]byte(c.body), ociIndex)
	}
	f.Fuzz(func(t *testing.T, b []byte, declared string) { sameChildren(t, b, declared) })
}
