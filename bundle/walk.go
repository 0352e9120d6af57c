package bundle

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// walk looks through an image for what is wanted of it.
type walk struct {
	*planner
	in   oci.Target
	seen map[digest.Digest]bool
	// found is what the image consists of, manifests those of it, and missing what of it
	// is not here.
	found     []stored
	manifests []*cache.Node
	missing   []string
	// took are the platforms that were taken, and partial those of which something is
	// missing.
	took, partial []string
	// named are the manifests of indexes, also those that are not taken.
	named []digest.Digest
}

// stored is content that is here, since a time.
type stored struct {
	Content
	stored time.Time
}

func (w *walk) lack(what string, n *cache.Node, platform string) {
	if platform != "" {
		what += " for " + platform
	}
	w.missing = append(w.missing, fmt.Sprintf("%s %s", what, n.Digest))
}

// node takes n and what is wanted of what it names. platform is the one that it is for.
func (w *walk) node(n *cache.Node, platform string) {
	if w.seen[n.Digest] {
		return
	}
	w.seen[n.Digest] = true
	size, at, here := w.from.Stored(oci.Target{Upstream: w.in.Upstream, Repository: w.in.Repository, Digest: n.Digest})
	found := stored{Content{Digest: n.Digest, Size: size}, at}
	isManifest := n.Kind == cache.KindIndex || n.Kind == cache.KindManifest
	switch {
	case !here && n.Foreign: // registries need not have it
		return
	case !here, isManifest && n.Bytes == nil:
		w.lack(string(n.Kind), n, platform)
		return
	case isManifest && n.Parsed == nil:
		w.lack("a manifest that can be read as one:", n, platform)
		return
	}
	if isManifest {
		found.MediaType = n.MediaType
		w.manifests = append(w.manifests, n)
	}
	w.found = append(w.found, found)
	if n.Kind == cache.KindIndex {
		w.index(n)
		return
	}
	for _, child := range n.Children {
		w.node(child, platform)
	}
}

// index takes what is wanted of what an index names.
func (w *walk) index(n *cache.Node) {
	before := len(w.found)
	required := w.required(n.Parsed)
	var partial []*cache.Node // those that nobody named
	for _, child := range n.Children {
		w.named = append(w.named, child.Digest)
		switch {
		case oci.IsAttestation(child.Descriptor):
		case required[child.Digest]:
			w.platform(child)
		case w.platforms.here && child.Stored && child.Kind == cache.KindManifest:
			if !w.ifWhole(child) {
				partial = append(partial, child)
				break
			}
			w.tookPlatform(child)
		case child.Kind == cache.KindIndex:
			w.ifWhole(child)
		}
	}
	for _, child := range n.Children {
		of := digest.Digest(child.Annotations["vnd.docker.reference.digest"])
		if oci.IsAttestation(child.Descriptor) && (of == "" || w.seen[of]) {
			w.ifWhole(child)
		}
	}
	none := len(w.found) == before && len(w.missing) == 0
	for _, child := range partial {
		if none {
			w.platform(child) // there is nothing else to take: say what is missing
		} else if name := oci.PlatformName(child.Platform); name != "" {
			w.partial = append(w.partial, name)
		}
	}
	if len(w.found) == before && len(w.missing) == 0 && len(n.Children) > 0 {
		w.missing = append(w.missing, w.whyNone(n))
	}
}

// required gives what of an index must be there.
func (w *walk) required(p *oci.Parsed) map[digest.Digest]bool {
	required := map[digest.Digest]bool{}
	for _, name := range w.platforms.names {
		if name == cache.AllPlatforms {
			for _, d := range p.Children {
				required[d.Digest] = true
			}
		} else if d, err := oci.SelectPlatform(p, name); err == nil {
			required[d.Digest] = true
		}
	}
	return required
}

// platform takes a manifest of an index.
func (w *walk) platform(n *cache.Node) {
	name, missing := oci.PlatformName(n.Platform), len(w.missing)
	w.node(n, name)
	switch {
	case len(w.missing) == missing:
		w.tookPlatform(n)
	case name != "":
		w.partial = append(w.partial, name)
	}
}

// tookPlatform notes the platform of a manifest that was taken.
func (w *walk) tookPlatform(n *cache.Node) {
	if name := oci.PlatformName(n.Platform); name != "" && !slices.Contains(w.took, name) {
		w.took = append(w.took, name)
	}
}

// whyNone says why nothing was taken of what an index names.
func (w *walk) whyNone(n *cache.Node) string {
	for _, name := range w.platforms.names {
		if _, err := oci.SelectPlatform(n.Parsed, name); err != nil && name != cache.AllPlatforms {
			return words(err)
		}
	}
	return fmt.Sprintf("all %d manifests that the index names", len(n.Children))
}

// ifWhole takes n if it is complete, and else does not miss it. It reports whether it is.
func (w *walk) ifWhole(n *cache.Node) bool {
	if !n.Stored {
		return false
	}
	before := *w
	before.seen = maps.Clone(w.seen)
	if w.node(n, ""); len(w.missing) == len(before.missing) {
		return true
	}
	*w = before
	return false
}

// firstPlatform gives the manifest of an image: n, or of an index the first of a
// platform that is taken; nil where there is none.
func firstPlatform(n *cache.Node, taken func(digest.Digest) bool) *cache.Node {
	if n.Kind == cache.KindManifest {
		return n
	}
	i := slices.IndexFunc(n.Children, func(child *cache.Node) bool {
		return child.Kind == cache.KindManifest && child.Parsed != nil && taken(child.Digest) && !oci.IsAttestation(child.Descriptor)
	})
	if i < 0 {
		return nil
	}
	return n.Children[i]
}
