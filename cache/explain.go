package cache

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// Explanation says what is here of a reference, and what a client who asked for
// it now would get.
type Explanation struct {
	Reference string `json:"reference"`
	// Status is what a request would meet: hit, stale, miss, blocked, or
	// revalidated where the upstream would be asked whether the tag still stands.
	Status Status `json:"status"`
	// Reason says why, where there is something to say.
	Reason    string        `json:"reason,omitempty"`
	Digest    digest.Digest `json:"digest,omitempty"`
	MediaType string        `json:"mediaType,omitempty"`
	// Checked is when the upstream last confirmed a tag, and NextCheck from
	// when on it is asked again; both are zero for what never changes.
	Checked   time.Time `json:"checked,omitzero"`
	NextCheck time.Time `json:"nextCheck,omitzero"`
	// Offline is set if no upstream is asked: NextCheck and StaleUntil are zero then.
	Offline bool `json:"offline,omitempty"`
	// StaleUntil is until when a tag is served while the upstream can not be
	// asked.
	StaleUntil time.Time `json:"staleUntil,omitzero"`
	// Rule is the pattern of the rule that holds for a tag.
	Rule string `json:"rule,omitempty"`
	// Move is set where a tag has moved and is held as it was, or refused.
	Move *ExplainedMove `json:"move,omitempty"`
	// Size is what is here of it on disk in bytes, each content counted once.
	Size int64 `json:"size"`
	// Manifests are the one that the reference names and, of an index, its own.
	Manifests []ExplainedManifest `json:"manifests,omitempty"`
}

// Blocked is the Status of a tag that is refused, for it has moved and must not
// (BlockOnMove).
const Blocked Status = "blocked"

// ExplainedMove is a move that has not come into force.
type ExplainedMove struct {
	// From is what the tag stood for, and To what it stands for.
	From digest.Digest `json:"from"`
	To   digest.Digest `json:"to"`
	// Seen is when it was first seen to stand for To.
	Seen time.Time `json:"seen"`
	// Until is until when it is held; zero is until it is accepted.
	Until time.Time `json:"until,omitzero"`
}

// ExplainedManifest is a manifest or index and what is here of it.
type ExplainedManifest struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	// Platform is "linux/arm/v7"; empty where the index says none.
	Platform string `json:"platform,omitempty"`
	Stored   bool   `json:"stored"`
	// Blobs are its config and layers; empty if the manifest is not cached.
	Blobs []ExplainedBlob `json:"blobs,omitempty"`
}

// ExplainedBlob is a config or layer.
type ExplainedBlob struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
	Stored    bool          `json:"stored"`
}

// Explain says what is here of t, without asking the upstream for anything.
func (c *Cache) Explain(_ context.Context, t oci.Target) (*Explanation, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return nil, err
	}
	e := &Explanation{Reference: t.String(), Status: Miss, Digest: t.Digest}
	if t.Tag != "" {
		c.explainTag(e, up, t)
	}
	if e.Digest == "" {
		return e, nil
	}
	seen := map[digest.Digest]bool{}
	root, ok := c.explainManifest(e, seen, t, v1.Descriptor{Digest: e.Digest, MediaType: e.MediaType})
	switch {
	case !ok && t.Tag == "":
		e.Reason = "it is not cached"
	case !ok && e.Status != Blocked:
		e.Reason = "the tag is known, and what it stands for is not cached"
		e.Status = Miss
	case t.Tag == "":
		e.Status = Hit
	}
	if root != nil && root.Kind == oci.KindIndex {
		for _, d := range root.Children {
			c.explainManifest(e, seen, t, d)
		}
	}
	return e, nil
}

// explainTag says how the record of t's tag stands.
func (c *Cache) explainTag(e *Explanation, up *upstream, t oci.Target) {
	k := tagKey(t)
	rule := up.rules.rule(t.Repository, t.Tag)
	e.Rule = rule.Match
	rec, ok := c.records.Tag(t)
	if !ok {
		e.Reason = "the tag has not been asked for"
		if err, ok := c.negative.get(k); ok {
			e.Status, e.Reason = Negative, err.Message
		}
		return
	}
	e.Digest, e.MediaType, e.Checked = rec.Digest, rec.MediaType, rec.Checked
	age := time.Since(rec.Checked)
	if e.Offline = c.settings().Offline; !e.Offline && !rule.Immutable {
		e.NextCheck = rec.Checked.Add(rule.TTL)
		e.StaleUntil = e.NextCheck.Add(rule.StaleIfError)
	}
	why, paused := c.paused.get(k)
	switch {
	case rule.fresh(age):
		e.Status = Hit
	case e.Offline:
		e.Status, e.Reason = Stale, reason(errOffline)
	case paused:
		e.Status, e.Reason = Stale, reason(why)
	case rule.behind(age):
		e.Status, e.Reason = Stale, "it is served at once and revalidated behind"
	default:
		e.Status, e.Reason = Revalidated, "the upstream is asked whether it still stands"
	}
	c.explainMove(e, rule, rec)
}

// explainMove says what is made of a move of the tag of rec.
func (c *Cache) explainMove(e *Explanation, rule TagRule, rec index.Tag) {
	until, held := rule.heldUntil(rec, time.Now())
	switch {
	case rule.blocks(rec):
		e.Status = Blocked
		e.Reason = "it has moved and must not: it is refused until that is accepted"
	case held && c.holds(rec.Held.Digest):
		e.Digest, e.MediaType = rec.Held.Digest, rec.Held.MediaType
		why := heldReason(rec, until)
		if e.Reason != "" {
			why = e.Reason + "; " + why
		}
		e.Reason = why
	default:
		return
	}
	e.Move = &ExplainedMove{From: rec.Held.Digest, To: rec.Digest, Seen: rec.Since, Until: until}
}

// explainManifest adds what is here of the manifest of d. It gives nil and
// false where t's repository has it not, or may not serve it.
func (c *Cache) explainManifest(e *Explanation, seen map[digest.Digest]bool, t oci.Target, d v1.Descriptor) (*oci.Parsed, bool) {
	em := ExplainedManifest{Digest: d.Digest, MediaType: d.MediaType, Platform: oci.PlatformName(d.Platform)}
	var p *oci.Parsed
	if l, ok := c.records.Link(withDigest(t, d.Digest)); ok && l.Manifest && c.hasRight(withDigest(t, d.Digest)) {
		if m, ok := c.keptManifest(d.Digest, l.MediaType); ok {
			em.Stored, em.MediaType = true, m.MediaType
			e.count(seen, d.Digest, int64(len(m.Bytes)))
			p = c.explainBlobs(e, &em, seen, t, m)
		}
	}
	e.Manifests = append(e.Manifests, em)
	return p, em.Stored
}

func (c *Cache) explainBlobs(e *Explanation, em *ExplainedManifest, seen map[digest.Digest]bool, t oci.Target, m *oci.Manifest) *oci.Parsed {
	p, err := oci.ParseManifest(m.Bytes, m.MediaType)
	if err != nil || p.Kind != oci.KindManifest {
		return p
	}
	for _, d := range p.Children {
		size, stored := c.store.Has(d.Digest)
		if stored = stored && c.hasRight(withDigest(t, d.Digest)); stored {
			e.count(seen, d.Digest, size)
		}
		em.Blobs = append(em.Blobs, ExplainedBlob{Digest: d.Digest, MediaType: d.MediaType, Size: d.Size, Stored: stored})
	}
	return p
}

// count adds content to the size, each once.
func (e *Explanation) count(seen map[digest.Digest]bool, d digest.Digest, size int64) {
	if !seen[d] {
		seen[d] = true
		e.Size += size
	}
}
