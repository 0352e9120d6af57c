package cache

import (
	"fmt"
	"time"
)

// Settings are the part of the Options that may change while the cache is in use.
type Settings struct {
	// Platforms are those that this cache is for, "linux/arm/v7"; the first
	// is the one for clients that take no index. None means DefaultPlatform.
	Platforms []string
	// Offline serves what is there, whatever its age, and never asks.
	Offline bool
	// ReverifyAfter is for how long a stored blob is believed to be right
	// before it is hashed again while it is served; zero is for ever.
	ReverifyAfter time.Duration
	// ScrubRate is how many bytes a second are read to verify all that is
	// stored, once in ReverifyAfter; zero is not at all.
	ScrubRate int64
	// MaxSize bounds what is kept on disk; the zero Room is no bound. MinFree
	// is what is to stay free of the file system, whoever fills it.
	MaxSize, MinFree Room
	// Upstreams are those that are served, by name.
	Upstreams map[string]Upstream
}

// settings are Settings as they are used. They do not change.
type settings struct {
	Settings
	platform  string
	upstreams map[string]*upstream
	// number tells settings apart; it is never zero.
	number uint64
	// allUniform is set if all readers of all upstreams have the same rights.
	allUniform bool
}

// isUniform reports whether all readers of an upstream have the same rights. Those of
// an upstream that isn't configured don't count as such.
func (s *settings) isUniform(upstream string) bool {
	up := s.upstreams[upstream]
	return up != nil && up.uniform
}

// Reconfigure has s hold for the requests that come from now on. Those under way,
// and fetches, go on as they began. What upstreams have said is not there or not to
// be had is asked for again. With an error nothing changes.
func (c *Cache) Reconfigure(s Settings) error {
	c.reconfiguring.Lock()
	defer c.reconfiguring.Unlock()
	next, err := c.compile(s)
	if err != nil {
		return err
	}
	c.current.Store(next)
	c.negative.clear()
	c.paused.clear()
	c.evictor.soon()
	select {
	case c.rescrub <- struct{}{}:
	default:
	}
	return nil
}

// compile makes s ready for use. Upstreams that are there already keep their places
// for fills.
func (c *Cache) compile(s Settings) (*settings, error) {
	next := &settings{Settings: s, platform: DefaultPlatform, upstreams: map[string]*upstream{}, number: 1, allUniform: true}
	if len(s.Platforms) > 0 {
		next.platform = s.Platforms[0]
	}
	before := map[string]*upstream{}
	if old := c.current.Load(); old != nil {
		before, next.number = old.upstreams, old.number+1
	}
	for name, u := range s.Upstreams {
		rules, err := compileRules(u.Tags)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", name, err)
		}
		if s.Offline {
			u.Origin = offline{name, c.denial}
		}
		metered, _ := u.Origin.(Metered)
		up := &upstream{
			name: name, origin: u.Origin, rules: rules, uniform: u.Uniform,
			metered: metered, saved: c.metrics.PullsSaved.WithLabelValues(name), complete: u.Complete,
		}
		if old := before[name]; old != nil {
			up.places, up.parked = old.places, old.parked
		} else {
			up.places, up.parked = c.newPlaces(), &parked{}
		}
		if old := before[name]; old != nil && old.aheadMax == int64(u.Prefetch) {
			up.ahead, up.aheadMax = old.ahead, old.aheadMax
		} else {
			up.ahead, up.aheadMax = newAhead(u.Prefetch), int64(u.Prefetch)
		}
		next.upstreams[name] = up
		next.allUniform = next.allUniform && u.Uniform
	}
	return next, nil
}

// settings gives those of this moment.
func (c *Cache) settings() *settings { return c.current.Load() }

// Offline tells whether no upstream is asked.
func (c *Cache) Offline() bool { return c.settings().Offline }

// Platforms gives those that this cache is for.
func (c *Cache) Platforms() []string {
	set := c.settings()
	if len(set.Settings.Platforms) == 0 {
		return []string{set.platform}
	}
	return set.Settings.Platforms
}
