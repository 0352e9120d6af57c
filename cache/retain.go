package cache

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// historyShare is the part of the limit, in hundredths, that history may take:
	// what tags are held at, and what they stood for. Beyond it the oldest goes as
	// other content does.
	historyShare = 50
	// maxRetained bounds the manifests of which history consists.
	maxRetained = 10_000
	// retainedFor is for how long what was found is used again: many evictions may
	// come close together.
	retainedFor = time.Minute
	// shortApart is how often is said that history does not fit.
	shortApart = time.Hour
)

// retained is what is not evicted for the sake of tags' history. It is for the
// evictor's goroutine.
type retained struct {
	content  map[digest.Digest]bool
	found    time.Time
	warned   time.Time
	moves    uint64 // when it was found, as are these
	limit    int64
	settings *settings
}

// former is what a tag stood for, and until when; the zero time is that the tag is
// held at it.
type former struct {
	digest digest.Digest
	last   time.Time
}

// retain gives the content that keep_history and holds keep from being evicted.
func (e *evictor) retain(limit int64) map[digest.Digest]bool {
	r, moves, set := &e.retained, e.cache.moves.Load(), e.cache.settings()
	if r.content != nil && r.moves == moves && r.limit == limit && r.settings == set && time.Since(r.found) < retainedFor {
		return r.content
	}
	r.content, r.found, r.moves, r.limit, r.settings = map[digest.Digest]bool{}, time.Now(), moves, limit, set
	list := e.formers(r.found)
	room := hundredths(limit, historyShare)
	for i, f := range list {
		more, size := e.contentOf(f.digest, r.content)
		if room -= size; room < 0 || i == maxRetained {
			if time.Since(r.warned) >= shortApart {
				r.warned = time.Now()
				e.cache.log.Warn("what tags stood for takes more room than it may have, and the oldest of it may be evicted",
					zap.Int("kept", i), zap.Int("of", len(list)), zap.Int64("limit", hundredths(limit, historyShare)))
			}
			break
		}
		for _, d := range more {
			r.content[d] = true
		}
	}
	return r.content
}

// formers gives what tags are held at, and then what others stood for that their rules
// keep, the latest first.
func (e *evictor) formers(now time.Time) []former {
	c := e.cache
	var list []former
	if !c.retains() {
		return nil
	}
	err := c.index.Histories("", "", func(name, repo, tag string, history []index.Observation) bool {
		up, ok := c.settings().upstreams[name]
		if !ok {
			return true
		}
		rule := up.rules.rule(repo, tag)
		if rule.watches() {
			if rec, ok := c.index.Tag(name, repo, tag); ok && rec.Held != nil && !rule.isSettled(rec, now) {
				list = append(list, former{digest: rec.Held.Digest})
			}
		}
		// The last is what the tag stands for, which is in use.
		for _, o := range history[:len(history)-1] {
			if o.Digest != "" && now.Sub(o.Last) < rule.KeepHistory {
				list = append(list, former{o.Digest, o.Last})
			}
		}
		return c.ctx.Err() == nil
	})
	if err != nil {
		c.log.Error("the ledger of tags could not be read to evict by", zap.Error(err))
	}
	slices.SortStableFunc(list, func(a, b former) int {
		if a.last.IsZero() || b.last.IsZero() {
			return a.last.Compare(b.last)
		}
		return b.last.Compare(a.last)
	})
	return list
}

// retains tells whether any rule keeps what tags stood for.
func (c *Cache) retains() bool {
	for _, up := range c.settings().upstreams {
		for _, r := range up.rules {
			if r.KeepHistory > 0 || r.watches() {
				return true
			}
		}
	}
	return false
}

// contentOf gives d and what it names, as far as that is stored and not in known, and
// its size in bytes.
func (e *evictor) contentOf(d digest.Digest, known map[digest.Digest]bool) (content []digest.Digest, size int64) {
	seen := map[digest.Digest]bool{}
	add := func(d digest.Digest) bool {
		n, ok := e.cache.store.Has(d)
		if !ok || known[d] || seen[d] {
			return false
		}
		seen[d] = true
		content, size = append(content, d), size+n
		return true
	}
	if !add(d) {
		return nil, 0
	}
	if size > maxPromising {
		return content, size // it is no image's
	}
	root := e.parsed(d)
	for _, child := range children(root) {
		if add(child.Digest) && root.Kind == oci.KindIndex {
			for _, blob := range children(e.parsed(child.Digest)) {
				add(blob.Digest)
			}
		}
	}
	return content, size
}

func children(p *oci.Parsed) []v1.Descriptor {
	if p == nil {
		return nil
	}
	return p.Children
}

// parsed reads a manifest that is here; nil where it is none.
func (e *evictor) parsed(d digest.Digest) *oci.Parsed {
	m, ok := e.cache.peekManifest(d)
	if !ok {
		return nil
	}
	p, err := oci.ParseManifest(m.Bytes, m.MediaType)
	if err != nil {
		return nil
	}
	return p
}
