package oci

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// MediaTypeORASArtifactManifest is the type of artifact manifests that ORAS and Azure used
// before OCI 1.1.
const MediaTypeORASArtifactManifest = "application/vnd.cncf.oras.artifact.manifest.v1+json"

// opaque returns what is known of a document that is served but not understood: one whose
// fields have other types than the OCI's, or that says itself to be of another media type
// than those of images. It has no children. It returns nil if b is not such a document.
//
// A document that could be read as a manifest and as an index is none (CVE-2021-41190).
func opaque(b []byte, mediaType string) *Parsed {
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil || fields == nil {
		return nil
	}
	var own string
	index, image := false, false
	for name, value := range fields {
		switch {
		case strings.EqualFold(name, "mediaType"):
			_ = json.Unmarshal(value, &own)
		case strings.EqualFold(name, "manifests"):
			index = true
		case strings.EqualFold(name, "config"), strings.EqualFold(name, "layers"):
			image = true
		}
	}
	p := &Parsed{Kind: KindManifest, MediaType: mediaType, Opaque: true}
	switch {
	case index && image:
		return nil
	case IsIndex(mediaType) && index:
		p.Kind = KindIndex
	case IsManifest(mediaType) && image:
	case own != "" && own == mediaType && IsMediaType(own) && !isRegistryType(own):
	default:
		return nil
	}
	return p
}

// notes are a document's annotations. Values that are not strings are left out: registries
// take them, and nothing here needs them.
type notes map[string]string

// UnmarshalJSON reads any JSON. What is not an object is empty.
func (n *notes) UnmarshalJSON(b []byte) error {
	var all map[string]json.RawMessage
	if json.Unmarshal(b, &all) != nil || all == nil {
		*n = nil
		return nil
	}
	*n = make(notes, len(all))
	for k, v := range all {
		var s string
		if json.Unmarshal(v, &s) == nil {
			(*n)[k] = s
		}
	}
	return nil
}

// maxEmbedded bounds the descriptors whose content a manifest may carry inline.
const maxEmbedded = 64

// Embedded returns the descriptors of a manifest's config, layers and blobs that carry
// their content inline (image-spec, "descriptor.data"), if its size and digest are right.
// Registries need not have such content: clients take it from the manifest. It waits as
// Parse does.
func Embedded(b []byte) (found []v1.Descriptor) {
	if len(b) > MaxManifestSize || !bytes.Contains(b, []byte(`"data"`)) {
		return nil
	}
	inTurn(len(b), func() { found = embedded(b) })
	return found
}

func embedded(b []byte) []v1.Descriptor {
	var doc struct {
		Config v1.Descriptor   `json:"config"`
		Layers []v1.Descriptor `json:"layers"`
		Blobs  []v1.Descriptor `json:"blobs"`
	}
	if json.Unmarshal(b, &doc) != nil {
		return nil
	}
	var found []v1.Descriptor
	seen := map[string]bool{}
	for _, d := range append(append([]v1.Descriptor{doc.Config}, doc.Layers...), doc.Blobs...) {
		if d.Data == nil || int64(len(d.Data)) != d.Size || checkDigest(string(d.Digest)) != nil || seen[string(d.Digest)] {
			continue
		}
		if d.Digest.Algorithm().FromBytes(d.Data) != d.Digest {
			continue
		}
		seen[string(d.Digest)] = true
		if found = append(found, d); len(found) == maxEmbedded {
			break
		}
	}
	return found
}
