package hub

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// repository is what one name holds. Hub.mu guards it.
type repository struct {
	tags      map[string]digest.Digest
	manifests map[digest.Digest]image.Manifest
	blobs     map[digest.Digest][]byte
	order     []digest.Digest // of manifests, as they came
	// users may pull; nil is public.
	users []string
}

// repo gives the repository, made where it is not there yet. h.mu is held.
func (h *Hub) repo(name string) *repository {
	r := h.repos[name]
	if r == nil {
		r = &repository{
			tags:      map[string]digest.Digest{},
			manifests: map[digest.Digest]image.Manifest{},
			blobs:     map[digest.Digest][]byte{},
		}
		h.repos[name] = r
	}
	return r
}

// Push puts an image into a repository ("library/app"), under a tag; without
// one where tag is empty. A tag that is there moves.
func (h *Hub) Push(name, tag string, i *image.Image) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repo(name)
	for _, d := range slices.Sorted(maps.Keys(i.Manifests)) {
		r.add(d, i.Manifests[d])
	}
	maps.Copy(r.blobs, i.Blobs)
	if tag != "" {
		r.tags[tag] = i.Digest
	}
}

func (r *repository) add(d digest.Digest, m image.Manifest) {
	if _, ok := r.manifests[d]; !ok {
		r.order = append(r.order, d)
	}
	r.manifests[d] = m
}

// PushBlob puts a blob that no manifest names into a repository.
func (h *Hub) PushBlob(name string, d digest.Digest, content []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.repo(name).blobs[d] = content
}

// Untag removes a tag. What it stood for can still be had by digest.
func (h *Hub) Untag(name, tag string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.repo(name).tags, tag)
}

// Delete removes a repository with all that it holds.
func (h *Hub) Delete(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.repos, name)
}

// MakePrivate lets only the users named, of Options.Users, pull from a
// repository. To all others it looks as if it were not there.
func (h *Hub) MakePrivate(name string, users ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.repo(name).users = append([]string{}, users...)
}

// UseReferrersAPI switches the referrers API. Without it the hub answers 404,
// and clients look for the tag image.ReferrersTag: see TagReferrers.
func (h *Hub) UseReferrersAPI(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noRefs = !on
}

// TagReferrers puts the index of all that refers to subject under the tag where
// clients look for it when there is no referrers API, and gives the index.
func (h *Hub) TagReferrers(name string, subject digest.Digest) *image.Image {
	h.mu.Lock()
	i := image.Referrers(h.repo(name).referrers(subject, "")...)
	h.mu.Unlock()
	h.Push(name, image.ReferrersTag(subject), i)
	return i
}

// referrers lists the manifests whose subject is d, as they came.
func (r *repository) referrers(subject digest.Digest, artifactType string) []v1.Descriptor {
	found := []v1.Descriptor{}
	for _, d := range r.order {
		m := r.manifests[d]
		var parsed struct {
			ArtifactType string            `json:"artifactType"`
			Config       v1.Descriptor     `json:"config"`
			Subject      *v1.Descriptor    `json:"subject"`
			Annotations  map[string]string `json:"annotations"`
		}
		if json.Unmarshal(m.Bytes, &parsed) != nil || parsed.Subject == nil || parsed.Subject.Digest != subject {
			continue
		}
		t := parsed.ArtifactType
		if t == "" {
			t = parsed.Config.MediaType
		}
		if artifactType != "" && t != artifactType {
			continue
		}
		found = append(found, v1.Descriptor{
			MediaType: m.MediaType, Digest: d, Size: int64(len(m.Bytes)), ArtifactType: t, Annotations: parsed.Annotations,
		})
	}
	return found
}

// Content is what a repository holds.
type Content struct {
	// Tags, Manifests and Blobs are sorted.
	Tags             []string
	Manifests, Blobs []digest.Digest
	// Subjects are the digests that manifests refer to, there or not.
	Subjects []digest.Digest
}

// Content lists what a repository holds, as a person would who looks into the
// registry's storage.
func (h *Hub) Content(name string) Content {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repo(name)
	c := Content{
		Tags:      slices.Sorted(maps.Keys(r.tags)),
		Manifests: slices.Sorted(maps.Keys(r.manifests)),
		Blobs:     slices.Sorted(maps.Keys(r.blobs)),
	}
	for _, m := range r.manifests {
		var parsed struct {
			Subject *v1.Descriptor `json:"subject"`
		}
		if json.Unmarshal(m.Bytes, &parsed) == nil && parsed.Subject != nil {
			c.Subjects = append(c.Subjects, parsed.Subject.Digest)
		}
	}
	slices.Sort(c.Subjects)
	c.Subjects = slices.Compact(c.Subjects)
	return c
}
