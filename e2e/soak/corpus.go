package main

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
)

// source is one upstream of the proxy, and its hubs, which have the same content.
type source struct {
	name string
	hubs []*hub.Hub
	// calm says that its hubs have quirks, and never fail.
	calm bool
}

// entry is an image under a name.
type entry struct {
	source *source
	repo   string
	image  *image.Image
	// referrer is what refers to the image.
	referrer digest.Digest
}

// path gives where the proxy has kind ("manifests") of this repository.
func (e *entry) path(kind, ref string) string {
	return "/v2/" + e.source.name + "/" + e.repo + "/" + kind + "/" + ref
}

// movingTag is the tag that stands for one image after another; fixedTag stands
// for one only.
const (
	movingTag = "latest"
	fixedTag  = "1.0"
	// spareTag makes lists of tags longer than the shortest page. Nobody pulls it.
	spareTag = "next"
)

// corpus is what the registries have: the truth that clients compare with.
type corpus struct {
	entries []*entry
	// size is the size of all content, in bytes.
	size int64

	mu sync.Mutex
	// stood says what the moving tag of a repository has stood for.
	stood map[string]map[digest.Digest]*image.Image
}

// giant is the size of the largest layer, which alone is more than half of what
// the cache may hold.
func (o options) giant() int {
	if o.small {
		return 5 << 20
	}
	return 56 << 20
}

// maxSize is what the cache may hold: less than the corpus is.
func (o options) maxSize() int64 {
	if o.small {
		return 8 << 20
	}
	return 100 << 20
}

func newCorpus(o options, sources []*source) *corpus {
	rnd := rand.New(rand.NewPCG(o.seed, 1))
	c := &corpus{stood: map[string]map[digest.Digest]*image.Image{}}
	images := 48
	if o.small {
		images = 32
	}
	size := func() int {
		n := 1<<10 + rnd.IntN(64<<10)
		switch k := rnd.IntN(10); {
		case k < 3:
			n = 64<<10 + rnd.IntN(2<<20)
		case k == 3 && o.small:
			n = 1<<20 + rnd.IntN(2<<20)
		case k == 3:
			n = 4<<20 + rnd.IntN(36<<20)
		case o.small:
			n /= 8
		}
		return n
	}
	for n := range images {
		opts := image.Options{Seed: o.seed + uint64(n)}
		s, copied := sources[n%len(sources)], sources[(n/4)%len(sources)]
		for range 1 + rnd.IntN(3) {
			opts.Layers = append(opts.Layers, image.Layer{Size: size(), Compression: image.None})
		}
		if n == images/2 {
			opts.Layers[0].Size = o.giant()
		}
		for l := range opts.Layers {
			if s.calm || n%4 == 0 && copied.calm {
				// Entrepot takes a quarter of the cache at most of a blob without a length.
				opts.Layers[l].Size = min(opts.Layers[l].Size, int(o.maxSize())/8)
			}
		}
		if rnd.IntN(2) == 0 {
			opts.Flavour = image.Docker
		}
		var i *image.Image
		switch rnd.IntN(6) {
		case 0:
			opts.Layers = opts.Layers[:1]
			opts.Layers[0].Size /= 3
			i = image.Index(opts)
		case 1:
			i = image.Artifact(o.seed+uint64(n), "application/x.soak", size(), nil)
		default:
			i = image.New(opts)
		}
		c.push(s, fmt.Sprintf("soak/app-%02d", n), i)
		if n%4 == 0 { // the same content in another repository, of another upstream too
			c.push(copied, fmt.Sprintf("soak/copy-%02d", n), i)
		}
	}
	for _, e := range c.entries {
		c.size += e.image.Size()
	}
	return c
}

func (c *corpus) push(s *source, repo string, i *image.Image) {
	of := i.Descriptor()
	referrer := image.Artifact(uint64(len(c.entries)), "application/x.sig", 100, &of)
	for _, h := range s.hubs {
		h.Push(repo, fixedTag, i)
		h.Push(repo, spareTag, i)
		h.Push(repo, "", referrer)
	}
	e := &entry{source: s, repo: repo, image: i, referrer: referrer.Digest}
	c.entries = append(c.entries, e)
	c.move(e, i)
}

// move lets the moving tag of e's repository stand for i.
func (c *corpus) move(e *entry, i *image.Image) {
	key := e.source.name + "/" + e.repo
	c.mu.Lock()
	if c.stood[key] == nil {
		c.stood[key] = map[digest.Digest]*image.Image{}
	}
	c.stood[key][i.Digest] = i // before a client can get it
	c.mu.Unlock()
	for _, h := range e.source.hubs {
		h.Push(e.repo, movingTag, i)
	}
}

// standsFor gives the image with digest d that e's tag has stood for, or nil.
func (c *corpus) standsFor(e *entry, tag string, d digest.Digest) *image.Image {
	if tag == fixedTag {
		if d != e.image.Digest {
			return nil
		}
		return e.image
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stood[e.source.name+"/"+e.repo][d]
}

// choose gives an entry: some are asked for far more often than others.
func (c *corpus) choose(rnd *rand.Rand) *entry {
	// About Zipf's law: half of the requests go to an eighth of the images.
	n := int(float64(len(c.entries)) * pow3(rnd.Float64()))
	return c.entries[min(n, len(c.entries)-1)]
}

func pow3(f float64) float64 { return f * f * f }
