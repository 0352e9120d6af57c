package image

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// Flavour is which of the two families of media types an image speaks.
type Flavour string

// The two families. OCI is the default.
const (
	OCI    Flavour = "oci"
	Docker Flavour = "docker"
)

// Options say what image to make. The zero value is a small OCI image for
// linux/amd64 with one gzip layer.
type Options struct {
	Seed    uint64
	Flavour Flavour
	// Platform is "linux/amd64" where it is empty. Index ignores it.
	Platform string
	// Layers is one of 2 KiB where it is empty.
	Layers []Layer
	// Algorithm addresses all content; sha256 where it is empty. The diff IDs
	// are always sha256, as daemons want them.
	Algorithm digest.Algorithm
	// Subject, ArtifactType and Annotations go into the manifest as they are.
	Subject      *v1.Descriptor
	ArtifactType string
	Annotations  map[string]string
}

// Platforms are those that Index makes.
var Platforms = []string{"linux/amd64", "linux/arm64", "linux/arm/v7"}

func (o Options) withDefaults() Options {
	if o.Flavour == "" {
		o.Flavour = OCI
	}
	if o.Platform == "" {
		o.Platform = "linux/amd64"
	}
	if o.Algorithm == "" {
		o.Algorithm = digest.SHA256
	}
	if len(o.Layers) == 0 {
		o.Layers = []Layer{{Size: 2 << 10}}
	}
	return o
}

// New makes a single-platform image with a root file system that a daemon can
// unpack.
func New(o Options) *Image {
	o = o.withDefaults()
	i := empty()
	p := ParsePlatform(o.Platform)
	created := time.Unix(1700000000, 0).UTC()
	cfg := v1.Image{
		Created:  &created,
		Platform: p,
		Config:   v1.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/none"}, Labels: map[string]string{"seed": fmt.Sprint(o.Seed)}},
		RootFS:   v1.RootFS{Type: "layers"},
	}
	var layers []v1.Descriptor
	for n, l := range o.Layers {
		m := l.pack(o.Seed, o.Platform, n)
		layers = append(layers, i.blob(o.Algorithm, l.mediaType(o.Flavour), m.packed))
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, m.diffID)
		cfg.History = append(cfg.History, v1.History{Created: &created, CreatedBy: fmt.Sprintf("layer %d", n)})
	}
	b, err := json.Marshal(cfg)
	if err != nil {
		panic(fmt.Sprintf("image: encode config: %v", err))
	}
	mediaType, configType := v1.MediaTypeImageManifest, v1.MediaTypeImageConfig
	if o.Flavour == Docker {
		mediaType, configType = oci.MediaTypeDockerManifest, oci.MediaTypeDockerImageConfig
	}
	i.root(o.Algorithm, mediaType, v1.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    mediaType,
		ArtifactType: o.ArtifactType,
		Config:       i.blob(o.Algorithm, configType, b),
		Layers:       layers,
		Subject:      o.Subject,
		Annotations:  o.Annotations,
	})
	i.Platforms[o.Platform] = i.Digest
	return i
}

// Index makes a multi-platform image for all Platforms: an OCI index, or a
// Docker manifest list. Each platform's layers are its own.
func Index(o Options) *Image {
	o = o.withDefaults()
	mediaType := v1.MediaTypeImageIndex
	if o.Flavour == Docker {
		mediaType = oci.MediaTypeDockerManifestList
	}
	i := empty()
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Annotations: o.Annotations, Subject: o.Subject, ArtifactType: o.ArtifactType}
	for _, name := range Platforms {
		single := o
		single.Platform, single.Annotations, single.Subject, single.ArtifactType = name, nil, nil, ""
		m := New(single)
		i.include(m)
		i.Platforms[name] = m.Digest
		d := m.Descriptor()
		p := ParsePlatform(name)
		d.Platform = &p
		index.Manifests = append(index.Manifests, d)
	}
	return i.root(o.Algorithm, mediaType, index)
}

// ParsePlatform reads "os/arch" or "os/arch/variant".
func ParsePlatform(s string) v1.Platform {
	f := strings.Split(s, "/")
	switch len(f) {
	case 2:
		return v1.Platform{OS: f[0], Architecture: f[1]}
	case 3:
		return v1.Platform{OS: f[0], Architecture: f[1], Variant: f[2]}
	}
	panic(fmt.Sprintf("image: %q is no platform", s))
}
