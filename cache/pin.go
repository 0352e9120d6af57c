package cache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// Pinned is what was done to a pin.
type Pinned struct {
	Reference string `json:"reference"`
	// Digest is what it stands for; empty where nothing was pinned.
	Digest digest.Digest `json:"digest,omitempty"`
	// Changed is false where it was pinned, or not pinned, before.
	Changed bool `json:"changed"`
	// Blobs are how many manifests, configs and layers of it are here, and Size is
	// what they have on disk in bytes.
	Blobs int   `json:"blobs"`
	Size  int64 `json:"size"`
}

// Pin keeps what t stands for from being evicted: the index or manifest, all that it
// names and what refers to it, as far as that is here now or comes later. A tag that
// moves is pinned as what it stands for then. Its error is *oci.Error where nothing of it
// is here.
func (c *Cache) Pin(ctx context.Context, t oci.Target) (Pinned, error) {
	tree, err := c.Tree(ctx, t, TreeOptions{Referrers: true})
	if err == nil && !tree.Root.Stored {
		err = oci.Errorf(oci.CodeManifestUnknown, "%s is not in the cache", t)
	}
	if oci.IsAbsent(err) {
		return Pinned{}, &oci.Error{Code: oci.CodeManifestUnknown, Err: err,
			Message: fmt.Sprintf("%s is not in the cache, so there is nothing to pin: fetch it with `entrepot warm %s` first", t, t)}
	}
	if err != nil {
		return Pinned{}, err
	}
	p := pinnedAs(t, tree)
	was, pinned := c.index.Pin(t.Upstream, t.Repository, t.Reference())
	p.Changed = !pinned
	since := time.Now()
	if pinned {
		since = was.Since
	}
	err = c.index.PutPin(t.Upstream, t.Repository, t.Reference(), index.Pin{Digest: p.Digest, Since: since})
	if errors.Is(err, index.ErrTooManyPins) {
		return Pinned{}, &oci.Error{Code: oci.CodeUnknown, Status: 409, Err: err,
			Message: fmt.Sprintf("%d images are pinned, and no more can be: unpin others first", index.MaxPins)}
	}
	if err != nil {
		return Pinned{}, fmt.Errorf("pin %s: %w", t, err)
	}
	return p, nil
}

// Unpin undoes Pin.
func (c *Cache) Unpin(ctx context.Context, t oci.Target) (Pinned, error) {
	p := Pinned{Reference: t.String()}
	if tree, err := c.keptTree(ctx, t, TreeOptions{Referrers: true}); err == nil {
		p = pinnedAs(t, tree)
	}
	var err error
	if p.Changed, err = c.index.DropPin(t.Upstream, t.Repository, t.Reference()); err != nil {
		return Pinned{}, fmt.Errorf("unpin %s: %w", t, err)
	}
	return p, nil
}

func pinnedAs(t oci.Target, tree *Tree) Pinned {
	p := Pinned{Reference: t.String(), Digest: tree.Root.Digest}
	for n := range tree.Nodes() {
		if n.Stored {
			p.Blobs++
			p.Size += n.Size
		}
	}
	return p
}

// pinTarget undoes oci.Target.Reference.
func pinTarget(upstream, repo, ref string) oci.Target {
	t := oci.Target{Upstream: upstream, Repository: repo}
	if d := digest.Digest(ref); d.Validate() == nil {
		t.Digest = d
	} else {
		t.Tag = ref
	}
	return t
}

// isPinned tells whether t is pinned by its tag, or what it stands for by its digest.
func (c *Cache) isPinned(t oci.Target, d digest.Digest) bool {
	for _, ref := range []string{t.Tag, string(d)} {
		if ref == "" {
			continue
		}
		if _, ok := c.index.Pin(t.Upstream, t.Repository, ref); ok {
			return true
		}
	}
	return false
}

// pins knows what pins protect. It is for one goroutine.
type pins struct {
	// of is what each protected when that was last looked at: what can not be read at
	// this moment, for its manifest is damaged and on its way again, is known from it.
	of map[oci.Target]map[digest.Digest]bool
}

// protected gives all that pins protect, whether it is here or not. Its error is ctx's or
// of the index; then nothing may be evicted.
func (p *pins) protected(ctx context.Context, c *Cache) (map[digest.Digest]bool, error) {
	all := map[digest.Digest]bool{}
	next := map[oci.Target]map[digest.Digest]bool{}
	var failure error
	err := c.index.Pins("", "", func(upstream, repo, ref string, pin index.Pin) bool {
		t := pinTarget(upstream, repo, ref)
		content, err := c.pinnedContent(ctx, t, pin)
		if content == nil {
			content = p.of[t]
		}
		if content == nil {
			content = map[digest.Digest]bool{pin.Digest: true}
		}
		next[t] = content
		maps.Copy(all, content)
		failure = err
		return failure == nil
	})
	if err := errors.Join(failure, err); err != nil {
		return nil, err
	}
	p.of = next
	return all, nil
}

// pinnedContent gives what a pin protects; nil where that can not be told now.
func (c *Cache) pinnedContent(ctx context.Context, t oci.Target, pin index.Pin) (map[digest.Digest]bool, error) {
	tree, err := c.keptTree(ctx, t, TreeOptions{Referrers: true, Documents: true})
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err == nil && tree.Root.Digest != pin.Digest:
		if err := c.index.MovePin(t.Upstream, t.Repository, t.Reference(), tree.Root.Digest); err != nil {
			c.log.Warn("what a pinned tag stands for could not be noted", zap.Stringer("reference", t), zap.Error(err))
		}
	case err != nil:
		// The tag is forgotten, or what it stands for is not here yet.
		if tree, err = c.keptTree(ctx, withDigest(t, pin.Digest), TreeOptions{Referrers: true, Documents: true}); err != nil {
			return nil, context.Cause(ctx)
		}
	}
	content := map[digest.Digest]bool{}
	for n := range tree.Nodes() {
		content[n.Digest] = true
	}
	return content, nil
}
