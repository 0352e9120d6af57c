package cache

import (
	"fmt"
	"hash/maphash"
	"unsafe"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// smallBlob is the largest blob, in bytes, that memory keeps: configs are
	// smaller, layers are for the page cache and sendfile.
	smallBlob = 32 << 10
	// entryCost is about what an entry costs beside its name and its value, in bytes:
	// the entry itself and its places in ristretto's maps, which are not all full.
	entryCost = 256
	// wordCost is about what a map or the backing of a slice costs beside what it
	// holds, in bytes.
	wordCost = 64
	// largestShare is the largest part of the tier, as a divisor, that one entry may
	// take: a larger one would push out everything else.
	largestShare = 4
)

// memory is the tier in front of the disk: manifests, small blobs, and the
// records that say what may be served. It may forget anything at any time, and
// never holds what the disk or the upstream has not said. All methods are safe
// for concurrent use.
type memory struct {
	lru  *ristretto.Cache[uint64, *entry]
	most int64 // the largest cost of one entry
	seed maphash.Seed
	m    *metrics.Metrics
}

// entry is a value and what it is of: ristretto is given a hash of that only, so
// that looking it up makes no string, and other names may have the same.
type entry struct {
	name  name
	value any
}

// name says what an entry is of. Its strings are an upstream, a repository, and a
// tag or digest, as far as the kind has them.
type name struct {
	kind           kind
	upstream, repo string
	reference      string
}

type kind byte

const (
	ofManifest kind = iota
	ofBlob
	ofLink
	ofTag
	ofList
)

// hash gives the key of n.
func (m *memory) hash(n name) uint64 {
	var h maphash.Hash
	h.SetSeed(m.seed)
	_ = h.WriteByte(byte(n.kind)) // never fails
	for _, s := range [...]string{n.upstream, n.repo, n.reference} {
		_, _ = h.WriteString(s)
		_ = h.WriteByte(0)
	}
	return h.Sum64()
}

// newMemory makes a tier of about bytes bytes; of none where that is zero.
func newMemory(bytes int64, m *metrics.Metrics) (*memory, error) {
	if bytes <= 0 {
		return &memory{m: m}, nil
	}
	lru, err := ristretto.NewCache(&ristretto.Config[uint64, *entry]{
		// Ten times the number of entries that fit, of about a KiB, as
		// ristretto advises.
		NumCounters:        max(10*bytes/1024, 1000),
		MaxCost:            bytes,
		BufferItems:        64,
		IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, fmt.Errorf("memory tier of %d bytes: %w", bytes, err)
	}
	return &memory{lru: lru, most: bytes / largestShare, seed: maphash.MakeSeed(), m: m}, nil
}

// close ends the tier's goroutines.
func (m *memory) close() {
	if m.lru != nil {
		m.lru.Close()
	}
}

func (m *memory) ready(d digest.Digest) (*readyManifest, bool) {
	return find[*readyManifest](m, name{kind: ofManifest, reference: string(d)})
}

func (m *memory) manifest(d digest.Digest) (*oci.Manifest, bool) {
	r, ok := m.ready(d)
	if !ok {
		return nil, false
	}
	return r.Manifest, true
}

func (m *memory) setManifest(v *oci.Manifest) {
	r := ready(v)
	cost := int64(unsafe.Sizeof(*r)+unsafe.Sizeof(*v)) + int64(cap(v.Bytes)+len(v.MediaType)+len(v.Digest))
	m.set(name{kind: ofManifest, reference: string(v.Digest)}, r, cost)
}

func blobName(d digest.Digest) name { return name{kind: ofBlob, reference: string(d)} }

// blob gives the content of d where that is small, else how its file looked when
// it was verified, or neither. One look-up tells, for it is on the way of every
// hit.
func (m *memory) blob(d digest.Digest) (content []byte, small bool, known *verified) {
	switch v, _ := find[any](m, blobName(d)); v := v.(type) {
	case memoryBlob:
		return v, true, nil
	case *verified:
		return nil, false, v
	}
	return nil, false, nil
}

// smallBlob gives the content of d where that is small, with its digest; else
// nil.
func (m *memory) smallBlob(d digest.Digest) (Blob, digest.Digest) {
	e := m.get(blobName(d))
	if e == nil {
		return nil, ""
	}
	if _, small := e.value.(memoryBlob); !small {
		return nil, ""
	}
	m.m.MemoryHits.Inc()
	return e.value.(Blob), digest.Digest(e.name.reference)
}

// verifiedBlob gives how the file of d looked when it was verified, with its digest;
// nil where that is not known.
func (m *memory) verifiedBlob(d digest.Digest) (*verified, digest.Digest) {
	e := m.get(blobName(d))
	if e == nil {
		return nil, ""
	}
	v, ok := e.value.(*verified)
	if !ok {
		return nil, ""
	}
	m.m.MemoryHits.Inc()
	return v, digest.Digest(e.name.reference)
}

func (m *memory) setBlob(d digest.Digest, b []byte) {
	m.set(blobName(d), memoryBlob(b), int64(cap(b))+wordCost)
}

func (m *memory) setVerified(d digest.Digest, v *verified) {
	m.replace(blobName(d), v, int64(unsafe.Sizeof(*v)))
}

// recallVerified keeps what the index says. It may come late, behind what is
// newer; then the blob is verified once more.
func (m *memory) recallVerified(d digest.Digest, v *verified) {
	m.set(blobName(d), v, int64(unsafe.Sizeof(*v)))
}

func (m *memory) dropBlob(d digest.Digest) { m.drop(blobName(d)) }

// judgedLink is a link, and the number of the settings under which its repository was
// found to have the right to the content; zero if that was not looked at.
type judgedLink struct {
	index.Link
	settings uint64
}

func (m *memory) link(upstream, repo string, d digest.Digest) (index.Link, bool) {
	l, ok := find[judgedLink](m, name{ofLink, upstream, repo, string(d)})
	return l.Link, ok
}

// judgedLink returns the link of a repository to d if under these settings the
// repository has the right to the content.
func (m *memory) judgedLink(upstream, repo string, d digest.Digest, settings uint64) (index.Link, bool) {
	l, ok := find[judgedLink](m, name{ofLink, upstream, repo, string(d)})
	return l.Link, ok && (l.settings == settings || l.Proof == index.Fetched)
}

// setLink keeps a link. A stronger proof that is known stays.
func (m *memory) setLink(upstream, repo string, d digest.Digest, l index.Link) {
	m.setJudgedLink(upstream, repo, d, l, 0)
}

func (m *memory) setJudgedLink(upstream, repo string, d digest.Digest, l index.Link, settings uint64) {
	n := name{ofLink, upstream, repo, string(d)}
	if e := m.get(n); e != nil {
		if was, ok := e.value.(judgedLink); ok {
			l.Proof = l.Proof.Max(was.Proof)
		}
	}
	m.set(n, judgedLink{l, settings}, int64(unsafe.Sizeof(judgedLink{}))+int64(len(l.MediaType)))
}

// tag and list give what never stays behind what was set last.
func (m *memory) tag(upstream, repo, tag string) (index.Tag, bool) {
	return find[index.Tag](m, name{ofTag, upstream, repo, tag})
}

func (m *memory) setTag(t oci.Target, rec index.Tag) {
	m.replace(name{ofTag, t.Upstream, t.Repository, t.Tag}, rec, tagCost(rec))
}

func (m *memory) dropTag(t oci.Target) { m.drop(name{ofTag, t.Upstream, t.Repository, t.Tag}) }

func (m *memory) list(key string) (index.List, bool) {
	return find[index.List](m, name{kind: ofList, reference: key})
}

func (m *memory) setList(key string, l index.List) {
	m.replace(name{kind: ofList, reference: key}, l, listCost(l))
}

// tagCost returns about how many bytes a tag's record takes up.
func tagCost(rec index.Tag) int64 {
	cost := int64(unsafe.Sizeof(rec)) + int64(len(rec.Digest)+len(rec.MediaType)+len(rec.Previous))
	if h := rec.Held; h != nil {
		cost += int64(unsafe.Sizeof(*h)) + int64(len(h.Digest)+len(h.MediaType))
	}
	return cost
}

// listCost returns about how many bytes a list takes up as it is decoded.
func listCost(l index.List) int64 {
	cost := int64(unsafe.Sizeof(l)) + 2*wordCost
	for _, t := range l.Tags {
		cost += int64(len(t)) + int64(unsafe.Sizeof(t))
	}
	cost += int64(cap(l.Tags)-len(l.Tags)) * int64(unsafe.Sizeof(""))
	cost += int64(cap(l.Referrers)) * int64(unsafe.Sizeof(v1.Descriptor{}))
	for _, d := range l.Referrers {
		cost += descriptorCost(d)
	}
	return cost
}

// descriptorCost returns about how many bytes a descriptor takes up beside its struct.
func descriptorCost(d v1.Descriptor) int64 {
	cost := int64(len(d.MediaType) + len(d.Digest) + len(d.ArtifactType) + len(d.Data))
	for _, u := range d.URLs {
		cost += int64(len(u)) + int64(unsafe.Sizeof(u))
	}
	if d.Annotations != nil {
		cost += wordCost
	}
	for k, v := range d.Annotations {
		// Go's maps are between half and seven eighths full.
		cost += int64(len(k)+len(v)) + 3*int64(unsafe.Sizeof(k))
	}
	if p := d.Platform; p != nil {
		cost += int64(unsafe.Sizeof(*p)) + int64(len(p.Architecture)+len(p.OS)+len(p.OSVersion)+len(p.Variant))
		for _, f := range p.OSFeatures {
			cost += int64(len(f)) + int64(unsafe.Sizeof(f))
		}
	}
	return cost
}

func (m *memory) dropList(key string) { m.drop(name{kind: ofList, reference: key}) }

// get gives the entry of n, nil where there is none.
func (m *memory) get(n name) *entry {
	if m.lru == nil {
		return nil
	}
	if e, ok := m.lru.Get(m.hash(n)); ok && e.name == n {
		return e
	}
	return nil
}

// peek gives the value of n, and counts neither as a hit nor as a miss.
func peek[V any](m *memory, n name) (v V, ok bool) {
	if e := m.get(n); e != nil {
		v, ok = e.value.(V)
	}
	return v, ok
}

func find[V any](m *memory, n name) (V, bool) {
	if e := m.get(n); e != nil {
		if v, ok := e.value.(V); ok {
			m.m.MemoryHits.Inc()
			return v, true
		}
	}
	m.m.MemoryMisses.Inc()
	var none V
	return none, false
}

// set keeps what never changes; it may not be found at once, or ever. It keeps
// n's strings.
func (m *memory) set(n name, v any, cost int64) {
	if cost += costOf(n); m.lru != nil && cost <= m.most {
		m.lru.Set(m.hash(n), &entry{n, v}, cost)
	}
}

// costOf returns about how many bytes an entry of that name takes up beside its value.
func costOf(n name) int64 { return entryCost + int64(len(n.upstream)+len(n.repo)+len(n.reference)) }

// replace keeps what changes. Ristretto may drop a set and keep the value
// before it, so that value is dropped first, and the buffers that could still
// bring it are drained.
func (m *memory) replace(n name, v any, cost int64) {
	if m.lru == nil {
		return
	}
	m.drop(n)
	if cost += costOf(n); cost <= m.most {
		m.lru.Set(m.hash(n), &entry{n, v}, cost)
	}
}

func (m *memory) drop(n name) {
	if m.lru != nil {
		m.lru.Del(m.hash(n))
		m.lru.Wait()
	}
}

// dropAll is drop for many.
func (m *memory) dropAll(names []name) {
	if m.lru == nil || len(names) == 0 {
		return
	}
	for _, n := range names {
		m.lru.Del(m.hash(n))
	}
	m.lru.Wait()
}
