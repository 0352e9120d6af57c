package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/evict"
	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

// diskRetry is when a client may come back after the cache's disk has failed.
const diskRetry = 30 * time.Second

// elsewherePatience is how long a request waits for the fill of another upstream that
// fetches the same content, before its own upstream is asked for it.
const elsewherePatience = 500 * time.Millisecond

// fillKey tells fills apart: an upstream's readers follow what that upstream sends, so
// that one that is slow or sends wrong bytes is no trouble to the readers of another.
type fillKey struct {
	digest   digest.Digest
	upstream string
}

// blobFill is a fill that runs. It fetches for repo from upstream.
type blobFill struct {
	*fill.Fill
	upstream, repo string
	// compares is set if the content was stored before the fill began.
	compares bool
	// joins notes that more than one client wants the blob.
	joins oci.Joins
	// gone is closed when the fill has ended and isn't found any more.
	gone chan struct{}
}

// over reports whether the fill has failed, but not at the disk: a blob that the disk
// can't keep is passed on at once.
func (f *blobFill) over() bool {
	err := f.Failure()
	return err != nil && !fill.IsDiskError(err)
}

// awaitGone waits until the fill isn't found any more; its error is that ctx has ended.
func (f *blobFill) awaitGone(ctx context.Context) error {
	select {
	case <-f.gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Blob returns the blob that t names by digest: from memory, from disk, or as it comes
// from the upstream, for whose response header it waits. hint is the span that will be
// sent first, or the zero Span; a From of -n stands for the last n bytes. A fetch that
// begins for it begins there. Content that
// is here is served only to a repository that has a right to it (see right). The
// Blob's Send ends when ctx does. The caller closes it. Errors are as for Manifest.
func (c *Cache) Blob(ctx context.Context, t oci.Target, hint oci.Span) (Blob, Outcome, error) {
	if hint == (oci.Span{}) {
		hint = oci.Whole
	}
	k := c.known()
	b, out, err := c.blob(ctx, t, hint)
	if err != nil {
		b, out, err = judgeAnew(ctx, c, k, b, out, err, func() (Blob, Outcome, error) { return c.blob(ctx, t, hint) })
	}
	if err != nil {
		return b, out, c.tellDenied(t, err)
	}
	out.MediaType = c.manifestTypeOf(t)
	return b, out, nil
}

// blob is Blob, for what is known by now.
func (c *Cache) blob(ctx context.Context, t oci.Target, hint oci.Span) (Blob, Outcome, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return nil, Outcome{}, err
	}
	if b := c.hotBlob(t); b != nil {
		return b, Outcome{Status: Hit}, nil
	}
	if b := c.hotFile(ctx, t); b != nil {
		return b, Outcome{Status: Hit}, nil
	}
	t = owned(t)
	known := c.known()
	link, linked, right := c.rightTo(t)
	if right == maySend && linked {
		if b, err := c.keptBlob(ctx, t.Digest, link.Size); b != nil || err != nil {
			c.uses.note(t.Digest, false)
			return b, Outcome{Status: Hit}, err
		}
	}
	k := digestKey("blob:", t)
	if err, ok := c.negative.get(k); ok {
		return nil, Outcome{Status: Negative}, err
	}
	if right, err = c.awaitElsewhere(ctx, up, t, right); err != nil {
		return nil, Outcome{Status: Miss}, err
	}
	if right == mustAsk && !c.filledFor(t) && c.holds(t.Digest) {
		if link, right, err = c.prove(ctx, up, t, link, linked, known); err != nil {
			return nil, Outcome{Status: Miss}, err
		}
		if right == maySend {
			linked = true
			if b, err := c.keptBlob(ctx, t.Digest, link.Size); b != nil || err != nil {
				c.uses.note(t.Digest, false)
				return b, Outcome{Status: Revalidated}, err
			}
		}
	}
	if !linked {
		link.Size = -1
	}
	b, st, err := c.fetchBlob(ctx, up, t, wanted{proved: right == maySend, joins: c.mayJoin(t, link, linked), size: link.Size, hint: hint, known: known})
	out := Outcome{Status: st}
	if f, ok := b.(*fill.Reader); ok && st != Hit {
		var verified bool
		out.Forwarded, verified, out.Stored = f.Origin()
		out.Unverified = hint != oci.Whole && !verified
	}
	if p, ok := b.(*passage); ok {
		out.Unverified = hint != oci.Whole && p.content == nil
	}
	return b, out, c.noteWord(known, k, c.tellLost(t.Digest, err))
}

// Stat returns the size in bytes of the blob that t names by digest. It asks the
// upstream by HEAD unless the blob is here and t's repository has a right to it.
func (c *Cache) Stat(ctx context.Context, t oci.Target) (int64, Outcome, error) {
	k := c.known()
	size, out, err := c.stat(ctx, t)
	if err != nil {
		size, out, err = judgeAnew(ctx, c, k, size, out, err, func() (int64, Outcome, error) { return c.stat(ctx, t) })
	}
	if err != nil {
		return size, out, c.tellDenied(t, err)
	}
	out.MediaType = c.manifestTypeOf(t)
	return size, out, nil
}

// manifestTypeOf returns the media type of t's digest if t's repository knows it as a
// manifest, else "". It allocates nothing for what is hot. Memory may not know a link yet
// that has just been put, or not any more, so the index decides.
func (c *Cache) manifestTypeOf(t oci.Target) string {
	l, ok := c.records.LinkInMemory(t)
	if !ok {
		t = owned(t)
		l, ok = c.records.Link(t)
	}
	switch {
	case !ok:
		return ""
	case l.Manifest && l.MediaType == "": // an older version has put the link
		if m, ok := c.keptManifest(t.Digest, ""); ok {
			return m.MediaType
		}
	case l.Manifest, oci.IsManifest(l.MediaType), oci.IsIndex(l.MediaType):
		return l.MediaType
	}
	return ""
}

// manifestTypeIn returns the media type of a stored blob of size bytes that is a manifest
// though no manifest names it as one, else "". It reads small blobs only: their header waits for
// all of them anyway.
func (c *Cache) manifestTypeIn(d digest.Digest, size int64) string {
	if size > fill.Withheld {
		return ""
	}
	m, ok := c.storedManifest(d)
	if !ok || !oci.IsManifest(m.MediaType) && !oci.IsIndex(m.MediaType) {
		return ""
	}
	// The config of an image looks like a manifest, but for this.
	var doc struct {
		SchemaVersion int `json:"schemaVersion"`
	}
	if json.Unmarshal(m.Bytes, &doc) != nil || doc.SchemaVersion != 2 {
		return ""
	}
	return m.MediaType
}

// stat is Stat, for what is known by now.
func (c *Cache) stat(ctx context.Context, t oci.Target) (int64, Outcome, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return 0, Outcome{}, err
	}
	if b := c.hotBlob(t); b != nil {
		return b.Size(), Outcome{Status: Hit}, nil
	}
	t = owned(t)
	known := c.known()
	link, linked, right := c.rightTo(t)
	if right == maySend && linked {
		if size, ok, err := c.keptSize(ctx, t.Digest, link.Size); ok || err != nil {
			c.uses.note(t.Digest, false)
			return size, Outcome{Status: Hit}, err
		}
	}
	if f := c.fillOf(t); f != nil && (f.repo == t.Repository || c.mayJoin(t, link, linked)) {
		if size, ok := f.Verified(); ok {
			return size, Outcome{Status: Hit}, nil
		}
	}
	k := digestKey("blob:", t)
	if err, ok := c.negative.get(k); ok {
		return 0, Outcome{Status: Negative}, err
	}
	if link, right, err = c.prove(ctx, up, t, link, linked, known); err != nil {
		return 0, Outcome{Status: Miss}, err
	}
	if link.Size >= 0 {
		return link.Size, Outcome{Status: Miss}, nil
	}
	// An upstream that doesn't say the size on HEAD may say it on GET.
	b, st, err := c.fetchBlob(ctx, up, t, wanted{proved: right == maySend, joins: true, size: -1, hint: oci.Whole, known: known})
	if err != nil {
		return 0, Outcome{Status: st}, err
	}
	defer b.Close()
	return b.Size(), Outcome{Status: st}, nil
}

// prove has the upstream confirm that t's repository has t's blob, and returns the
// link and the right that result. l is the link before, if linked is set. If the
// upstream can't be asked and all readers have the same rights, then the name in a
// manifest is enough: nothing is secret, and what is cached is served.
func (c *Cache) prove(ctx context.Context, up *upstream, t oci.Target, l index.Link, linked bool, known knowledge) (index.Link, right, error) {
	confirmed, err := c.confirm(ctx, up, t, known)
	if err == nil {
		return confirmed, c.judge(c.settings(), t, confirmed, true), nil
	}
	if linked && ctx.Err() == nil && oci.IsTransient(err) {
		l.Proof = l.Proof.Max(index.Confirmed) // for this request only
		if set := c.settings(); set.isUniform(t.Upstream) && c.holds(t.Digest) && c.judge(set, t, l, true) == maySend {
			return l, maySend, nil
		}
	}
	return l, mustFetch, err
}

// confirm asks the upstream by HEAD whether t's repository has t's blob, and
// remembers a yes.
func (c *Cache) confirm(ctx context.Context, up *upstream, t oci.Target, known knowledge) (index.Link, error) {
	f, err := share(ctx, c, digestKey("stat:", t), func(ctx context.Context) (index.Link, error) {
		d, err := up.origin.Stat(ctx, t.Repository, t.Digest)
		if err == nil && d.Size < 0 {
			d.Size, err = probe(ctx, up, t)
		}
		if err != nil {
			return index.Link{}, c.noteWord(known, digestKey("blob:", t), err)
		}
		l, ok := c.records.Link(t)
		if !ok {
			// No manifest here names it: it may be one. containerd asks so if the manifest
			// is refused, and keeps the type that it is told (containerd#13007).
			if d.Size <= oci.MaxManifestSize {
				soon, cancel := context.WithTimeoutCause(ctx, c.revalidateTimeout, errSlow)
				m, err := up.origin.Resolve(soon, t.Repository, t.Digest.String())
				cancel()
				if err == nil && (m.Digest == "" || m.Digest == t.Digest) && (oci.IsManifest(m.MediaType) || oci.IsIndex(m.MediaType)) {
					d.MediaType = m.MediaType
				}
			}
			l = index.Link{MediaType: d.MediaType, Size: d.Size}
		}
		if proof := l.Proof.Max(index.Confirmed); !ok || proof != l.Proof {
			l.Proof = proof
			c.put(index.Change{Upstream: t.Upstream, Repository: t.Repository, Links: map[digest.Digest]index.Link{t.Digest: l}})
		}
		if l.Size < 0 {
			l.Size = d.Size
		}
		return l, nil
	})
	return f.value, err
}

// probe asks for the first byte of t's blob, and returns its size, or -1. It is for
// an upstream whose HEAD doesn't say a size: that may come from a registry that
// redirects every request to its store, whose signatures are for GET only.
func probe(ctx context.Context, up *upstream, t oci.Target) (int64, error) {
	if t.Digest.Algorithm().FromBytes(nil) == t.Digest {
		return 0, nil // it has no first byte, and is no secret
	}
	body, err := up.origin.Blob(ctx, t.Repository, t.Digest, oci.Span{From: 0, To: 1})
	if err != nil {
		return -1, err
	}
	return body.Size, body.Close()
}

// awaitElsewhere waits for a moment for another upstream that is sending the same
// content, if that can spare this one the fetch, and returns the right to it then.
func (c *Cache) awaitElsewhere(ctx context.Context, up *upstream, t oci.Target, now right) (right, error) {
	set := c.settings()
	other := c.anyFillOf(t.Digest)
	if other == nil || other.upstream == t.Upstream || !up.uniform || !set.isUniform(other.upstream) || c.holds(t.Digest) || c.fillOf(t) != nil {
		return now, nil
	}
	patience := time.NewTimer(elsewherePatience)
	defer patience.Stop()
	select {
	case <-other.gone:
	case <-patience.C:
	case <-ctx.Done():
		return now, context.Cause(ctx)
	}
	_, _, now = c.rightTo(t)
	return now, nil
}

// fillOf returns the running fill of t's blob from t's upstream, or nil.
func (c *Cache) fillOf(t oci.Target) *blobFill {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fills[fillKey{t.Digest, t.Upstream}]
}

// anyFillOf returns a running fill of d, from whichever upstream, or nil.
func (c *Cache) anyFillOf(d digest.Digest) *blobFill {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.anyFill(d)
}

// anyFill is anyFillOf for a caller that holds c.mu. There are no more fills than
// limits.fills and the requests that wait.
func (c *Cache) anyFill(d digest.Digest) *blobFill {
	for k, f := range c.fills {
		if k.digest == d {
			return f
		}
	}
	return nil
}

// committing returns a fill of d, from whichever upstream, that has verified all of it
// and is about to keep it; nil if there is none.
func (c *Cache) committing(d digest.Digest) *blobFill {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, f := range c.fills {
		if k.digest != d || f.compares {
			continue
		}
		if _, ok := f.Verified(); ok {
			return f
		}
	}
	return nil
}

// filledFor reports whether all of t's blob has just been fetched on the account of
// t's repository, and only the disk is behind.
func (c *Cache) filledFor(t oci.Target) bool {
	f := c.fillOf(t)
	if f == nil || f.repo != t.Repository {
		return false
	}
	_, ok := f.Verified()
	return ok
}

// wanted is what is known of a blob before it is fetched.
type wanted struct {
	// proved is set if its repository has a right to the stored content, and joins if
	// it may be served what its upstream has sent on another repository's account.
	proved, joins bool
	// size is what a manifest says it is, or -1.
	size int64
	// hint is the span that is wanted first, as Blob has it. The zero Span is the whole.
	hint oci.Span
	// rest is set if the blob is completed in the background.
	rest bool
	// known is what was known of the index when the rest was found out.
	known knowledge
}

func (w wanted) wantsWhole() bool {
	return !w.rest && (w.hint == oci.Span{} || w.hint == oci.Whole)
}

// fetchBlob joins the fill of t's blob or begins it, and waits until its size
// is known. If the disk fails, the blob is passed on instead.
func (c *Cache) fetchBlob(ctx context.Context, up *upstream, t oci.Target, w wanted) (Blob, Status, error) {
	for tries := 1; ; tries++ {
		f, mine, err := c.join(up, t, w)
		if errors.Is(err, errUnproved) {
			if _, err = c.confirm(ctx, up, t, w.known); err == nil {
				w.joins = true
				continue
			}
		}
		if err != nil {
			return nil, Miss, err
		}
		if f != nil && !mine && f.over() {
			// Those who waited for that fill know that it failed. A later request
			// asks the upstream again, once that fill has released its partial file.
			if err := f.awaitGone(ctx); err != nil {
				return nil, Collapsed, err
			}
			continue
		}
		if f == nil {
			if b, err := c.keptBlob(ctx, t.Digest, w.size); b != nil || err != nil {
				return b, Hit, err
			}
			if other := c.committing(t.Digest); other != nil {
				if err := other.awaitGone(ctx); err != nil {
					return nil, Collapsed, err
				}
			}
			continue // stored, and gone or damaged since
		}
		if !f.Attach() {
			if err := f.awaitGone(ctx); err != nil {
				return nil, Collapsed, err
			}
			continue
		}
		_, here := f.Verified()
		if w.hint.From == 0 && (w.hint.To == oci.Open || w.hint.To == math.MaxInt64) {
			// Random-access readers don't need the rest of the image prefetched.
			c.prefetch(up, t)
		}
		if w.hint == oci.Whole {
			f.WantWhole()
		} else if _, right := f.Verified(); !right {
			f.GuardTOCs(c.tocsOf(ctx, t))
		}
		told, err := f.Ready(ctx, w.hint)
		if err == nil && w.hint.From >= told && told > 0 {
			// An upstream that sends too little says so of the size too. Nobody is told
			// that the blob ends before the range, until the digest has shown it.
			told, err = f.Settled(ctx)
		}
		if err == nil {
			var b *fill.Reader
			if b, err = fill.Follow(ctx, f.Fill, told, &passage{ctx: ctx, cache: c, up: up, target: t, size: told}); err == nil {
				if here && !mine {
					return b, Hit, nil
				}
				return b, status(mine), nil
			}
		}
		f.Detach()
		// It may have been all there, and be evicted already.
		evicted := errors.Is(err, fs.ErrNotExist) && tries < fill.MaxTries
		switch {
		case ctx.Err() != nil:
			return nil, status(mine), err
		case !evicted && fill.IsDiskError(err):
			size := max(w.size, told)
			if !errors.Is(err, errCrowdedOut) {
				c.disk.failed("keep a blob", err, size)
			}
			p, err := c.passOn(ctx, up, t, size, oci.Span{From: fill.Begins(w.hint, size), To: w.hint.To}, err)
			if err != nil {
				return nil, Miss, fillError(t, err)
			}
			return p, Miss, nil
		case !evicted && (mine || f.repo == t.Repository):
			return nil, status(mine), fillError(t, err)
		}
		// Another repository's fetch has failed. This one's may do better, once
		// that has released the partial file.
		if err := f.awaitGone(ctx); err != nil {
			return nil, Collapsed, err
		}
	}
}

// errUnproved says that a repository may not be served what its upstream has sent on
// another one's account.
var errUnproved = errors.New("it was sent on another repository's account")

// join returns the running fill of t's blob from t's upstream, or begins one; nil if
// the blob is stored by now and t's repository has a right to it. The error is that
// the cache is closed, or errUnproved.
func (c *Cache) join(up *upstream, t oci.Target, w wanted) (f *blobFill, mine bool, err error) {
	unfit := c.isUnfit(t.Digest)
	c.mu.Lock()
	defer c.mu.Unlock()
	// What is being evicted is gone in a moment.
	c.awaitClaim(t.Digest)
	if c.closed {
		return nil, false, closing()
	}
	key := fillKey{t.Digest, t.Upstream}
	if c.awaitParked(key, w.wantsWhole()); c.closed {
		return nil, false, closing()
	}
	if f, ok := c.fills[key]; ok {
		if f.repo != t.Repository && !w.joins {
			return nil, false, errUnproved
		}
		f.joins.Note()
		return f, false, nil
	}
	// A fill is taken off the map after its content has its name, so that
	// what was filled a moment ago is seen here.
	_, stored := c.store.Has(t.Digest)
	stored = stored && !unfit
	if stored && w.proved {
		return nil, false, nil
	}
	if !stored && !w.joins && c.store.HasPart(t.Digest, t.Upstream) {
		return nil, false, errUnproved
	}
	f = &blobFill{
		Fill:     fill.New(c.fillTask(up, t, w, stored)),
		upstream: t.Upstream, repo: t.Repository, compares: stored,
		gone: make(chan struct{}),
	}
	c.fills[key] = f
	c.work.Go(func() { c.runFill(f, up, t) })
	c.evictor.soon()
	return f, true, nil
}

// maxUnsized is the most that is taken of a blob of which neither a manifest nor
// its upstream tells the size.
const maxUnsized = 8 << 30

// mostUnsized gives that bound in this cache: not so much that an upstream that
// never ends could push out all else.
func (c *Cache) mostUnsized() int64 {
	if b := c.settings().MaxSize.Bytes; b > 0 {
		return min(maxUnsized, b/4)
	}
	return maxUnsized
}

// fillTask is what a fill of t's blob has to do. stored says that the content is here,
// but that t's repository has no right to it: what the upstream sends is compared with
// that, and its readers get no byte that it has not sent.
func (c *Cache) fillTask(up *upstream, t oci.Target, w wanted, stored bool) fill.Task {
	proof := index.Fetched
	key := fillKey{t.Digest, t.Upstream}
	compares := false
	task := fill.Task{
		Digest: t.Digest,
		Size:   w.size,
		Most:   c.mostUnsized(),
		Begin: func() (fill.Part, store.Spans, int64, error) {
			if stored {
				if p, err := c.compareWith(t.Digest); p != nil || err != nil {
					compares = true
					return p, store.Spans{}, -1, err
				}
			}
			if w.joins && c.settings().allUniform {
				c.store.AdoptPart(t.Digest, t.Upstream)
			}
			p, have, size, err := c.store.Part(t.Digest, t.Upstream)
			if err != nil {
				return nil, store.Spans{}, -1, fill.OnDisk(err)
			}
			if err := c.reserve(key, max(0, w.size, size)); err != nil {
				leave := p.Close
				if have.Len() == 0 {
					leave = p.Discard
				}
				return nil, store.Spans{}, -1, errors.Join(fill.OnDisk(err), leave())
			}
			if err := c.wantRoom(max(w.size, size) - have.Len()); err != nil {
				return nil, store.Spans{}, -1, errors.Join(fill.OnDisk(err), p.Discard())
			}
			if !w.joins {
				have, size = store.Spans{}, -1 // it may be on another repository's account
			}
			if have.Len() > 0 {
				proof = index.Named // not all of it is fetched on this one's
			}
			return p, have, size, nil
		},
		Open: func(ctx context.Context, span oci.Span) (*oci.Body, error) {
			return up.origin.Blob(ctx, t.Repository, t.Digest, span)
		},
		Reserve: func(size int64) error {
			if compares {
				return nil // it is here already
			}
			return c.reserve(key, size)
		},
		Arrived: func(bytes int64) {
			if !compares {
				// Readers have got some of it, and without a size it can't be passed
				// on: it goes on even if there is no room.
				c.flying.count(key, bytes)
				_ = c.awaitRoom()
			}
		},
		Record: func(size int64) {
			change := index.Change{Upstream: t.Upstream, Repository: t.Repository, Blobs: c.recordOf(t.Digest), Sent: []digest.Digest{t.Digest}}
			if rec, ok := change.Blobs[t.Digest]; ok {
				c.rememberVerified(t.Digest, rec.Stamp, rec.Verified)
			}
			l, ok := c.records.Link(t)
			if proof := l.Proof.Max(proof); !ok || l.Size != size || l.Proof != proof {
				l.Size, l.Proof = size, proof
				if !ok {
					l.MediaType = c.manifestTypeIn(t.Digest, size)
				}
				change.Links = map[digest.Digest]index.Link{t.Digest: l}
			}
			c.put(change)
		},
		Resumed: func() { c.metrics.FillResumes.WithLabelValues(t.Upstream).Inc() },
		Mismatched: func(why error) {
			c.metrics.DigestMismatches.WithLabelValues(t.Upstream).Inc()
			c.log.Error("an upstream sent bytes that are not the digest's", zap.Stringer("reference", t), zap.Error(why))
		},
	}
	switch {
	case w.rest:
		task.Piece = oci.Span{From: 0, To: 1}
		task.Complete = func() time.Duration { return c.untilQuiet(up.name) }
	case !w.wantsWhole():
		task.Piece = w.hint
		if up.complete == CompleteAlways {
			task.Complete = func() time.Duration { return 0 }
		}
	}
	return task
}

// runFill runs f to its end, once there is a place for it, and takes it off the
// map. The cache owns it.
func (c *Cache) runFill(f *blobFill, up *upstream, t oci.Target) {
	leave, err := c.admit(up)
	if err == nil {
		c.metrics.FillsInFlight.Inc()
		defer c.metrics.FillsInFlight.Dec() // with the fill off the map, and counted
		err = f.Run(oci.WithJoins(c.ctx, &f.joins))
		leave()
	} else {
		f.End(err)
	}
	c.flying.leave(fillKey{t.Digest, t.Upstream})
	c.mu.Lock()
	delete(c.fills, fillKey{t.Digest, t.Upstream})
	c.mu.Unlock()
	close(f.gone)
	c.evictor.soon()
	if errors.Is(err, fill.ErrParked) {
		c.metrics.Fills.WithLabelValues(t.Upstream, "parked").Inc()
		c.completeLater(up, t)
		return
	}

	result := "ok"
	switch {
	case err == nil:
	case errors.Is(err, fill.ErrMismatch):
		result = "mismatch"
	case c.ctx.Err() != nil:
		result = "canceled"
	default:
		result = "error"
		if errors.Is(err, errCrowdedOut) {
			c.log.Info("a blob is passed on and not cached: it does not fit beside those that are being fetched",
				zap.Stringer("reference", t), zap.Error(err))
		} else if fill.IsDiskError(err) {
			size, _ := f.Verified()
			c.disk.failed("keep a blob", err, max(0, size))
		} else if !oci.IsAbsent(err) && !oci.IsReported(err) {
			c.log.Warn("a blob could not be fetched", zap.Stringer("reference", t), zap.Error(err))
		}
	}
	c.metrics.Fills.WithLabelValues(t.Upstream, result).Inc()
}

// roomPatience is how long a fetch waits for the evictor to make room.
const roomPatience = time.Second

// reserve reserves room in the cache for the fill of k, of so many bytes. It waits a moment
// for the evictor to make room; the error is errCrowdedOut if the blob doesn't fit. For a blob
// for which no room is made (see evict.Oversize), it is only counted. runFill gives the room
// back.
func (c *Cache) reserve(k fillKey, bytes int64) error {
	limit := c.limit.Load()
	if limit == 0 {
		return nil
	}
	if err := c.flying.enter(k, bytes, hundredths(limit, highWatermark)); err != nil || evict.Oversize(bytes, limit) {
		return err
	}
	err := c.awaitRoom()
	if err != nil {
		c.flying.leave(k)
	}
	return err
}

// awaitRoom waits until no more is taken than the limit, as long as the evictor may make room,
// and for a second at most. The error is errCrowdedOut if more is taken then.
func (c *Cache) awaitRoom() error {
	for begun := time.Now(); ; {
		limit, taken := c.limit.Load(), c.taken()
		if limit == 0 || taken <= limit {
			return nil
		}
		if c.evictor.full.Load() || time.Since(begun) > roomPatience {
			return fmt.Errorf("%d bytes are stored or being fetched, of at most %d: %w", taken, limit, errCrowdedOut)
		}
		c.evictor.soon()
		select {
		case <-time.After(lookApart):
		case <-c.ctx.Done():
			return closing()
		}
	}
}

// taken returns about how many bytes stand against the limit.
func (c *Cache) taken() int64 {
	stored, bytes := c.index.Totals()
	limit := c.limit.Load()
	return bytes + filesCost(stored) + c.evictor.idle.Load() + c.flying.fitting(limit) + min(c.index.Bytes(), limit/2)
}

// wantRoom tells, as an error, whether the disk has no room for so many bytes,
// and the evictor makes none at once.
func (c *Cache) wantRoom(bytes int64) error {
	for begun := time.Now(); ; {
		free, _, err := c.store.Room()
		if bytes <= 0 || err != nil || free >= bytes {
			return nil // what can not be told beforehand is found out
		}
		if c.settings().MaxSize == (Room{}) || c.disk.isDegraded() || time.Since(begun) > roomPatience {
			return fmt.Errorf("%d bytes are wanted and %d are free: %w", bytes, free, syscall.ENOSPC)
		}
		c.evictor.soon()
		select {
		case <-time.After(50 * time.Millisecond):
		case <-c.ctx.Done():
			return closing()
		}
	}
}

// fillError says for a client why t's blob can not be had.
func fillError(t oci.Target, err error) error {
	var e *oci.Error
	var disk *fill.DiskError
	switch {
	case errors.As(err, &disk):
		return &oci.Error{
			Code:       oci.CodeUnavailable,
			Message:    fmt.Sprintf("%s can not be fetched because the cache's disk fails: see the proxy's log, and its disk", t),
			RetryAfter: diskRetry, Err: err,
		}
	case errors.As(err, &e):
		return err
	case errors.Is(err, errClosing):
		return closing()
	case errors.Is(err, fill.ErrMismatch):
		return &oci.Error{
			Code: oci.CodeUnavailable, Status: 502,
			Message: fmt.Sprintf("what %s sent for %s is not what the digest says; nothing of it was kept", t.Upstream, t), Err: err,
		}
	default:
		return &oci.Error{
			Code: oci.CodeUnavailable, Status: 502,
			Message: fmt.Sprintf("%s broke off while it sent %s, and again when it was asked for the rest", t.Upstream, t), Err: err,
		}
	}
}
