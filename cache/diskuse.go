package cache

import (
	"context"
	"errors"
	"fmt"
)

// DiskUse is what the cache has on disk.
type DiskUse struct {
	// Blobs are how many manifests, configs and layers are stored, of Size bytes.
	Blobs int64 `json:"blobs"`
	Size  int64 `json:"size"`
	// Limit is how many bytes the cache may have; zero is no limit.
	Limit int64 `json:"limit"`
	// Upstreams are what is stored and came from each, by name: what came from several
	// counts for each.
	Upstreams map[string]UpstreamDiskUse `json:"upstreams"`
	// Pins is how many images are pinned, and PinnedSize what they have on disk in
	// bytes, each content counted once.
	Pins       int   `json:"pins"`
	PinnedSize int64 `json:"pinnedSize"`
}

// UpstreamDiskUse is what is stored and came from an upstream, each content counted once.
type UpstreamDiskUse struct {
	Blobs int64 `json:"blobs"`
	Size  int64 `json:"size"`
}

// DiskUse tells what the cache has on disk, by upstream. It reads kept counters, and looks at
// no image but those that are pinned. An error is ctx's, of the index, or of the disk.
func (c *Cache) DiskUse(ctx context.Context) (*DiskUse, error) {
	u := &DiskUse{Upstreams: map[string]UpstreamDiskUse{}}
	u.Blobs, u.Size = c.index.Totals()
	if c.settings().MaxSize != (Room{}) {
		h, err := c.evictor.look()
		if err != nil {
			return nil, fmt.Errorf("find out the limit of the cache: %w", err)
		}
		u.Limit = h.limit
	}
	used, err := c.index.Usage(func() bool { return ctx.Err() != nil })
	if err := errors.Join(context.Cause(ctx), err); err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	for upstream, n := range used {
		u.Upstreams[upstream] = UpstreamDiskUse{Blobs: n.Blobs, Size: n.Bytes}
	}
	var p pins
	pinned, err := p.protected(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("read the pins: %w", err)
	}
	u.Pins = len(p.of)
	for d := range pinned {
		if b, ok := c.index.Blob(d); ok {
			u.PinnedSize += b.Stamp.Size
		}
	}
	return u, nil
}
