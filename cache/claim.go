package cache

import "github.com/opencontainers/go-digest"

// What is stored of a digest is changed by one at a time: by the fill that is
// found under it, or by the holder of a claim on it. So nobody removes the file
// that another has just committed, and the index agrees with the store. Reading
// needs no claim. Claims are held for a few operations of the disk at most.

// claim waits for the claim on d and takes it. The caller calls unclaim.
func (c *Cache) claim(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaitClaim(d)
	c.claims[d] = make(chan struct{})
}

// awaitClaim waits until nobody has a claim on d. c.mu is held, and given up
// meanwhile.
func (c *Cache) awaitClaim(d digest.Digest) {
	for held := c.claims[d]; held != nil; held = c.claims[d] {
		c.mu.Unlock()
		<-held
		c.mu.Lock()
	}
}

// tryClaim takes the claim on d, unless it is taken, a fill of d runs or an import
// holds it.
func (c *Cache) tryClaim(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.claims[d] != nil || c.anyFill(d) != nil || c.imports(d) {
		return false
	}
	c.claims[d] = make(chan struct{})
	return true
}

// unclaim gives up claims.
func (c *Cache) unclaim(ds ...digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range ds {
		close(c.claims[d])
		delete(c.claims, d)
	}
}
