package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// maxMissing is how much is told of what one image lacks.
const maxMissing = 20

// RehearseImage is an image of which Rehearse finds out whether a pull would work.
type RehearseImage struct {
	// Name, Target, Err and Platforms are as in WarmImage.
	Name      string
	Target    oci.Target
	Err       error
	Platforms []string
	// Listed says that the list of what refers to it has to be there.
	Listed bool
	// Pulls is how often clients have pulled it, for the answer.
	Pulls int64
}

// RehearseOptions say what Rehearse looks at.
type RehearseOptions struct {
	// Platforms are those that have to be there, as in WarmOptions.
	Platforms []string
	// Referrers has all that is known to refer to the images be there, too.
	Referrers bool
	// Offline rehearses Settings.Offline: tags are then served however old they are.
	Offline bool
	// Verify hashes what is there. What is damaged is set aside, as it is when it is
	// served.
	Verify bool
	// Tell is as in WarmOptions, but for the bytes: those that have been hashed.
	Tell func(WarmState) error
}

// What would become of a pull without the upstreams.
const (
	// RehearsedOK: it would be answered.
	RehearsedOK = "ok"
	// RehearsedStale: it would be answered, and the tag is past its time.
	RehearsedStale = "stale"
	// RehearsedFailed: it would fail.
	RehearsedFailed = "failed"
)

// Rehearsal is what Rehearse has found.
type Rehearsal struct {
	Images []RehearsedImage `json:"images"`
	// Stale and Failed are how many of the images are so, and Partial how many lack some of
	// the platforms and would not fail.
	Stale   int `json:"stale"`
	Failed  int `json:"failed"`
	Partial int `json:"partial"`
}

// RehearsedImage is what would become of the pulls of one image.
type RehearsedImage struct {
	Reference string `json:"reference"`
	// Status is RehearsedOK, RehearsedStale or RehearsedFailed.
	Status string `json:"status"`
	// Digest is what clients would be given.
	Digest digest.Digest `json:"digest,omitempty"`
	// Pulls is how often clients have pulled it, where that was asked for.
	Pulls int64 `json:"pulls,omitempty"`
	// Until is until when the tag is served without its upstream; zero for ever.
	Until time.Time `json:"until,omitzero"`
	// Platforms are those that were looked at; empty where the manifest says none.
	Platforms []RehearsedPlatform `json:"platforms"`
	// MissingPlatforms are those of the platforms that the image does not have.
	MissingPlatforms []string `json:"missingPlatforms,omitempty"`
	// Problems are why it would fail, a sentence each, at most some of them; and that
	// clients would fetch layers from elsewhere, which does not count as a failure.
	Problems []string `json:"problems"`
}

// RehearsedPlatform is a platform of an image.
type RehearsedPlatform struct {
	Platform string `json:"platform"`
	// OK says that all of it is there.
	OK bool `json:"ok"`
}

// Rehearse tells whether pulls of images would be answered if no upstream could be
// asked from now on: whether the tags would still be served, and all that they stand
// for is stored, and may be served by the repository. It asks no upstream, and counts
// as no use of anything. The images keep their order. An error says that it did not
// come to its end.
func (c *Cache) Rehearse(ctx context.Context, images []RehearseImage, o RehearseOptions) (*Rehearsal, error) {
	platforms, err := c.warmedPlatforms(o.Platforms)
	if err != nil {
		return nil, err
	}
	r := &rehearsing{RehearseOptions: o, cache: c, ctx: ctx, platforms: platforms, hashed: map[digest.Digest]error{}, state: WarmState{Total: len(images)}}
	result := &Rehearsal{Images: []RehearsedImage{}}
	for _, img := range images {
		done := r.image(img)
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		switch done.Status {
		case RehearsedStale:
			result.Stale++
		case RehearsedFailed:
			result.Failed++
		}
		if done.Status != RehearsedFailed && len(done.MissingPlatforms) > 0 {
			result.Partial++
		}
		result.Images = append(result.Images, done)
		r.state.Done++
		if err := r.tell(); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// rehearsing is one run of Rehearse. It is for one goroutine.
type rehearsing struct {
	RehearseOptions
	cache     *Cache
	ctx       context.Context
	platforms []string // nil is all
	hashed    map[digest.Digest]error
	state     WarmState
	told      time.Time
	deaf      error // what Tell gave
}

// tell tells how far r has come, now and then. Its error is Tell's.
func (r *rehearsing) tell() error {
	if r.Tell != nil && r.deaf == nil && time.Since(r.told) >= tellEvery {
		r.told = time.Now()
		r.deaf = r.Tell(r.state)
	}
	return r.deaf
}

// image rehearses the pulls of one image.
func (r *rehearsing) image(todo RehearseImage) RehearsedImage {
	img := &rehearsedImage{
		RehearsedImage: RehearsedImage{Reference: todo.Target.String(), Status: RehearsedOK, Pulls: todo.Pulls, Platforms: []RehearsedPlatform{}, Problems: []string{}},
		rehearsing:     r, target: todo.Target, platforms: r.platforms,
	}
	if todo.Err != nil {
		img.Reference = todo.Name
	}
	r.state.Current = []WarmTransfer{{Name: img.Reference}}
	err := todo.Err
	if err == nil {
		err = img.rehearse(todo)
	}
	if err != nil {
		text := err.Error()
		if e := (*oci.Error)(nil); errors.As(err, &e) {
			text = e.Message
		}
		img.fail("%s", text)
	}
	if more := img.problems - maxMissing; more > 0 {
		img.Problems = append(img.Problems, fmt.Sprintf("%d more are as these", more))
	}
	if len(img.elsewhere) > 0 {
		img.Problems = append(img.Problems, layersElsewhere(img.elsewhere))
	}
	return img.RehearsedImage
}

type rehearsedImage struct {
	RehearsedImage
	*rehearsing
	target    oci.Target
	up        *upstream
	platforms []string
	problems  int
	elsewhere []v1.Descriptor // layers that the registry need not have, and that are not cached
}

// fail notes why the pull would fail.
func (img *rehearsedImage) fail(format string, args ...any) {
	img.Status = RehearsedFailed
	if img.problems++; img.problems <= maxMissing {
		img.Problems = append(img.Problems, fmt.Sprintf(format, args...))
	}
}

func (img *rehearsedImage) rehearse(todo RehearseImage) (err error) {
	if len(todo.Platforms) > 0 {
		if img.platforms, err = warmPlatforms(todo.Platforms); err != nil {
			return err
		}
	}
	if img.up, err = img.cache.upstream(img.target.Upstream); err != nil {
		return err
	}
	if img.target.Tag != "" && !img.tag() {
		return nil
	}
	tree, err := img.cache.Tree(img.ctx, img.target, TreeOptions{Platforms: img.platforms, Referrers: img.Referrers})
	if err != nil {
		if rec, ok := img.cache.records.Tag(img.target); ok && img.target.Tag != "" {
			if denied := img.cache.store.Denial(rec.Digest); denied != nil {
				img.fail("%s is here and cannot be read: %v", rec.Digest, denied)
				return nil
			}
		}
		return err
	}
	root := tree.Root
	img.Digest = root.Digest
	if root.Kind == KindIndex && root.Parsed != nil {
		img.index(root)
	} else {
		img.manifest(root)
	}
	if todo.Listed && !img.Referrers {
		img.referrers(root)
	}
	return nil
}

// tag tells whether the tag would be answered.
func (img *rehearsedImage) tag() bool {
	t := img.target
	rule := img.up.rules.rule(t.Repository, t.Tag)
	rec, ok := img.cache.records.Tag(t)
	if !ok {
		img.fail("the tag is not known here")
		return false
	}
	if rule.blocks(rec) {
		img.fail("the tag has moved and must not (on_move: block): it is refused until that is accepted")
		return false
	}
	return img.fresh(rule, rec.Checked, "the tag")
}

// fresh tells whether what was confirmed at a time would be served, and notes until
// when.
func (img *rehearsedImage) fresh(rule TagRule, checked time.Time, what string) bool {
	age := time.Since(checked)
	if img.Offline || img.cache.Offline() {
		if !rule.fresh(age) && img.Status == RehearsedOK {
			img.Status = RehearsedStale
		}
		return true
	}
	if rule.Immutable {
		return true
	}
	until := checked.Add(rule.TTL).Add(rule.StaleIfError).UTC()
	if img.Until.IsZero() || until.Before(img.Until) {
		img.Until = until
	}
	switch {
	case rule.fresh(age):
	case rule.usable(age):
		if img.Status == RehearsedOK {
			img.Status = RehearsedStale
		}
	default:
		img.fail("%s was served without its upstream until %s (stale_if_error); with cache.offline it is for ever", what, second(until))
		return false
	}
	return true
}

// manifest looks at an image of one manifest.
func (img *rehearsedImage) manifest(n *Node) {
	img.node(n, "")
	if img.Referrers {
		img.referrers(n)
	}
	if n.Parsed == nil {
		return
	}
	name, missing := img.cache.platformOf(img.ctx, n.Parsed, img.platforms)
	if name != "" {
		img.Platforms = append(img.Platforms, RehearsedPlatform{Platform: name, OK: img.problems == 0})
	}
	img.MissingPlatforms = missing
	if len(missing) > 0 && len(missing) == len(img.platforms) {
		img.fail("there is no manifest for %s; it is for %s", strings.Join(missing, " and "), name)
	}
}

// index looks at an index and what of it is for the platforms.
func (img *rehearsedImage) index(n *Node) {
	var missing []string
	for _, platform := range img.platforms {
		if _, err := oci.SelectPlatform(n.Parsed, platform); err != nil {
			missing = append(missing, platform)
		}
	}
	img.MissingPlatforms = missing
	if len(missing) > 0 && len(missing) == len(img.platforms) {
		img.fail("there is no manifest for %s", strings.Join(missing, " and "))
	}
	img.content(n, "")
	for _, child := range n.Children {
		attests := oci.IsAttestation(child.Descriptor)
		if child.Left || attests && !img.Referrers {
			continue
		}
		platform, before := oci.PlatformName(child.Platform), img.problems
		img.node(child, platform)
		if img.Referrers {
			img.referrers(child)
		}
		if platform != "" && !attests {
			img.Platforms = append(img.Platforms, RehearsedPlatform{Platform: platform, OK: img.problems == before})
		}
	}
	for _, r := range n.Referrers {
		img.node(r, "")
	}
	if img.Referrers {
		img.referrers(n)
	}
}

// node looks at n and at what is below it.
func (img *rehearsedImage) node(n *Node, platform string) {
	if n.Foreign && !n.Stored {
		img.elsewhere = append(img.elsewhere, n.Descriptor)
		return
	}
	if n.Left || !img.content(n, platform) {
		return
	}
	for _, list := range [][]*Node{n.Children, n.Referrers} {
		for _, child := range list {
			img.node(child, platform)
		}
	}
}

// content looks whether n itself would be served.
func (img *rehearsedImage) content(n *Node, platform string) bool {
	what := string(n.Kind) + " " + string(n.Digest)
	if platform != "" {
		what = platform + ": " + what
	}
	linked := img.cache.hasRight(withDigest(img.target, n.Digest))
	size, stored := img.cache.store.Has(n.Digest)
	denied := img.cache.store.Denial(n.Digest)
	switch {
	case denied != nil:
		img.fail("%s is here and cannot be read: %v", what, denied)
		return false
	case n.Missing != nil && n.Bytes != nil:
		img.fail("%s can not be read: %v", what, n.Missing)
		return false
	case !n.Stored || !stored:
		img.fail("%s is not cached", what)
		return false
	case !linked:
		img.fail("%s is here, and not known to be of %s/%s", what, img.target.Upstream, img.target.Repository)
		return false
	case n.Size >= 0 && size != n.Size:
		img.fail("%s is damaged: it has %d bytes, and should have %d", what, size, n.Size)
		return false
	}
	if !img.Verify {
		return true
	}
	err, known := img.hashed[n.Digest]
	if !known {
		err = img.cache.VerifyNode(img.ctx, img.target, n)
		img.hashed[n.Digest] = err
		img.state.Bytes += size
		_ = img.tell() // it is asked again after the image
	}
	if err != nil && img.ctx.Err() == nil {
		img.fail("%s is damaged: %v", what, err)
	}
	return err == nil
}

// referrers looks whether clients would be told what refers to n.
func (img *rehearsedImage) referrers(n *Node) {
	t := withDigest(img.target, n.Digest)
	l, known := img.cache.records.List(index.Referrers, t)
	what := "the list of what refers to " + string(n.Digest)
	if !known {
		img.fail("%s is not cached", what)
		return
	}
	rule := img.up.rules.rule(t.Repository, "*")
	rule.Immutable = false // as list has it
	img.fresh(rule, l.Checked, what)
}
