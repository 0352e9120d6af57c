package cache

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// The functions here look at what is cached for the cache's own purposes and the
// operator's. They keep nothing in memory, which is for what clients ask for, and count as
// no hit of it: a walk over a million contents would push out all that is hot. What the
// index and the disk could not take is in memory alone, and found there.

// peekTag is lookUpTag for those who pull nothing.
func (c *Cache) peekTag(t oci.Target) (index.Tag, bool) {
	if rec, ok := c.index.Tag(t.Upstream, t.Repository, t.Tag); ok {
		return rec, true
	}
	return peek[index.Tag](c.memory, name{ofTag, t.Upstream, t.Repository, t.Tag})
}

// peekLink is link for those who pull nothing.
func (c *Cache) peekLink(up, repo string, d digest.Digest) (index.Link, bool) {
	if l, ok := c.index.Link(up, repo, d); ok {
		return l, true
	}
	return c.rememberedLink(up, repo, d)
}

// rememberedLink gives the link that memory has.
func (c *Cache) rememberedLink(up, repo string, d digest.Digest) (index.Link, bool) {
	l, ok := peek[judgedLink](c.memory, name{ofLink, up, repo, string(d)})
	return l.Link, ok
}

// mayHave is hasRight for those who pull nothing, and have the link of t's repository to
// t's digest, if there is one.
func (c *Cache) mayHave(t oci.Target, l index.Link, linked bool) bool {
	r := c.judge(c.settings(), t, l, linked)
	return r == maySend || r == mustAsk && linked && c.settings().isUniform(t.Upstream)
}

// rememberedList gives the list of a kind that memory has of t.
func (c *Cache) rememberedList(kind string, t oci.Target) (index.List, bool) {
	return peek[index.List](c.memory, name{kind: ofList, reference: listKey(kind, t)})
}

// peekManifest is keptManifest for those who pull nothing.
func (c *Cache) peekManifest(d digest.Digest) (*oci.Manifest, bool) {
	if m, ok := c.storedManifest(d); ok {
		return m, true
	}
	return c.rememberedManifest(d)
}

// rememberedManifest gives the manifest that memory has.
func (c *Cache) rememberedManifest(d digest.Digest) (*oci.Manifest, bool) {
	if m, ok := peek[*readyManifest](c.memory, name{kind: ofManifest, reference: string(d)}); ok {
		return m.Manifest, true
	}
	return nil, false
}

// peekBlob reads a blob of up to maxConfig bytes that is here, and verifies it; what is
// damaged is set aside.
func (c *Cache) peekBlob(ctx context.Context, d digest.Digest) ([]byte, bool) {
	f, stamp, err := c.openStored(ctx, d)
	if f == nil || err != nil {
		return nil, false
	}
	defer f.Close()
	if stamp.Size > maxConfig {
		return nil, false
	}
	b := make([]byte, stamp.Size)
	n, err := io.ReadFull(f, b)
	b = b[:n]
	switch {
	case err != nil && err != io.EOF && err != io.ErrUnexpectedEOF:
		c.unreadable(d, err)
		return nil, false
	case d.Algorithm().FromBytes(b) != d:
		c.setAside(d, stamp, foundOnOpen)
		return nil, false
	}
	return b, true
}
