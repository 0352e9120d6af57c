package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// sizes say how much of everything the hub holds.
type sizes struct {
	// Large and Medium are the bytes of the blobs that the rows call 1 GiB and
	// 100 MiB; Small of the layers of the image with many, and Layers how many.
	Large, Medium, Small int64
	Layers               int
	// Tiny is how many blobs of 1 KiB there are.
	Tiny int
}

const (
	mebibyte = 1 << 20
	hotSmall = 1 * mebibyte
	tinySize = 1 << 10
)

// item is a blob or a manifest as the load asks for it.
type item struct {
	Repository string
	Reference  string
	Manifest   bool
	MediaType  string
	Size       int64
}

// path is where a registry has it.
func (i item) path() string {
	kind := "blobs"
	if i.Manifest {
		kind = "manifests"
	}
	return "/v2/" + i.Repository + "/" + kind + "/" + i.Reference
}

// stock is what the hub holds, as the bench knows it.
type stock struct {
	// Tag and ByDigest are the same manifest: that of Image.
	Tag, ByDigest item
	// Large, Medium and Small are single blobs, Small of 1 MiB.
	Large, Medium, Small item
	// OneLarge and OneMedium are the manifests, by tag, of images with no layer
	// but Large and Medium.
	OneLarge, OneMedium item
	// Image has one large and four medium layers; Many has the small layers.
	Image, Many imageRef
	Tiny        []item
}

// imageRef is an image as a client names it, and what a whole pull of it brings.
type imageRef struct {
	Repository, Tag string
	// Bytes are those of the config and the layers.
	Bytes int64
}

// made is the content behind a stock.
type made struct {
	stock  stock
	images map[string]*image.Image // by repository; all have the tag 1
	tiny   map[digest.Digest][]byte
}

const (
	tag      = "1"
	tinyRepo = "library/tiny"
)

// makeStock makes the content. Layers are random bytes and no archives: nobody
// unpacks them.
func makeStock(s sizes) made {
	m := made{images: map[string]*image.Image{}, tiny: map[digest.Digest][]byte{}}
	large := random("large", s.Large)
	var medium [][]byte
	for n := range 4 {
		medium = append(medium, random(fmt.Sprintf("medium %d", n), s.Medium))
	}
	var layers [][]byte
	for n := range s.Layers {
		layers = append(layers, random(fmt.Sprintf("layer %d", n), s.Small))
	}
	m.stock.Image = m.add("library/image", append([][]byte{large}, medium...))
	m.stock.Many = m.add("library/many", layers)
	m.add("library/small", [][]byte{random("small", hotSmall)})

	m.add("library/large", [][]byte{large})
	m.add("library/medium", medium[:1])

	m.stock.Tag = m.byTag("library/image")
	m.stock.ByDigest = m.stock.Tag
	m.stock.ByDigest.Reference = m.images["library/image"].Digest.String()
	m.stock.OneLarge, m.stock.OneMedium = m.byTag("library/large"), m.byTag("library/medium")
	m.stock.Large = blobItem("library/large", m.images["library/large"].Layers("")[0])
	m.stock.Medium = blobItem("library/medium", m.images["library/medium"].Layers("")[0])
	m.stock.Small = blobItem("library/small", m.images["library/small"].Layers("")[0])
	for n := range s.Tiny {
		b := random(fmt.Sprintf("tiny %d", n), tinySize)
		d := digest.FromBytes(b)
		m.tiny[d] = b
		m.stock.Tiny = append(m.stock.Tiny, item{Repository: tinyRepo, Reference: d.String(), Size: tinySize})
	}
	return m
}

// byTag gives a repository's manifest as it is asked for by its tag.
func (m *made) byTag(repository string) item {
	i := m.images[repository]
	return item{Repository: repository, Reference: tag, Manifest: true, MediaType: i.MediaType(), Size: int64(len(i.Bytes()))}
}

func blobItem(repository string, d v1.Descriptor) item {
	return item{Repository: repository, Reference: d.Digest.String(), Size: d.Size}
}

// add makes an image of the layers.
func (m *made) add(repository string, layers [][]byte) imageRef {
	i := &image.Image{
		Manifests: map[digest.Digest]image.Manifest{},
		Blobs:     map[digest.Digest][]byte{},
		Platforms: map[string]digest.Digest{},
	}
	ref := imageRef{Repository: repository, Tag: tag}
	blob := func(mediaType string, b []byte) v1.Descriptor {
		d := digest.FromBytes(b)
		i.Blobs[d] = b
		ref.Bytes += int64(len(b))
		return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	manifest := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    blob(v1.MediaTypeImageConfig, fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","config":{"Labels":{"repository":%q}}}`, repository)),
	}
	for _, b := range layers {
		manifest.Layers = append(manifest.Layers, blob(v1.MediaTypeImageLayerGzip, b))
	}
	b, err := json.MarshalIndent(manifest, "", "   ")
	if err != nil {
		panic(fmt.Sprintf("encode a manifest: %v", err))
	}
	i.Digest = digest.FromBytes(b)
	i.Manifests[i.Digest] = image.Manifest{MediaType: v1.MediaTypeImageManifest, Bytes: b}
	m.images[repository] = i
	return ref
}

// random gives bytes that depend on the name alone.
func random(name string, n int64) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], 1)
	copy(key[8:], digest.FromString(name).Encoded())
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}
