package bundle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// Choice says what is to be in a bundle.
type Choice struct {
	// Images are wanted whole. All is every image that is here whole, but for those of
	// upstreams of which Private, where it is not nil, says that not everyone may have
	// what is there: those are wanted by name alone.
	Images  []Wanted
	All     bool
	Private func(upstream string) bool
	// Platforms are those to take of an index, "linux/arm64", where it has them;
	// cache.AllPlatforms is all that it names; none are those of which the manifest is
	// here.
	Platforms []string
	// Since, where it is set, leaves out blobs: those in Have, or those that were stored
	// before Since.Time. Manifests are never left out.
	Since *Since
	Have  []digest.Digest
}

// Wanted is an image that is wanted by name.
type Wanted struct {
	oci.Target
	// Platforms are those to take of it; none are those of the Choice.
	Platforms []string
}

// Plan is what will be in a bundle.
type Plan struct {
	Contents *Contents `json:"contents"`
	// Docker is the file for "docker load", see DockerName.
	Docker []byte `json:"docker"`
	// Images say what is taken of each of Contents.Images, in their order.
	Images []Taken `json:"images"`
	// LeftOut are images that are not whole, where Choice.All is set, and referrers.
	LeftOut []LeftOut `json:"leftOut,omitempty"`
}

// Taken says what of an image is in a bundle.
type Taken struct {
	Reference string        `json:"reference"`
	Digest    digest.Digest `json:"digest"`
	// Platforms are those of an index that are taken.
	Platforms []string `json:"platforms,omitempty"`
	Referrer  bool     `json:"referrer,omitempty"`
	// Blobs are the contents of the image, manifests and indexes among them, and Bytes
	// are theirs. What images share is counted for each.
	Blobs int   `json:"blobs"`
	Bytes int64 `json:"bytes"`
	// LeftOut and LeftOutBytes are those of them that were left out, as Since says.
	LeftOut      int   `json:"leftOut"`
	LeftOutBytes int64 `json:"leftOutBytes"`
	// Partial are platforms that nobody named and that were left out, because only some of
	// each is cached.
	Partial []string `json:"partial,omitempty"`
}

// LeftOut is an image of which something is missing.
type LeftOut struct {
	Reference string `json:"reference"`
	Referrer  bool   `json:"referrer,omitempty"`
	// Platforms are those that are partial.
	Platforms []string `json:"platforms,omitempty"`
	// Missing says what, in words.
	Missing []string `json:"missing,omitempty"`
	// Reason is set where that is not why.
	Reason string `json:"reason,omitempty"`
}

// errPrivate says why an image is not taken that nobody has named.
var errPrivate = errors.New("it is of an upstream whose clients have what their own credentials can pull (access: passthrough), " +
	"and who takes a bundle in may give it to all: name it to export it")

// MissingError says that images are not here whole.
type MissingError struct {
	Images []LeftOut
	// Platforms are those that were wanted.
	Platforms []string
	// Offline says that the cache asks no upstream, so that nothing can be fetched there.
	Offline bool
}

// maxTold bounds what is told of what is missing: of how many images, and of each how
// much.
const maxTold = 20

func (e *MissingError) Error() string {
	var s strings.Builder
	if len(e.Images) == 1 {
		s.WriteString("an image is not cached completely, so no bundle was written:\n")
	} else {
		fmt.Fprintf(&s, "%d images are not cached completely, so no bundle was written:\n", len(e.Images))
	}
	var flags []string // of warm, in their order
	again := map[string][]string{}
	for i, image := range e.Images {
		if i == maxTold {
			fmt.Fprintf(&s, "  … and %d more\n", len(e.Images)-i)
			break
		}
		platforms := e.Platforms
		if len(platforms) == 0 {
			platforms = image.Platforms
		}
		flag := ""
		if len(platforms) > 0 {
			flag = "--platform " + strings.Join(platforms, ",") + " "
		}
		if again[flag] == nil {
			flags = append(flags, flag)
		}
		again[flag] = append(again[flag], image.Reference)
		fmt.Fprintf(&s, "  %s: %s\n", image.Reference, image.told())
	}
	if e.Offline {
		s.WriteString("this cache is offline: fetch them outside and import the bundle here")
	} else {
		s.WriteString("fetch them first:")
	}
	for _, flag := range flags {
		if len(flags) > 1 || e.Offline {
			s.WriteString("\n ")
		}
		fmt.Fprintf(&s, " entrepot warm %s%s", flag, strings.Join(again[flag], " "))
	}
	if len(e.Platforms) == 0 {
		s.WriteString("\nor name the platforms to take with --platform")
	}
	return s.String()
}

// told says in a line what is missing.
func (l LeftOut) told() string {
	if l.Reason != "" {
		return l.Reason
	}
	list := l.Missing
	if len(list) > maxTold {
		list = append(slices.Clone(list[:maxTold]), fmt.Sprintf("… and %d more", len(l.Missing)-maxTold))
	}
	return "missing: " + strings.Join(list, "; ")
}

// String says it in a line.
func (l LeftOut) String() string { return l.Reference + ": " + l.told() }

// Make finds out what is to be in a bundle of choice. Its error is a *MissingError where
// wanted images are not here whole, an *oci.Error where one is not known or refused, or
// ctx's.
func Make(ctx context.Context, from Catalog, choice Choice) (*Plan, error) {
	p := &planner{
		from: from, choice: choice, plan: &Plan{Contents: &Contents{Since: choice.Since}},
		contents: map[digest.Digest]*kept{}, taken: map[string]bool{}, in: map[string]bool{}, have: map[digest.Digest]bool{},
	}
	for _, d := range choice.Have {
		p.have[d] = true
	}
	wanted := choice.merged()
	asked := len(wanted)
	if choice.All {
		named, err := from.Named(ctx)
		if err != nil {
			return nil, err
		}
		for _, t := range named {
			wanted = append(wanted, wantedImage{t, platforms{}.and(choice.Platforms)})
		}
	}
	var missing []LeftOut
	for i, want := range wanted {
		t := want.Target
		p.platforms = want.platforms
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		own := i >= asked // nobody has asked for it
		if own && t.Digest != "" && p.in[inRepository(t, t.Digest)] {
			continue
		}
		if own && choice.Private != nil && choice.Private(t.Upstream) {
			p.leave(t, isReferrerTag(t.Tag), nil, errPrivate)
			continue
		}
		lacks, err := p.takeWith(ctx, t)
		if p.isTooLarge() {
			return nil, tooManyContents(len(p.contents))
		}
		switch {
		case err != nil && own:
			p.leave(t, isReferrerTag(t.Tag), nil, err)
		case err != nil:
			return nil, err
		case len(lacks) > 0 && own:
			p.leave(t, isReferrerTag(t.Tag), lacks, nil)
		case len(lacks) > 0:
			missing = append(missing, LeftOut{Reference: t.String(), Missing: lacks, Platforms: p.partial})
		}
	}
	if len(missing) > 0 {
		return nil, &MissingError{Images: missing, Platforms: choice.Platforms}
	}
	return p.finish()
}

// CheckAll gives an error, which is ErrTooLarge, where a cache with so many contents has more
// than one bundle takes: to find that out image by image would take long.
func CheckAll(contents int64) error {
	if contents > maxEntries {
		return fmt.Errorf("the cache has %d manifests, configs and layers, and a bundle takes %d at most: %w", contents, maxEntries, ErrTooLarge)
	}
	return nil
}

// isTooLarge tells whether what was taken by now is more than a bundle takes.
func (p *planner) isTooLarge() bool {
	return len(p.contents) > maxEntries-bundleDocuments || p.listed > maxDocument
}

func tooManyContents(n int) error {
	return fmt.Errorf("the bundle would have %d manifests, configs and layers and more: %w", n, ErrTooLarge)
}

// wantedImage is an image and what is wanted of it.
type wantedImage struct {
	oci.Target
	platforms platforms
}

// platforms are those that are wanted of an index.
type platforms struct {
	// names must be there, as far as the index has them.
	names []string
	// here has those taken of which the manifest is here.
	here bool
}

// and gives both. No names are those that are here.
func (p platforms) and(names []string) platforms {
	return platforms{names: append(slices.Clone(p.names), names...), here: p.here || len(names) == 0}
}

// merged gives each image that is wanted by name once.
func (c Choice) merged() []wantedImage {
	var list []wantedImage
	at := map[oci.Target]int{}
	for _, w := range c.Images {
		names := w.Platforms
		if len(names) == 0 {
			names = c.Platforms
		}
		i, known := at[w.Target]
		if !known {
			i = len(list)
			at[w.Target] = i
			list = append(list, wantedImage{Target: w.Target})
		}
		list[i].platforms = list[i].platforms.and(names)
	}
	return list
}

// words gives the sentence of an error that was made for people.
func words(err error) string {
	if e := (*oci.Error)(nil); errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// planner gathers a Plan.
type planner struct {
	from   Catalog
	choice Choice
	// platforms are those of the image that is looked at.
	platforms platforms
	plan      *Plan
	// contents are what is taken by now.
	contents map[digest.Digest]*kept
	// partial are the partial platforms of the image that takeWith looked at last.
	partial []string
	// taken are the images that are, or were left out, by their references.
	taken map[string]bool
	// in are the manifests that a repository has in the bundle.
	in   map[string]bool
	have map[digest.Digest]bool
	// listed is how many bytes the contents take of the document about them, at least.
	listed int
	// docker are the images for DockerName, and tags those of each.
	docker []*dockerImage
}

// kept is a Content with what is found out only later.
type kept struct {
	Content
	in map[string]bool
}

func inRepository(t oci.Target, d digest.Digest) string {
	return t.Upstream + "/" + t.Repository + "@" + d.String()
}

func (p *planner) leave(t oci.Target, referrer bool, missing []string, err error) {
	l := LeftOut{Reference: t.String(), Referrer: referrer, Missing: missing}
	if err != nil {
		l.Reason = words(err)
	}
	p.plan.LeftOut = append(p.plan.LeftOut, l)
}

// takeWith takes an image and what refers to it. It gives what is missing of it, and
// then takes nothing.
func (p *planner) takeWith(ctx context.Context, t oci.Target) (missing []string, err error) {
	if p.taken[t.String()] {
		return nil, nil
	}
	p.partial = nil
	d, seen, err := p.from.StandsFor(t)
	if err != nil {
		return nil, err
	}
	tree, err := p.from.Tree(ctx, oci.Target{Upstream: t.Upstream, Repository: t.Repository, Digest: d}, cache.TreeOptions{Referrers: true})
	if oci.IsAbsent(err) {
		return []string{"manifest " + d.String()}, nil
	}
	if err != nil {
		return nil, err
	}
	return p.take(t, tree.Root, seen), nil
}

// take takes the image that t names, of which n is the manifest or index, and what
// refers to it as far as that is here whole; or gives what is missing.
func (p *planner) take(t oci.Target, n *cache.Node, seen time.Time) (missing []string) {
	p.taken[t.String()] = true
	w := &walk{planner: p, in: t, seen: map[digest.Digest]bool{}}
	w.node(n, "")
	p.partial = w.partial
	if len(w.missing) > 0 {
		return w.missing
	}
	image := Image{
		Upstream: t.Upstream, Repository: t.Repository, Tag: t.Tag, Digest: n.Digest, MediaType: n.MediaType,
		Fetched: seen.UTC().Truncate(time.Second), Referrer: n.Parsed.Subject != nil || isReferrerTag(t.Tag),
	}
	taken := Taken{Reference: image.String(), Digest: n.Digest, Platforms: w.took, Partial: w.partial, Referrer: image.Referrer}
	for _, found := range w.found {
		k := p.keep(t, found)
		taken.Blobs++
		taken.Bytes += k.Size
		if !k.Present {
			taken.LeftOut++
			taken.LeftOutBytes += k.Size
		}
	}
	for _, d := range w.named {
		p.in[inRepository(t, d)] = true
	}
	place := len(p.plan.Contents.Images)
	p.plan.Contents.Images = append(p.plan.Contents.Images, image)
	p.plan.Images = append(p.plan.Images, taken)
	p.noteForDocker(image, n)
	// None is taken twice, so that this ends.
	listed := !image.Referrer
	for _, of := range w.manifests {
		listed = p.takeReferrers(t, of) && listed
	}
	p.plan.Contents.Images[place].Listed = listed
	return nil
}

// takeReferrers takes what is here of what refers to a manifest of t's repository, and
// tells whether that is all there is.
func (p *planner) takeReferrers(t oci.Target, of *cache.Node) (all bool) {
	all = of.ReferrersListed
	for _, n := range of.Referrers {
		r := oci.Target{Upstream: t.Upstream, Repository: t.Repository, Tag: n.Tag}
		if n.Tag == "" {
			r.Digest = n.Digest
		}
		if n.Bytes == nil {
			all = false
			continue
		}
		if name := r.String(); p.taken[name] {
			all = all && !slices.ContainsFunc(p.plan.LeftOut, func(l LeftOut) bool { return l.Reference == name })
			continue
		}
		_, seen, err := p.from.StandsFor(r)
		if err != nil {
			p.leave(r, true, nil, err)
			all = false
			continue
		}
		if missing := p.take(r, n, seen); len(missing) > 0 {
			p.leave(r, true, missing, nil)
			all = false
		}
	}
	return all
}

// keep adds content that t's repository may serve.
func (p *planner) keep(t oci.Target, found stored) *kept {
	k := p.contents[found.Digest]
	if k == nil {
		k = &kept{Content: found.Content, in: map[string]bool{}}
		s := p.choice.Since
		k.Present = s == nil || !p.have[k.Digest] && !found.stored.Before(s.Time)
		p.contents[found.Digest] = k
		const others = len(`{"digest":"","size":0,"in":[""],"present":true},`)
		p.listed += others + len(k.Digest) + len(k.MediaType) + len(t.Upstream) + len("/") + len(t.Repository)
	}
	if found.IsManifest() {
		// What one repository has as a layer may be another's manifest.
		k.MediaType, k.Present = found.MediaType, true
		p.in[inRepository(t, found.Digest)] = true
	}
	k.in[t.Upstream+"/"+t.Repository] = true
	return k
}

// referrerTag are the tags that stand for what refers to a digest: that of the referrers
// tag schema (distribution-spec, "Referrers Tag Schema"), and cosign's.
var referrerTag = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^sha(256-[0-9a-f]{64}|384-[0-9a-f]{96}|512-[0-9a-f]{64,128})(\.(sig|att|sbom))?$`)
})

func isReferrerTag(tag string) bool { return referrerTag().MatchString(tag) }

// finish puts all in order.
func (p *planner) finish() (*Plan, error) {
	c := p.plan.Contents
	for _, k := range p.contents {
		k.In = slices.Sorted(maps.Keys(k.in))
		c.Contents = append(c.Contents, k.Content)
	}
	if c.Images == nil {
		c.Images, c.Contents, p.plan.Images = []Image{}, []Content{}, []Taken{}
	}
	if err := c.seal(); err != nil {
		return nil, err
	}
	at := make(map[string]int, len(c.Images))
	for i, image := range c.Images {
		at[image.String()] = i
	}
	slices.SortFunc(p.plan.Images, func(a, b Taken) int { return cmp.Compare(at[a.Reference], at[b.Reference]) })
	slices.SortFunc(p.plan.LeftOut, func(a, b LeftOut) int { return cmp.Compare(a.Reference, b.Reference) })
	var err error
	p.plan.Docker, err = p.dockerFile()
	return p.plan, err
}
