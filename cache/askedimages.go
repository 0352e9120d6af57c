package cache

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// AskedImage is an image that clients have pulled.
type AskedImage struct {
	// Reference is "docker.io/library/nginx:1.27"; with a digest where clients asked
	// for that, and it is not of a tag that they asked for, too.
	Reference string `json:"reference"`
	// Digest is what they were given last.
	Digest digest.Digest `json:"digest,omitempty"`
	// Platforms are those whose manifests they pulled, as far as that can be told.
	Platforms []string `json:"platforms"`
	// Pulls are how often it was asked for, and Days on which days, in order.
	Pulls int64      `json:"pulls"`
	Days  []AskedDay `json:"days"`
	// Last is when that was last.
	Last time.Time `json:"last"`
	// Referrers says that they asked for what refers to it, too.
	Referrers bool `json:"referrers"`

	// Target is what Reference names.
	Target oci.Target `json:"-"`
}

// AskedDay is how often an image was asked for on a day.
type AskedDay struct {
	// Day is "2026-11-25", in UTC.
	Day   string `json:"day"`
	Pulls int64  `json:"pulls"`
}

// Asked gives what clients have pulled since a time, by name; at most index.AskedFor is
// known. What they only looked at by HEAD is not among it. An error is ctx's or of the
// index.
func (c *Cache) Asked(ctx context.Context, since time.Time) ([]AskedImage, error) {
	c.flushAsked()
	all, err := c.index.AskedSince(since)
	if err != nil {
		return nil, fmt.Errorf("list what clients have asked for: %w", err)
	}
	list := []AskedImage{}
	for len(all) > 0 {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		n := slices.IndexFunc(all, func(a index.Asked) bool { return a.Upstream != all[0].Upstream || a.Repository != all[0].Repository })
		if n < 0 {
			n = len(all)
		}
		r := askedRepository{
			cache: c, since: index.DayOf(since), pulled: map[digest.Digest]*index.Asked{}, referred: map[digest.Digest]bool{}, of: map[digest.Digest]bool{},
		}
		list = append(list, r.images(all[:n])...)
		all = all[n:]
	}
	return list, nil
}

// askedRepository finds out which images were pulled from one repository.
type askedRepository struct {
	cache *Cache
	since int64 // the first day that counts
	// pulled are the digests that clients have pulled, referred those of which they
	// have asked what refers to them.
	pulled   map[digest.Digest]*index.Asked
	referred map[digest.Digest]bool
	// of are those that belong to an image that is listed.
	of map[digest.Digest]bool
}

func (r *askedRepository) images(asked []index.Asked) (list []AskedImage) {
	for i := range asked {
		switch a := &asked[i]; {
		case a.Referrers:
			r.referred[a.Digest] = true
		case a.Tag == "" && r.pulls(a) > 0:
			r.pulled[a.Digest] = a
		}
	}
	for i := range asked {
		a := &asked[i]
		if a.Tag == "" || r.pulls(a) == 0 && r.pulled[a.Digest] == nil {
			continue
		}
		img := r.image(a, oci.Target{Upstream: a.Upstream, Repository: a.Repository, Tag: a.Tag})
		if by := r.pulled[a.Digest]; img.Pulls == 0 {
			// The tag was looked at, and what it stood for pulled by its digest.
			img.Pulls, img.Days = r.pulls(by), r.days(by)
		}
		list = append(list, img)
	}
	// An index comes before its manifests, for those are its own.
	var rest []*index.Asked
	for i := range asked {
		if a := &asked[i]; r.pulled[a.Digest] == a {
			rest = append(rest, a)
		}
	}
	slices.SortStableFunc(rest, func(a, b *index.Asked) int { return cmp.Compare(r.rank(a), r.rank(b)) })
	for _, a := range rest {
		if !r.of[a.Digest] {
			list = append(list, r.image(a, oci.Target{Upstream: a.Upstream, Repository: a.Repository, Digest: a.Digest}))
		}
	}
	slices.SortFunc(list, func(a, b AskedImage) int { return cmp.Compare(a.Reference, b.Reference) })
	return list
}

// rank is 0 for an index, else 1.
func (r *askedRepository) rank(a *index.Asked) int {
	if p := r.parsed(a.Upstream, a.Repository, a.Digest); p != nil && p.Kind == oci.KindIndex {
		return 0
	}
	return 1
}

// image makes the AskedImage of t.
func (r *askedRepository) image(a *index.Asked, t oci.Target) AskedImage {
	img := AskedImage{
		Reference: t.String(), Target: t, Digest: a.Digest, Platforms: []string{}, Last: a.Last.UTC(),
		Pulls: r.pulls(a), Days: r.days(a), Referrers: r.referred[a.Digest],
	}
	roots := []digest.Digest{a.Digest}
	if t.Tag != "" {
		for _, o := range r.cache.index.History(t.Upstream, t.Repository, t.Tag) {
			if o.Digest != "" && o.Digest != a.Digest {
				roots = append(roots, o.Digest)
			}
		}
	}
	for _, root := range roots {
		r.of[root] = true
		p := r.parsed(t.Upstream, t.Repository, root)
		if p == nil || p.Kind != oci.KindIndex {
			continue
		}
		for _, d := range p.Children {
			r.of[d.Digest] = true
			// Who takes no index was given the manifest itself.
			if r.pulled[d.Digest] == nil && d.Digest != a.Digest {
				continue
			}
			img.Referrers = img.Referrers || r.referred[d.Digest]
			if name := oci.PlatformName(d.Platform); name != "" && !oci.IsAttestation(d) && !slices.Contains(img.Platforms, name) {
				img.Platforms = append(img.Platforms, name)
			}
		}
	}
	slices.Sort(img.Platforms)
	return img
}

// parsed reads what is here of a manifest; nil where that is nothing.
func (r *askedRepository) parsed(up, repo string, d digest.Digest) *oci.Parsed {
	t := oci.Target{Upstream: up, Repository: repo, Digest: d}
	l, ok := r.cache.records.Link(t)
	if !ok || !l.Manifest || !r.cache.hasRight(t) {
		return nil
	}
	m, ok := r.cache.peekManifest(d)
	if !ok {
		return nil
	}
	p, err := oci.ParseManifest(m.Bytes, cmp.Or(l.MediaType, m.MediaType))
	if err != nil {
		return nil
	}
	return p
}

// pulls counts the pulls on the days that count.
func (r *askedRepository) pulls(a *index.Asked) (n int64) {
	for _, d := range a.Days {
		if d.Day >= r.since {
			n += d.Gets
		}
	}
	return n
}

func (r *askedRepository) days(a *index.Asked) []AskedDay {
	list := []AskedDay{}
	for _, d := range a.Days {
		if d.Day >= r.since && d.Gets > 0 {
			list = append(list, AskedDay{Day: time.Unix(d.Day*24*60*60, 0).UTC().Format(time.DateOnly), Pulls: d.Gets})
		}
	}
	return list
}
