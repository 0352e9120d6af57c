package app

import (
	"context"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/rewrite"
)

const (
	// maxMembers bounds the upstreams that are made of patterns. One without cached
	// content gives way to another.
	maxMembers = 64
	// maxJoined bounds how many are made in the life of the process: each leaves metrics
	// behind.
	maxJoined = 1024
)

// member is an upstream that was made of a pattern when a client first named its host.
type member struct {
	pattern    string
	configured *configs.Upstream
	since      time.Time
}

// exact returns cfg with members instead of its patterns. The caller holds p.mu.
func (p *parts) exact(cfg *configs.Config, members map[string]*member) *configs.Config {
	more := map[string]*configs.Upstream{}
	for host, m := range members {
		more[host] = m.configured
	}
	return cfg.Exact(more)
}

// joining completes routes with those who may join by a pattern of cfg.
func (p *parts) joining(routes rewrite.Routing, cfg *configs.Config) rewrite.Routing {
	if patterns := cfg.Families(); len(patterns) > 0 {
		routes.Join = p.join
		routes.Member = func(host string) bool {
			host = strings.ToLower(host)
			return slices.ContainsFunc(patterns, func(pattern string) bool { return configs.FamilyHas(pattern, host) })
		}
	}
	return routes
}

// remain returns the members that next has as well, with its settings. The caller holds
// p.mu.
func (p *parts) remain(next *configs.Config) map[string]*member {
	members := map[string]*member{}
	for host, m := range p.members {
		if pattern := next.FamilyOf(host); pattern != "" && next.Upstreams[host] == nil {
			members[host] = &member{pattern: pattern, configured: next.Member(pattern, host), since: m.since}
		}
	}
	return members
}

// join puts the upstream of a host in force that a client names for the first time, and
// reports whether there is one: the host matches a pattern of the configuration, and there
// aren't too many. It is safe for concurrent use.
func (p *parts) join(host string) bool {
	host = strings.Clone(strings.ToLower(host)) // it may be a part of the request
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	if p.members[host] != nil {
		return true // another request was first
	}
	pattern := p.loaded.FamilyOf(host)
	if pattern == "" {
		return false
	}
	members := map[string]*member{host: {pattern: pattern, configured: p.loaded.Member(pattern, host), since: time.Now()}}
	for h, m := range p.members {
		members[h] = m
	}
	if !p.makeRoom(members, host) {
		p.log.Warn("too many registries match patterns; list this one by its name", zap.String("registry", host), zap.String("upstream", pattern))
		return false
	}
	if err := p.exchange(p.loaded, members); err != nil {
		p.log.Warn("upstream unavailable", zap.String("upstream", host), zap.Error(err))
		return false
	}
	p.joined++
	p.log.Info("upstream added by its pattern", zap.String("upstream", host), zap.String("pattern", pattern))
	return true
}

// makeRoom takes the oldest member without cached content out of members if there are too
// many, but not host. It reports whether there is room.
func (p *parts) makeRoom(members map[string]*member, host string) bool {
	if p.joined >= maxJoined {
		return false
	}
	if len(members) <= maxMembers {
		return true
	}
	oldest := ""
	for h, m := range members {
		if h == host || oldest != "" && !m.since.Before(members[oldest].since) {
			continue
		}
		if cached, err := p.cache.Repositories(context.Background(), h, "", 1); err == nil && len(cached) == 0 {
			oldest = h
		}
	}
	delete(members, oldest)
	return oldest != ""
}
