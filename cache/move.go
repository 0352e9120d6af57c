package cache

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// OnMove says what becomes of a tag that moves.
type OnMove string

const (
	// FollowMove serves what the tag stands for now; so does the empty OnMove.
	FollowMove OnMove = "follow"
	// WarnOfMove does so as well, and says it in the log.
	WarnOfMove OnMove = "warn"
	// HoldOnMove goes on serving what the tag stood for, for TagRule.Hold where
	// that is set, else until an operator accepts the move.
	HoldOnMove OnMove = "hold"
	// BlockOnMove refuses the tag until an operator accepts the move.
	BlockOnMove OnMove = "block"
)

// watches tells whether a move is remembered until it is accepted.
func (r TagRule) watches() bool {
	return r.Hold > 0 || r.OnMove == HoldOnMove || r.OnMove == BlockOnMove
}

// blocks tells whether the tag of rec, which has moved, is refused.
func (r TagRule) blocks(rec index.Tag) bool { return rec.Held != nil && r.OnMove == BlockOnMove }

// heldUntil gives until when the tag of rec is served as it was before it moved: the
// zero time is until that is accepted. It gives false where it is not, or no longer.
func (r TagRule) heldUntil(rec index.Tag, now time.Time) (time.Time, bool) {
	switch {
	case rec.Held == nil || r.OnMove == BlockOnMove:
		return time.Time{}, false
	case r.Hold > 0:
		until := rec.Since.Add(r.Hold)
		return until, now.Before(until)
	}
	return time.Time{}, r.OnMove == HoldOnMove
}

// isSettled tells whether nothing depends any more on what the tag of rec stood for.
func (r TagRule) isSettled(rec index.Tag, now time.Time) bool {
	_, held := r.heldUntil(rec, now)
	return !held && !r.blocks(rec)
}

// follow completes rec, what t's tag was found to stand for, with what the tag was
// before, as far as its rule asks for that.
func (c *Cache) follow(t oci.Target, rule TagRule, rec index.Tag) index.Tag {
	rec.Held, rec.Since = nil, time.Time{}
	if !rule.watches() {
		return rec
	}
	was, known := c.records.Tag(t)
	if !known {
		// Who deletes a tag and pushes it anew has moved it, too.
		was, known = c.lastKnown(t)
	}
	switch {
	case !known:
	case was.Digest == rec.Digest:
		rec.Held, rec.Since = was.Held, was.Since
	case was.Held != nil && was.Held.Digest == rec.Digest:
		// It is back.
	case was.Held != nil && !rule.isSettled(was, time.Now()):
		rec.Held, rec.Since = was.Held, rec.Checked
	default:
		rec.Held = &index.Held{Digest: was.Digest, MediaType: was.MediaType, Size: was.Size}
		rec.Since = rec.Checked
	}
	return rec
}

// lastKnown gives what the ledger says that t's tag stood for last.
func (c *Cache) lastKnown(t oci.Target) (index.Tag, bool) {
	list := c.index.History(t.Upstream, t.Repository, t.Tag)
	for i := len(list) - 1; i >= 0; i-- {
		if d := list[i].Digest; d != "" {
			link, _ := c.records.Link(withDigest(t, d))
			return index.Tag{Digest: d, MediaType: link.MediaType, Size: link.Size, Checked: list[i].Last}, true
		}
	}
	return index.Tag{}, false
}

// moved tells of a tag that has moved, once that is kept.
func (c *Cache) moved(t oci.Target, from digest.Digest, rec index.Tag) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return
	}
	rule := up.rules.rule(t.Repository, t.Tag)
	word := rule.OnMove
	if word == "" {
		word = FollowMove
	}
	c.metrics.TagMoves.WithLabelValues(t.Upstream, string(word)).Inc()
	c.moves.Add(1)
	level := zapcore.InfoLevel
	if word != FollowMove {
		level = zapcore.WarnLevel
	}
	c.log.Log(level, "a tag has moved", zap.Stringer("reference", t), zap.Stringer("from", from), zap.Stringer("to", rec.Digest),
		zap.String("on_move", string(word)), zap.Duration("hold", rule.Hold))
}

// settle gives what clients are given of r, which t's tag stands for: r, or what the
// tag stood for before it moved, or an error where its rule refuses it.
func (c *Cache) settle(t oci.Target, rule TagRule, r resolved, out Outcome) (resolved, Outcome, error) {
	if rule.blocks(r.Tag) {
		return resolved{}, out, &oci.Error{
			Code: oci.CodeDenied,
			Message: fmt.Sprintf("%s has moved from %s to %s, which was first seen at %s, and must not move (on_move: block): "+
				"it is refused until an operator accepts it (entrepot accept %s); %s can be pulled by its digest",
				t, r.Held.Digest, r.Digest, second(r.Since), t, r.Held.Digest),
		}
	}
	until, held := rule.heldUntil(r.Tag, time.Now())
	if !held || !c.holds(r.Held.Digest) {
		return r, out, nil
	}
	why := heldReason(r.Tag, until)
	if out.Reason != "" {
		why = out.Reason + "; " + why
	}
	out.Reason = why
	if out.Status == Miss || out.Status == Collapsed {
		out.Status = Revalidated // what was asked for is what clients are not given
	}
	r.Digest, r.MediaType, r.Size = r.Held.Digest, r.Held.MediaType, r.Held.Size
	r.Previous, r.manifest = "", nil
	return r, out, nil
}

// heldReason says why the tag of rec is served as it was.
func heldReason(rec index.Tag, until time.Time) string {
	why := fmt.Sprintf("held as it was: it has moved to %s at %s", rec.Digest, second(rec.Since))
	if until.IsZero() {
		return why + ", until that is accepted"
	}
	return why + ", until " + second(until)
}

// second writes a time for people.
func second(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Acceptance is what Accept has done.
type Acceptance struct {
	Reference string `json:"reference"`
	// From is what the tag was held at, or what it was before it was refused;
	// empty where it was neither.
	From digest.Digest `json:"from,omitempty"`
	// To is what it stands for, and is served as from now on.
	To digest.Digest `json:"to"`
}

// Accept has t's tag served as it stands now, though it has moved. No upstream is
// asked. A tag that is not known is MANIFEST_UNKNOWN.
func (c *Cache) Accept(_ context.Context, t oci.Target) (*Acceptance, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return nil, err
	}
	rec, ok := c.records.Tag(t)
	if t.Tag == "" || !ok {
		return nil, oci.Errorf(oci.CodeManifestUnknown, "%s is no tag that is known here", t)
	}
	a := &Acceptance{Reference: t.String(), To: rec.Digest}
	if rec.Held == nil {
		return a, nil
	}
	if !up.rules.rule(t.Repository, t.Tag).isSettled(rec, time.Now()) {
		a.From = rec.Held.Digest
	}
	rec.Held, rec.Since = nil, time.Time{}
	if err := c.records.Put(index.Change{Upstream: t.Upstream, Repository: t.Repository, Tag: t.Tag, Record: rec}); err != nil {
		return nil, fmt.Errorf("accept %s: %w", t, err)
	}
	return a, nil
}
