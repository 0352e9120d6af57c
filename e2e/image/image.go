package image

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Manifest is a manifest or an index: its own media type and its bytes.
type Manifest struct {
	MediaType string
	Bytes     []byte
}

// Image is anything that a tag can stand for: a single-platform image, an index
// of several, an artifact. It holds all content that is needed to pull it.
// It is safe for concurrent use as long as nobody changes it.
type Image struct {
	// Digest is the root's: the manifest or index that a tag would name.
	Digest digest.Digest
	// Manifests holds the root and, where it is an index, what it lists.
	Manifests map[digest.Digest]Manifest
	// Blobs holds configs and layers.
	Blobs map[digest.Digest][]byte
	// Platforms gives the manifest of each platform ("linux/arm/v7"); empty
	// for artifacts.
	Platforms map[string]digest.Digest
}

// MediaType gives the root's media type.
func (i *Image) MediaType() string { return i.Manifests[i.Digest].MediaType }

// Bytes gives the root manifest's bytes.
func (i *Image) Bytes() []byte { return i.Manifests[i.Digest].Bytes }

// Descriptor gives the root's descriptor.
func (i *Image) Descriptor() v1.Descriptor { return i.descriptor(i.Digest) }

func (i *Image) descriptor(d digest.Digest) v1.Descriptor {
	m, ok := i.Manifests[d]
	if !ok {
		panic(fmt.Sprintf("image: no manifest %s in it", d))
	}
	return v1.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(m.Bytes))}
}

// Parsed gives the manifest with digest d (the root's, or a platform's),
// decoded. Indexes panic.
func (i *Image) Parsed(d digest.Digest) v1.Manifest {
	var m v1.Manifest
	if err := json.Unmarshal(i.Manifests[d].Bytes, &m); err != nil {
		panic(fmt.Sprintf("image: manifest %s: %v", d, err))
	}
	if m.Config.Digest == "" {
		panic(fmt.Sprintf("image: %s is no single manifest", d))
	}
	return m
}

// Layers gives the layers of the given platform's manifest; of the root where
// platform is empty.
func (i *Image) Layers(platform string) []v1.Descriptor {
	d := i.Digest
	if platform != "" {
		var ok bool
		if d, ok = i.Platforms[platform]; !ok {
			panic(fmt.Sprintf("image: no platform %q in it", platform))
		}
	}
	return i.Parsed(d).Layers
}

// Size gives the bytes of all manifests and blobs together.
func (i *Image) Size() int64 {
	var n int64
	for _, m := range i.Manifests {
		n += int64(len(m.Bytes))
	}
	for _, b := range i.Blobs {
		n += int64(len(b))
	}
	return n
}

func empty() *Image {
	return &Image{
		Manifests: map[digest.Digest]Manifest{},
		Blobs:     map[digest.Digest][]byte{},
		Platforms: map[string]digest.Digest{},
	}
}

// blob adds content and gives its descriptor.
func (i *Image) blob(alg digest.Algorithm, mediaType string, content []byte) v1.Descriptor {
	d := alg.FromBytes(content)
	i.Blobs[d] = content
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

// root adds m as the root manifest.
func (i *Image) root(alg digest.Algorithm, mediaType string, m any) *Image {
	// Indented, as many real ones are: whoever re-encodes it is found out.
	b, err := json.MarshalIndent(m, "", "   ")
	if err != nil {
		panic(fmt.Sprintf("image: encode manifest: %v", err))
	}
	i.Digest = alg.FromBytes(b)
	i.Manifests[i.Digest] = Manifest{MediaType: mediaType, Bytes: b}
	return i
}

// include adds all that other holds.
func (i *Image) include(other *Image) {
	maps.Copy(i.Manifests, other.Manifests)
	maps.Copy(i.Blobs, other.Blobs)
}
