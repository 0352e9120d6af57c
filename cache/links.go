package cache

import (
	"slices"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
)

// linksChunk is how many links are dropped at a time.
const linksChunk = 1000

// trimLinks notes that blobs were evicted. Once they are many, compared with the stored
// ones, it drops the links that lead nowhere, behind: a link without content only spares
// a question when the content is asked for again, and their number would grow with all
// that was ever pulled.
func (e *evictor) trimLinks(blobs, stored int64) {
	if e.evicted += blobs; e.evicted < max(trimLinksAfter, stored/4) || e.trimming.Swap(true) {
		return
	}
	e.evicted = 0
	e.forgetServed(promiseFor)
	promised := e.promised()
	if !e.cache.goOn(func() {
		defer e.trimming.Store(false)
		e.cache.dropDeadLinks(promised)
	}) {
		e.trimming.Store(false)
	}
}

// dropDeadLinks drops the links to content that is neither stored nor about to be, but
// for what is promised.
func (c *Cache) dropDeadLinks(promised map[digest.Digest]bool) {
	importing := c.heldByImport()
	leadsNowhere := func(d digest.Digest) bool {
		return !promised[d] && !importing[d] && c.anyFillOf(d) == nil && !c.holds(d)
	}
	var of repository
	var dead []digest.Digest
	dropped := 0
	drop := func() {
		// What has come meanwhile stays.
		dead = slices.DeleteFunc(dead, func(d digest.Digest) bool { return !leadsNowhere(d) })
		gone, err := c.records.DropLinks(of.upstream, of.name, dead, nil)
		if err != nil {
			c.log.Warn("links to evicted content could not be dropped", zap.Error(err))
		}
		dropped += len(gone)
		dead = dead[:0]
	}
	err := c.index.Links("", "", func(upstream, repo string, d digest.Digest, _ index.Link) bool {
		if r := (repository{upstream, repo}); r != of || len(dead) >= linksChunk {
			drop()
			of = r
		}
		if leadsNowhere(d) {
			dead = append(dead, d)
		}
		return c.ctx.Err() == nil
	})
	drop()
	if err != nil {
		c.log.Warn("the links could not be read", zap.Error(err))
	}
	c.log.Debug("links to evicted content dropped", zap.Int("links", dropped))
}
