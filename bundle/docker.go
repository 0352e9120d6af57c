package bundle

import (
	"encoding/json"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// dockerImage is an element of the file that "docker save" writes ("Docker Image
// Specification v1.2", "Combined Image JSON + Filesystem Changeset Format").
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string

	image    Image
	contents []digest.Digest
}

// noteForDocker remembers what a Docker daemon that keeps its images by itself, and reads
// no layout, makes of an image: the first platform of it that is taken.
func (p *planner) noteForDocker(image Image, root *cache.Node) {
	n := firstPlatform(root, func(d digest.Digest) bool { return p.contents[d] != nil })
	if image.Referrer || n == nil || !isRunnable(n.Parsed.Config) {
		return
	}
	d := &dockerImage{Config: BlobName(n.Parsed.Config.Digest), RepoTags: []string{}, Layers: []string{}, image: image}
	for _, child := range n.Children {
		d.contents = append(d.contents, child.Digest)
	}
	// An image may have a layer twice, of which n has one child.
	var m struct{ Layers oci.Descriptors }
	if json.Unmarshal(n.Bytes, &m) != nil {
		return
	}
	for _, l := range m.Layers {
		d.Layers = append(d.Layers, BlobName(l.Digest))
	}
	p.docker = append(p.docker, d)
}

// dockerFile gives the file: the images that are in the bundle with all that they need,
// once the plan's are in order.
func (p *planner) dockerFile() ([]byte, error) {
	byName := map[string]*dockerImage{}
	for _, d := range p.docker {
		byName[d.image.String()] = d
	}
	list := []*dockerImage{}
	byConfig := map[string]*dockerImage{}
	for _, image := range p.plan.Contents.Images {
		d := byName[image.String()]
		if d == nil || !p.present(d.contents) {
			continue
		}
		if same := byConfig[d.Config]; same != nil {
			d = same
		} else {
			byConfig[d.Config] = d
			list = append(list, d)
		}
		if image.Tag != "" {
			d.RepoTags = append(d.RepoTags, image.String())
		}
	}
	return encode(list)
}

// present tells whether all of these are in the bundle.
func (p *planner) present(list []digest.Digest) bool {
	for _, d := range list {
		if k := p.contents[d]; k == nil || !k.Present {
			return false
		}
	}
	return true
}

// isRunnable tells whether a config is that of an image that can be run.
func isRunnable(config v1.Descriptor) bool {
	return config.MediaType == v1.MediaTypeImageConfig || config.MediaType == oci.MediaTypeDockerImageConfig
}
