package cache

import (
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// The same bytes are stored once for all repositories. Who may have them under which
// name is a matter of proof: knowing a digest, or pushing a manifest that names one,
// proves nothing.
//
//   - What the upstream has sent on a repository's account belongs to that repository.
//   - What the upstream has sent on another repository's account is confirmed by a
//     HEAD for this one. If all readers of the upstream have the same rights
//     (Upstream.Uniform), a manifest that names it is enough.
//   - What only another upstream has sent is fetched from this one and hashed. Its
//     word that it has the content proves nothing, because it may never have seen a
//     byte of it. If all readers of both upstreams have the same rights, nothing is
//     secret, and a HEAD is enough.

// right says what a request needs before it is served content that is stored.
type right int

const (
	// mustFetch: only bytes from the request's own upstream prove anything.
	mustFetch right = iota
	// mustAsk: the upstream has to confirm it.
	mustAsk
	// maySend: the proof is there.
	maySend
)

// rightTo returns the link of t's repository to t's digest, if there is one, and what
// a request for t needs before it is served stored content.
func (c *Cache) rightTo(t oci.Target) (l index.Link, linked bool, r right) {
	set := c.settings()
	if l, ok := c.records.JudgedLink(t, set.number); ok {
		return l, true, maySend
	}
	l, linked = c.records.JudgeLink(t, set.number, func(l index.Link, linked bool) bool {
		r = c.judge(set, t, l, linked)
		return r == maySend
	})
	return l, linked, r
}

// maySend reports whether t's repository may be served t's digest without asking
// its upstream.
func (c *Cache) maySend(t oci.Target) bool {
	_, _, r := c.rightTo(t)
	return r == maySend
}

// hasRight reports whether t's repository may be served t's digest as long as its
// upstream doesn't deny it: without asking, or because a manifest names it and all
// readers have the same rights.
func (c *Cache) hasRight(t oci.Target) bool {
	_, linked, r := c.rightTo(t)
	return r == maySend || r == mustAsk && linked && c.settings().isUniform(t.Upstream)
}

// judge applies the rules above to the link l of t's repository.
func (c *Cache) judge(set *settings, t oci.Target, l index.Link, linked bool) right {
	if linked && l.Proof == index.Fetched {
		return maySend
	}
	uniform := set.isUniform(t.Upstream)
	own, elsewhere, fetched := c.provenance(set, t)
	switch {
	case linked && fetched:
		return maySend
	case own && linked && (uniform || l.Proof == index.Confirmed):
		return maySend
	case own:
		return mustAsk
	case uniform && elsewhere && linked && l.Proof == index.Confirmed:
		return maySend
	case uniform && elsewhere:
		return mustAsk
	}
	return mustFetch
}

// mayJoin reports whether t's repository, whose link is l, may be served what its own
// upstream is sending, or has sent a part of, on another repository's account.
func (c *Cache) mayJoin(t oci.Target, l index.Link, linked bool) bool {
	return linked && (l.Proof == index.Fetched || l.Proof == index.Confirmed || c.settings().isUniform(t.Upstream))
}

// provenance reports where the content of t's digest came from: own is set if t's
// upstream has sent all of its bytes; elsewhere if another upstream has
// whose readers all have the same rights; fetched if it can only have been fetched
// for t's repository.
func (c *Cache) provenance(set *settings, t oci.Target) (own, elsewhere, fetched bool) {
	sources := c.index.Sources(t.Digest)
	assumed := true // nothing is known for sure
	for _, s := range sources {
		assumed = assumed && s.Assumed
	}
	for _, s := range sources {
		// Of several upstreams with links of an older version any may have sent it.
		certain := !s.Assumed || len(sources) == 1 && c.index.Sourced()
		switch {
		case !certain:
		case s.Upstream == t.Upstream:
			own = true
			fetched = s.Assumed && s.Repository == t.Repository
		case set.isUniform(s.Upstream):
			elsewhere = true
		}
	}
	if assumed && set.allUniform {
		own = true // wherever it came from, all may have it
	}
	return own, elsewhere, fetched
}
