package cache

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// platformsAfter is how long the manifests of an index are left to the client that has
	// pulled it. What it fetches is for something that isn't cached; the quota's reserve
	// learns from that.
	platformsAfter = time.Second
	// maxPlatformFetches bounds the indexes whose manifests are fetched at a time.
	maxPlatformFetches = 64
	// maxNestedLooks bounds how many indexes in an index are looked into for a platform.
	maxNestedLooks = 8
	// maxAttestations bounds the attestations of one manifest that are fetched. BuildKit makes one.
	maxAttestations = 4
	// maxAttestedIndex is the largest index that is read for attestations at each revalidation.
	maxAttestedIndex = 256 << 10
)

// platformFetches are the indexes whose manifests are being fetched. Its methods are safe
// for concurrent use.
type platformFetches struct {
	mu  sync.Mutex
	now map[string]struct{}
}

// begin reports whether the manifests of the index with that key may be fetched now: nobody
// does yet, and not too many others are being fetched. If so, the caller calls end.
func (p *platformFetches) begin(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, busy := p.now[key]; busy || len(p.now) >= maxPlatformFetches {
		return false
	}
	if p.now == nil {
		p.now = map[string]struct{}{}
	}
	p.now[key] = struct{}{}
	return true
}

func (p *platformFetches) end(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.now, key)
}

// fetchPlatforms has the configured platforms' manifests of t's index fetched, of digest d,
// which the upstream has just given or confirmed to a client, and their attestations. Clients that find an index here and not its
// manifest fail: Podman tries no other source then. So an index that may be served stale
// later has its manifests here. It returns at once. If there are too many such indexes, this
// one's turn comes when its tag is revalidated.
func (c *Cache) fetchPlatforms(up *upstream, t oci.Target, d digest.Digest) {
	if up.ahead == nil || c.Offline() || c.disk.isDegraded() {
		return
	}
	t = withDigest(t, d)
	k := digestKey("", t)
	if !c.completing.begin(k) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		c.completing.end(k)
		return
	}
	c.work.Go(func() {
		defer c.completing.end(k)
		select {
		case <-time.After(platformsAfter):
		case <-c.ctx.Done():
			return
		}
		idx, ok := c.cachedManifest(t)
		if !ok {
			return // it could not be kept
		}
		platforms := c.Platforms()
		looks := len(platforms) * (1 + maxNestedLooks + maxAttestations)
		for _, platform := range platforms {
			if _, err := c.fetchPlatform(c.ctx, up, t, idx, platform, &looks); oci.IsTransient(err) {
				return // a client that asks is told why
			}
		}
	})
}

// fetchPlatform fetches the manifest of a platform out of idx, or out of an index in it, if it
// isn't cached and the upstream's pull quota has one to spare. It takes what it looks at off
// looks, and gives up when that is zero. It reports whether the platform was found. The error
// is why a manifest could not be fetched.
func (c *Cache) fetchPlatform(ctx context.Context, up *upstream, t oci.Target, idx *oci.Manifest, platform string, looks *int) (bool, error) {
	ch, err := c.choose(ctx, idx, platform)
	if err != nil {
		return false, nil // there is none
	}
	if ch.digest != "" {
		_, err := c.spareManifest(ctx, up, withDigest(t, ch.digest), looks)
		if err == nil {
			err = c.fetchAttestations(ctx, up, t, idx, ch.digest, looks)
		}
		return true, err
	}
	var failed error
	for _, d := range ch.nested {
		m, err := c.spareManifest(ctx, up, withDigest(t, d), looks)
		found := err == nil
		if found && oci.IsIndex(m.MediaType) {
			found, err = c.fetchPlatform(ctx, up, t, m, platform, looks)
		}
		if found || oci.IsTransient(err) {
			return found, err
		}
		failed = errors.Join(failed, err)
	}
	return false, failed
}

// fetchAttestations fetches the attestations in idx of the manifest of, and the lists of what
// refers to them, unless they are here: Docker Engine 29 asks for both at each pull, and fails
// without an answer. The error is why one could not be fetched.
func (c *Cache) fetchAttestations(ctx context.Context, up *upstream, t oci.Target, idx *oci.Manifest, of digest.Digest, looks *int) error {
	if len(idx.Bytes) > maxAttestedIndex {
		return nil
	}
	p, err := oci.ParseManifest(idx.Bytes, idx.MediaType)
	if err != nil {
		return err
	}
	found := 0
	for _, d := range p.Children {
		if !oci.IsAttestation(d) || d.Annotations[attestedDigest] != of.String() {
			continue
		}
		if found++; found > maxAttestations {
			return nil
		}
		t := owned(withDigest(t, d.Digest)) // d shares memory with all that was read
		if _, err := c.spareManifest(ctx, up, t, looks); err != nil {
			return err
		}
		if _, known, err := c.keptList(ctx, listKey(index.Referrers, t), t, index.Referrers); known || err != nil {
			continue // if it can't be read, a client that asks is told why
		}
		if _, _, err := c.referrers(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// errTooNested ends the search for platforms in an index of too many indexes.
var errTooNested = errors.New("the index has too many indexes in it")

// spareManifest is manifestByDigest for nobody who waits: it spends no pull that is kept for
// what isn't cached.
func (c *Cache) spareManifest(ctx context.Context, up *upstream, t oci.Target, looks *int) (*oci.Manifest, error) {
	if *looks == 0 {
		return nil, errTooNested
	}
	*looks--
	if m, ok := c.cachedManifest(t); ok {
		return m, nil
	}
	if err := up.sparePull(ctx); err != nil {
		return nil, err
	}
	m, _, err := c.manifestByDigest(ctx, up, t)
	return m, err
}
