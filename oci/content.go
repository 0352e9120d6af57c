package oci

import (
	_ "crypto/sha256" // go-digest hashes with what the program links
	_ "crypto/sha512"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifestSize is the largest manifest or index that is fetched, kept or
// parsed, in bytes: what the distribution spec asks registries to take at
// least, and what containerd takes at most.
const MaxManifestSize = 4 << 20

// Media types that are not in image-spec: Docker's own, which most images on
// Docker Hub still carry.
const (
	MediaTypeDockerManifest      = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerManifestList  = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	MediaTypeDockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	MediaTypeDockerImageConfig   = "application/vnd.docker.container.image.v1+json"
	MediaTypeDockerLayerGzip     = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	MediaTypeDockerForeignLayer  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	MediaTypeOCIArtifactManifest = "application/vnd.oci.artifact.manifest.v1+json"
	MediaTypeOctetStream         = "application/octet-stream"
)

// Manifest is a manifest or index as an upstream sent it, byte for byte.
type Manifest struct {
	// Digest is computed from Bytes, never taken from a header.
	Digest digest.Digest
	// MediaType is the one in the body, or the one that the upstream declared
	// where the body says none.
	MediaType string
	// Bytes must not be changed by whoever holds it.
	Bytes []byte
}

// Descriptor gives the manifest's descriptor.
func (m *Manifest) Descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: int64(len(m.Bytes))}
}

// Span is a run of bytes of a blob: From is the first byte, To the one after
// the last. A To of Open reaches to the blob's end.
type Span struct {
	From, To int64
}

// Open as a Span's To stands for the end of the blob, wherever that is.
const Open int64 = -1

// Whole is the span of a whole blob of any size.
var Whole = Span{From: 0, To: Open}

// Body is an answer to a request for a span of a blob. Whoever got it closes it.
type Body struct {
	io.ReadCloser
	// Span is what the body really carries, which may be more than was asked
	// for (an upstream that ignores Range sends all). To is Open where the
	// upstream did not say how much it sends.
	Span Span
	// Size is the size of the whole blob in bytes, or -1 where the upstream
	// did not say.
	Size int64
	// Status is the HTTP status of the answer; zero where there is none.
	Status int
	// Source names the endpoint that sends, for logs: a host, never a URL.
	Source string
	// Refuse tells the origin that this source's bytes were not the digest's:
	// it is passed over for a while where there is another. It may be nil.
	Refuse func()
	// NoRanges tells the origin that what this source sends as a part of a blob is not
	// that part: it is asked for whole blobs for a while. It may be nil.
	NoRanges func()
}
