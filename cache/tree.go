package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// maxTreeNodes bounds a tree, and maxTreeBytes its documents and configs, each
	// counted as often as a walk down the tree comes to it, whatever strangers'
	// documents name.
	maxTreeNodes = 200_000
	maxTreeBytes = 64 << 20
	// maxTreeDepth bounds how deep indexes are nested that are looked into.
	maxTreeDepth = 8
	// maxConfig is the largest config that is read, in bytes.
	maxConfig = 4 << 20
)

// Kind says what a Node of a Tree is.
type Kind string

// The kinds.
const (
	KindIndex    Kind = "index"
	KindManifest Kind = "manifest"
	KindConfig   Kind = "config"
	// KindLayer is a layer, or another blob of an artifact.
	KindLayer Kind = "layer"
)

// Tree is what a reference names and all that is below it.
type Tree struct {
	// Target is what was asked for.
	Target oci.Target
	// Tag is the record of Target's tag; nil where it names a digest, or nothing is
	// known here of the tag.
	Tag *index.Tag
	// Root is the index or manifest that Target stands for.
	Root *Node
}

// Node is an index, a manifest or a blob in a Tree. A digest that is named twice
// has two Nodes, with the same Nodes below them; but one that is said to refer to what
// it is below itself has none, so that a walk down the tree ends.
type Node struct {
	// Descriptor is that by which the document above names it; of the root, and of
	// manifests that were read, media type and size are those of the bytes.
	v1.Descriptor
	Kind Kind
	// Stored says that the content is on disk, and that the repository may serve it.
	Stored bool
	// Foreign layers need not be at any registry, and are not fetched.
	Foreign bool
	// Left says that an index or manifest is for none of the platforms that were
	// asked for: nothing below it was looked at.
	Left bool
	// Bytes are those of an index or manifest, byte for byte, and of a config where
	// TreeOptions.Configs asks for that. Nil where they are not to be had; Missing
	// then says why.
	Bytes   []byte
	Missing error
	// Parsed is the document of Bytes; nil for blobs and for what can not be read.
	Parsed *oci.Parsed
	// Children are what the document names, in its order.
	Children []*Node
	// Referrers are the manifests that refer to this one, as far as that is known,
	// where TreeOptions.Referrers asks for them. ReferrersMissing says why that
	// could not be found out, where it was asked for.
	Referrers        []*Node
	ReferrersMissing error
	// ReferrersListed is set where the list of them is kept here, so that there were no
	// others when the upstream was last asked.
	ReferrersListed bool
	// Tag is set for a referrer that is found by a tag of its own, as cosign writes
	// signatures: "sha256-….sig".
	Tag string

	// walked is set once all below it has been looked at: so many Nodes, and so many
	// bytes of documents and configs.
	walked            bool
	below, bytesBelow int
}

// TreeOptions say what of a Tree is looked at.
type TreeOptions struct {
	// Platforms, "linux/arm/v7", are those of whose manifests in an index the tree
	// consists; none is all. What fits which is said by rewrite.SelectPlatform;
	// attestations go with what they attest.
	Platforms []string
	// Referrers has the manifests that refer to others in the tree: signatures, SBOMs.
	Referrers bool
	// Configs has the bytes of the configs.
	Configs bool
	// Documents has nobody look whether configs and layers are here: none is Stored.
	Documents bool
	// RootOnly looks at nothing below the root.
	RootOnly bool
	// Ask has the upstream asked for what is not here: the root, of an index the manifests
	// for AskPlatforms (none is all that is looked at), each of which may be a counted
	// pull, and with them their configs, and the referrers of the root. Nothing of that
	// is kept.
	Ask          bool
	AskPlatforms []string
}

// Tree gives what t names, with all below it, and what of it is here. It counts as no
// use of what it reads. Its error is *oci.Error where the root is not to be had, and
// says of an upstream that was not asked that it was not.
func (c *Cache) Tree(ctx context.Context, t oci.Target, o TreeOptions) (*Tree, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return nil, err
	}
	return c.tree(ctx, up, t, nil, o)
}

// keptTree gives the tree of t as it is here, also where its upstream is not configured
// any more.
func (c *Cache) keptTree(ctx context.Context, t oci.Target, o TreeOptions) (*Tree, error) {
	return c.keptTreeOf(ctx, t, nil, o)
}

// keptTreeOf is keptTree for a tag whose record is known; nil looks for it.
func (c *Cache) keptTreeOf(ctx context.Context, t oci.Target, rec *index.Tag, o TreeOptions) (*Tree, error) {
	o.Ask = false
	up, err := c.upstream(t.Upstream)
	if err != nil {
		up = &upstream{name: t.Upstream}
	}
	return c.tree(ctx, up, t, rec, o)
}

func (c *Cache) tree(ctx context.Context, up *upstream, t oci.Target, rec *index.Tag, o TreeOptions) (*Tree, error) {
	w := &walk{ctx: ctx, cache: c, up: up, target: t, TreeOptions: o, seen: map[digest.Digest]*Node{}}
	tree := &Tree{Target: t, Root: &Node{Descriptor: v1.Descriptor{Digest: t.Digest}}}
	if t.Tag != "" && rec == nil {
		if known, ok := c.records.PeekTag(t); ok {
			rec = &known
		}
	}
	if t.Tag != "" && rec != nil {
		tree.Tag = rec
		tree.Root.Descriptor = c.stoodAt(up, t, *rec)
	}
	w.read(tree.Root, true, o.Ask)
	if tree.Root.Bytes == nil {
		return nil, tree.Root.Missing
	}
	if o.RootOnly {
		return tree, nil
	}
	if err := w.expand(tree.Root, 0); err != nil {
		return nil, err
	}
	return tree, nil
}

// stoodAt gives what clients are given for t's tag while its record is rec and the
// upstream is not asked.
func (c *Cache) stoodAt(up *upstream, t oci.Target, rec index.Tag) v1.Descriptor {
	d := v1.Descriptor{Digest: rec.Digest, MediaType: rec.MediaType, Size: rec.Size}
	rule := up.rules.rule(t.Repository, t.Tag)
	_, held := rule.heldUntil(rec, time.Now())
	switch {
	case held && c.holds(rec.Held.Digest):
		return v1.Descriptor{Digest: rec.Held.Digest, MediaType: rec.Held.MediaType, Size: rec.Held.Size}
	case rec.Previous != "" && !c.holds(rec.Digest) && c.holds(rec.Previous):
		return v1.Descriptor{Digest: rec.Previous}
	}
	return d
}

// Nodes gives all of the tree, each digest once: what names something comes before
// it, referrers after what they refer to and all that is below that.
func (t *Tree) Nodes() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		t.Root.each(map[digest.Digest]bool{}, yield)
	}
}

func (n *Node) each(seen map[digest.Digest]bool, yield func(*Node) bool) bool {
	if seen[n.Digest] {
		return true
	}
	seen[n.Digest] = true
	if !yield(n) {
		return false
	}
	for _, list := range [][]*Node{n.Children, n.Referrers} {
		for _, below := range list {
			if !below.each(seen, yield) {
				return false
			}
		}
	}
	return true
}

// walk makes one Tree.
type walk struct {
	TreeOptions
	ctx    context.Context
	cache  *Cache
	up     *upstream
	target oci.Target
	// seen has what was looked into, by digest; nodes counts all, and bytes those of
	// documents and configs.
	seen  map[digest.Digest]*Node
	nodes int
	bytes int
}

// errTreeSize says that a tree is larger than any true image's.
var errTreeSize = &oci.Error{Code: oci.CodeManifestInvalid, Status: 502,
	Message: fmt.Sprintf("the image names more than %d manifests, configs and layers, or has more than %d MiB of manifests: it is not looked into", maxTreeNodes, maxTreeBytes>>20)}

func (w *walk) isTooLarge() bool { return w.nodes > maxTreeNodes || w.bytes > maxTreeBytes }

// add makes the Node of d. link is the repository's to the content of a config or layer;
// nil where there is none.
func (w *walk) add(d v1.Descriptor, kind Kind, link *index.Link) (*Node, error) {
	if w.nodes++; w.isTooLarge() {
		return nil, errTreeSize
	}
	n := &Node{Descriptor: d, Kind: kind, Foreign: kind == KindLayer && oci.IsForeign(d)}
	if kind == KindConfig || kind == KindLayer {
		n.Stored = w.isHere(d.Digest, link)
	}
	return n, nil
}

// isHere tells whether the content of d is on disk, and the repository, whose link to it is
// link, may serve it. What only another repository may serve is not here.
func (w *walk) isHere(d digest.Digest, link *index.Link) bool {
	if w.Documents || !w.cache.holds(d) {
		return false
	}
	if link == nil {
		return w.cache.mayHave(w.at(d), index.Link{}, false)
	}
	return w.cache.mayHave(w.at(d), *link, true)
}

// links gives the repository's links to what a document names, in its order; nil where there
// is none.
func (w *walk) links(children []v1.Descriptor) []*index.Link {
	if w.Documents {
		return make([]*index.Link, len(children))
	}
	ds := make([]digest.Digest, len(children))
	for i, d := range children {
		ds[i] = d.Digest
	}
	list := w.cache.index.LinksTo(w.target.Upstream, w.target.Repository, ds)
	for i, l := range list {
		if l == nil {
			if l, ok := w.cache.records.PeekLinkInMemory(w.at(ds[i])); ok {
				list[i] = &l
			}
		}
	}
	return list
}

// at is t for d.
func (w *walk) at(d digest.Digest) oci.Target { return withDigest(w.target, d) }

// read finds the bytes of an index or manifest: here, or where ask is set at the
// upstream.
func (w *walk) read(n *Node, root, ask bool) {
	c, d := w.cache, n.Digest
	var m *oci.Manifest
	if l, ok := c.records.PeekLink(w.at(d)); d != "" && ok && l.Manifest && c.mayHave(w.at(d), l, ok) {
		if m, n.Stored = c.storedManifest(d); !n.Stored {
			m, ok = c.rememberedManifest(d)
		}
		if ok {
			if l.MediaType != "" {
				m = &oci.Manifest{Digest: d, MediaType: l.MediaType, Bytes: m.Bytes}
			}
		} else {
			m = nil
		}
	}
	switch {
	case m != nil:
	case !ask:
		n.Missing = notHere(w.target, d, root)
	default:
		if m, n.Missing = w.ask(d, root); n.Missing != nil {
			m = nil
		}
	}
	if m == nil {
		n.Kind = KindManifest
		if oci.IsIndex(n.MediaType) {
			n.Kind = KindIndex
		}
		return
	}
	w.bytes += len(m.Bytes)
	n.Digest, n.MediaType, n.Size, n.Bytes = m.Digest, m.MediaType, int64(len(m.Bytes)), m.Bytes
	n.Kind = KindManifest
	if oci.IsIndex(m.MediaType) {
		n.Kind = KindIndex
	}
	if n.Parsed, n.Missing = oci.ParseManifest(m.Bytes, m.MediaType); n.Missing != nil {
		n.Parsed = nil
	}
}

// notHere says that what t names, or d of it, is not here and was not asked for.
func notHere(t oci.Target, d digest.Digest, root bool) error {
	if root {
		return oci.Errorf(oci.CodeManifestUnknown, "%s is not in the cache", t)
	}
	return oci.Errorf(oci.CodeManifestUnknown, "%s of %s is not in the cache", d, t)
}

// ask fetches an index or manifest for the walk alone.
func (w *walk) ask(d digest.Digest, root bool) (*oci.Manifest, error) {
	c, ref := w.cache, d.String()
	if root && w.target.Tag != "" {
		ref = w.target.Tag
	} else if _, _, right := c.rightTo(w.at(d)); right != mustFetch {
		if m, ok := c.peekManifest(d); ok {
			// Another repository's: a HEAD, which is no pull, says whether it is this one's.
			_, err := w.up.origin.Resolve(w.ctx, w.target.Repository, ref)
			if err == nil {
				return m, nil
			}
			if !oci.IsHint(err) {
				return nil, err
			}
		}
	}
	return w.up.origin.Manifest(w.ctx, w.target.Repository, ref)
}

// expand looks at what is below n, which has been read.
func (w *walk) expand(n *Node, depth int) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	if first := w.seen[n.Digest]; first != nil {
		if !first.walked {
			return nil // n is below first: what refers to what is an upstream's word alone
		}
		w.nodes += first.below
		w.bytes += first.bytesBelow
		if w.isTooLarge() {
			return errTreeSize
		}
		n.Children, n.Referrers, n.ReferrersMissing, n.ReferrersListed = first.Children, first.Referrers, first.ReferrersMissing, first.ReferrersListed
		return nil
	}
	w.seen[n.Digest] = n
	if w.isTooLarge() {
		return errTreeSize
	}
	nodes, bytes := w.nodes, w.bytes
	defer func() { n.below, n.bytesBelow, n.walked = w.nodes-nodes, w.bytes-bytes, true }()
	if n.Parsed != nil {
		var err error
		if n.Kind == KindIndex {
			err = w.expandIndex(n, depth)
		} else {
			err = w.expandManifest(n)
		}
		if err != nil {
			return err
		}
	}
	if w.Referrers {
		return w.expandReferrers(n, depth)
	}
	return nil
}

func (w *walk) expandIndex(n *Node, depth int) error {
	wanted, asked := fitting(n.Parsed, w.Platforms), fitting(n.Parsed, w.AskPlatforms)
	for _, d := range n.Parsed.Children {
		if wanted != nil && (oci.IsIndex(d.MediaType) || wanted[digest.Digest(d.Annotations[attestedDigest])]) {
			wanted[d.Digest] = true
		}
	}
	for _, d := range n.Parsed.Children {
		kind := KindManifest
		if oci.IsIndex(d.MediaType) {
			kind = KindIndex
		}
		child, err := w.add(d, kind, nil)
		if err != nil {
			return err
		}
		n.Children = append(n.Children, child)
		switch {
		case wanted != nil && !wanted[d.Digest]:
			child.Left = true
			child.Stored = w.isHere(d.Digest, w.links([]v1.Descriptor{d})[0])
		case depth == maxTreeDepth:
			child.Missing = fmt.Errorf("indexes are nested more than %d deep", maxTreeDepth)
		default:
			w.read(child, false, w.Ask && (asked == nil || asked[d.Digest] || kind == KindIndex))
			if err := w.expand(child, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// fitting gives the manifests of an index that are for some platforms; nil where there
// are none to be for.
func fitting(p *oci.Parsed, platforms []string) map[digest.Digest]bool {
	if len(platforms) == 0 {
		return nil
	}
	fitting := map[digest.Digest]bool{}
	for _, platform := range platforms {
		if d, err := oci.SelectPlatform(p, platform); err == nil {
			fitting[d.Digest] = true
		}
	}
	return fitting
}

// attestedDigest is the annotation by which BuildKit's attestations name what they are of.
const attestedDigest = "vnd.docker.reference.digest"

func (w *walk) expandManifest(n *Node) error {
	links := w.links(n.Parsed.Children)
	for i, d := range n.Parsed.Children {
		kind := KindLayer
		if d.Digest == n.Parsed.Config.Digest {
			kind = KindConfig
		}
		child, err := w.add(d, kind, links[i])
		if err != nil {
			return err
		}
		if kind == KindConfig && w.Configs {
			child.Bytes, child.Missing = w.config(child)
			if w.bytes += len(child.Bytes); w.isTooLarge() {
				return errTreeSize
			}
		}
		n.Children = append(n.Children, child)
	}
	return nil
}

// config reads a config.
func (w *walk) config(config *Node) ([]byte, error) {
	d := config.Descriptor
	if d.Size > maxConfig {
		return nil, fmt.Errorf("the config has %d bytes; at most %d are read", d.Size, maxConfig)
	}
	if config.Stored {
		if b, ok := w.cache.peekBlob(w.ctx, d.Digest); ok {
			return b, nil
		}
	}
	if !w.Ask {
		return nil, notHere(w.target, d.Digest, false)
	}
	body, err := w.up.origin.Blob(w.ctx, w.target.Repository, d.Digest, oci.Whole)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(body, maxConfig+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, fillError(w.at(d.Digest), err)
	}
	if d.Digest.Algorithm().FromBytes(b) != d.Digest {
		return nil, fillError(w.at(d.Digest), fill.ErrMismatch)
	}
	return b, nil
}

// cosignSuffixes end the tags under which cosign keeps what it has to say of a digest.
var cosignSuffixes = []string{".sig", ".att", ".sbom"}

var signatureTag = regexp.MustCompile(`^sha(256-[0-9a-f]{64}|384-[0-9a-f]{96}|512-[0-9a-f]{128})\.(sig|att|sbom)$`)

// IsSignatureTag reports whether cosign keeps a signature, an attestation or an SBOM under tag.
func IsSignatureTag(tag string) bool { return signatureTag.MatchString(tag) }

// expandReferrers adds what refers to n: as its list says, and by cosign's tags.
func (w *walk) expandReferrers(n *Node, depth int) error {
	if n.Bytes == nil || depth >= maxTreeDepth {
		return nil
	}
	c, t := w.cache, w.at(n.Digest)
	var signatures []string
	for _, suffix := range cosignSuffixes {
		signatures = append(signatures, n.Digest.Algorithm().String()+"-"+n.Digest.Encoded()+suffix)
	}
	list, known, tags := c.index.ReferrersOf(t.Upstream, t.Repository, n.Digest, signatures)
	if !known {
		list, known = c.records.PeekListInMemory(index.Referrers, t)
	}
	n.ReferrersListed = known
	if !known && depth == 0 && w.Ask {
		list.Referrers, n.ReferrersMissing = w.up.origin.Referrers(w.ctx, t.Repository, n.Digest)
	}
	there := map[digest.Digest]bool{}
	refer := func(d v1.Descriptor, tag string) error {
		if there[d.Digest] {
			return nil
		}
		there[d.Digest] = true
		child, err := w.add(d, KindManifest, nil)
		if err != nil {
			return err
		}
		child.Tag = tag
		quiet := *w
		quiet.Ask = false // each would be a pull
		quiet.read(child, false, false)
		n.Referrers = append(n.Referrers, child)
		err = quiet.expand(child, depth+1)
		w.nodes, w.bytes = quiet.nodes, quiet.bytes
		return err
	}
	for _, d := range list.Referrers {
		if err := refer(d, ""); err != nil {
			return err
		}
	}
	for _, tag := range signatures {
		if rec, ok := tags[tag]; ok {
			if err := refer(v1.Descriptor{Digest: rec.Digest, MediaType: rec.MediaType, Size: rec.Size}, tag); err != nil {
				return err
			}
		}
	}
	return nil
}

// VerifyNode hashes all bytes of n, a Node of t's tree: what is here, of which what is
// damaged is set aside, and else, without keeping it, what the upstream has. It gives nil
// where they are the digest's.
func (c *Cache) VerifyNode(ctx context.Context, t oci.Target, n *Node) error {
	if n.Stored {
		v := c.verifying(n.Digest, foundByScrub)
		v.hurry()
		return v.wait(ctx)
	}
	if n.Kind == KindIndex || n.Kind == KindManifest {
		if n.Bytes == nil {
			return n.Missing
		}
		return nil // it was hashed when it was read
	}
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return err
	}
	t = withDigest(t, n.Digest)
	body, err := up.origin.Blob(ctx, t.Repository, t.Digest, oci.Whole)
	if err != nil {
		return err
	}
	verifier := t.Digest.Verifier()
	// One byte more than there should be tells what does not end.
	_, err = io.Copy(verifier, io.LimitReader(body, n.Size+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return fillError(t, err)
	}
	if !verifier.Verified() {
		return fillError(t, fill.ErrMismatch)
	}
	return nil
}
