package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// Inspection is what an image consists of, and what of it is cached.
type Inspection struct {
	Reference string `json:"reference"`
	// Checked is when the upstream last confirmed the tag; zero where nothing is known
	// here of it, or the reference is a digest.
	Checked time.Time `json:"checked,omitzero"`
	// Image is what the reference names.
	Image InspectedManifest `json:"image"`
	// Verified is how many contents were hashed for verify, and Bad how many of them
	// are not what their digest says, or could not be read.
	Verified int `json:"verified,omitempty"`
	Bad      int `json:"bad,omitempty"`
}

// Inspected is what all that an image consists of has in common.
type Inspected struct {
	// Kind is index, manifest, config or layer.
	Kind         cache.Kind        `json:"kind"`
	Digest       digest.Digest     `json:"digest"`
	MediaType    string            `json:"mediaType"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	// Cached says that it is here, and may be served as a part of this repository.
	Cached bool `json:"cached"`
	// Foreign says that no registry need have it.
	Foreign bool `json:"foreign,omitempty"`
	// Verified says that its bytes were hashed and are the digest's; Problem why they
	// are not, or why it could not be read.
	Verified bool   `json:"verified,omitempty"`
	Problem  string `json:"problem,omitempty"`
}

// InspectedManifest is an index or a manifest.
type InspectedManifest struct {
	Inspected
	// Platform is "linux/arm/v7"; empty where none is said.
	Platform string `json:"platform,omitempty"`
	// Tag is the one by which a signature of cosign is found.
	Tag string `json:"tag,omitempty"`
	// Config says what a container of the image would run; nil where that is not
	// known.
	Config *ImageConfig `json:"config,omitempty"`
	// Blobs are a manifest's config and layers.
	Blobs []Inspected `json:"blobs,omitempty"`
	// Manifests are those of an index.
	Manifests []InspectedManifest `json:"manifests,omitempty"`
	// Referrers are the manifests that refer to this one, as far as that is known;
	// ReferrersProblem says why they could not be found out.
	Referrers        []InspectedManifest `json:"referrers,omitempty"`
	ReferrersProblem string              `json:"referrersProblem,omitempty"`
}

// ImageConfig is what the config of an image says, in short. The values of the
// environment may be secrets, so there is only their number.
type ImageConfig struct {
	Created      time.Time         `json:"created,omitzero"`
	Author       string            `json:"author,omitempty"`
	Platform     string            `json:"platform,omitempty"`
	User         string            `json:"user,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          int               `json:"env"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
}

// inspect answers with an Inspection of ?reference=. ?platform=, which may be given
// several times, or be "all", says for which platforms of an index it is wanted. What is
// not here is asked of the upstream and not kept, for the platforms of the configuration
// where none is given, unless ?cached=true.
func (a *API) inspect(r *http.Request) (any, error) {
	i, _, err := a.look(r, "inspect")
	return i, err
}

// verify is inspect that hashes all of the image. Events are Progress.
func (a *API) verify(ctx context.Context, r *http.Request, tell Tell) (any, error) {
	i, parts, err := a.look(r, "verify")
	if err != nil {
		return nil, err
	}
	t, err := Target(a.Router, i.Reference)
	if err != nil {
		return nil, err
	}
	done := map[digest.Digest]error{}
	p := Progress{Unit: "blobs"}
	for _, part := range parts {
		if _, twice := done[part.node.Digest]; part.counts() && !twice {
			done[part.node.Digest] = nil
			p.Total++
			p.TotalBytes += part.node.Size
		}
	}
	clear(done)
	for _, part := range parts {
		if !part.counts() {
			continue
		}
		d := part.node.Digest
		err, twice := done[d]
		if !twice {
			err = a.Cache.VerifyNode(ctx, t, part.node)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			done[d] = err
			i.Verified++
			p.Done++
			p.Bytes += part.node.Size
			if err := tell(p); err != nil {
				return nil, err
			}
			if err != nil {
				i.Bad++
			}
		}
		part.shown.Verified = err == nil
		if err != nil {
			part.shown.Problem = says(err)
		}
	}
	return i, nil
}

// part is a node of a tree, and where it is shown.
type part struct {
	node  *cache.Node
	shown *Inspected
	asked bool
}

// counts tells whether a part is verified: it is here, or the upstream was asked for the
// manifest that names it.
func (p part) counts() bool { return !p.node.Foreign && (p.node.Stored || p.asked) }

// look makes the Inspection that r asks for, and lists its parts.
func (a *API) look(r *http.Request, name string) (*Inspection, []part, error) {
	tree, err := a.tree(r, name, cache.TreeOptions{Referrers: true, Configs: true})
	if err != nil {
		return nil, nil, err
	}
	i := &Inspection{Reference: tree.Target.String()}
	if tree.Tag != nil {
		i.Checked = tree.Tag.Checked.UTC()
	}
	var parts []part
	show(&i.Image, tree.Root, &parts)
	return i, parts, nil
}

// tree walks the tree of ?reference=, for ?platform=, and asks the upstream unless
// ?cached=true.
func (a *API) tree(r *http.Request, name string, o cache.TreeOptions) (*cache.Tree, error) {
	q := r.URL.Query()
	text := q.Get("reference")
	if text == "" {
		return nil, invalidf("name a reference: %s%s?reference=docker.io/library/nginx:1.27", Prefix, name)
	}
	cached, err := flag(r, "cached")
	if err != nil {
		return nil, err
	}
	t, err := Target(a.Router, text)
	if err != nil {
		return nil, err
	}
	wanted := q["platform"]
	all := len(wanted) == 1 && wanted[0] == "all"
	if !all {
		for _, p := range wanted {
			if _, err := oci.ParsePlatform(p); err != nil {
				return nil, invalidf("%s", says(err))
			}
		}
		o.Platforms = wanted
	}
	o.Ask = !cached
	switch {
	case all:
	case len(wanted) > 0:
		o.AskPlatforms = wanted
	default:
		o.AskPlatforms = a.Cache.Platforms()
	}
	tree, err := a.Cache.Tree(r.Context(), t, o)
	if err != nil {
		return nil, err
	}
	for _, p := range o.Platforms {
		if err := hasPlatform(tree, p); err != nil {
			return nil, err
		}
	}
	return tree, nil
}

// hasPlatform gives an error that says what else is there where an index has no manifest
// for a platform.
func hasPlatform(tree *cache.Tree, platform string) error {
	p := tree.Root.Parsed
	if p == nil || p.Kind != oci.KindIndex {
		return nil
	}
	if _, err := oci.SelectPlatform(p, platform); err == nil {
		return nil
	}
	var there []string
	for _, d := range p.Children {
		if name := oci.PlatformName(d.Platform); name != "" && !oci.IsAttestation(d) && !slices.Contains(there, name) && len(there) < maxPlatforms {
			there = append(there, name)
		}
	}
	return Errorf(http.StatusNotFound, "%s has no manifest for %s; it is there for %s", tree.Target, platform, cmp.Or(strings.Join(there, ", "), "no platform"))
}

// maxPlatforms is how many platforms an error names.
const maxPlatforms = 64

// show makes m of n and all below it, and adds their parts.
func show(m *InspectedManifest, n *cache.Node, parts *[]part) {
	m.Inspected = inspected(n)
	m.Platform, m.Tag = oci.PlatformName(n.Platform), n.Tag
	if n.Parsed != nil {
		m.ArtifactType, m.Annotations = n.Parsed.ArtifactType, n.Parsed.Annotations
		if n.Kind == cache.KindManifest && m.ArtifactType == n.Parsed.Config.MediaType {
			m.ArtifactType = "" // an image like any other, or said by the config's type
		}
	}
	if n.Missing != nil && !n.Left {
		m.Problem = says(n.Missing)
	}
	if n.ReferrersMissing != nil {
		m.ReferrersProblem = says(n.ReferrersMissing)
	}
	asked := n.Parsed != nil
	*parts = append(*parts, part{n, &m.Inspected, asked})
	// The places must not move once they are in parts.
	m.Blobs, m.Manifests = make([]Inspected, 0, len(n.Children)), make([]InspectedManifest, 0, len(n.Children))
	for _, child := range n.Children {
		switch child.Kind {
		case cache.KindConfig, cache.KindLayer:
			m.Blobs = append(m.Blobs, inspected(child))
			*parts = append(*parts, part{child, &m.Blobs[len(m.Blobs)-1], asked})
			if child.Kind == cache.KindConfig {
				m.Config = readConfig(child)
			}
		default:
			m.Manifests = append(m.Manifests, InspectedManifest{})
			show(&m.Manifests[len(m.Manifests)-1], child, parts)
		}
	}
	m.Referrers = make([]InspectedManifest, len(n.Referrers))
	for i, r := range n.Referrers {
		show(&m.Referrers[i], r, parts)
	}
}

func inspected(n *cache.Node) Inspected {
	return Inspected{
		Kind: n.Kind, Digest: n.Digest, MediaType: n.MediaType, Size: n.Size, ArtifactType: n.ArtifactType,
		Annotations: n.Annotations, Cached: n.Stored, Foreign: n.Foreign,
	}
}

// readConfig reads what an image's config says; nil where it is none.
func readConfig(n *cache.Node) *ImageConfig {
	if n.Bytes == nil || n.MediaType != v1.MediaTypeImageConfig && n.MediaType != oci.MediaTypeDockerImageConfig {
		return nil
	}
	var i v1.Image
	if json.Unmarshal(n.Bytes, &i) != nil {
		return nil
	}
	c := &ImageConfig{
		Author: i.Author, User: i.Config.User, WorkingDir: i.Config.WorkingDir,
		Entrypoint: i.Config.Entrypoint, Cmd: i.Config.Cmd, Env: len(i.Config.Env), Labels: i.Config.Labels,
	}
	if i.OS != "" {
		c.Platform = oci.PlatformName(&i.Platform)
	}
	if i.Created != nil {
		c.Created = i.Created.UTC()
	}
	for port := range i.Config.ExposedPorts {
		c.ExposedPorts = append(c.ExposedPorts, port)
	}
	slices.Sort(c.ExposedPorts)
	return c
}

// says gives what is told of an error: of an oci.Error its sentence alone.
func says(err error) string {
	var e *oci.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// ManifestBytes is a manifest or index, byte for byte.
type ManifestBytes struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	// Bytes are in base64 here, as JSON has it.
	Bytes []byte `json:"bytes"`
}

// manifest answers with the ManifestBytes of ?reference=: where ?platform= is given, of
// that platform's manifest in an index. What is not here is asked of the upstream and not
// kept, unless ?cached=true.
func (a *API) manifest(r *http.Request) (any, error) {
	platforms := r.URL.Query()["platform"]
	if len(platforms) > 1 || len(platforms) == 1 && platforms[0] == "all" {
		return nil, invalidf("a manifest is for one platform: %smanifest?reference=nginx&platform=linux/amd64", Prefix)
	}
	tree, err := a.tree(r, "manifest", cache.TreeOptions{RootOnly: len(platforms) == 0})
	if err != nil {
		return nil, err
	}
	n := tree.Root
	if len(platforms) == 1 && n.Kind == cache.KindIndex {
		if n.Parsed == nil {
			return nil, n.Missing
		}
		d, err := oci.SelectPlatform(n.Parsed, platforms[0])
		if err != nil {
			return nil, err
		}
		for _, child := range n.Children {
			if child.Digest == d.Digest {
				n = child
			}
		}
	}
	if n.Bytes == nil {
		return nil, n.Missing
	}
	return ManifestBytes{Digest: n.Digest, MediaType: n.MediaType, Bytes: n.Bytes}, nil
}
