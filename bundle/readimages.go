package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// layoutIndex is the index of an image layout.
type layoutIndex struct {
	SchemaVersion int             `json:"schemaVersion"`
	Manifests     oci.Descriptors `json:"manifests"`
}

// addContents adds the images that a bundle's contents name.
func (a *reading) addContents() error {
	if a.Name != "" {
		return refuse("it is a bundle, which says itself what its images are called; import it without --name")
	}
	if err := a.checkLayout(); err != nil {
		return err
	}
	var absent, lacking []digest.Digest
	for _, c := range a.contents.Contents {
		size, taken := a.taken[c.Digest]
		switch {
		case c.Present && !taken:
			absent = append(absent, c.Digest)
		case taken && (!c.Present || size != c.Size):
			return refuse("the blob %s is not as %s says", c.Digest, ContentsName)
		case !taken && !a.in.Has(c.Digest, c.Size):
			lacking = append(lacking, c.Digest)
		}
	}
	if len(absent) > 0 {
		return refuse("it is not whole: %d blobs are missing: %s", len(absent), tellSome(absent))
	}
	if len(lacking) > 0 {
		return refuse("it holds what is new since %s only, and %d blobs of before are not here: %s; import that bundle first",
			newSince(a.contents.Since), len(lacking), tellSome(lacking))
	}
	for d := range a.taken {
		if _, ok := a.promised[d]; !ok {
			return refuse("it has the blob %s, which %s does not say", d, ContentsName)
		}
	}
	if a.index != nil {
		for _, d := range a.index.Manifests {
			if _, ok := a.promised[d.Digest]; !ok {
				return refuse("%s names %s, which %s does not", IndexName, d.Digest, ContentsName)
			}
		}
	}
	seen := map[string]bool{}
	for _, i := range a.contents.Images {
		if err := context.Cause(a.ctx); err != nil {
			return err
		}
		t, err := a.target(i)
		if err != nil {
			return err
		}
		if seen[i.String()] {
			return refuse("%s names %s twice", ContentsName, i)
		}
		seen[i.String()] = true
		c, ok := a.promised[i.Digest]
		if !ok {
			return refuse("%s names the image %s, and not its manifest %s", ContentsName, i, i.Digest)
		}
		add := a.in.Add
		if i.Listed {
			add = a.in.AddListed
		}
		if err := add(t, v1.Descriptor{MediaType: i.MediaType, Digest: i.Digest, Size: c.Size}, i.Fetched); err != nil {
			return err
		}
	}
	return nil
}

// newSince says since when something is new.
func newSince(s *Since) string {
	switch {
	case s == nil:
		return "an earlier bundle"
	case s.Digest != "":
		return "the bundle " + s.Digest.String()
	}
	return s.Time.UTC().Format(time.RFC3339)
}

var wholeTag = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile("^(?:" + reference.TagRegexp.String() + ")$")
})

// target gives where an image of a bundle is served.
func (a *reading) target(i Image) (oci.Target, error) {
	if err := oci.CheckName(i.Repository); err != nil {
		return oci.Target{}, err
	}
	if i.Tag != "" && !wholeTag().MatchString(i.Tag) {
		return oci.Target{}, refuse("%q is no tag", i.Tag)
	}
	t, err := a.Route(i.Upstream, i.Repository)
	if err != nil {
		return oci.Target{}, err
	}
	t.Tag = i.Tag
	return t, nil
}

// checkLayout tells whether what is no "docker save" is an image layout.
func (a *reading) checkLayout() error {
	for name := range a.links {
		return refuse("%q is a link", name)
	}
	for name := range a.files {
		return refuse("%q does not belong into an image layout", name)
	}
	if !a.layout {
		return refuse("it has no file %s, as an image layout has", LayoutName)
	}
	return nil
}

// unnamed is an image whose name the archive does not say.
type unnamed struct {
	v1.Descriptor
	subject digest.Digest
}

// addIndex adds the images that the index of an image layout names. Those without a
// name that refer to another one go where that is.
func (a *reading) addIndex() error {
	if err := a.checkLayout(); err != nil {
		return err
	}
	if len(a.index.Manifests) == 0 {
		return refuse("its %s names no image", IndexName)
	}
	homes := map[digest.Digest][]oci.Target{} // where images go, by digest
	var rest []unnamed
	for _, d := range a.index.Manifests {
		if err := context.Cause(a.ctx); err != nil {
			return err
		}
		if _, ok := a.taken[d.Digest]; !ok {
			return refuse("its %s names %s, which is not in it", IndexName, d.Digest)
		}
		name := nameOf(d)
		if name == "" || a.Name != "" {
			subject, err := a.subject(d)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(rest, func(u unnamed) bool { return u.Digest == d.Digest }) {
				rest = append(rest, unnamed{d, subject})
			}
			continue
		}
		t, err := a.Resolve(name)
		if err != nil {
			return err
		}
		if err := a.addAt(t, d, homes); err != nil {
			return err
		}
	}
	// A chain of referrers: who refers to what has its place has one, too.
	for placed := true; placed; {
		if err := context.Cause(a.ctx); err != nil {
			return err
		}
		placed = false
		rest = slices.DeleteFunc(rest, func(u unnamed) bool { return len(homes[u.Digest]) > 0 })
		for _, u := range rest {
			for _, t := range homes[u.subject] {
				t.Tag = ""
				t.Digest = u.Digest
				if err := a.addAt(t, u.Descriptor, homes); err != nil {
					return err
				}
				placed = true
			}
		}
		if placed || len(rest) == 0 {
			continue
		}
		var tops []unnamed
		for _, u := range rest {
			if _, ok := a.taken[u.subject]; !ok {
				tops = append(tops, u)
			}
		}
		switch {
		case a.Name == "":
			return refuse("it does not say what %s is called; say it: --name docker.io/library/nginx:1.27", rest[0].Digest)
		case len(homes) > 0 || len(tops) != 1:
			return refuse("it has %d images, and --name is for one", max(len(tops), 1)+len(homes))
		}
		t, err := a.Resolve(a.Name)
		if err != nil {
			return err
		}
		if err := a.addAt(t, tops[0].Descriptor, homes); err != nil {
			return err
		}
		placed = true
	}
	return nil
}

// addAt adds the image of d at t.
func (a *reading) addAt(t oci.Target, d v1.Descriptor, homes map[digest.Digest][]oci.Target) error {
	if t.Digest != "" && t.Digest != d.Digest {
		return refuse("%s is not the digest of its image, which is %s", t.Digest, d.Digest)
	}
	t.Digest = ""
	if t.Tag == "" {
		t.Digest = d.Digest
	}
	homes[d.Digest] = append(homes[d.Digest], t)
	return a.in.Add(t, d, time.Time{})
}

// nameOf gives the whole reference that a descriptor of a layout's index has in its
// annotations; empty where it has none. A tag alone is none.
func nameOf(d v1.Descriptor) string {
	for _, key := range []string{AnnotationContainerdName, v1.AnnotationRefName} {
		name := d.Annotations[key]
		if named, err := reference.ParseNamed(name); err == nil && named.String() == name {
			return name
		}
	}
	return ""
}

// subject gives what the manifest of d refers to; empty for nothing.
func (a *reading) subject(d v1.Descriptor) (digest.Digest, error) {
	b, err := a.in.Read(d.Digest, oci.MaxManifestSize)
	if err != nil {
		return "", err
	}
	p, err := oci.ParseManifest(b, d.MediaType)
	if err != nil || p.Subject == nil {
		return "", err
	}
	return p.Subject.Digest, nil
}

// dropLegacy drops what Docker 25 and newer write beside an image layout, for readers of
// before there were manifests: a document for each layer, which nothing names.
func (a *reading) dropLegacy() error {
	for _, d := range a.in.Unnamed(maxEntries) {
		if a.taken[d] > maxSmall {
			continue
		}
		b, err := a.in.Read(d, maxSmall)
		if err != nil {
			return err
		}
		var legacy struct{ ID string }
		if json.Unmarshal(b, &legacy) != nil || digest.NewDigestFromEncoded(digest.SHA256, legacy.ID).Validate() != nil {
			continue
		}
		if err := a.in.Drop(d); err != nil {
			return err
		}
	}
	return nil
}

// savedLayer is what "docker save" has called a layer, in a directory of its own.
const savedLayer = "layer.tar"

// savedImage is an image as "docker save" describes it.
type savedImage struct {
	Config   string
	RepoTags names
	Layers   names
}

// addSaved adds what "docker save" wrote, for whom no manifest is there: one is made of
// config and layers, which are served as they are.
func (a *reading) addSaved() error {
	switch {
	case len(a.docker) == 0:
		return refuse("its %s names no image", DockerName)
	case a.Name != "" && len(a.docker) > 1:
		return refuse("it has %d images, and --name is for one", len(a.docker))
	}
	for _, i := range a.docker {
		tags := i.RepoTags
		if a.Name != "" {
			tags = names{a.Name}
		}
		if len(tags) == 0 {
			return refuse("it does not say what the image of %q is called; say it: --name docker.io/library/nginx:1.27", i.Config)
		}
		d, err := a.manifestOf(i)
		if err != nil {
			return err
		}
		for _, name := range tags {
			if err := context.Cause(a.ctx); err != nil {
				return err
			}
			t, err := a.Resolve(name)
			if err != nil {
				return err
			}
			if t.Digest != "" && t.Digest != d.Digest {
				return refuse("%s is not the digest of its image: the manifest that is made of it is %s", t.Digest, d.Digest)
			}
			if err := a.in.Add(t, d, time.Time{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// find gives the file of that name, which may be a link to one.
func (a *reading) find(name string) (namedFile, error) {
	for range 2 {
		if f, ok := a.files[name]; ok {
			return f, nil
		}
		to, ok := a.links[name]
		if !ok {
			break
		}
		name = to
	}
	return namedFile{}, refuse("its %s names %q, which is not in it", DockerName, name)
}

// manifestOf makes a manifest of a saved image, and takes it in.
func (a *reading) manifestOf(i savedImage) (v1.Descriptor, error) {
	config, err := a.find(i.Config)
	if err != nil {
		return v1.Descriptor{}, err
	}
	b, err := a.in.Read(config.digest, maxSmall)
	if err != nil {
		return v1.Descriptor{}, err
	}
	var image v1.Image
	if err := json.Unmarshal(b, &image); err != nil {
		return v1.Descriptor{}, refuse("%q is no config of an image: %w", i.Config, err)
	}
	if len(image.RootFS.DiffIDs) != len(i.Layers) {
		return v1.Descriptor{}, refuse("%q has %d layers, and %s names %d", i.Config, len(image.RootFS.DiffIDs), DockerName, len(i.Layers))
	}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: config.digest, Size: config.size}}
	m.SchemaVersion = 2
	for n, name := range i.Layers {
		layer, err := a.find(name)
		if err != nil {
			return v1.Descriptor{}, err
		}
		mediaType := v1.MediaTypeImageLayer
		if layer.packed {
			mediaType = v1.MediaTypeImageLayerGzip
		} else if layer.digest != image.RootFS.DiffIDs[n] {
			return v1.Descriptor{}, refuse("%q is not the layer %d of %q, which is %s", name, n+1, i.Config, image.RootFS.DiffIDs[n])
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: mediaType, Digest: layer.digest, Size: layer.size})
	}
	return a.takeManifest(m)
}

func (a *reading) takeManifest(m v1.Manifest) (v1.Descriptor, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("make a manifest: %w", err)
	}
	d := v1.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	_, err = a.in.Take(a.ctx, d.Digest, d.Size, bytes.NewReader(b))
	return d, err
}
