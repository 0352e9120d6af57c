package cache

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/memory"
	"github.com/entrepot-dev/entrepot/oci"
)

// The functions here look at what is cached for the cache's own purposes and the
// operator's. They keep nothing in memory, which is for what clients ask for, and count as
// no hit of it: a walk over a million contents would push out all that is hot. What the
// index and the disk could not take is in memory alone, and found there.

// mayHave is hasRight for those who pull nothing, and have the link of t's repository to
// t's digest, if there is one.
func (c *Cache) mayHave(t oci.Target, l index.Link, linked bool) bool {
	r := c.judge(c.settings(), t, l, linked)
	return r == maySend || r == mustAsk && linked && c.settings().isUniform(t.Upstream)
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
	if m, ok := memory.Peek[*readyManifest](c.memory.Tier, manifestName(d)); ok {
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
