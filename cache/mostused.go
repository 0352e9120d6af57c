package cache

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// MostUsed lists up to n images that are here and were used most since they were fetched:
// of tags, and of digests that clients have pulled by themselves. It goes through the names
// of tags and what is known of stored content, and looks at no other image than those that
// it lists. An error is ctx's or of the index.
func (c *Cache) MostUsed(ctx context.Context, n int) ([]Image, error) {
	roots, err := c.mostUsedRoots(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("find the images that are used most: %w", err)
	}
	// One digest may have any number of tags, which are all used as often.
	targets := map[digest.Digest][]oci.Target{}
	add := func(t oci.Target, d digest.Digest) {
		if _, wanted := roots[d]; wanted && len(targets[d]) < n {
			targets[d] = append(targets[d], t)
		}
	}
	err = c.index.TagDigests(func(upstream, repo, tag, d []byte) bool {
		if _, wanted := roots[digest.Digest(d)]; wanted {
			add(repository{string(upstream), string(repo)}.at(string(tag), ""), digest.Digest(d))
		}
		return ctx.Err() == nil
	})
	if err != nil {
		return nil, fmt.Errorf("find the tags that are used most: %w", err)
	}
	byDigest, err := c.pulledByDigest(ctx, roots)
	if err != nil {
		return nil, err
	}
	for _, t := range byDigest {
		if !slices.ContainsFunc(targets[t.Digest], func(o oci.Target) bool { return o.Upstream == t.Upstream && o.Repository == t.Repository }) {
			add(t, t.Digest)
		}
	}
	l := &imageLister{ctx: ctx, cache: c, counted: newContentSum()}
	list := []Image{}
	for _, some := range targets {
		for _, t := range some {
			tree, err := l.tree(t, nil, TreeOptions{Referrers: true})
			if err != nil {
				return nil, err
			}
			if tree == nil || !tree.Root.Stored {
				continue
			}
			i := l.image(tree)
			i.Pinned = c.isPinned(t, tree.Root.Digest)
			list = append(list, i)
		}
	}
	slices.SortFunc(list, func(a, b Image) int {
		return cmp.Or(cmp.Compare(b.Uses, a.Uses), b.Used.Compare(a.Used), cmp.Compare(a.Reference, b.Reference))
	})
	return list[:min(n, len(list))], nil
}

// rootsOver is how many times more roots than images are looked for: some are parts of
// others.
const rootsOver = 4

// mostUsedRoots gives the digests that are stored and used most, among those that tags stand
// for or clients have asked for. It holds eight bytes for each of them.
func (c *Cache) mostUsedRoots(ctx context.Context, n int) (map[digest.Digest]struct{}, error) {
	candidates := map[uint64]struct{}{}
	err := c.index.TagDigests(func(_, _, _, d []byte) bool {
		if len(d) >= 16 {
			var end [8]byte
			if _, err := hex.Decode(end[:], d[len(d)-16:]); err == nil {
				candidates[binary.BigEndian.Uint64(end[:])] = struct{}{}
			}
		}
		return ctx.Err() == nil
	})
	if err != nil {
		return nil, err
	}
	c.flushAsked()
	asked, err := c.index.AskedSince(time.Time{})
	if err != nil {
		return nil, err
	}
	for _, a := range asked {
		if key := index.KeyOf(a.Digest); key != nil {
			candidates[endOf(key)] = struct{}{}
		}
	}
	type root struct {
		digest digest.Digest
		uses   uint32
		used   time.Time
	}
	order := func(a, b root) int { return cmp.Or(cmp.Compare(b.uses, a.uses), b.used.Compare(a.used)) }
	limit := rootsOver * n
	var most []root  // up to twice the limit
	var least *root  // what does not come before it is not among the most
	keep := func() { // the limit
		slices.SortFunc(most, order)
		if len(most) >= limit {
			most = most[:limit]
			last := most[limit-1]
			least = &last
		}
	}
	err = c.index.Stored(func(key index.BlobKey, b index.Blob) bool {
		r := root{uses: b.Uses, used: b.Used}
		if least != nil && order(r, *least) >= 0 {
			return true
		}
		if _, ok := candidates[endOf(key)]; !ok {
			return ctx.Err() == nil
		}
		r.digest = key.Digest()
		if most = append(most, r); len(most) >= 2*limit {
			keep()
		}
		return true
	})
	keep()
	if err := cmp.Or(context.Cause(ctx), err); err != nil {
		return nil, err
	}
	roots := make(map[digest.Digest]struct{}, len(most))
	for _, r := range most {
		roots[r.digest] = struct{}{}
	}
	return roots, nil
}

// endOf gives the last eight bytes of a digest: two contents that have the same are taken for
// one another, and what follows sees which of them it is.
func endOf(key index.BlobKey) uint64 { return binary.BigEndian.Uint64(key[len(key)-8:]) }

// pulledByDigest gives those of roots that clients have asked for by their digests, but for
// the manifests of an index that they have asked for, too.
func (c *Cache) pulledByDigest(ctx context.Context, roots map[digest.Digest]struct{}) ([]oci.Target, error) {
	asked, err := c.index.AskedSince(time.Time{})
	if err != nil {
		return nil, fmt.Errorf("list what clients have asked for: %w", err)
	}
	wanted := map[repository]bool{}
	var list []oci.Target
	for _, a := range asked {
		if _, ok := roots[a.Digest]; ok && a.Tag == "" && !a.Referrers {
			r := repository{a.Upstream, a.Repository}
			wanted[r] = true
			list = append(list, r.at("", a.Digest))
		}
	}
	below := map[oci.Target]bool{}
	for _, a := range asked {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		r := repository{a.Upstream, a.Repository}
		if !wanted[r] {
			continue
		}
		m, ok := c.peekManifest(a.Digest)
		if !ok || !oci.IsIndex(m.MediaType) {
			continue
		}
		if p, err := oci.ParseManifest(m.Bytes, m.MediaType); err == nil {
			for _, child := range p.Children {
				below[r.at("", child.Digest)] = true
			}
		}
	}
	return slices.DeleteFunc(list, func(t oci.Target) bool { return below[t] }), nil
}
