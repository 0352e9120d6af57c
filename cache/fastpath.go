package cache

import (
	"context"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// A request for what is hot is answered from memory, without an allocation. Its
// Target may lie in a buffer that is used again: nothing here keeps any of it.
// Whoever goes on from here with a copy, see owned.

// readyManifest is a manifest in memory, with the answers that it makes.
type readyManifest struct {
	*oci.Manifest
	whole, described Manifest
	// chosen and chosenDescribed are the same out of an index.
	chosen, chosenDescribed Manifest
}

func ready(m *oci.Manifest) *readyManifest {
	r := &readyManifest{Manifest: m}
	r.whole = Manifest{Digest: m.Digest, MediaType: m.MediaType, Size: int64(len(m.Bytes)), Bytes: m.Bytes}
	r.described = r.whole
	r.described.Bytes = nil
	r.chosen, r.chosenDescribed = r.whole, r.described
	r.chosen.Negotiated, r.chosenDescribed.Negotiated = true, true
	return r
}

// hotManifest gives what answers t if memory has all of it, and the tag is fresh and has
// not moved lately; else nil. It gives nil also where that is an index, unless indexes
// are wanted.
func (c *Cache) hotManifest(up *upstream, t oci.Target, indexes bool) (*readyManifest, Outcome) {
	d, out, mediaType := t.Digest, Outcome{Status: Hit}, ""
	if d == "" {
		if !t.AsOf.IsZero() {
			return nil, out
		}
		rec, ok := c.records.TagInMemory(t)
		if !ok || rec.Previous != "" || rec.Held != nil {
			return nil, out
		}
		rule := up.rules.rule(t.Repository, t.Tag)
		age := time.Since(rec.Checked)
		if !rule.fresh(age) || oci.IsIndex(rec.MediaType) && !indexes {
			return nil, out
		}
		d, out, mediaType = rec.Digest, rule.outcome(Hit, age), rec.MediaType
	}
	link, ok := c.records.JudgedLink(withDigest(t, d), c.settings().number)
	if !ok || !link.Manifest {
		return nil, out
	}
	m, ok := c.memory.ready(d)
	switch {
	case !ok, link.MediaType != "" && link.MediaType != m.MediaType:
		return nil, out
	case t.Digest == "" && mediaType != m.MediaType:
		return nil, out
	}
	c.uses.note(m.Digest, true)
	return m, out
}

// hotBlob gives the blob that t names where it is small and in memory; else nil.
func (c *Cache) hotBlob(t oci.Target) Blob {
	if l, ok := c.records.JudgedLink(t, c.settings().number); !ok || l.Manifest {
		return nil
	}
	b, d := c.memory.smallBlob(t.Digest)
	if b != nil {
		c.uses.note(d, false)
	}
	return b
}

// hotFile gives the blob that t names where it is large, its file is open, and
// memory knows that it is verified and by when to do so again; else nil.
func (c *Cache) hotFile(ctx context.Context, t oci.Target) Blob {
	if l, ok := c.records.JudgedLink(t, c.settings().number); !ok || l.Manifest {
		return nil
	}
	known, d := c.memory.verifiedBlob(t.Digest)
	if known == nil || c.isDue(known) || c.isUnfit(d) {
		return nil
	}
	file, stamp := c.store.ShareOpen(d)
	if file == nil {
		return nil
	}
	if stamp != known.stamp {
		_ = file.Close() // it was only read
		return nil
	}
	c.uses.note(d, false)
	b := storedBlobs.Get().(*storedBlob)
	*b = storedBlob{ctx: ctx, cache: c, digest: d, file: file, size: stamp.Size}
	return b
}

// isDue tells whether what is known of a blob is so old that it is to be verified
// while it is sent.
func (c *Cache) isDue(known *verified) bool {
	after := c.settings().ReverifyAfter
	return known.at.IsZero() || after > 0 && time.Since(known.at) > after
}

// owned copies what of t may lie in somebody's buffer.
func owned(t oci.Target) oci.Target {
	t.Upstream, t.Repository, t.Tag = strings.Clone(t.Upstream), strings.Clone(t.Repository), strings.Clone(t.Tag)
	t.Digest = digest.Digest(strings.Clone(string(t.Digest)))
	return t
}
