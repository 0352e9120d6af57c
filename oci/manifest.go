package oci

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// Kind says whether a document names the parts of one image or artifact, or
// other manifests.
type Kind uint8

const (
	// KindManifest names a config and layers or blobs.
	KindManifest Kind = iota + 1
	// KindIndex names manifests; Docker calls it a manifest list.
	KindIndex
)

// Parsed is what a cache must know of a manifest or index. It shares no memory
// with the bytes that it was read from.
type Parsed struct {
	Kind Kind
	// MediaType is what MediaTypeOf gives for the bytes.
	MediaType string
	// Children is the content that the document names, each digest once, in order.
	// Which fields name content depends on the media type alone:
	//   - an image manifest: config, then layers
	//   - the ORAS artifact manifest: blobs
	//   - an index: manifests
	// Registries look at no other field, so another field names nothing.
	// Descriptors with an impossible digest or size, or with a digest algorithm
	// that isn't served here, are left out. IsForeign reports which children a
	// registry may not have.
	Children []v1.Descriptor
	// Doubled is set if a field that names content occurs more than once, under
	// any spelling. Decoders disagree about such a document, so a registry may
	// have checked other content than Children, which come from the last
	// occurrence: they must not be taken for content that the registry has.
	Doubled bool
	// Config is the config's descriptor; its digest is empty where there is none.
	Config v1.Descriptor
	// Subject is the manifest that this one refers to; nil where there is none.
	Subject *v1.Descriptor
	// ArtifactType is the document's own or else the config's media type, as
	// the referrers API lists it (distribution-spec, "Listing Referrers").
	ArtifactType string
	Annotations  map[string]string
	// Opaque is set if the document is served but not understood: see opaque.
	Opaque bool
}

// document is a manifest or an index. encoding/json matches keys without regard to
// case and lets the last of several equal keys win; so does distribution, from
// which most registries descend. Descriptors have types of our own because
// image-spec's decode embedded content, which a cache doesn't use.
type document struct {
	SchemaVersion int            `json:"schemaVersion"`
	MediaType     string         `json:"mediaType"`
	ArtifactType  string         `json:"artifactType"`
	Config        single         `json:"config"`
	Layers        listing        `json:"layers"`
	Blobs         lenient        `json:"blobs"`
	Manifests     listing        `json:"manifests"`
	Subject       *v1.Descriptor `json:"subject"`
	Annotations   notes          `json:"annotations"`
}

// single is a field with one descriptor, nil if it is absent or null. times counts
// how often the document has the field.
type single struct {
	*v1.Descriptor
	times int
}

func (s *single) UnmarshalJSON(b []byte) error {
	s.times++
	s.Descriptor = nil // json would merge both occurrences
	return json.Unmarshal(b, &s.Descriptor)
}

// listing is a field with a list of descriptors, counted as in single.
type listing struct {
	Descriptors
	times int
}

func (l *listing) UnmarshalJSON(b []byte) error {
	l.times++
	l.Descriptors = nil
	return l.Descriptors.UnmarshalJSON(b)
}

// lenient is a listing that is an error only to a document that it belongs to:
// registries take anything in a field that they don't know.
type lenient struct {
	listing
	err error
}

func (l *lenient) UnmarshalJSON(b []byte) error {
	l.err = l.listing.UnmarshalJSON(b)
	return nil
}

// ParseManifest reads a manifest or index of at most oci.MaxManifestSize bytes.
// mediaType is the declared one and may be empty. It gives MANIFEST_INVALID
// for what is neither, or could be read as both (CVE-2021-41190), and
// UNSUPPORTED, in words, for Docker's schema 1. Large documents are parsed in turns:
// Parse may wait for others that run, and for nothing else.
func ParseManifest(b []byte, mediaType string) (p *Parsed, err error) {
	inTurn(len(b), func() { p, err = parse(b, mediaType) })
	return p, err
}

// parse is Parse without waiting.
func parse(b []byte, mediaType string) (*Parsed, error) {
	if len(b) > MaxManifestSize {
		return nil, Errorf(CodeManifestInvalid, "the manifest has %d bytes; at most %d are taken", len(b), MaxManifestSize)
	}
	mediaType = mediaTypeOf(b, mediaType)
	if IsSchema1(mediaType) {
		return nil, schema1Refused()
	}
	var doc document
	if err := json.Unmarshal(b, &doc); err != nil {
		if other := (*json.UnmarshalTypeError)(nil); errors.As(err, &other) {
			if p := opaque(b, mediaType); p != nil {
				return p, nil
			}
		}
		return nil, &Error{Code: CodeManifestInvalid, Message: "the manifest is no valid JSON of a manifest or index", Err: err}
	}
	p := &Parsed{MediaType: mediaType, ArtifactType: doc.ArtifactType, Annotations: doc.Annotations}
	switch {
	case IsIndex(mediaType):
		if doc.Config.Descriptor != nil || doc.Layers.Descriptors != nil {
			return nil, Errorf(CodeManifestInvalid, "the index also has the config or layers of a manifest")
		}
		p.Kind, p.Doubled = KindIndex, doc.Manifests.times > 1
		p.add(doc.Manifests.Descriptors...)
	case IsManifest(mediaType):
		if doc.Manifests.Descriptors != nil {
			return nil, Errorf(CodeManifestInvalid, "the manifest also has the manifests of an index")
		}
		p.Kind = KindManifest
		if mediaType == MediaTypeOCIArtifactManifest {
			if doc.Blobs.err != nil {
				return nil, &Error{Code: CodeManifestInvalid, Message: "the manifest is no valid JSON of a manifest or index", Err: doc.Blobs.err}
			}
			p.Doubled = doc.Blobs.times > 1
			p.add(doc.Blobs.Descriptors...)
			break
		}
		p.Doubled = doc.Config.times > 1 || doc.Layers.times > 1
		if config := doc.Config.Descriptor; config != nil {
			p.Config = *config
			p.Config.Data = nil
			p.add(*config)
			if p.ArtifactType == "" {
				p.ArtifactType = config.MediaType
			}
		}
		p.add(doc.Layers.Descriptors...)
	default:
		if p := opaque(b, mediaType); p != nil {
			return p, nil
		}
		return nil, Errorf(CodeManifestInvalid, "%q is no media type of a manifest or index", mediaType)
	}
	if doc.Subject != nil && checkDigest(string(doc.Subject.Digest)) == nil {
		p.Subject = doc.Subject
	}
	return p, nil
}

func (p *Parsed) add(ds ...v1.Descriptor) {
	seen := make(map[string]bool, len(p.Children)+len(ds))
	for _, c := range p.Children {
		seen[string(c.Digest)] = true
	}
	for _, d := range ds {
		if d.Size < 0 || seen[string(d.Digest)] || checkDigest(string(d.Digest)) != nil {
			continue
		}
		seen[string(d.Digest)] = true
		d.Data = nil
		p.Children = append(p.Children, d)
	}
}

// IsForeign tells whether a layer is one that registries need not have: its
// bytes lie elsewhere, or may not be distributed.
func IsForeign(d v1.Descriptor) bool {
	return len(d.URLs) > 0 || d.MediaType == MediaTypeDockerForeignLayer ||
		strings.HasPrefix(d.MediaType, "application/vnd.oci.image.layer.nondistributable.")
}

// IsIndex tells whether mediaType is that of an index or manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == MediaTypeDockerManifestList
}

// IsManifest tells whether mediaType is that of a manifest of one image or
// artifact; schema 1 is not among them.
func IsManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == MediaTypeDockerManifest ||
		mediaType == MediaTypeOCIArtifactManifest
}

// IsSchema1 tells whether mediaType is one of Docker's schema 1.
func IsSchema1(mediaType string) bool {
	return mediaType == MediaTypeDockerSchema1 || mediaType == MediaTypeDockerSchema1Signed
}

// MediaTypeOf gives the media type of a manifest's bytes. The one in the bytes
// is believed first, for it is under the digest; then the declared one, a
// Content-Type header's value, where it is that of a manifest; then the shape
// of the document. What is none of these keeps the declared type, or becomes
// application/octet-stream. The result is always safe to be put into a header. It waits
// as Parse does.
func MediaTypeOf(b []byte, declared string) (mediaType string) {
	inTurn(len(b), func() { mediaType = mediaTypeOf(b, declared) })
	return mediaType
}

// present is a field of which only matters whether the document has it, null or not:
// nothing of it is copied.
type present bool

func (p *present) UnmarshalJSON([]byte) error {
	*p = true
	return nil
}

// mediaTypeOf is MediaTypeOf without waiting.
func mediaTypeOf(b []byte, declared string) string {
	declared, _, _ = strings.Cut(declared, ";")
	declared = strings.ToLower(strings.TrimSpace(declared))
	var doc struct {
		SchemaVersion lax[int]    `json:"schemaVersion"`
		MediaType     lax[string] `json:"mediaType"`
		Config        present     `json:"config"`
		Layers        present     `json:"layers"`
		Manifests     present     `json:"manifests"`
		Signatures    present     `json:"signatures"`
		FSLayers      present     `json:"fsLayers"`
	}
	if len(b) <= MaxManifestSize && json.Unmarshal(b, &doc) != nil {
		doc.MediaType.is, doc.SchemaVersion.is, doc.Config, doc.Layers, doc.Manifests, doc.FSLayers = "", 0, false, false, false, false
	}
	switch own := doc.MediaType.is; {
	case isRegistryType(own):
		return own
	case isRegistryType(declared):
		return declared
	case own != "" && strings.EqualFold(own, declared) && IsMediaType(own):
		return own // one that is not known here
	case doc.SchemaVersion.is == 1 && bool(doc.FSLayers && doc.Signatures):
		return MediaTypeDockerSchema1Signed
	case doc.SchemaVersion.is == 1 && bool(doc.FSLayers):
		return MediaTypeDockerSchema1
	case bool(doc.Manifests):
		return v1.MediaTypeImageIndex
	case bool(doc.Config || doc.Layers):
		return v1.MediaTypeImageManifest
	case strings.Contains(own, "/") && !strings.Contains(own, "*") && IsMediaType(own):
		return own
	case declared != "*" && IsMediaType(declared):
		return declared
	}
	return MediaTypeOctetStream
}

// lax is a field that keeps its zero value if the document has something else there.
type lax[T any] struct{ is T }

// UnmarshalJSON reads any JSON.
func (l *lax[T]) UnmarshalJSON(b []byte) error {
	var v T
	if json.Unmarshal(b, &v) == nil {
		l.is = v
	}
	return nil
}

func isRegistryType(mediaType string) bool {
	return IsIndex(mediaType) || IsManifest(mediaType) || IsSchema1(mediaType)
}

func schema1Refused() error {
	return &Error{
		Code:    CodeManifestInvalid,
		Status:  404,
		Message: "the image is stored in Docker's schema 1, which is not served: push it again with a current client",
	}
}
