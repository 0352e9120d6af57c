package records

import (
	"unsafe"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/memory"
	"github.com/entrepot-dev/entrepot/oci"
)

func tagName(upstream, repo, tag string) memory.Name {
	return memory.Name{Kind: memory.Tag, Upstream: upstream, Repo: repo, Reference: tag}
}

func tagWrite(n memory.Name, rec index.Tag) write { return write{n, rec, tagCost(rec)} }

// tagCost returns about how many bytes a tag's record takes up.
func tagCost(rec index.Tag) int64 {
	cost := int64(unsafe.Sizeof(rec)) + int64(len(rec.Digest)+len(rec.MediaType)+len(rec.Previous))
	if h := rec.Held; h != nil {
		cost += int64(unsafe.Sizeof(*h)) + int64(len(h.Digest)+len(h.MediaType))
	}
	return cost
}

// TagInMemory returns the record of t's tag if memory has it. It allocates nothing and keeps
// none of t's strings.
func (r *Records) TagInMemory(t oci.Target) (index.Tag, bool) {
	return memory.Find[index.Tag](r.memory, tagName(t.Upstream, t.Repository, t.Tag))
}

// Tag returns the record of t's tag; false if none is known.
func (r *Records) Tag(t oci.Target) (index.Tag, bool) {
	if rec, ok := r.TagInMemory(t); ok {
		return rec, true
	}
	n := tagName(t.Upstream, t.Repository, t.Tag)
	s := r.stripe(n)
	number := s.look()
	rec, ok := r.index.Tag(t.Upstream, t.Repository, t.Tag)
	if ok {
		s.after(number, func() { r.memory.Replace(n, rec, tagCost(rec)) })
	}
	return rec, ok
}

// PeekTag is Tag for those who pull nothing: it puts nothing into memory and counts as no hit.
func (r *Records) PeekTag(t oci.Target) (index.Tag, bool) {
	if rec, ok := r.index.Tag(t.Upstream, t.Repository, t.Tag); ok {
		return rec, true
	}
	return memory.Peek[index.Tag](r.memory, tagName(t.Upstream, t.Repository, t.Tag))
}

// TouchTag keeps the record of a tag that was found unchanged. It doesn't wait for the disk:
// a crash in the next seconds may lose it.
func (r *Records) TouchTag(t oci.Target, rec index.Tag) {
	n := tagName(t.Upstream, t.Repository, t.Tag)
	_ = r.write([]write{tagWrite(n, rec)}, func() error {
		r.index.Touch(t.Upstream, t.Repository, t.Tag, rec)
		return nil
	})
}

// DropTags forgets tags of a repository, but those that w has seen to be put again. It
// returns how many it has forgotten. w may be nil.
func (r *Records) DropTags(upstream, repo string, tags []string, w *index.Watch) (dropped int, err error) {
	dropped, err = r.index.DropTags(upstream, repo, tags, w)
	names := make([]memory.Name, 0, len(tags))
	for _, tag := range tags {
		names = append(names, tagName(upstream, repo, tag))
	}
	r.forget(names)
	return dropped, err
}
