package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
)

// fillCache makes a cache directory with n small blobs, as Entrepot would have
// left it: files under their digests, what is known of each in the index, and
// links of one repository. It syncs nothing: a crash of the machine may have it.
func fillCache(ctx context.Context, dir string, n int) (err error) {
	s, err := store.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	ix, _, err := index.Open(filepath.Join(dir, "index.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	blobs := filepath.Join(dir, "blobs", digest.SHA256.String())
	for b := range 256 {
		if err := os.MkdirAll(filepath.Join(blobs, fmt.Sprintf("%02x", b)), 0o700); err != nil {
			return err
		}
	}
	// A change is a transaction of the index, which is faster when it is large.
	const together = 50_000
	now := time.Now()
	for at := 0; at < n; {
		c := index.Change{
			Upstream: "docker.io", Repository: "library/many-blobs",
			Links: map[digest.Digest]index.Link{}, Blobs: map[digest.Digest]index.Blob{},
		}
		for ; at < n && len(c.Blobs) < together; at++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			content := binary.LittleEndian.AppendUint64(nil, uint64(at))
			d := digest.FromBytes(content)
			if err := os.WriteFile(filepath.Join(blobs, d.Encoded()[:2], d.Encoded()), content, 0o600); err != nil {
				return err
			}
			stamp, err := s.Stamp(d)
			if err != nil {
				return err
			}
			c.Links[d] = index.Link{Size: stamp.Size}
			c.Blobs[d] = index.Blob{Stamp: stamp, Verified: now, Used: now, Uses: 1}
		}
		if err := ix.Put(c); err != nil {
			return err
		}
	}
	return nil
}

// startFull starts Entrepot with a cache of many blobs and with an empty one.
func startFull(ctx context.Context, b *bench, s subject) (x sample, err error) {
	if b.full == "" {
		b.o.progress("making a cache of %d blobs", b.o.blobs)
		dir := filepath.Join(b.dir, "full")
		if err := fillCache(ctx, dir, b.o.blobs); err != nil {
			return nil, fmt.Errorf("make a cache of %d blobs: %w", b.o.blobs, err)
		}
		b.full = dir
	}
	empty, err := b.rest(ctx, s, manner{})
	if err != nil {
		return nil, err
	}
	full, err := b.rest(ctx, s, manner{cache: b.full})
	if err != nil {
		return nil, err
	}
	return sample{
		startup: full[startup],
		perBlob: (full[memory] - empty[memory]) * mebibyte / float64(b.o.blobs),
		memory:  full[memory], ownMemory: full[ownMemory],
		others: full[others],
	}, nil
}
