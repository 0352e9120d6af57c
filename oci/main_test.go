package oci

import "github.com/opencontainers/image-spec/specs-go/v1"

const (
	dockerManifest = MediaTypeDockerManifest
	dockerList     = MediaTypeDockerManifestList
	ociManifest    = v1.MediaTypeImageManifest
	ociIndex       = v1.MediaTypeImageIndex

	sum512 = "sha512:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)
