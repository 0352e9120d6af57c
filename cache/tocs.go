package cache

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// tocsTTL is how long a blob's TOC digests are remembered. For scanTTL a repository's
	// manifests aren't read again for them.
	tocsTTL = 10 * time.Minute
	scanTTL = 5 * time.Minute
	// maxTOCManifests bounds the manifests of a repository that are read for TOC digests.
	maxTOCManifests = 1024
)

// noteTOCs remembers what p, a manifest of t's repository, says about its layers' TOCs.
func (c *Cache) noteTOCs(t oci.Target, p *oci.Parsed) {
	for _, d := range p.Children {
		said, ok := fill.TOCOf(d)
		if !ok {
			continue
		}
		key := digestKey("", withDigest(t, d.Digest))
		known, _ := c.tocs.get(key)
		if !slices.Contains(known, said) && len(known) < fill.MaxTOCs {
			known = append(slices.Clone(known), said)
		}
		c.tocs.put(key, known, tocsTTL)
	}
}

// tocsOf returns what the manifests of t's repository say about the TOC of t's blob. It reads
// the repository's stored manifests unless that was done a moment ago.
func (c *Cache) tocsOf(ctx context.Context, t oci.Target) []fill.TOC {
	key, all := digestKey("", t), "all:"+t.Upstream+"/"+t.Repository
	if said, ok := c.tocs.get(key); ok {
		return said
	}
	if _, ok := c.tocs.get(all); ok {
		return nil
	}
	_, _ = share(ctx, c, "tocs:"+all, func(context.Context) (struct{}, error) {
		c.readTOCs(t)
		c.tocs.put(all, nil, scanTTL)
		return struct{}{}, nil
	})
	said, _ := c.tocs.get(key)
	return said
}

// readTOCs remembers what the stored manifests of t's repository say about TOCs.
func (c *Cache) readTOCs(t oci.Target) {
	var manifests []digest.Digest
	_ = c.index.Manifests(t.Upstream, t.Repository, func(d digest.Digest) bool {
		manifests = append(manifests, d)
		return len(manifests) < maxTOCManifests
	})
	for _, d := range manifests {
		m, ok := c.rememberedManifest(d)
		if !ok {
			m, ok = c.storedManifest(d)
		}
		if !ok || !fill.MentionsTOC(m.Bytes) {
			continue
		}
		if p, err := oci.ParseManifest(m.Bytes, m.MediaType); err == nil {
			c.noteTOCs(t, p)
		}
	}
}
