package records

import (
	"unsafe"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/memory"
	"github.com/entrepot-dev/entrepot/oci"
)

// listName names the list of a kind (index.Tags, index.Referrers). of is the digest that
// manifests refer to, or empty.
func listName(kind, upstream, repo, of string) memory.Name {
	return memory.Name{Kind: memory.List, Upstream: upstream, Repo: repo, Reference: kind + "\x00" + of}
}

func nameOf(kind string, t oci.Target) memory.Name {
	return listName(kind, t.Upstream, t.Repository, string(t.Digest))
}

// ListInMemory returns a list of t's repository, or of what refers to t's digest, if memory
// has it. It must not be changed.
func (r *Records) ListInMemory(kind string, t oci.Target) (index.List, bool) {
	return memory.Find[index.List](r.memory, nameOf(kind, t))
}

// List is ListInMemory that looks into the index too. A list may have megabytes, and is
// decoded for each call that doesn't find it in memory: the caller bounds how many do so at
// a time.
func (r *Records) List(kind string, t oci.Target) (index.List, bool) {
	if l, ok := r.ListInMemory(kind, t); ok {
		return l, true
	}
	n := nameOf(kind, t)
	s := r.stripe(n)
	number := s.look()
	l, ok := r.index.List(kind, t.Upstream, t.Repository, string(t.Digest))
	if ok {
		s.after(number, func() { r.memory.Replace(n, l, listCost(l)) })
	}
	return l, ok
}

// PeekListInMemory is ListInMemory that counts as no hit.
func (r *Records) PeekListInMemory(kind string, t oci.Target) (index.List, bool) {
	return memory.Peek[index.List](r.memory, nameOf(kind, t))
}

// PutList keeps a list in the index and then in memory. The error is the index's; memory has
// the list all the same.
func (r *Records) PutList(kind string, t oci.Target, l index.List) error {
	return r.putList(kind, t, l, func() error {
		return r.index.PutList(kind, t.Upstream, t.Repository, string(t.Digest), l)
	})
}

// RememberList keeps a list in memory alone.
func (r *Records) RememberList(kind string, t oci.Target, l index.List) {
	_ = r.putList(kind, t, l, func() error { return nil })
}

func (r *Records) putList(kind string, t oci.Target, l index.List, put func() error) error {
	n := nameOf(kind, t)
	return r.write([]write{{n, l, listCost(l)}}, put)
}

// DropLists forgets lists, but those of which w has seen that something was put. w may be
// nil.
func (r *Records) DropLists(list []index.ListName, w *index.Watch) error {
	err := r.index.DropLists(list, w)
	names := make([]memory.Name, 0, len(list))
	for _, l := range list {
		names = append(names, listName(l.Kind, l.Upstream, l.Repository, l.Of))
	}
	r.forget(names)
	return err
}

// listCost returns about how many bytes a list takes up as it is decoded.
func listCost(l index.List) int64 {
	cost := int64(unsafe.Sizeof(l)) + 2*memory.WordCost
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
		cost += memory.WordCost
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
