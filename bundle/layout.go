// Package bundle carries images from one cache to another in one file: an OCI image
// layout (image-spec, "OCI Image Layout Specification"), as a tar or as a directory,
// which other tools read as well, with a document beside it that says all that an
// Entrepot needs to serve the images by the same names, tags and digests.
//
// It promises that the bytes of a bundle follow from its contents alone, and that
// content is in it byte for byte, verified. It does not know where a cache keeps
// things: it reads from a Source.
package bundle

import (
	"bytes"
	"cmp"
	_ "crypto/sha256" // go-digest knows what the program links
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// The files of a bundle, in their order. Then comes the content: manifests and
// indexes by digest, and after them all else by digest.
const (
	// LayoutName says that it is an OCI image layout.
	LayoutName = v1.ImageLayoutFile
	// ContentsName holds the Contents.
	ContentsName = "entrepot.json"
	// IndexName is the layout's index: a descriptor for each image.
	IndexName = v1.ImageIndexFile
	// DockerName is what "docker save" writes, for who knows no layout.
	DockerName = "manifest.json"
	// BlobsDir is where content is, see BlobName.
	BlobsDir = v1.ImageBlobsDir
)

// Version is the version of Contents that is written, and the highest that is read.
const Version = 1

// Annotations of the descriptors in a layout's index, beside
// org.opencontainers.image.ref.name, which holds the whole reference
// ("docker.io/library/nginx:1.27").
const (
	// AnnotationContainerdName holds the whole reference for containerd and for Docker's
	// containerd image store.
	AnnotationContainerdName = "io.containerd.image.name"

	AnnotationUpstream   = "dev.entrepot.upstream"
	AnnotationRepository = "dev.entrepot.repository"
	// AnnotationTag is not there where the image was named by its digest.
	AnnotationTag = "dev.entrepot.tag"
	// AnnotationFetched is Image.Fetched, as in RFC 3339.
	AnnotationFetched = "dev.entrepot.fetched"
)

// Contents is the document in ContentsName: what a bundle is for, and what is in it.
type Contents struct {
	Version int `json:"version"`
	// Created is the newest time of Images, to the second, so that the same cache
	// gives the same bytes.
	Created time.Time `json:"created"`
	// Since is set where content was left out that an earlier bundle has.
	Since *Since `json:"since,omitempty"`
	// Images are in the order of upstream, repository, tag and digest.
	Images []Image `json:"images"`
	// Contents are all that the images consist of, in the order of digests, also what
	// was left out.
	Contents []Content `json:"contents"`
	// Digest is over all above, see Sum.
	Digest digest.Digest `json:"digest"`
}

// Since says what was left out: one of its fields is set.
type Since struct {
	// Digest is the Contents.Digest of an earlier bundle, of which the blobs were left
	// out.
	Digest digest.Digest `json:"digest,omitempty"`
	// Time is from when on blobs must have been stored to be in the bundle.
	Time time.Time `json:"time,omitzero"`
}

// Image is a name by which something is to be served.
type Image struct {
	// Upstream and Repository are as in an oci.Target: "docker.io" and
	// "library/nginx".
	Upstream   string `json:"upstream"`
	Repository string `json:"repository"`
	// Tag is empty for what is served by its digest alone.
	Tag    string        `json:"tag,omitempty"`
	Digest digest.Digest `json:"digest"`
	// MediaType is the one by which the repository serves it.
	MediaType string `json:"mediaType"`
	// Fetched is when the upstream last said that the tag stands for it, or, without a
	// tag, when it was stored; to the second.
	Fetched time.Time `json:"fetched"`
	// Referrer is set where it was taken because it refers to another image: as the
	// manifest's subject, or by a tag as cosign makes it from the other's digest.
	Referrer bool `json:"referrer,omitempty"`
	// Listed is set where all was known, and taken, that refers to it and to its
	// manifests: nothing else does.
	Listed bool `json:"listed,omitempty"`
}

// String gives the reference as people write it.
func (i Image) String() string {
	if i.Tag == "" {
		return i.Upstream + "/" + i.Repository + "@" + i.Digest.String()
	}
	return i.Upstream + "/" + i.Repository + ":" + i.Tag
}

// Content is a manifest, an index or a blob.
type Content struct {
	Digest digest.Digest `json:"digest"`
	// Size is in bytes.
	Size int64 `json:"size"`
	// MediaType is set for manifests and indexes, and for nothing else.
	MediaType string `json:"mediaType,omitempty"`
	// In are the repositories that may serve it, "docker.io/library/nginx", sorted.
	In []string `json:"in"`
	// Present tells that its bytes are in the bundle. Where it is not set they were left
	// out, as Since says: who takes the bundle in must have them already.
	Present bool `json:"present"`
}

// IsManifest tells whether it is a manifest or an index.
func (c Content) IsManifest() bool { return c.MediaType != "" }

// BlobName gives the name of a file of content: "blobs/sha256/…". d must be valid.
func BlobName(d digest.Digest) string {
	return path.Join(BlobsDir, d.Algorithm().String(), d.Encoded())
}

// Sum gives the digest over all but Digest: the SHA-256 of the document as it is
// written, without that member and without its white space. So it is what this gives:
//
//	jq -cj 'del(.digest)' entrepot.json | sha256sum
func (c *Contents) Sum() (digest.Digest, error) {
	b, err := encode(struct {
		Version  int       `json:"version"`
		Created  time.Time `json:"created"`
		Since    *Since    `json:"since,omitempty"`
		Images   []Image   `json:"images"`
		Contents []Content `json:"contents"`
	}{c.Version, c.Created, c.Since, c.Images, c.Contents})
	if err != nil {
		return "", fmt.Errorf("encode the contents of a bundle: %w", err)
	}
	return digest.SHA256.FromBytes(b), nil
}

// seal puts all in order, and sets what follows from the rest.
func (c *Contents) seal() error {
	slices.SortFunc(c.Images, func(a, b Image) int {
		return cmp.Or(cmp.Compare(a.Upstream, b.Upstream), cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Tag, b.Tag), cmp.Compare(a.Digest, b.Digest))
	})
	slices.SortFunc(c.Contents, func(a, b Content) int { return cmp.Compare(a.Digest, b.Digest) })
	c.Version, c.Created = Version, time.Unix(0, 0).UTC()
	for _, i := range c.Images {
		if i.Fetched.After(c.Created) {
			c.Created = i.Fetched
		}
	}
	var err error
	c.Digest, err = c.Sum()
	return err
}

// Encode gives the document as it is written.
func (c *Contents) Encode() ([]byte, error) {
	b, err := encode(c)
	if err != nil {
		return nil, fmt.Errorf("encode the contents of a bundle: %w", err)
	}
	return b, nil
}

// encode gives v as JSON, without white space, and with the characters of HTML as they
// are.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
