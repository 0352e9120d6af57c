package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// droppedApart is how often a ledger that is full is logged.
const droppedApart = time.Hour

// ledgerTrimmed counts and logs observations that the ledger had no room for. Only the
// index's own goroutine calls it.
func (c *Cache) ledgerTrimmed(ended, standing int) {
	c.metrics.LedgerDropped.WithLabelValues("ended").Add(float64(ended))
	c.metrics.LedgerDropped.WithLabelValues("standing").Add(float64(standing))
	if now := time.Now(); now.Sub(c.trimWarned) >= droppedApart {
		c.trimWarned = now
		c.log.Warn("tag ledger full; oldest history dropped", zap.Int("ended", ended), zap.Int("standing", standing))
	}
}

// sighting is what a tag was found to stand for, and how.
type sighting struct {
	index.Tag
	how index.Seen
}

// Kept says how much is here of something.
type Kept string

const (
	KeptWhole Kept = "whole" // it can be served, all platforms of an index
	KeptPart  Kept = "part"  // its manifest at least
	KeptNone  Kept = "none"
)

// History is what is known of what a tag stood for.
type History struct {
	Reference string `json:"reference"`
	// Observations are in the order of time.
	Observations []HistoryEntry `json:"observations"`
}

// HistoryEntry is what a tag stood for during a time.
type HistoryEntry struct {
	// Digest is empty where the upstream said that there was no such tag.
	Digest digest.Digest `json:"digest,omitempty"`
	// First and Last are when the upstream was first and last seen to say so. In
	// between nobody may have asked.
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// How it was seen first; empty where that is not known.
	How index.Seen `json:"how,omitempty"`
	// Kept is how much of it is here now.
	Kept Kept `json:"kept,omitempty"`
}

// History gives what is known of t's tag. No upstream is asked. Of a tag that was
// never seen it is MANIFEST_UNKNOWN.
func (c *Cache) History(_ context.Context, t oci.Target) (*History, error) {
	if _, err := c.upstream(t.Upstream); err != nil {
		return nil, err
	}
	list := c.index.History(t.Upstream, t.Repository, t.Tag)
	if len(list) == 0 {
		return nil, c.unknownTag(t)
	}
	h := &History{Reference: t.String()}
	for _, o := range list {
		e := HistoryEntry{Digest: o.Digest, First: o.First.UTC(), Last: o.Last.UTC(), How: o.How}
		if o.Digest != "" {
			e.Kept = c.kept(withDigest(t, o.Digest), true)
		}
		h.Observations = append(h.Observations, e)
	}
	return h, nil
}

// maxKnownTags bounds the tags that unknownTag names.
const maxKnownTags = 10

// unknownTag returns the MANIFEST_UNKNOWN for a tag that was never seen. It names tags of the
// repository that were, and is for operators only: not everybody may know them.
func (c *Cache) unknownTag(t oci.Target) error {
	names, _ := c.index.TagNames(t.Upstream, t.Repository) // an index that fails knows none
	_ = c.index.Histories(t.Upstream, t.Repository, func(_, _, tag string, _ []index.Observation) bool {
		names = append(names, tag)
		return true
	})
	names = slices.DeleteFunc(names, IsSignatureTag)
	slices.Sort(names)
	names = slices.Compact(names)
	shown, known := names[:min(len(names), maxKnownTags)], ""
	if len(shown) > 0 {
		known = fmt.Sprintf("; known tags of %s: %s", oci.Target{Upstream: t.Upstream, Repository: t.Repository}, strings.Join(shown, ", "))
	}
	if more := len(names) - len(shown); more > 0 {
		known += fmt.Sprintf(" and %d more", more)
	}
	return oci.Errorf(oci.CodeManifestUnknown, "nothing is known of %s: it has not been asked for here%s", t, known)
}

// kept tells how much is here of the manifest that t names; of those that it names
// itself where deep is set.
func (c *Cache) kept(t oci.Target, deep bool) Kept {
	if l, ok := c.records.Link(t); !ok || !l.Manifest || !c.holds(t.Digest) || !c.hasRight(t) {
		return KeptNone
	}
	m, ok := c.keptManifest(t.Digest, "")
	if !ok {
		return KeptNone
	}
	p, err := oci.ParseManifest(m.Bytes, m.MediaType)
	if err != nil {
		return KeptWhole // it names nothing
	}
	for _, d := range p.Children {
		here := c.holds(d.Digest) && c.hasRight(withDigest(t, d.Digest))
		if p.Kind == oci.KindIndex && deep {
			here = c.kept(withDigest(t, d.Digest), false) == KeptWhole
		}
		if !here && !oci.IsForeign(d) {
			return KeptPart
		}
	}
	return KeptWhole
}

// Move is a tag that came to stand for something else.
type Move struct {
	Reference string `json:"reference"`
	// From and To are what it stood for before and after; To is empty where it was
	// deleted, and From where it was there again then.
	From digest.Digest `json:"from,omitempty"`
	To   digest.Digest `json:"to,omitempty"`
	// Until is when it was last seen to stand for From, and Seen when it was first
	// seen to stand for To: it has moved in between.
	Until time.Time `json:"until"`
	Seen  time.Time `json:"seen"`
	// How that was seen; empty where it is not known.
	How index.Seen `json:"how,omitempty"`
}

// MovesFilter says which tags are meant.
type MovesFilter struct {
	// Since is from when on a move must have been seen.
	Since time.Time
	// Upstream and Repository are patterns: * stands for any characters, ? for one;
	// empty is all.
	Upstream, Repository string
}

// Moves lists the tags that were seen to move, the earliest first. An error is ctx's or
// of the index. No upstream is asked.
func (c *Cache) Moves(ctx context.Context, f MovesFilter) ([]Move, error) {
	ups, repos := compilePattern(cmp.Or(f.Upstream, "*")), compilePattern(cmp.Or(f.Repository, "*"))
	moves := []Move{}
	err := c.index.Histories("", "", func(upstream, repo, tag string, list []index.Observation) bool {
		if !ups.MatchString(upstream) || !repos.MatchString(repo) {
			return ctx.Err() == nil
		}
		t := oci.Target{Upstream: upstream, Repository: repo, Tag: tag}
		for i := 1; i < len(list); i++ {
			if was, o := list[i-1], list[i]; !o.First.Before(f.Since) {
				moves = append(moves, Move{Reference: t.String(), From: was.Digest, To: o.Digest, Until: was.Last.UTC(), Seen: o.First.UTC(), How: o.How})
			}
		}
		return ctx.Err() == nil
	})
	if err := errors.Join(err, context.Cause(ctx)); err != nil {
		return nil, fmt.Errorf("read the ledger of tags: %w", err)
	}
	slices.SortStableFunc(moves, func(a, b Move) int { return a.Seen.Compare(b.Seen) })
	return moves, nil
}

// manifestAsOf gives what t's tag stood for at t.AsOf. The upstream is not asked for
// the tag, and for the content only where that is not here any more.
func (c *Cache) manifestAsOf(ctx context.Context, up *upstream, t oci.Target) (*oci.Manifest, Outcome, error) {
	d, err := c.stoodFor(t)
	if err != nil {
		return nil, Outcome{Status: Hit}, err
	}
	m, st, err := c.manifestByDigest(ctx, up, withDigest(t, d))
	return m, asOfOutcome(t, st), c.notKept(t, d, err)
}

// describeAsOf gives what manifestAsOf gives, without its bytes.
func (c *Cache) describeAsOf(ctx context.Context, up *upstream, t oci.Target, a rewrite.Accept) (*Manifest, Outcome, error) {
	d, err := c.stoodFor(t)
	if err != nil {
		return nil, Outcome{Status: Hit}, err
	}
	m, out, err := c.describeDigest(ctx, up, withDigest(t, d))
	if err != nil {
		return nil, asOfOutcome(t, out.Status), c.notKept(t, d, err)
	}
	if oci.IsIndex(m.MediaType) && !a.TakesIndex() {
		m, out, err := c.give(ctx, t, a)
		if err != nil {
			return nil, out, err
		}
		return described(m), out, nil
	}
	return m, c.forwarded(asOfOutcome(t, out.Status), m.Digest), nil
}

func asOfOutcome(t oci.Target, s Status) Outcome {
	return Outcome{Status: s, Reason: "as of " + second(t.AsOf)}
}

// stoodFor gives what t's tag stood for at t.AsOf, as far as that is known: what it
// was last seen to be by then. Its error says what is known instead.
func (c *Cache) stoodFor(t oci.Target) (digest.Digest, error) {
	// A day that is not over is asked for as of now.
	if time.Until(t.AsOf) > 24*time.Hour {
		return "", oci.Errorf(oci.CodeManifestUnknown, "what %s stands for at %s is still to come", t, second(t.AsOf))
	}
	list := c.index.History(t.Upstream, t.Repository, t.Tag)
	at := slices.IndexFunc(list, func(o index.Observation) bool { return o.First.After(t.AsOf) })
	if at < 0 {
		at = len(list)
	}
	switch {
	case len(list) == 0:
		return "", oci.Errorf(oci.CodeManifestUnknown, "nothing is known here of %s, neither at %s nor at any time", t, second(t.AsOf))
	case at == 0:
		return "", oci.Errorf(oci.CodeManifestUnknown, "%s is known here since %s only, when it stood for %s; what it was at %s is not known",
			t, second(list[0].First), orNothing(list[0].Digest), second(t.AsOf))
	case list[at-1].Digest == "":
		return "", oci.Errorf(oci.CodeManifestUnknown, "there was no %s at %s: %s said so at %s", t, second(t.AsOf), t.Upstream, second(list[at-1].First))
	}
	return list[at-1].Digest, nil
}

func orNothing(d digest.Digest) string {
	if d == "" {
		return "nothing"
	}
	return d.String()
}

// notKept says of an err, with which the content of d could not be had, that t's tag
// stood for d at t.AsOf.
func (c *Cache) notKept(t oci.Target, d digest.Digest, err error) error {
	if err == nil || !oci.IsAbsent(err) && !errors.Is(err, errOffline) {
		return err
	}
	where := "nor does " + t.Upstream + " have it any more"
	if c.settings().Offline {
		where = "and the proxy is offline"
	}
	return &oci.Error{
		Code:    oci.CodeManifestUnknown,
		Message: fmt.Sprintf("%s stood for %s at %s, but that is not kept here, %s", t, d, second(t.AsOf), where),
		Err:     err,
	}
}

// tagsAsOf lists the tags of t's repository that are known to have been there at
// t.AsOf, sorted.
func (c *Cache) tagsAsOf(t oci.Target) ([]string, error) {
	var tags []string
	err := c.index.Histories(t.Upstream, t.Repository, func(_, _, tag string, list []index.Observation) bool {
		for _, o := range slices.Backward(list) {
			if !o.First.After(t.AsOf) {
				if o.Digest != "" {
					tags = append(tags, tag)
				}
				break
			}
		}
		return true
	})
	if err == nil && len(tags) == 0 {
		err = oci.Errorf(oci.CodeNameUnknown, "no tag of %s is known here as of %s", t, second(t.AsOf))
	}
	slices.Sort(tags)
	return tags, err
}
