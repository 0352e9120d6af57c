package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// Named lists the images that are here by name: all tags of which the manifest is
// stored, and then, by their digests, the manifests of which a client has asked by
// digest alone, as far as that can be told: those that no tag stands or stood for and
// that no index here names; those that refer to others come last. What is of an
// upstream that is not configured is not among them. No upstream is asked, and nothing
// counts as used.
func (c *Cache) Named(ctx context.Context) ([]oci.Target, error) {
	var tags []oci.Target
	err := c.index.Records("", "", func(upstream, repo, tag string, _ index.Tag) bool {
		tags = append(tags, oci.Target{Upstream: upstream, Repository: repo, Tag: tag})
		return ctx.Err() == nil
	})
	known := map[oci.Target]bool{} // by a tag or an index
	var list []oci.Target
	for _, t := range tags {
		if rec, ok := c.records.PeekTag(t); ok {
			known[withDigest(t, rec.Digest)] = true
		}
		if _, err := c.upstream(t.Upstream); err != nil {
			continue
		}
		if d, _, err := c.StandsFor(t); err != nil || c.holds(d) {
			list = append(list, t)
		}
	}
	err = errors.Join(err, c.index.Histories("", "", func(upstream, repo, _ string, history []index.Observation) bool {
		for _, o := range history {
			known[oci.Target{Upstream: upstream, Repository: repo, Digest: o.Digest}] = true
		}
		return ctx.Err() == nil
	}))
	var manifests []oci.Target
	err = errors.Join(err, c.index.Links("", "", func(upstream, repo string, d digest.Digest, l index.Link) bool {
		if l.Manifest {
			manifests = append(manifests, oci.Target{Upstream: upstream, Repository: repo, Digest: d})
		}
		return ctx.Err() == nil
	}))
	refers := map[oci.Target]bool{}
	for _, t := range manifests {
		if ctx.Err() != nil {
			break
		}
		m, ok := c.peekManifest(t.Digest)
		if !ok {
			continue
		}
		p, err := oci.ParseManifest(m.Bytes, m.MediaType)
		if err != nil {
			continue
		}
		refers[t] = p.Subject != nil
		for _, child := range p.Children {
			if p.Kind == oci.KindIndex {
				known[withDigest(t, child.Digest)] = true
			}
		}
	}
	for _, last := range []bool{false, true} {
		for _, t := range manifests {
			if _, err := c.upstream(t.Upstream); err == nil && refers[t] == last && !known[t] && c.holds(t.Digest) {
				list = append(list, t)
			}
		}
	}
	if err := errors.Join(err, context.Cause(ctx)); err != nil {
		return nil, fmt.Errorf("list what is cached: %w", err)
	}
	return list, nil
}

// StandsFor gives the digest that t is served as while its upstream can not be asked,
// which need not be stored, and when the upstream last said so; of a digest, when it
// was stored, or the zero time where it is not. Errors are *oci.Error: of a tag that is
// not known or that is refused, MANIFEST_UNKNOWN or DENIED.
func (c *Cache) StandsFor(t oci.Target) (digest.Digest, time.Time, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return "", time.Time{}, err
	}
	if t.Digest != "" {
		_, at, _ := c.Stored(t)
		return t.Digest, at, nil
	}
	rec, ok := c.records.PeekTag(t)
	if !ok {
		return "", time.Time{}, c.unknownTag(t)
	}
	r, _, err := c.settle(t, up.rules.rule(t.Repository, t.Tag), resolved{Tag: rec}, Outcome{})
	if err != nil {
		return "", time.Time{}, err
	}
	if r.Previous != "" && !c.holds(r.Digest) {
		return r.Previous, r.Checked, nil
	}
	return r.Digest, r.Checked, nil
}

// Stored gives the size in bytes of the content of t's digest, and when it was stored,
// where it is and t's repository may serve it.
func (c *Cache) Stored(t oci.Target) (size int64, at time.Time, ok bool) {
	if l, linked := c.records.PeekLink(t); !c.mayHave(t, l, linked) || c.isUnfit(t.Digest) {
		return 0, time.Time{}, false
	}
	stamp, err := c.store.Stamp(t.Digest)
	if err != nil {
		return 0, time.Time{}, false
	}
	return stamp.Size, time.Unix(0, stamp.Modified), true
}

// OpenStored opens the content of d, whichever repositories may serve it. It is
// verified while it is read: of what is damaged the last Read gives an error instead
// of io.EOF, and it is set aside. The error is fs.ErrNotExist where d is not stored or
// can not be read. The caller closes it.
func (c *Cache) OpenStored(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	file, stamp, err := c.openStored(ctx, d)
	if err == nil && file == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d, err)
	}
	return &verifiedReader{cache: c, digest: d, stamp: stamp, file: file, hash: d.Verifier()}, nil
}

// verifiedReader reads stored content, and looks at its end whether it was right.
type verifiedReader struct {
	cache  *Cache
	digest digest.Digest
	stamp  store.Stamp
	file   io.ReadCloser
	hash   digest.Verifier
}

func (r *verifiedReader) Read(b []byte) (int, error) {
	n, err := r.file.Read(b)
	_, _ = r.hash.Write(b[:n]) // a hash takes all
	switch {
	case err == io.EOF && !r.hash.Verified():
		r.cache.setAside(r.digest, r.stamp, foundOnServing)
		return n, fmt.Errorf("read %s: %w", r.digest, errDamaged)
	case err != nil && err != io.EOF:
		r.cache.unreadable(r.digest, err)
		return n, fmt.Errorf("read %s: %w", r.digest, err)
	}
	return n, err
}

func (r *verifiedReader) Close() error { return r.file.Close() }
