package cache

import (
	"regexp"
	"slices"
	"strings"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// imagePattern is a pattern of ImagesFilter.
type imagePattern struct {
	// compiled is nil where the pattern takes everything.
	compiled *regexp.Regexp
	// starts are how the names of what it takes begin, "upstream/repository:tag" in full.
	starts []string
	// literal says that the pattern has neither * nor ?.
	literal bool
	// tagsOnly says that it takes no image by its digest, unless with all its repository.
	tagsOnly bool
}

func newImagePattern(text string) *imagePattern {
	if text = strings.TrimSuffix(text, "/"); text == "" || text == "*" {
		return &imagePattern{starts: []string{""}}
	}
	start, literal := text, true
	if i := strings.IndexAny(text, "*?"); i >= 0 {
		start, literal = text[:i], false
	}
	p := &imagePattern{compiled: compilePattern(text), literal: literal}
	// The names of Docker Hub are written in several ways, see takes.
	p.starts = []string{start, "docker.io/" + start, "docker.io/library/" + start}
	if short, hub := strings.CutPrefix(start, "docker.io/"); hub {
		p.starts = append(p.starts, "docker.io/library/"+short)
	}
	// A colon behind the last slash begins a tag. Where there is no slash it may belong to
	// an upstream's port: what is taken by that is taken with all its repository.
	colon, slash, rest := strings.LastIndexByte(start, ':'), strings.LastIndexByte(text, '/'), text[len(start):]
	p.tagsOnly = !strings.Contains(text, "@") && colon > slash && (slash >= 0 || rest == "" || rest == "*")
	return p
}

// takes tells whether the pattern takes t, or t's repository or upstream.
func (p *imagePattern) takes(t oci.Target) bool {
	if p.compiled == nil {
		return true
	}
	repository := oci.Target{Upstream: t.Upstream, Repository: t.Repository}
	for _, name := range []string{t.String(), repository.String()} {
		if p.compiled.MatchString(name) {
			return true
		}
		short, hub := strings.CutPrefix(name, "docker.io/")
		shorter, _ := strings.CutPrefix(short, "library/")
		if hub && (p.compiled.MatchString(short) || p.compiled.MatchString(shorter) || p.compiled.MatchString("docker.io/"+shorter)) {
			return true
		}
	}
	return p.compiled.MatchString(t.Upstream)
}

// repositories lists those, "upstream/repository", that may have what the pattern takes,
// sorted. Of the names in the index it reads no others.
func (p *imagePattern) repositories(ix *index.Index) ([]string, error) {
	if p.compiled == nil {
		return ix.Repositories()
	}
	var names []string
	for _, start := range p.starts {
		upstream, rest, ok := strings.Cut(start, "/")
		i := strings.IndexAny(rest, ":@")
		switch {
		case ok && i >= 0:
			names = append(names, upstream+"/"+rest[:i])
			continue
		case ok && p.literal:
			names = append(names, start)
			continue
		case p.literal:
			start += "/" // all of an upstream
		}
		some, err := ix.RepositoriesWith(start)
		if err != nil {
			return nil, err
		}
		names = append(names, some...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
