package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// maxWarmDepth is how deep indexes, and referrers of referrers, are followed.
	maxWarmDepth = 4
	// maxWarmContent bounds the manifests and blobs of one image.
	maxWarmContent = 10_000
	// maxWarmReferrers bounds the referrers of one image.
	maxWarmReferrers = 1000
	// maxWarmMoves is how often an image is fetched anew whose tag moves meanwhile.
	maxWarmMoves = 3
	// placePatience is how long a blob waits for a place among the fills.
	placePatience = 10 * time.Minute
)

// errWarmContent says that an image consists of more than any true one.
var errWarmContent = fmt.Errorf("it consists of more than %d manifests and blobs", maxWarmContent)

// warmingImage is an image that is being fetched.
type warmingImage struct {
	WarmedImage
	*warming
	target    oci.Target
	up        *upstream
	platforms []string // nil is all

	// What follows is guarded by warming.mu, but once all is done.

	problems []string
	// missing are those of the platforms that it has not.
	missing []string
	// incomplete says that something of what clients pull is not here.
	incomplete bool
	first      int64 // of BytesHere, what no other image of the run had before
	total      int64 // the bytes to fetch, as far as is known
	come       int64 // of what has been fetched
	fills      map[*blobFill]struct{}
	// content is all that the image has, and seen the manifests among it.
	content []digest.Digest
	seen    map[digest.Digest]bool

	// elsewhere are the layers that the upstream does not have and need not.
	elsewhere []v1.Descriptor

	// head guards headAnswered; see headWorks.
	head         sync.Once
	headAnswered bool
}

// image fetches one image.
func (w *warming) image(todo WarmImage) *warmingImage {
	img := &warmingImage{
		WarmedImage: WarmedImage{Reference: todo.Target.String(), Platforms: []string{}},
		warming:     w, target: todo.Target, platforms: w.platforms,
		fills: map[*blobFill]struct{}{}, seen: map[digest.Digest]bool{},
	}
	if todo.Err != nil {
		img.Reference = todo.Name
	}
	w.mu.Lock()
	w.current = append(w.current, img)
	w.mu.Unlock()
	err := todo.Err
	if err == nil {
		err = img.fetch(todo.Platforms)
	}
	if err != nil {
		img.fail(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.Done++
	w.state.Bytes += img.come
	w.state.TotalBytes += img.come // what did not come is not waited for any more
	w.current = slices.DeleteFunc(w.current, func(o *warmingImage) bool { return o == img })
	return img
}

// fail notes why something of the image is not here.
func (img *warmingImage) fail(err error) {
	img.mu.Lock()
	img.incomplete = true
	img.mu.Unlock()
	img.lack(err)
}

// lack notes what the image has not, or what of that which refers to it is not here:
// its tag stands for it all the same.
func (img *warmingImage) lack(err error) {
	text := err.Error()
	if e := (*oci.Error)(nil); errors.As(err, &e) {
		text = e.Message
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	if !slices.Contains(img.problems, text) {
		img.problems = append(img.problems, text)
	}
}

// failed tells whether something of the image could not be had.
func (img *warmingImage) failed() bool {
	img.mu.Lock()
	defer img.mu.Unlock()
	return img.incomplete
}

// progress gives how many bytes have come. warming.mu is held.
func (img *warmingImage) progress() int64 {
	n := img.come
	for f := range img.fills {
		_, came := f.Progress()
		n += came
	}
	return min(n, img.total)
}

// check finds what has been evicted since it was fetched.
func (img *warmingImage) check(c *Cache) {
	for _, d := range img.content {
		if !c.holds(d) {
			img.problems = append(img.problems, fmt.Sprintf(
				"%s was here and is not any more: all of the images do not fit (cache.max_size, cache.min_free)", d))
			return
		}
	}
}

func (img *warmingImage) fetch(platforms []string) (err error) {
	if len(platforms) > 0 {
		if img.platforms, err = warmPlatforms(platforms); err != nil {
			return err
		}
	}
	if img.up, err = img.cache.upstream(img.target.Upstream); err != nil {
		return err
	}
	for range maxWarmMoves {
		d, kept, err := img.stands()
		if err != nil {
			return err
		}
		img.Digest = d
		if err := img.fetchContent(withDigest(img.target, d)); err != nil || img.failed() {
			return err
		}
		if img.target.Tag == "" || kept || img.DryRun {
			return nil
		}
		now, err := img.keepTag(img.target)
		if err != nil || now == d {
			return err
		}
	}
	return fmt.Errorf("%s moves faster than it can be fetched", img.target)
}

// stands gives the digest that is to be fetched. kept says that the tag, where there is
// one, need not be kept: it is known as it is, or not known better.
func (img *warmingImage) stands() (d digest.Digest, kept bool, err error) {
	c, t, up := img.cache, img.target, img.up
	if t.Digest != "" {
		if !c.holds(t.Digest) {
			// So that the upstream says what it still grants before a pull is spent.
			if _, err := up.origin.Resolve(img.ctx, t.Repository, t.Digest.String()); err != nil && !oci.IsHint(err) {
				return "", false, err
			}
		}
		return t.Digest, true, nil
	}
	rule := up.rules.rule(t.Repository, t.Tag)
	rec, known := c.records.Tag(t)
	age := time.Since(rec.Checked)
	if known && rule.fresh(age) {
		return rec.Digest, true, nil
	}
	desc, err := up.origin.Resolve(img.ctx, t.Repository, t.Tag)
	if oci.IsHint(err) {
		if d, err = img.get(t); err == nil {
			return d, true, nil
		}
	}
	switch {
	case img.ctx.Err() != nil:
		return "", false, context.Cause(img.ctx)
	case err != nil && known && (oci.IsTransient(err) && (c.Offline() || rule.usable(age)) || oci.IsAbsent(err) && rule.KeepDeleted):
		img.Stale = true
		img.note(fmt.Sprintf("it is as it was %s ago: %s", age.Round(time.Second), reason(err)))
		return rec.Digest, true, nil
	case err != nil:
		return "", false, err
	case desc.Digest != "":
		return desc.Digest, false, nil
	}
	// Some registries do not say on HEAD what a tag stands for.
	d, err = img.get(t)
	return d, true, err
}

// get fetches what a tag stands for: a HEAD did not tell. Unless it is a dry run, it
// keeps the tag.
func (img *warmingImage) get(t oci.Target) (digest.Digest, error) {
	c, up := img.cache, img.up
	end, err := img.pull(up)
	if err != nil {
		return "", err
	}
	defer end()
	if img.DryRun {
		m, err := up.origin.Manifest(img.ctx, t.Repository, t.Tag)
		if err != nil {
			return "", err
		}
		img.count()
		return m.Digest, c.keepManifest(withDigest(t, m.Digest), m, nil)
	}
	k := c.known()
	f, err := share(img.ctx, c, "get:"+tagKey(t), func(ctx context.Context) (resolved, error) { return c.fetchTag(ctx, up, t, k) })
	if err == nil {
		img.count()
	}
	return f.value.Digest, err
}

// count counts a pull.
func (img *warmingImage) count() {
	img.mu.Lock()
	img.Pulls++
	img.mu.Unlock()
}

// keepTag has a tag stand for what its upstream says that it does, and gives that.
func (img *warmingImage) keepTag(t oci.Target) (digest.Digest, error) {
	c, up := img.cache, img.up
	k := c.known()
	rec, known := c.records.Tag(t)
	var f flight[resolved]
	var err error
	switch {
	case known && up.rules.rule(t.Repository, t.Tag).fresh(time.Since(rec.Checked)):
		return rec.Digest, nil // somebody has asked meanwhile
	case known:
		f, err = share(img.ctx, c, "revalidate:"+tagKey(t), func(ctx context.Context) (resolved, error) { return c.check(ctx, up, t, rec, k) })
	default:
		f, err = share(img.ctx, c, "head:"+tagKey(t), func(ctx context.Context) (resolved, error) { return c.headTag(ctx, up, t, k) })
	}
	if err != nil {
		return "", err
	}
	if up.rules.rule(t.Repository, t.Tag).blocks(f.value.Tag) {
		return "", fmt.Errorf("it is here, and is refused to clients: the tag has moved and must not (on_move: block); accept it by entrepot accept %s", t)
	}
	return f.value.Digest, nil
}

// fetchContent fetches what t, a digest, names.
func (img *warmingImage) fetchContent(t oci.Target) error {
	m, err := img.manifest(t)
	if err != nil {
		return err
	}
	var work sync.WaitGroup
	p := img.below(&work, t, m, 0, true)
	if img.WarmOptions.Referrers {
		work.Go(func() { img.referrers(&work, t, true, 0) })
	}
	work.Wait()
	if len(img.elsewhere) > 0 {
		img.note(layersElsewhere(img.elsewhere))
	}
	if p == nil || img.ctx.Err() != nil {
		return context.Cause(img.ctx)
	}
	if p.Kind == oci.KindManifest && !img.failed() {
		img.tellPlatform(p)
	}
	img.tellMissing()
	slices.Sort(img.Platforms)
	return nil
}

// tellPlatform tells which platform an image of one manifest is for, and which of those
// that are wanted it is not for.
func (img *warmingImage) tellPlatform(p *oci.Parsed) {
	var name string
	if name, img.missing = img.cache.platformOf(img.ctx, p, img.platforms); name != "" {
		img.Platforms = []string{name}
	}
}

// platformOf reads out of its config which platform a manifest is for, and gives those of
// wanted that it is not for. The name is empty where it is for any, or the config is not
// here.
func (c *Cache) platformOf(ctx context.Context, p *oci.Parsed, wanted []string) (name string, missing []string) {
	if p.Config.MediaType != v1.MediaTypeImageConfig && p.Config.MediaType != oci.MediaTypeDockerImageConfig {
		return "", nil
	}
	b, ok := c.peekBlob(ctx, p.Config.Digest)
	var platform v1.Platform
	if !ok || json.Unmarshal(b, &platform) != nil || platform.OS == "" {
		return "", nil
	}
	only := &oci.Parsed{Kind: oci.KindIndex, Children: []v1.Descriptor{{MediaType: p.MediaType, Platform: &platform}}}
	for _, want := range wanted {
		if _, err := oci.SelectPlatform(only, want); err != nil {
			missing = append(missing, want)
		}
	}
	return oci.PlatformName(&platform), missing
}

// tellMissing tells of the platforms that the image has not: it has failed if it has
// none of them.
func (img *warmingImage) tellMissing() {
	if len(img.missing) == 0 {
		return
	}
	img.MissingPlatforms = img.missing
	text := "there is no manifest for " + strings.Join(img.missing, " and ")
	if len(img.missing) < len(img.platforms) {
		img.note(text)
		return
	}
	if len(img.Platforms) > 0 { // of an image with one manifest, or attestations alone
		text += "; it is for " + strings.Join(img.Platforms, ", ")
	}
	img.lack(errors.New(text))
}

// note says something that is not as it should be, though all is here.
func (img *warmingImage) note(text string) {
	if img.Note != "" {
		img.Note += "; "
	}
	img.Note += text
}

// below fetches what m, the manifest of t, names, as work, and gives what it says; nil
// where that can not be read. counted says that its layers are the image's.
func (img *warmingImage) below(work *sync.WaitGroup, t oci.Target, m *oci.Manifest, depth int, counted bool) *oci.Parsed {
	p, err := oci.ParseManifest(m.Bytes, m.MediaType)
	if err != nil {
		img.fail(err)
		return nil
	}
	if img.linksMissing(t, p) {
		img.cache.linkManifest(t, m, index.Named)
	}
	if p.Kind == oci.KindIndex {
		for _, d := range img.chosen(p) {
			if depth == maxWarmDepth {
				img.fail(fmt.Errorf("its indexes are nested more than %d deep", maxWarmDepth))
				break
			}
			work.Go(func() { img.child(work, withDigest(t, d.Digest), d, depth) })
		}
	} else {
		img.fetchBlobs(work, t, p, counted)
	}
	return p
}

// linksMissing tells whether t's repository does not know what its manifest names.
func (img *warmingImage) linksMissing(t oci.Target, p *oci.Parsed) bool {
	for _, d := range p.Children {
		if _, ok := img.cache.records.Link(withDigest(t, d.Digest)); !ok && !oci.IsForeign(d) {
			return true
		}
	}
	return false
}

// chosen gives the manifests of an index that are to be fetched, and notes which of the
// platforms it has not. An index of indexes may have them in each.
func (img *warmingImage) chosen(p *oci.Parsed) []v1.Descriptor {
	if img.platforms == nil {
		return p.Children
	}
	wanted := map[digest.Digest]bool{}
	nested := false
	for _, d := range p.Children {
		nested = nested || oci.IsIndex(d.MediaType)
	}
	var missing []string
	for _, platform := range img.platforms {
		if d, err := oci.SelectPlatform(p, platform); err == nil {
			wanted[d.Digest] = true
		} else {
			missing = append(missing, platform)
		}
	}
	if !nested {
		img.mu.Lock()
		img.missing = missing
		img.mu.Unlock()
	}
	var list []v1.Descriptor
	for _, d := range p.Children {
		attests := img.WarmOptions.Referrers && wanted[digest.Digest(d.Annotations[attestedDigest])]
		if wanted[d.Digest] || oci.IsIndex(d.MediaType) || attests {
			list = append(list, d)
		}
	}
	return list
}

// child fetches a manifest of an index and what it names. It lists the referrers of attestations too: Docker
// Engine 29 asks for them at each pull, and fails without an answer.
func (img *warmingImage) child(work *sync.WaitGroup, t oci.Target, d v1.Descriptor, depth int) {
	m, err := img.manifest(t)
	if err != nil {
		img.fail(err)
		return
	}
	attests := oci.IsAttestation(d)
	p := img.below(work, t, m, depth+1, !attests)
	if p == nil {
		return
	}
	if img.WarmOptions.Referrers {
		work.Go(func() { img.referrers(work, t, !attests, 0) })
	}
	if attests {
		return
	}
	if name := oci.PlatformName(d.Platform); name != "" {
		img.mu.Lock()
		if !slices.Contains(img.Platforms, name) {
			img.Platforms = append(img.Platforms, name)
		}
		img.mu.Unlock()
	}
}

// manifest gives the manifest of t, from here or from the upstream.
func (img *warmingImage) manifest(t oci.Target) (m *oci.Manifest, err error) {
	c := img.cache
	fetched := false
	fetch := func() (err error) {
		_, _, right := c.rightTo(t)
		held := right != mustFetch && c.holds(t.Digest)
		var st Status
		m, st, err = img.pullManifest(t, held)
		for img.WaitForQuota && isLimited(err) {
			if err := img.awaitLimit(img.up, err); err != nil {
				return err
			}
			m, st, err = img.pullManifest(t, held)
		}
		fetched = st != Hit && !held
		if err == nil && !c.holds(t.Digest) {
			err = fmt.Errorf("%s was fetched and could not be kept: %s", t, c.diskTrouble())
		}
		return err
	}
	mine, err := img.once(t.Digest, fetch)
	if err == nil && !mine {
		err = fetch() // it is here, and may be of another repository
	}
	if err != nil {
		return nil, err
	}
	c.uses.note(t.Digest, true)
	img.mu.Lock()
	defer img.mu.Unlock()
	if img.seen[t.Digest] {
		return m, nil
	}
	if len(img.content) >= maxWarmContent {
		return nil, errWarmContent
	}
	img.seen[t.Digest] = true
	img.content = append(img.content, t.Digest)
	size := int64(len(m.Bytes))
	switch {
	case fetched:
		img.BytesFetched += size
		img.total += size
		img.come += size
	case mine:
		img.first += size
		fallthrough
	default:
		img.BytesHere += max(size, 0)
	}
	return m, nil
}

// pullManifest asks for t's manifest, which the cache holds, if not of this repository,
// or for which a pull is spent.
func (img *warmingImage) pullManifest(t oci.Target, held bool) (*oci.Manifest, Status, error) {
	if !held {
		end, err := img.pull(img.up)
		if err != nil {
			return nil, Miss, err
		}
		defer end()
	}
	if err := img.slots.Acquire(img.ctx, 1); err != nil {
		return nil, Miss, context.Cause(img.ctx)
	}
	defer img.slots.Release(1)
	if !held {
		img.count()
	}
	return img.cache.manifestByDigest(img.ctx, img.up, t)
}

// isLimited tells whether an upstream has refused a request for its limit.
func isLimited(err error) bool {
	var e *oci.Error
	return errors.As(err, &e) && e.Code == oci.CodeTooManyRequests
}

// diskTrouble says what is wrong with the disk.
func (c *Cache) diskTrouble() string {
	if s := c.disk.degraded(); s != "" {
		return s
	}
	return "see the log"
}

// fetchBlobs fetches the config and the layers of a manifest.
func (img *warmingImage) fetchBlobs(work *sync.WaitGroup, t oci.Target, p *oci.Parsed, counted bool) {
	for _, d := range p.Children {
		img.mu.Lock()
		again := img.seen[d.Digest]
		img.seen[d.Digest] = true
		many := len(img.content) >= maxWarmContent
		if !again && !many {
			img.content = append(img.content, d.Digest)
			if counted && d.Digest != p.Config.Digest {
				img.Layers++
			}
		}
		img.mu.Unlock()
		if many {
			img.fail(errWarmContent)
			return
		}
		if !again {
			work.Go(func() {
				err := img.foreign(withDigest(t, d.Digest), d)
				if err == nil {
					err = img.blob(withDigest(t, d.Digest), saidSize(d))
				}
				switch {
				case err == nil:
				case oci.IsAbsent(err) && oci.IsForeign(d):
					img.leaveOut(d)
				default:
					img.fail(err)
				}
			})
		}
	}
}

// foreign asks, in a dry run, whether the upstream has t's blob d, if registries need not
// have it.
func (img *warmingImage) foreign(t oci.Target, d v1.Descriptor) error {
	if !img.DryRun || !oci.IsForeign(d) || img.cache.holds(t.Digest) {
		return nil
	}
	_, err := img.cache.confirm(img.ctx, img.up, t, img.cache.known())
	return err
}

// leaveOut notes that the upstream does not have a layer, which clients get from elsewhere.
func (img *warmingImage) leaveOut(d v1.Descriptor) {
	img.mu.Lock()
	defer img.mu.Unlock()
	img.elsewhere = append(img.elsewhere, d)
	img.content = slices.DeleteFunc(img.content, func(c digest.Digest) bool { return c == d.Digest })
}

// maxElsewhere is how many layers layersElsewhere names.
const maxElsewhere = 10

// layersElsewhere says which layers of an image its registry does not have, and where
// clients fetch them.
func layersElsewhere(layers []v1.Descriptor) string {
	var named []string
	for i, d := range layers {
		if i == maxElsewhere {
			named = append(named, fmt.Sprintf("and %d more", len(layers)-i))
			break
		}
		from := "an unknown place"
		if len(d.URLs) > 0 {
			from = d.URLs[0]
		}
		named = append(named, fmt.Sprintf("%s from %s", d.Digest, from))
	}
	if len(layers) == 1 {
		return "1 layer lies elsewhere: clients fetch " + named[0]
	}
	return fmt.Sprintf("%d layers lie elsewhere: clients fetch %s", len(layers), strings.Join(named, ", "))
}

// blob sees to it that t's blob is here.
func (img *warmingImage) blob(t oci.Target, size int64) error {
	mine, err := img.once(t.Digest, func() error { return img.fetchBlob(t, size) })
	if err == nil && !mine && !img.cache.maySend(t) {
		return img.fetchBlob(t, size) // it was fetched for another repository
	}
	if err == nil && !mine {
		img.mu.Lock()
		img.BytesHere += size
		img.mu.Unlock()
	}
	return err
}

// once runs fetch for d, unless another image of the run has done so with success, or
// does so just now. What failed for one may be had for another, of another repository.
func (img *warmingImage) once(d digest.Digest, fetch func() error) (mine bool, err error) {
	for {
		img.mu.Lock()
		other := img.claimed[d]
		claim := &warmClaim{done: make(chan struct{})}
		if other == nil {
			img.claimed[d] = claim
		}
		img.mu.Unlock()
		if other == nil {
			claim.err = fetch()
			if claim.err != nil {
				img.mu.Lock()
				delete(img.claimed, d)
				img.mu.Unlock()
			}
			close(claim.done)
			return true, claim.err
		}
		select {
		case <-other.done:
		case <-img.ctx.Done():
			return false, context.Cause(img.ctx)
		}
		if other.err == nil {
			return false, nil
		}
	}
}

// fetchBlob fetches t's blob, of size bytes, unless it is here.
func (img *warmingImage) fetchBlob(t oci.Target, size int64) error {
	c := img.cache
	here := func() {
		img.mu.Lock()
		defer img.mu.Unlock()
		img.BytesHere += size
		img.first += size
	}
	known := c.known()
	l, linked, right := c.rightTo(t)
	if right == mustAsk && !img.DryRun && c.holds(t.Digest) {
		var err error
		if l, right, err = c.prove(img.ctx, img.up, t, l, linked, known); err != nil {
			return err
		}
		linked = true
	}
	if (right == maySend || right == mustAsk && img.DryRun) && c.holds(t.Digest) {
		c.uses.note(t.Digest, false)
		here()
		return nil
	}
	if img.DryRun {
		img.mu.Lock()
		img.BytesToFetch += size
		img.mu.Unlock()
		return nil
	}
	img.mu.Lock()
	img.total += size
	img.mu.Unlock()
	if err := img.slots.Acquire(img.ctx, 1); err != nil {
		return context.Cause(img.ctx)
	}
	defer img.slots.Release(1)
	w := wanted{proved: right == maySend, joins: c.mayJoin(t, l, linked), size: size}
	for begun := time.Now(); ; {
		f, mine, err := c.join(img.up, t, w)
		switch {
		case errors.Is(err, errUnproved):
			if _, err := c.confirm(img.ctx, img.up, t, known); err != nil {
				return err
			}
			w.joins = true
			continue
		case err != nil:
			return err
		case f == nil:
			img.mu.Lock()
			img.total -= size
			img.mu.Unlock()
			here()
			return nil
		case !mine && f.over():
			if err := f.awaitGone(img.ctx); err != nil {
				return err
			}
			continue
		}
		err = img.follow(f, size)
		if errors.Is(err, errNoPlace) && time.Since(begun) < placePatience {
			continue // it has waited already
		}
		if err == nil && !c.holds(t.Digest) {
			return fmt.Errorf("%s was fetched and could not be kept: %s", t, c.diskTrouble())
		}
		if err != nil && img.ctx.Err() == nil {
			err = fillError(t, err)
		}
		return err
	}
}

// follow waits for a fill, and counts what it brings.
func (img *warmingImage) follow(f *blobFill, size int64) error {
	img.mu.Lock()
	img.fills[f] = struct{}{}
	img.mu.Unlock()
	err := f.awaitGone(img.ctx)
	img.mu.Lock()
	defer img.mu.Unlock()
	delete(img.fills, f)
	_, came := f.Progress()
	img.come += came
	img.BytesFetched += came
	if err == nil {
		err = f.Failure()
	}
	if left := size - came; err == nil && left > 0 { // of an earlier run
		img.BytesHere += left
		img.first += left
		img.come += left
	}
	return err
}

// referrers fetches what refers to t, and what refers to that. cosign says that it is
// asked for by cosign's tags too.
func (img *warmingImage) referrers(work *sync.WaitGroup, t oci.Target, cosign bool, depth int) {
	if depth == maxWarmDepth {
		return
	}
	list, _, err := img.cache.referrers(img.ctx, t)
	if err != nil && !oci.IsAbsent(err) {
		img.lack(fmt.Errorf("what refers to %s: %w", t, err))
	}
	for _, d := range list {
		img.referrer(work, withDigest(t, d.Digest), depth)
	}
	if !cosign || depth > 0 {
		return
	}
	for _, suffix := range cosignSuffixes {
		tag := t
		tag.Digest, tag.Tag = "", t.Digest.Algorithm().String()+"-"+t.Digest.Encoded()+suffix
		img.cosign(work, t, tag)
	}
}

// headWorks reports whether the upstream answers a HEAD of t's manifest, which is there:
// then it is believed that what it answers 404 to is not.
func (img *warmingImage) headWorks(t oci.Target) bool {
	img.head.Do(func() {
		_, err := img.up.origin.Resolve(img.ctx, t.Repository, t.Digest.String())
		img.headAnswered = err == nil
	})
	return img.headAnswered
}

// cosign fetches what stands under t, one of cosign's tags for subject.
func (img *warmingImage) cosign(work *sync.WaitGroup, subject, t oci.Target) {
	desc, err := img.up.origin.Resolve(img.ctx, t.Repository, t.Tag)
	if oci.IsHint(err) && !(oci.IsAbsent(err) && img.headWorks(subject)) {
		desc.Digest, err = img.get(t)
	}
	if oci.IsAbsent(err) {
		return
	}
	if rec, known := img.cache.records.Tag(t); err != nil && known {
		desc.Digest, err = rec.Digest, nil
	}
	if err != nil || desc.Digest == "" {
		if err != nil && !errors.Is(err, errOffline) {
			img.lack(fmt.Errorf("%s: %w", t, err))
		}
		return
	}
	if img.referrer(work, withDigest(t, desc.Digest), 0) && !img.DryRun {
		if _, err := img.keepTag(t); err != nil && !errors.Is(err, errOffline) {
			img.lack(err)
		}
	}
}

// referrer fetches one manifest that refers to another, with what it names.
func (img *warmingImage) referrer(work *sync.WaitGroup, t oci.Target, depth int) bool {
	if depth >= maxWarmDepth {
		return false
	}
	img.mu.Lock()
	again := img.seen[t.Digest]
	if !again {
		img.WarmedImage.Referrers++
	}
	many := img.WarmedImage.Referrers > maxWarmReferrers
	img.mu.Unlock()
	if again {
		return true
	}
	if many {
		img.lack(fmt.Errorf("more than %d manifests refer to it", maxWarmReferrers))
		return false
	}
	m, err := img.manifest(t)
	if err != nil {
		img.lack(err)
		return false
	}
	p, err := oci.ParseManifest(m.Bytes, m.MediaType)
	if err != nil {
		img.lack(err)
		return false
	}
	if img.linksMissing(t, p) {
		img.cache.linkManifest(t, m, index.Named)
	}
	if p.Kind == oci.KindManifest {
		img.fetchBlobs(work, t, p, false)
	} else {
		for _, d := range p.Children {
			img.referrer(work, withDigest(t, d.Digest), depth+1)
		}
	}
	work.Go(func() { img.referrers(work, t, false, depth+1) })
	return true
}
