package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// Manifest gives the manifest or index that t names, by tag or digest. A client
// whose a takes no index is given the default platform's manifest out of it, as
// Docker Hub does; content that is named by digest is given as it is. Errors
// are *oci.Error: absent where the upstream says so, or what kept it from being
// asked; or ctx's.
func (c *Cache) Manifest(ctx context.Context, t oci.Target, a rewrite.Accept) (*Manifest, Outcome, error) {
	k := c.known()
	m, out, err := c.give(ctx, t, a)
	if err != nil {
		m, out, err = judgeAnew(ctx, c, k, m, out, err, func() (*Manifest, Outcome, error) { return c.give(ctx, t, a) })
	}
	if err != nil {
		err = c.tellDenied(t, err)
		c.noteMissing(t, err)
		return m, out, err
	}
	c.asked.note(t, m.Digest, false)
	return m, out, nil
}

// give is Manifest for whoever asks.
func (c *Cache) give(ctx context.Context, t oci.Target, a rewrite.Accept) (*Manifest, Outcome, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return nil, Outcome{}, err
	}
	if m, out := c.hotManifest(up, t, a.TakesIndex()); m != nil {
		up.countSaved(out.Status)
		return &m.whole, out, nil
	}
	if !a.TakesIndex() {
		if m, out, err, known := c.hotChoice(up, t); known {
			up.countSaved(out.Status)
			if err != nil {
				return nil, out, err
			}
			return &m.chosen, out, nil
		}
	}
	t = owned(t)
	if t.Digest != "" {
		m, st, err := c.manifestByDigest(ctx, up, t)
		if err != nil {
			return nil, Outcome{Status: st}, err
		}
		if confirmedNow(st) && oci.IsIndex(m.MediaType) {
			c.fetchPlatforms(up, t, m.Digest)
		}
		up.countSaved(st)
		return c.answer(m), c.forwarded(Outcome{Status: st}, m.Digest), nil
	}
	byTag := c.manifestByTag
	if !t.AsOf.IsZero() {
		byTag = c.manifestAsOf
	}
	m, out, err := byTag(ctx, up, t)
	if err != nil {
		return nil, out, err
	}
	up.countSaved(out.Status)
	if confirmedNow(out.Status) && t.AsOf.IsZero() && oci.IsIndex(m.MediaType) {
		c.fetchPlatforms(up, t, m.Digest)
	}
	if a.TakesIndex() || !oci.IsIndex(m.MediaType) {
		return c.answer(m), c.forwarded(out, m.Digest), nil
	}
	return c.negotiate(ctx, up, t, m, out)
}

// confirmedNow reports whether the upstream was asked for an answer, and gave or confirmed it.
func confirmedNow(s Status) bool { return s == Miss || s == Collapsed || s == Revalidated }

// Describe gives what Manifest gives but for its bytes. What is not there is
// asked for by HEAD, which no upstream counts as a pull, unless the answer can
// only be found in the bytes.
func (c *Cache) Describe(ctx context.Context, t oci.Target, a rewrite.Accept) (*Manifest, Outcome, error) {
	k := c.known()
	m, out, err := c.describe(ctx, t, a)
	if err != nil {
		m, out, err = judgeAnew(ctx, c, k, m, out, err, func() (*Manifest, Outcome, error) { return c.describe(ctx, t, a) })
	}
	if err != nil {
		err = c.tellDenied(t, err)
		c.noteMissing(t, err)
		return m, out, err
	}
	c.asked.note(t, m.Digest, true)
	return m, out, nil
}

// describe is Describe for whoever asks.
func (c *Cache) describe(ctx context.Context, t oci.Target, a rewrite.Accept) (*Manifest, Outcome, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return nil, Outcome{}, err
	}
	if m, out := c.hotManifest(up, t, a.TakesIndex()); m != nil {
		return &m.described, out, nil
	}
	if !a.TakesIndex() {
		if m, out, err, known := c.hotChoice(up, t); known {
			if err != nil {
				return nil, out, err
			}
			return &m.chosenDescribed, out, nil
		}
	}
	t = owned(t)
	if t.Digest != "" {
		return c.describeDigest(ctx, up, t)
	}
	if !t.AsOf.IsZero() {
		return c.describeAsOf(ctx, up, t, a)
	}
	r, out, err := c.resolve(ctx, up, t, "head:", c.headTag)
	if err != nil {
		return nil, out, err
	}
	if oci.IsIndex(r.MediaType) && !a.TakesIndex() || r.Size <= 0 || r.MediaType == "" {
		m, out, err := c.give(ctx, t, a)
		if err != nil {
			return nil, out, err
		}
		return described(m), out, nil
	}
	if out.Status == Stale && r.Previous != "" && !c.holds(r.Digest) {
		// What a GET would be answered with.
		if m, ok := c.previousManifest(t, r); ok {
			return described(c.answer(m)), out, nil
		}
	}
	c.uses.note(r.Digest, true)
	return &Manifest{Digest: r.Digest, MediaType: r.MediaType, Size: r.Size}, c.forwarded(out, r.Digest), nil
}

// answer makes of m what a client is given, and notes that it was asked for.
func (c *Cache) answer(m *oci.Manifest) *Manifest {
	c.uses.note(m.Digest, true)
	return &Manifest{Digest: m.Digest, MediaType: m.MediaType, Size: int64(len(m.Bytes)), Bytes: m.Bytes}
}

func described(m *Manifest) *Manifest {
	d := *m
	d.Bytes = nil
	return &d
}

// manifestByTag gives what t's tag stands for.
func (c *Cache) manifestByTag(ctx context.Context, up *upstream, t oci.Target) (*oci.Manifest, Outcome, error) {
	known := c.known()
	r, out, err := c.resolve(ctx, up, t, "get:", c.fetchTag)
	if err != nil || r.manifest != nil {
		return r.manifest, out, err
	}
	if (out.Status == Hit || out.Status == Revalidated) && r.Previous != "" && !c.holds(r.Digest) {
		// It was found to have moved before, and could not be fetched then.
		if why := up.sparePull(ctx); why != nil {
			if m, ok := c.previousManifest(t, r); ok {
				out.Status, out.Reason = Stale, reason(why)
				return m, out, nil
			}
		}
	}
	m, st, err := c.manifestByDigest(ctx, up, withDigest(t, r.Digest))
	if err == nil {
		if st != Hit {
			out.Status = st // the tag was known, but not what it stands for
		}
		return m, out, nil
	}
	if oci.IsAbsent(err) {
		// The tag has moved on, and what it stood for has been deleted.
		f, again := share(ctx, c, "get:"+tagKey(t), func(ctx context.Context) (resolved, error) {
			return c.fetchTag(ctx, up, t, known)
		})
		if !oci.IsTransient(again) {
			return f.value.manifest, Outcome{Status: status(f.mine)}, again
		}
		err = again // or its upstream says of it what is not true
	}
	if oci.IsTransient(err) && r.Previous != "" {
		if m, ok := c.previousManifest(t, r); ok {
			out.Status, out.Reason = Stale, reason(err)
			return m, out, nil
		}
	}
	return nil, out, err
}

// previousManifest returns what t's tag stood for before, if it is stored and t's
// repository has a right to it: the upstream may have only claimed that it stood for it.
func (c *Cache) previousManifest(t oci.Target, r resolved) (*oci.Manifest, bool) {
	if !c.hasRight(withDigest(t, r.Previous)) {
		return nil, false
	}
	return c.keptManifest(r.Previous, "")
}

func withDigest(t oci.Target, d digest.Digest) oci.Target {
	t.Tag, t.Digest = "", d
	return t
}

// negotiate gives the default platform's manifest out of idx, which t's tag
// stands for.
func (c *Cache) negotiate(ctx context.Context, up *upstream, t oci.Target, idx *oci.Manifest, out Outcome) (*Manifest, Outcome, error) {
	m, st, err := c.chosen(ctx, up, t, idx, 0)
	if err != nil {
		return nil, out, err
	}
	if m == nil { // it does not say which one that is
		return c.answer(idx), c.forwarded(out, idx.Digest), nil
	}
	if st != Hit {
		out.Status = st
	}
	c.uses.note(idx.Digest, true)
	n := c.answer(m)
	n.Negotiated = true
	return n, c.forwarded(out, m.Digest), nil
}

// maxNestedDepth is how deep indexes in an index are looked into for a platform.
const maxNestedDepth = 4

// chosen returns the default platform's manifest out of idx, which t's tag stands for, or
// out of an index in it; nil if the index does not say which one that is.
func (c *Cache) chosen(ctx context.Context, up *upstream, t oci.Target, idx *oci.Manifest, depth int) (*oci.Manifest, Status, error) {
	ch, err := c.choose(ctx, idx, c.settings().platform)
	if err != nil {
		return nil, Miss, fmt.Errorf("choose from %s: %w", t, err)
	}
	if ch.digest != "" {
		return c.manifestByDigest(ctx, up, withDigest(t, ch.digest))
	}
	if depth == maxNestedDepth {
		return nil, Hit, nil
	}
	for _, d := range ch.nested {
		m, st, err := c.manifestByDigest(ctx, up, withDigest(t, d))
		if err == nil && oci.IsIndex(m.MediaType) {
			m, st, err = c.chosen(ctx, up, t, m, depth+1)
		}
		if m != nil && err == nil || oci.IsTransient(err) {
			return m, st, err
		}
	}
	return nil, Hit, nil
}

// manifestByDigest returns the manifest of t's digest: from memory or disk if t's
// repository has a right to it, else from the upstream, by one flight. It is never
// revalidated.
func (c *Cache) manifestByDigest(ctx context.Context, up *upstream, t oci.Target) (*oci.Manifest, Status, error) {
	known := c.known()
	if m, ok := c.cachedManifest(t); ok {
		return m, Hit, nil
	}
	k := digestKey("manifest:", t)
	if err, ok := c.negative.get(k); ok {
		return nil, Negative, err
	}
	f, err := share(ctx, c, k, func(ctx context.Context) (*oci.Manifest, error) {
		return c.fetchManifest(ctx, up, t, known)
	})
	return f.value, status(f.mine), err
}

// cachedManifest returns the manifest of t's digest if it is cached and t's repository has a
// right to it.
func (c *Cache) cachedManifest(t oci.Target) (*oci.Manifest, bool) {
	link, linked, right := c.rightTo(t)
	if !linked || !link.Manifest || right != maySend {
		return nil, false
	}
	return c.keptManifest(t.Digest, link.MediaType)
}

func digestKey(what string, t oci.Target) string {
	return what + key(t.Upstream, t.Repository, string(t.Digest))
}

// fetchManifest gets the manifest of t's digest for its repository: what is stored
// already, once the upstream has confirmed by HEAD that the repository has it and
// if that is proof enough, or else its bytes.
func (c *Cache) fetchManifest(ctx context.Context, up *upstream, t oci.Target, known knowledge) (*oci.Manifest, error) {
	if link, _, right := c.rightTo(t); right != mustFetch && c.holds(t.Digest) {
		d, err := up.origin.Resolve(ctx, t.Repository, t.Digest.String())
		switch {
		case err != nil && oci.IsTransient(err) && link.Manifest && c.hasRight(t):
			// It can't be asked, and nothing is secret: what is cached is served.
			if m, ok := c.keptManifest(t.Digest, link.MediaType); ok {
				return m, nil
			}
			return nil, err
		case oci.IsHint(err):
			// Its bytes decide.
		case err != nil:
			return nil, c.noteWord(known, digestKey("manifest:", t), err)
		}
		if m, ok := c.keptManifest(t.Digest, d.MediaType); err == nil && ok && (d.Digest == "" || d.Digest == t.Digest) {
			c.linkManifest(t, m, index.Confirmed)
			return m, nil
		}
	}
	m, err := up.origin.Manifest(ctx, t.Repository, t.Digest.String())
	if err != nil {
		return nil, c.noteWord(known, digestKey("manifest:", t), err)
	}
	return m, c.keepManifest(t, m, nil)
}

// describeDigest gives what is known of the manifest of t's digest without its
// bytes.
func (c *Cache) describeDigest(ctx context.Context, up *upstream, t oci.Target) (*Manifest, Outcome, error) {
	known := c.known()
	link, linked, right := c.rightTo(t)
	if linked && link.Manifest && right == maySend {
		if m, ok := c.keptManifest(t.Digest, link.MediaType); ok {
			return described(c.answer(m)), Outcome{Status: Hit}, nil
		}
	}
	k := digestKey("describe:", t)
	if err, ok := c.negative.get(k); ok {
		return nil, Outcome{Status: Negative}, err
	}
	f, err := share(ctx, c, k, func(ctx context.Context) (*Manifest, error) {
		d, err := up.origin.Resolve(ctx, t.Repository, t.Digest.String())
		if err != nil {
			if oci.IsTransient(err) && link.Manifest && c.hasRight(t) {
				if m, ok := c.keptManifest(t.Digest, link.MediaType); ok {
					return described(c.answer(m)), nil
				}
			}
			if !oci.IsHint(err) {
				return nil, c.noteWord(known, k, err)
			}
			m, again := c.fetchManifest(ctx, up, t, known)
			if again != nil {
				if again = confirmed(again, err); oci.IsHint(again) {
					return nil, again
				}
				return nil, c.noteWord(known, k, again)
			}
			return described(c.answer(m)), nil
		}
		if d.Size <= 0 || d.MediaType == "" || d.Digest != "" && d.Digest != t.Digest {
			m, err := c.fetchManifest(ctx, up, t, known)
			if err != nil {
				return nil, err
			}
			return described(c.answer(m)), nil
		}
		return &Manifest{Digest: t.Digest, MediaType: d.MediaType, Size: d.Size}, nil
	})
	return f.value, Outcome{Status: status(f.mine)}, err
}

// noteWord remembers for a short time that the upstream says that something is
// not there, or not to be had, and gives err back. It remembers nothing if the upstream
// was asked because the index was lost: a request with that knowledge k could not see
// whether the content named by key is cached.
func (c *Cache) noteWord(k knowledge, key string, err error) error {
	if !c.stillKnows(k) {
		return err
	}
	c.negative.note(key, err, c.negativeTTL)
	if !c.stillKnows(k) { // the index was lost meanwhile
		c.negative.drop(key)
	}
	return err
}

// holds tells whether the content of d is stored, for whichever repository.
func (c *Cache) holds(d digest.Digest) bool {
	_, ok := c.store.Has(d)
	return ok && !c.isUnfit(d)
}

// keptManifest gives the manifest of d from memory or disk. What comes from
// disk is verified; what is damaged there is dropped, and so fetched again.
// mediaType is the one by which the repository knows it; may be empty.
func (c *Cache) keptManifest(d digest.Digest, mediaType string) (*oci.Manifest, bool) {
	m, ok := c.memory.manifest(d)
	if !ok {
		if m, ok = c.storedManifest(d); !ok {
			return nil, false
		}
		c.memory.setManifest(m)
	}
	if mediaType == "" || mediaType == m.MediaType {
		return m, true
	}
	// Two upstreams may serve the same bytes under two types.
	return &oci.Manifest{Digest: d, MediaType: mediaType, Bytes: m.Bytes}, true
}

func (c *Cache) storedManifest(d digest.Digest) (*oci.Manifest, bool) {
	f, stamp, err := c.openStored(c.ctx, d)
	if f == nil || err != nil {
		return nil, false
	}
	defer f.Close()
	if stamp.Size > oci.MaxManifestSize {
		return nil, false // a layer, whatever a link says of it
	}
	if c.manifests.Acquire(c.ctx, stamp.Size) != nil {
		return nil, false
	}
	defer c.manifests.Release(stamp.Size)
	b := make([]byte, stamp.Size)
	if n, err := io.ReadFull(f, b); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		b = b[:n] // it was cut short, and so hasn't its digest
	} else if err != nil {
		c.unreadable(d, err)
		return nil, false
	}
	if d.Algorithm().FromBytes(b) != d {
		c.setAside(d, stamp, foundOnOpen)
		return nil, false
	}
	return &oci.Manifest{Digest: d, MediaType: oci.MediaTypeOf(b, ""), Bytes: b}, true
}

// keepManifest stores m, which the upstream gave for t, and lets t's repository
// serve it and what it names; with tag, where it is not nil, t's tag stands for
// it. An m that makes no sense is an error; a disk that fails is not, for the
// client can still be answered.
func (c *Cache) keepManifest(t oci.Target, m *oci.Manifest, tag *sighting) error {
	p, err := oci.ParseManifest(m.Bytes, m.MediaType)
	if err != nil {
		if oci.IsSchema1(m.MediaType) {
			return err
		}
		return &oci.Error{
			Code: oci.CodeManifestInvalid, Status: 502,
			Message: fmt.Sprintf("%s answered for %s with what is no manifest", t.Upstream, t), Err: err,
		}
	}
	change := c.linksOf(t, m, p, index.Fetched)
	c.claim(m.Digest)
	defer c.unclaim(m.Digest)
	stored := c.holds(m.Digest)
	if err := c.store.Put(m.Digest, m.Bytes); err != nil {
		c.disk.failed("store a manifest", err, int64(len(m.Bytes)))
	} else if !stored {
		change.Blobs = c.recordOf(m.Digest)
	}
	for _, d := range oci.Embedded(m.Bytes) {
		if d.Digest != m.Digest {
			c.keepEmbedded(d, &change)
		}
	}
	c.memory.setManifest(m)
	if tag != nil {
		change.Tag, change.Record, change.How = t.Tag, tag.Tag, tag.how
	}
	c.put(change)
	c.expect(t, p)
	c.noteTOCs(t, p)
	return nil
}

// keepEmbedded stores d's content, which a manifest carries, and adds to the change that
// the manifest's repository has it: its upstream has sent the bytes on its account.
func (c *Cache) keepEmbedded(d v1.Descriptor, change *index.Change) {
	c.claim(d.Digest)
	defer c.unclaim(d.Digest)
	if !c.holds(d.Digest) {
		if err := c.store.Put(d.Digest, d.Data); err != nil {
			c.disk.failed("store a blob out of its manifest", err, d.Size)
			return
		}
		if change.Blobs == nil {
			change.Blobs = map[digest.Digest]index.Blob{}
		}
		maps.Copy(change.Blobs, c.recordOf(d.Digest))
	}
	l := change.Links[d.Digest]
	l.MediaType, l.Size, l.Proof = d.MediaType, d.Size, index.Fetched
	change.Links[d.Digest] = l
	change.Sent = append(change.Sent, d.Digest)
}

// maxNamedLinks is how many digests a manifest may name to have a link written for each.
// A client waits for these writes, and images name far fewer.
const maxNamedLinks = 512

// linksOf returns the change that links t's repository to m, of which there is proof,
// and to what m names. What the repository has served as a manifest stays one,
// whatever another document calls it.
func (c *Cache) linksOf(t oci.Target, m *oci.Manifest, p *oci.Parsed, proof index.Proof) index.Change {
	self, _ := c.records.Link(withDigest(t, m.Digest))
	links := map[digest.Digest]index.Link{
		m.Digest: {MediaType: m.MediaType, Size: int64(len(m.Bytes)), Manifest: true, Proof: proof.Max(self.Proof)},
	}
	named := p.Children
	if len(named) > maxNamedLinks {
		named = nil // each is asked of the upstream when a client asks for it
	}
	for _, d := range named {
		if oci.IsForeign(d) || p.Doubled {
			continue // the registry may not have it: naming it says nothing
		}
		l, ok := c.records.Link(withDigest(t, d.Digest))
		if ok && l.Manifest || d.Digest == m.Digest {
			continue
		}
		links[d.Digest] = index.Link{MediaType: d.MediaType, Size: saidSize(d), Manifest: p.Kind == oci.KindIndex, Proof: index.Named.Max(l.Proof)}
	}
	return index.Change{Upstream: t.Upstream, Repository: t.Repository, Links: links}
}

// maxSaidSize is the largest size of a blob that a manifest is believed about.
const maxSaidSize = 1 << 44

// saidSize returns the size that a manifest says of d, or -1 if that can't be: then the
// upstream tells it. Some tools write 0 for a size that they don't know.
func saidSize(d v1.Descriptor) int64 {
	if d.Size > maxSaidSize || d.Size == 0 && d.Digest != d.Digest.Algorithm().FromBytes(nil) {
		return -1
	}
	return d.Size
}

// linkManifest links t's repository to m, which is stored and of which there is proof,
// and to what m names.
func (c *Cache) linkManifest(t oci.Target, m *oci.Manifest, proof index.Proof) {
	if p, err := oci.ParseManifest(m.Bytes, m.MediaType); err == nil {
		c.put(c.linksOf(t, m, p, proof))
	}
}

// put keeps a change in the records. What the disk does not take is in memory for a while at
// least.
func (c *Cache) put(change index.Change) {
	t := oci.Target{Upstream: change.Upstream, Repository: change.Repository, Tag: change.Tag}
	change.Moved = func(from digest.Digest) { c.moved(t, from, change.Record) }
	if err := c.records.Put(change); err != nil {
		c.disk.failed("write the index", err, 0)
	}
	if change.Tag != "" {
		c.negative.drop(tagKey(t))
	}
}
