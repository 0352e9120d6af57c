package cache

import (
	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
)

const (
	// namesShare is the part of the limit, as a divisor, that the index may take with all
	// that it knows of names, and leastNames what it may take of any limit, in bytes.
	namesShare = 4
	leastNames = 2 << 20
)

// boundNames sets the index's share of limit. If the index has more, names that were used
// least recently are dropped, behind: tags with their history, and links.
func (e *evictor) boundNames(limit int64) {
	c := e.cache
	c.index.SetShare(max(limit/namesShare, leastNames), e.soon)
	if !c.index.IsOverShare() || e.trimming.Swap(true) {
		return
	}
	e.forgetServed(promiseFor)
	promised := e.promised()
	if !c.goOn(func() {
		defer e.trimming.Store(false)
		c.dropDeadLinks(promised)
		c.flushAsked() // what was asked for just now is in use
		c.dropNames()
	}) {
		e.trimming.Store(false)
	}
}

// dropNames makes the index as small as its share says.
func (c *Cache) dropNames() {
	before, tags, links := c.index.Bytes(), 0, 0
	err := c.records.DropNames(c.rankOfName, func(areLinks bool, n int) {
		if areLinks {
			links += n
		} else {
			tags += n
		}
	})
	fields := []zap.Field{zap.Int("tags", tags), zap.Int("links", links), zap.Int64("before", before), zap.Int64("after", c.index.Bytes())}
	if err != nil {
		c.log.Warn("the index has more names than its share of the cache, and they could not be dropped", append(fields, zap.Error(err))...)
		return
	}
	c.log.Info("names that were used least recently were dropped from the index, which had more than its share of the cache", fields...)
}

// rankOfName returns a number that is greater for names that are worth more than when they
// were used last. Names of content that isn't stored come first: anybody can make up such
// names, by HEAD requests to a registry that knows any tag, and they serve nobody while the
// upstream is gone. Then come those of stored content, those whose rule keeps what they
// were, and those that are held at it. Names of upstreams that aren't configured come first.
func (c *Cache) rankOfName(n index.Name, rec index.Tag) int {
	up, ok := c.settings().upstreams[n.Upstream]
	if !ok {
		return 0
	}
	if rec.Held != nil {
		return 3
	}
	if rule := up.rules.rule(n.Repository, n.Reference); rule.watches() || rule.KeepHistory > 0 {
		return 2
	}
	for _, d := range []digest.Digest{rec.Digest, rec.Previous} {
		if d != "" && c.holds(d) {
			return 1
		}
	}
	return 0
}
