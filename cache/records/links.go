package records

import (
	"unsafe"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/memory"
	"github.com/entrepot-dev/entrepot/oci"
)

// judgedLink is a link as memory has it, and the number of the settings under which its
// repository was found to have the right to the content; zero if that was not looked at.
type judgedLink struct {
	index.Link
	settings uint64
}

func linkName(upstream, repo string, d digest.Digest) memory.Name {
	return memory.Name{Kind: memory.Link, Upstream: upstream, Repo: repo, Reference: string(d)}
}

func linkWrite(n memory.Name, l index.Link) write {
	return write{n, judgedLink{Link: l}, linkCost(l)}
}

// strengthen gives the link that w writes, if it writes one, the proof that is known, should
// that be stronger: so the index keeps it too.
func (r *Records) strengthen(w *write) {
	l, ok := w.value.(judgedLink)
	if !ok {
		return
	}
	was, known := memory.Peek[judgedLink](r.memory, w.name)
	if !known {
		was.Link, _ = r.index.Link(w.name.Upstream, w.name.Repo, digest.Digest(w.name.Reference))
	}
	l.Proof = l.Proof.Max(was.Proof)
	w.value = l
}

// linkCost returns about how many bytes a link takes up.
func linkCost(l index.Link) int64 {
	return int64(unsafe.Sizeof(judgedLink{})) + int64(len(l.MediaType))
}

// LinkInMemory returns the link of t's repository to t's digest if memory has it. It
// allocates nothing and keeps none of t's strings.
func (r *Records) LinkInMemory(t oci.Target) (index.Link, bool) {
	l, ok := memory.Find[judgedLink](r.memory, linkName(t.Upstream, t.Repository, t.Digest))
	return l.Link, ok
}

// JudgedLink is LinkInMemory for a link under which, by the settings with this number, the
// repository was found to have the right to the content.
func (r *Records) JudgedLink(t oci.Target, settings uint64) (index.Link, bool) {
	l, ok := memory.Find[judgedLink](r.memory, linkName(t.Upstream, t.Repository, t.Digest))
	return l.Link, ok && (l.settings == settings || l.Proof == index.Fetched)
}

// Link returns the link of t's repository to t's digest; false if there is none. What it
// proves is for the caller to judge.
func (r *Records) Link(t oci.Target) (index.Link, bool) {
	if l, ok := r.LinkInMemory(t); ok {
		return l, true
	}
	n := linkName(t.Upstream, t.Repository, t.Digest)
	s := r.stripe(n)
	number := s.look()
	l, ok := r.index.Link(t.Upstream, t.Repository, t.Digest)
	if ok {
		s.after(number, func() { r.memory.Set(n, judgedLink{Link: l}, linkCost(l)) })
	}
	return l, ok
}

// JudgeLink is Link, and has judge decide whether the repository has the right to the
// content. Memory keeps a yes for the settings with this number, see JudgedLink.
func (r *Records) JudgeLink(t oci.Target, settings uint64, judge func(l index.Link, linked bool) bool) (index.Link, bool) {
	n := linkName(t.Upstream, t.Repository, t.Digest)
	s := r.stripe(n)
	number := s.look()
	l, linked := r.Link(t)
	if judge(l, linked) && linked {
		s.after(number, func() { r.memory.Set(n, judgedLink{l, settings}, linkCost(l)) })
	}
	return l, linked
}

// PeekLink is Link for those who pull nothing: it puts nothing into memory and counts as no
// hit.
func (r *Records) PeekLink(t oci.Target) (index.Link, bool) {
	if l, ok := r.index.Link(t.Upstream, t.Repository, t.Digest); ok {
		return l, true
	}
	return r.PeekLinkInMemory(t)
}

// PeekLinkInMemory is PeekLink for those who have looked into the index.
func (r *Records) PeekLinkInMemory(t oci.Target) (index.Link, bool) {
	l, ok := memory.Peek[judgedLink](r.memory, linkName(t.Upstream, t.Repository, t.Digest))
	return l.Link, ok
}

// DropLinks forgets links of a repository, but those that w has seen to be put again. It
// returns those that it has forgotten. w may be nil.
func (r *Records) DropLinks(upstream, repo string, ds []digest.Digest, w *index.Watch) (dropped []digest.Digest, err error) {
	if len(ds) == 0 {
		return nil, nil
	}
	dropped, err = r.index.DropLinks(upstream, repo, ds, w)
	names := make([]memory.Name, 0, len(dropped))
	for _, d := range dropped {
		names = append(names, linkName(upstream, repo, d))
	}
	r.forget(names)
	return dropped, err
}
