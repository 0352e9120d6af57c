package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// maxImportSteps bounds the work on what images name: one step for each digest
	// that a manifest names, and one for each KiB of the manifest.
	maxImportSteps = 4 << 20
	// maxImportNotes bounds the annotations of referrers, in bytes.
	maxImportNotes = 32 << 20
	// maxImportReferrers is how many manifests may refer to one.
	maxImportReferrers = 10_000
	// maxPlatforms is how many platforms of an image are told.
	maxPlatforms = 64
	// maxTold is how many digests an error names.
	maxTold = 10
)

// repository is one of an upstream.
type repository struct{ upstream, name string }

// ImportedImage is an image that an import has made visible.
type ImportedImage struct {
	Reference string        `json:"reference"`
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	// Platforms are those of which the manifest is here.
	Platforms []string `json:"platforms,omitempty"`
	// Blobs of so many Bytes were new with this image, manifests among them;
	// BlobsThere were in the cache already, or came with an image before it.
	Blobs      int   `json:"blobs"`
	Bytes      int64 `json:"bytes"`
	BlobsThere int   `json:"blobsThere"`
	BytesThere int64 `json:"bytesThere"`
	// Previous is what the tag stood for before, if that was something else.
	Previous digest.Digest `json:"previous,omitempty"`
	// Refused says that the tag still stands for Previous, because of Import.KeepTags.
	Refused bool `json:"refused,omitempty"`
	// Note says why the tag does not stand for it; empty where it does.
	Note string `json:"note,omitempty"`
}

// Add has t's repository serve the manifest of d and all that it names, which must
// have been taken in, or found by Has; of an index that of one manifest at least. t's
// tag, where it has one, stands for it as of fetched, unless it was seen to stand for
// something else since. The error is of what was taken in: *oci.Error.
func (i *Import) Add(t oci.Target, d v1.Descriptor, fetched time.Time) error {
	return i.add(t, d, fetched, false)
}

// AddListed is Add for an image of which it is known what refers to it and to its
// manifests: nothing does but what is added as well. So clients are told that,
// where they ask, also offline.
func (i *Import) AddListed(t oci.Target, d v1.Descriptor, fetched time.Time) error {
	return i.add(t, d, fetched, true)
}

func (i *Import) add(t oci.Target, d v1.Descriptor, fetched time.Time, listed bool) error {
	up, err := i.cache.upstream(t.Upstream)
	if err != nil {
		return err
	}
	repo := repository{t.Upstream, t.Repository}
	change := i.changes[repo]
	if change == nil {
		change = &index.Change{Upstream: t.Upstream, Repository: t.Repository, Links: map[digest.Digest]index.Link{}, Referrers: map[digest.Digest]index.List{}}
		i.changes[repo] = change
	}
	if now := time.Now(); fetched.IsZero() || fetched.After(now) {
		fetched = now
	}
	w := &importWalk{Import: i, target: t, change: change, fetched: fetched, listed: listed, seen: map[digest.Digest]bool{}}
	p, err := w.manifest(d, 0)
	if err != nil {
		return err
	}
	if len(w.missing) > 0 {
		return oci.Errorf(oci.CodeManifestInvalid, "%s names what is not there: %s", t, tellDigests(w.missing))
	}
	w.image.Reference, w.image.Digest, w.image.MediaType = t.String(), d.Digest, p.MediaType
	w.image.Platforms = w.platforms(p)
	if t.Tag != "" {
		i.addTag(up, t, index.Tag{Digest: d.Digest, MediaType: p.MediaType, Size: i.content[d.Digest].size, Checked: fetched}, &w.image)
	}
	i.images = append(i.images, w.image)
	return nil
}

func tellDigests(list []digest.Digest) string {
	var s strings.Builder
	for n, d := range list {
		if n == maxTold {
			fmt.Fprintf(&s, " and %d more", len(list)-n)
			break
		}
		if n > 0 {
			s.WriteString(", ")
		}
		s.WriteString(d.String())
	}
	return s.String()
}

// addTag has t's tag stand for rec.
func (i *Import) addTag(up *upstream, t oci.Target, rec index.Tag, image *ImportedImage) {
	c := i.cache
	was, known := c.records.Tag(t)
	if known && was.Digest != rec.Digest {
		image.Previous = was.Digest
	}
	switch {
	case known && was.Digest == rec.Digest && !was.Checked.Before(rec.Checked):
		rec = was // it is known as well, or better; and is put again, should it be purged meanwhile
	case known && was.Digest != rec.Digest && was.Checked.After(rec.Checked):
		image.Note = fmt.Sprintf("the tag is not made older: it was seen to stand for %s at %s, and for this at %s", was.Digest, second(was.Checked), second(rec.Checked))
		if c.holds(was.Digest) || was.Previous == rec.Digest {
			return
		}
		// What it stands for is not here; this is better than nothing.
		was.Previous = rec.Digest
		rec = was
	case image.Previous != "" && i.KeepTags && c.holds(was.Digest):
		image.Refused = true
		image.Note = fmt.Sprintf("the tag still stands for %s, and not for %s of the archive: import with --replace to move it", was.Digest, rec.Digest)
		return
	default:
		rec = c.follow(t, up.rules.rule(t.Repository, t.Tag), rec)
	}
	i.tags = append(i.tags, index.Change{
		Upstream: t.Upstream, Repository: t.Repository, Tag: t.Tag, Record: rec, How: index.SeenImport, NotOlder: true,
		Moved: func(from digest.Digest) { c.moved(t, from, rec) },
	})
}

// importWalk goes through what one image names.
type importWalk struct {
	*Import
	target  oci.Target
	change  *index.Change
	fetched time.Time
	listed  bool // AddListed
	image   ImportedImage
	seen    map[digest.Digest]bool
	missing []digest.Digest
}

// step counts what the walk costs.
func (w *importWalk) step(n int) error {
	w.steps += n
	if w.steps > maxImportSteps {
		return oci.Errorf(oci.CodeManifestInvalid, "its images name more than is looked at: %d manifests and blobs", maxImportSteps)
	}
	return nil
}

// manifest adds the manifest of d, and what it names.
func (w *importWalk) manifest(d v1.Descriptor, depth int) (*oci.Parsed, error) {
	if depth > maxTreeDepth {
		return nil, oci.Errorf(oci.CodeManifestInvalid, "%s: indexes are nested more than %d deep", w.target, maxTreeDepth)
	}
	e := w.content[d.Digest]
	if e == nil {
		return nil, oci.Errorf(oci.CodeManifestInvalid, "%s: the manifest %s is not there", w.target, d.Digest)
	}
	if err := w.count(d, e); err != nil {
		return nil, err
	}
	b, err := w.Read(d.Digest, oci.MaxManifestSize)
	if err != nil {
		return nil, err
	}
	if err := w.step(1 + len(b)>>10); err != nil {
		return nil, err
	}
	p, err := oci.ParseManifest(b, d.MediaType)
	if err != nil {
		if e := (*oci.Error)(nil); errors.As(err, &e) {
			err = errors.New(e.Message)
		}
		return nil, oci.Errorf(oci.CodeManifestInvalid, "%s: %s: %w", w.target, d.Digest, err)
	}
	w.link(d.Digest, index.Link{MediaType: p.MediaType, Size: int64(len(b)), Manifest: true, Proof: e.proof()})
	if err := w.refer(d.Digest, p, int64(len(b))); err != nil {
		return nil, err
	}
	if _, ok := w.change.Referrers[d.Digest]; w.listed && !ok {
		w.change.Referrers[d.Digest] = index.List{Checked: w.fetched}
	}
	here := 0
	for _, child := range p.Children {
		if err := w.step(1); err != nil {
			return nil, err
		}
		e := w.content[child.Digest]
		switch {
		case e == nil && oci.IsForeign(child):
			continue // naming it proves nothing
		case e == nil && p.Kind == oci.KindManifest:
			w.missing = append(w.missing, child.Digest)
			continue
		case e == nil:
			w.link(child.Digest, index.Link{MediaType: child.MediaType, Size: child.Size, Manifest: true, Proof: index.Named})
			continue // an index may name more than is carried
		}
		here++
		if w.seen[child.Digest] {
			continue
		}
		w.seen[child.Digest] = true
		if p.Kind == oci.KindIndex && (oci.IsIndex(child.MediaType) || oci.IsManifest(child.MediaType) || child.MediaType == "") {
			_, err = w.manifest(child, depth+1)
		} else {
			w.link(child.Digest, index.Link{MediaType: child.MediaType, Size: child.Size, Proof: e.proof()})
			err = w.count(child, e)
		}
		if err != nil {
			return nil, err
		}
	}
	if p.Kind == oci.KindIndex && here == 0 && len(p.Children) > 0 {
		return nil, oci.Errorf(oci.CodeManifestInvalid, "%s: none of the manifests is there that the index %s names", w.target, d.Digest)
	}
	return p, nil
}

// count counts the content of d, which has to have the size that d says, for the image.
func (w *importWalk) count(d v1.Descriptor, e *imported) error {
	if d.Size > 0 && d.Size != e.size {
		return oci.Errorf(oci.CodeManifestInvalid, "%s: %s is named with %d bytes, and has %d", w.target, d.Digest, d.Size, e.size)
	}
	e.named = true
	if e.fresh && !e.counted {
		e.counted = true
		w.image.Blobs++
		w.image.Bytes += e.size
	} else {
		w.image.BlobsThere++
		w.image.BytesThere += e.size
	}
	return nil
}

// link lets the target's repository serve d. What it has served as a manifest stays
// one, whoever names it as what.
func (w *importWalk) link(d digest.Digest, l index.Link) {
	t := w.target
	now, ok := w.cache.records.Link(withDigest(t, d))
	l.Proof = l.Proof.Max(now.Proof).Max(w.change.Links[d].Proof)
	switch {
	case ok && now.Manifest && !l.Manifest:
		now.Proof = l.Proof
		l = now
	}
	if w.change.Links[d].Manifest && !l.Manifest {
		return
	}
	w.change.Links[d] = l
}

// refer adds the manifest p of d to the referrers of its subject.
func (w *importWalk) refer(d digest.Digest, p *oci.Parsed, size int64) error {
	if p.Subject == nil {
		return nil
	}
	l := w.change.Referrers[p.Subject.Digest]
	isThis := func(r v1.Descriptor) bool { return r.Digest == d }
	if slices.ContainsFunc(l.Referrers, isThis) {
		return nil
	}
	if len(l.Referrers) == maxImportReferrers {
		return oci.Errorf(oci.CodeManifestInvalid, "more than %d manifests refer to %s", maxImportReferrers, p.Subject.Digest)
	}
	for k, v := range p.Annotations {
		w.noted += len(k) + len(v)
	}
	if w.noted > maxImportNotes {
		return oci.Errorf(oci.CodeManifestInvalid, "the annotations of what refers to images have more than %d bytes in all", maxImportNotes)
	}
	l.Checked = w.fetched
	l.Referrers = append(l.Referrers, v1.Descriptor{MediaType: p.MediaType, Digest: d, Size: size, ArtifactType: p.ArtifactType, Annotations: p.Annotations})
	w.change.Referrers[p.Subject.Digest] = l
	return nil
}

// platforms gives those of p of which the manifest is here.
func (w *importWalk) platforms(p *oci.Parsed) []string {
	var list []string
	if p.Kind == oci.KindManifest {
		if name := w.configPlatform(p.Config); name != "" {
			list = append(list, name)
		}
		return list
	}
	for _, d := range p.Children {
		name := oci.PlatformName(d.Platform)
		if w.content[d.Digest] == nil || name == "" || d.Platform.OS == "unknown" || len(list) == maxPlatforms {
			continue
		}
		list = append(list, name)
	}
	return list
}

// configPlatform gives the platform that an image's config says; empty for none.
func (w *importWalk) configPlatform(d v1.Descriptor) string {
	if d.MediaType != v1.MediaTypeImageConfig && d.MediaType != oci.MediaTypeDockerImageConfig {
		return ""
	}
	b, err := w.Read(d.Digest, maxConfig)
	if err != nil {
		return ""
	}
	var p v1.Platform
	if json.Unmarshal(b, &p) != nil || p.OS == "" || p.Architecture == "" {
		return ""
	}
	return oci.PlatformName(&p)
}
