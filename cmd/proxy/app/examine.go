package app

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/operator"
	"github.com/entrepot-dev/entrepot/upstream"
)

// examine asks all upstreams beside each other whether they answer.
func (p *parts) examine(ctx context.Context) []upstream.Examination {
	p.mu.Lock()
	mirrors := maps.Clone(p.mirrors)
	p.mu.Unlock()
	names := slices.Sorted(maps.Keys(mirrors))
	found := make([][]upstream.Examination, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { found[i] = mirrors[name].live.Examine(ctx) })
	}
	all.Wait()
	return slices.Concat(found...)
}

// configuration tells the one in force, and how what load gives differs from it.
func (p *parts) configuration(file string, load func() (*configs.Config, error)) operator.Configuration {
	if file != "" {
		file = absolute(file)
	}
	next, err := load()
	p.mu.Lock()
	defer p.mu.Unlock()
	c := operator.Configuration{File: file, Values: p.loaded.Values()}
	if text, err := p.loaded.YAML(); err == nil {
		c.YAML = string(text)
	}
	if err != nil {
		c.Problem = err.Error()
		return c
	}
	c.Changed, _ = configs.Changed(p.loaded, next)
	_, c.NeedRestart = configs.Changed(p.started, next)
	return c
}
