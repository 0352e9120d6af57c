package cache

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// maxPause bounds how long an upstream's Retry-After keeps a tag from being
// asked for again.
const maxPause = 5 * time.Minute

// errSlow says that a revalidation took longer than a client waits for it.
var errSlow = errors.New("the upstream is slow to answer")

// errBehind says that a revalidation runs for which no client waits.
var errBehind = errors.New("the upstream is being asked")

// resolved is what a tag stands for.
type resolved struct {
	index.Tag
	// manifest is set where it was fetched along with the tag.
	manifest *oci.Manifest
}

// learn asks the upstream what a tag stands for, and keeps the answer. The knowledge is
// that of the request that looked into the index before and found that it had to ask.
type learn func(context.Context, *upstream, oci.Target, knowledge) (resolved, error)

func tagKey(t oci.Target) string { return key(t.Upstream, t.Repository, t.Tag) }

// resolve gives what clients are given for t's tag: what it stands for, or where its
// rule says so what it stood for before it moved. A tag that was never seen is asked
// for by ask; those who ask by the same way share it.
func (c *Cache) resolve(ctx context.Context, up *upstream, t oci.Target, way string, ask learn) (resolved, Outcome, error) {
	rule := up.rules.rule(t.Repository, t.Tag)
	r, out, err := c.stands(ctx, up, t, rule, way, ask)
	if err != nil || r.Held == nil {
		return r, out, err
	}
	return c.settle(t, rule, r, out)
}

// stands gives what t's tag stands for: from the cache while that is fresh, else as
// the upstream confirms it, else as it was last known.
func (c *Cache) stands(ctx context.Context, up *upstream, t oci.Target, rule TagRule, way string, ask learn) (resolved, Outcome, error) {
	k, known := tagKey(t), c.known()
	if rec, ok := c.records.Tag(t); ok {
		age := time.Since(rec.Checked)
		if rule.fresh(age) {
			return resolved{Tag: rec}, rule.outcome(Hit, age), nil
		}
		return c.revalidate(ctx, up, t, rule, rec, known)
	}
	if err, ok := c.negative.get(k); ok {
		return resolved{}, Outcome{Status: Negative}, err
	}
	f, err := share(ctx, c, way+k, func(ctx context.Context) (resolved, error) { return ask(ctx, up, t, known) })
	if err != nil {
		return resolved{}, Outcome{Status: status(f.mine)}, err
	}
	return f.value, rule.outcome(status(f.mine), 0), nil
}

// revalidate asks the upstream whether rec, which is past its TTL, still holds.
// Where that can not be found out, or not soon, rec is served stale; the check
// then goes on behind.
func (c *Cache) revalidate(ctx context.Context, up *upstream, t oci.Target, rule TagRule, rec index.Tag, known knowledge) (resolved, Outcome, error) {
	k := tagKey(t)
	if why, ok := c.paused.get(k); ok {
		return c.stale(rule, rec, why)
	}
	mine := new(bool)
	answer := begin(c, "revalidate:"+k, mine, func(ctx context.Context) (resolved, error) {
		return c.check(ctx, up, t, rec, known)
	})
	if rule.behind(time.Since(rec.Checked)) {
		return c.stale(rule, rec, errBehind)
	}
	if up.slow.Load() && rule.usable(time.Since(rec.Checked)) {
		return c.stale(rule, rec, errSlow) // somebody has waited in vain already
	}
	patience := time.NewTimer(c.revalidateTimeout)
	defer patience.Stop()
	select {
	case r := <-answer:
		switch {
		case oci.IsAbsent(r.Err) && !rule.KeepDeleted:
			return resolved{}, Outcome{Status: status(*mine)}, r.Err
		case r.Err != nil:
			now, out, err := c.stale(rule, rec, r.Err)
			if err == nil {
				out.Forwarded = answered(r.Err)
			}
			return now, out, err
		}
		now := r.Val.(resolved)
		if now.Digest == rec.Digest {
			return now, rule.outcome(Revalidated, time.Since(now.Checked)), nil
		}
		return now, rule.outcome(status(*mine), time.Since(now.Checked)), nil
	case <-patience.C:
		up.slow.Store(true)
		c.paused.put(k, errSlow, failurePause)
		return c.stale(rule, rec, errSlow)
	case <-ctx.Done():
		return resolved{}, Outcome{Status: Miss}, context.Cause(ctx)
	}
}

// stale gives rec though it is past its TTL, as far as its rule lets it.
func (c *Cache) stale(rule TagRule, rec index.Tag, why error) (resolved, Outcome, error) {
	age := time.Since(rec.Checked)
	kept := rule.KeepDeleted && oci.IsAbsent(why)
	if !c.settings().Offline && !kept && !rule.usable(age) {
		if errors.Is(why, errSlow) {
			why = &oci.Error{Code: oci.CodeUnavailable, Status: 504, Message: why.Error(), Err: errSlow}
		}
		return resolved{}, Outcome{Status: Miss}, why
	}
	out := rule.outcome(Stale, age)
	out.Reason = reason(why)
	return resolved{Tag: rec}, out, nil
}

// reason says in a few words why an upstream could not be asked.
func reason(err error) string {
	var e *oci.Error
	switch {
	case errors.Is(err, errSlow), errors.Is(err, errBehind):
		return err.Error()
	case errors.Is(err, errReserve):
		return errReserve.Error()
	case oci.IsAbsent(err):
		return "the upstream has deleted it"
	case errors.Is(err, errOffline):
		return "the proxy is offline"
	case !errors.As(err, &e):
		return "the upstream can not be asked"
	case e.Code == oci.CodeTooManyRequests:
		return "the upstream limits the rate of requests"
	case oci.IsRefused(err):
		return "the upstream refuses access"
	case e.HTTPStatus() == 504:
		return "the upstream timed out"
	default:
		return "the upstream fails"
	}
}

// check asks with HEAD whether rec still holds, and keeps the answer. It fetches the
// manifest only if the HEAD does not tell: the upstream refuses it, or does not say the
// digest.
func (c *Cache) check(ctx context.Context, up *upstream, t oci.Target, rec index.Tag, k knowledge) (resolved, error) {
	asked := time.Now()
	d, err := up.origin.Resolve(ctx, t.Repository, t.Tag)
	up.heard(err)
	if err != nil && !oci.IsHint(err) {
		return resolved{}, c.noteFailure(up, t, asked, k, err)
	}
	rule := up.rules.rule(t.Repository, t.Tag)
	onlyPull := d.Digest == "" || d.Digest != rec.Digest && !c.holds(d.Digest)
	if onlyPull && c.holds(rec.Digest) && rule.usable(time.Since(rec.Checked)) {
		if err := up.sparePull(ctx); err != nil {
			return resolved{}, c.noteFailure(up, t, asked, k, err)
		}
	}
	if d.Digest == "" {
		return c.fetchTagSeen(ctx, up, t, index.SeenRevalidation, k)
	}
	c.paused.drop(tagKey(t))
	if now, ok := c.overtaken(t, asked); ok {
		return resolved{Tag: now}, nil
	}
	if now, ok := c.records.Tag(t); ok && now.Digest == rec.Digest {
		rec = now // a move may have been accepted meanwhile
	}
	rec.Checked = asked
	if d.Digest == rec.Digest {
		if rule.isSettled(rec, asked) {
			rec.Held, rec.Since = nil, time.Time{}
		}
		if rec.Gone {
			rec.Gone = false
			c.keepTag(t, sighting{rec, index.SeenRevalidation})
			return resolved{Tag: rec}, nil
		}
		c.records.TouchTag(t, rec)
		return resolved{Tag: rec}, nil
	}
	if _, ok := c.store.Has(rec.Digest); ok {
		rec.Previous = rec.Digest
	}
	rec.Digest, rec.MediaType, rec.Size, rec.Gone = d.Digest, d.MediaType, d.Size, false
	rec = c.follow(t, rule, rec)
	c.keepTag(t, sighting{rec, index.SeenRevalidation})
	return resolved{Tag: rec}, nil
}

// fetchTag learns what a tag stands for by fetching it.
func (c *Cache) fetchTag(ctx context.Context, up *upstream, t oci.Target, k knowledge) (resolved, error) {
	return c.fetchTagSeen(ctx, up, t, index.SeenGet, k)
}

// fetchTagSeen is fetchTag, of which the ledger says how.
func (c *Cache) fetchTagSeen(ctx context.Context, up *upstream, t oci.Target, how index.Seen, k knowledge) (resolved, error) {
	asked := time.Now()
	m, err := up.origin.Manifest(ctx, t.Repository, t.Tag)
	if err != nil {
		return resolved{}, c.noteFailure(up, t, asked, k, err)
	}
	rule := up.rules.rule(t.Repository, t.Tag)
	rec := c.follow(t, rule, index.Tag{Digest: m.Digest, MediaType: m.MediaType, Size: int64(len(m.Bytes)), Checked: asked})
	tag := &sighting{rec, how}
	if _, ok := c.overtaken(t, asked); ok {
		tag = nil
	}
	if err := c.keepManifest(t, m, tag); err != nil {
		return resolved{}, err
	}
	c.paused.drop(tagKey(t))
	return resolved{Tag: rec, manifest: m}, nil
}

// headTag learns what a tag stands for by HEAD, which no upstream counts as a
// pull. If the HEAD is refused, or says too little for an answer, it fetches the manifest.
func (c *Cache) headTag(ctx context.Context, up *upstream, t oci.Target, k knowledge) (resolved, error) {
	asked := time.Now()
	d, err := up.origin.Resolve(ctx, t.Repository, t.Tag)
	if oci.IsHint(err) {
		r, again := c.fetchTag(ctx, up, t, k)
		return r, confirmed(again, err)
	}
	if err != nil {
		return resolved{}, c.noteFailure(up, t, asked, k, err)
	}
	if d.Digest == "" || d.Size <= 0 || d.MediaType == "" {
		return c.fetchTag(ctx, up, t, k)
	}
	if now, ok := c.overtaken(t, asked); ok {
		return resolved{Tag: now}, nil
	}
	rule := up.rules.rule(t.Repository, t.Tag)
	rec := c.follow(t, rule, index.Tag{Digest: d.Digest, MediaType: d.MediaType, Size: d.Size, Checked: asked})
	c.keepTag(t, sighting{rec, index.SeenHead})
	return resolved{Tag: rec}, nil
}

// confirmed returns err, that of a GET which was to confirm the refused HEAD of a client,
// unless it is a rate limit: what the HEAD said then is the best answer to another HEAD.
// It isn't remembered.
func confirmed(err, head error) error {
	var e *oci.Error
	if errors.As(err, &e) && e.Code == oci.CodeTooManyRequests && !oci.IsTransient(head) {
		return head
	}
	return err
}

// overtaken gives what t's tag is known to stand for where that was asked for after
// asked: an answer to an earlier question, which comes later, is no news.
func (c *Cache) overtaken(t oci.Target, asked time.Time) (index.Tag, bool) {
	rec, ok := c.records.Tag(t)
	return rec, ok && rec.Checked.After(asked) && !rec.Checked.After(time.Now())
}

// noteFailure remembers for a short time that a tag is not there or not to be
// had, or that its upstream, which was asked at asked, could not be, and gives
// err back. An upstream that was asked because the index was lost denies nothing: the
// tag and what is known of it stay.
func (c *Cache) noteFailure(up *upstream, t oci.Target, asked time.Time, k knowledge, err error) error {
	name := tagKey(t)
	var e *oci.Error
	errors.As(err, &e)
	rec, known := c.records.Tag(t)
	rule := up.rules.rule(t.Repository, t.Tag)
	_, overtaken := c.overtaken(t, asked)
	switch {
	case oci.IsAbsent(err) && (overtaken || !c.stillKnows(k)):
	case oci.IsAbsent(err) && rule.KeepDeleted && known && c.holds(rec.Digest):
		c.observeAbsent(t, asked)
		if !rec.Gone {
			rec.Gone = true
			c.records.TouchTag(t, rec)
		}
		c.paused.put(name, err, max(rule.TTL, failurePause))
	case oci.IsAbsent(err):
		c.observeAbsent(t, asked)
		c.dropTag(t)
		_ = c.noteWord(k, name, err)
	case c.ctx.Err() != nil, c.settings().Offline:
	default:
		_ = c.noteWord(k, name, err)
		pause := failurePause
		if e != nil {
			pause = min(max(pause, e.RetryAfter), maxPause)
		}
		c.paused.put(name, err, pause)
	}
	return err
}

// observeAbsent notes in the ledger that the upstream, asked at asked, has no such tag.
func (c *Cache) observeAbsent(t oci.Target, asked time.Time) {
	if err := c.index.ObserveAbsent(t.Upstream, t.Repository, t.Tag, asked); err != nil {
		c.log.Warn("that a tag is deleted could not be noted", zap.Stringer("reference", t), zap.Error(err))
	}
}

// keepTag keeps a record that has changed.
func (c *Cache) keepTag(t oci.Target, s sighting) {
	c.put(index.Change{Upstream: t.Upstream, Repository: t.Repository, Tag: t.Tag, Record: s.Tag, How: s.how})
}

func (c *Cache) dropTag(t oci.Target) {
	if _, err := c.records.DropTags(t.Upstream, t.Repository, []string{t.Tag}, nil); err != nil {
		c.log.Warn("a deleted tag could not be forgotten", zap.Stringer("reference", t), zap.Error(err))
	}
}
