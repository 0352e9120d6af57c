package records

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/memory"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
)

// slowIndex is a plain map of records in place of the index. Each operation takes some time
// before it happens and some time after, so that operations of several goroutines overlap in
// every way.
type slowIndex struct {
	mu     sync.Mutex
	rnd    *rand.Rand
	tags   map[string]index.Tag
	links  map[string]index.Link
	lists  map[string]index.List
	broken bool
}

func newSlowIndex(seed uint64) *slowIndex {
	return &slowIndex{
		rnd:  rand.New(rand.NewPCG(seed, 1)),
		tags: map[string]index.Tag{}, links: map[string]index.Link{}, lists: map[string]index.List{},
	}
}

// do runs op at a moment of its own.
func (x *slowIndex) do(op func()) {
	x.pause()
	x.mu.Lock()
	op()
	x.mu.Unlock()
	x.pause()
}

func (x *slowIndex) pause() {
	x.mu.Lock()
	d := time.Duration(x.rnd.IntN(4)) * time.Millisecond
	x.mu.Unlock()
	time.Sleep(d)
}

var errBroken = errors.New("the disk is full")

func at(parts ...string) string { return fmt.Sprint(parts) }

func (x *slowIndex) Tag(up, repo, tag string) (rec index.Tag, ok bool) {
	x.do(func() { rec, ok = x.tags[at(up, repo, tag)] })
	return rec, ok
}

func (x *slowIndex) Touch(up, repo, tag string, rec index.Tag) {
	x.do(func() { x.tags[at(up, repo, tag)] = rec })
}

func (x *slowIndex) DropTags(up, repo string, tags []string, _ *index.Watch) (n int, err error) {
	x.do(func() {
		for _, tag := range tags {
			if _, ok := x.tags[at(up, repo, tag)]; ok {
				n++
			}
			delete(x.tags, at(up, repo, tag))
		}
	})
	return n, nil
}

func (x *slowIndex) Link(up, repo string, d digest.Digest) (l index.Link, ok bool) {
	x.do(func() { l, ok = x.links[at(up, repo, string(d))] })
	return l, ok
}

func (x *slowIndex) DropLinks(up, repo string, ds []digest.Digest, _ *index.Watch) (dropped []digest.Digest, err error) {
	x.do(func() {
		for _, d := range ds {
			delete(x.links, at(up, repo, string(d)))
		}
	})
	return ds, nil
}

func (x *slowIndex) List(kind, up, repo, of string) (l index.List, ok bool) {
	x.do(func() { l, ok = x.lists[at(kind, up, repo, of)] })
	return l, ok
}

func (x *slowIndex) PutList(kind, up, repo, of string, l index.List) error {
	x.do(func() { x.lists[at(kind, up, repo, of)] = l })
	return nil
}

func (x *slowIndex) DropLists(list []index.ListName, _ *index.Watch) error {
	x.do(func() {
		for _, l := range list {
			delete(x.lists, at(l.Kind, l.Upstream, l.Repository, l.Of))
		}
	})
	return nil
}

func (x *slowIndex) DropNames(_ func(index.Name, index.Tag) int, gone func(bool, []index.Name)) error {
	var names []index.Name
	x.do(func() {
		clear(x.tags)
		for i := range someNames {
			names = append(names, index.Name{Upstream: "hub", Repository: "app", Reference: tagOf(i)})
		}
	})
	gone(false, names)
	return nil
}

func (x *slowIndex) Put(changes ...index.Change) (err error) {
	x.do(func() {
		if x.broken {
			err = errBroken
			return
		}
		for _, c := range changes {
			if c.Tag != "" {
				x.tags[at(c.Upstream, c.Repository, c.Tag)] = c.Record
			}
			for d, l := range c.Links {
				if was, ok := x.links[at(c.Upstream, c.Repository, string(d))]; ok {
					l.Proof = l.Proof.Max(was.Proof)
				}
				x.links[at(c.Upstream, c.Repository, string(d))] = l
			}
			for d, l := range c.Referrers {
				x.lists[at(index.Referrers, c.Upstream, c.Repository, string(d))] = l
			}
		}
	})
	return err
}

// someNames is how many tags, digests and lists the model test knows.
const someNames = 4

func tagOf(i int) string           { return fmt.Sprint("tag", i) }
func digestOf(i int) digest.Digest { return digest.FromString(fmt.Sprint(i)) }

func target(i int) oci.Target {
	return oci.Target{Upstream: "hub", Repository: "app", Tag: tagOf(i), Digest: digestOf(i)}
}

func newRecords(t *testing.T, x Index, bytes int64) *Records {
	t.Helper()
	tier, err := memory.New(bytes, metrics.Discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tier.Close)
	return New(x, tier)
}

// TestMemoryAndIndexAgree lets several goroutines read, write and drop the same few records at
// random. Whenever all have ended, what the records say is what a plain map says; and what one
// goroutine reads of a name that nobody else writes is what it has written.
func TestMemoryAndIndexAgree(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { agree(t, seed) })
		})
	}
}

func agree(t *testing.T, seed uint64) {
	x := newSlowIndex(seed)
	tier, err := memory.New(1<<20, metrics.Discard())
	if err != nil {
		t.Fatal(err)
	}
	defer tier.Close() // within the bubble: its goroutines are of it
	r := New(x, tier)
	for round := range 20 {
		var all sync.WaitGroup
		for n := range 5 {
			rnd := rand.New(rand.NewPCG(seed, uint64(100*round+n)))
			all.Go(func() {
				for range 6 {
					act(t, r, rnd)
				}
				ownTag(t, r, rnd, fmt.Sprint("own", n))
			})
		}
		all.Wait()
		tier.Wait()
		compare(t, r, x)
	}
}

// act does one thing at random with one record at random.
func act(t *testing.T, r *Records, rnd *rand.Rand) {
	n := target(rnd.IntN(someNames))
	value := digest.FromString(fmt.Sprint(rnd.Int()))
	proof := []index.Proof{index.Named, index.Confirmed, index.Fetched}[rnd.IntN(3)]
	link := map[digest.Digest]index.Link{n.Digest: {Size: rnd.Int64N(100), Proof: proof}}
	var err error
	switch rnd.IntN(14) {
	case 0, 1:
		r.Tag(n)
	case 2:
		err = r.Put(index.Change{Upstream: n.Upstream, Repository: n.Repository, Tag: n.Tag, Record: index.Tag{Digest: value}, Links: link})
	case 3:
		r.TouchTag(n, index.Tag{Digest: value})
	case 4:
		_, err = r.DropTags(n.Upstream, n.Repository, []string{n.Tag}, nil)
	case 5, 6:
		r.Link(n)
	case 7:
		err = r.Put(index.Change{Upstream: n.Upstream, Repository: n.Repository, Links: link})
	case 8:
		_, err = r.DropLinks(n.Upstream, n.Repository, []digest.Digest{n.Digest}, nil)
	case 9:
		r.JudgeLink(n, 1, func(_ index.Link, linked bool) bool { return linked })
	case 10:
		r.List(index.Tags, n)
	case 11:
		err = r.PutList(index.Tags, n, index.List{Tags: []string{string(value)}})
	case 12:
		err = r.DropLists([]index.ListName{{Kind: index.Tags, Upstream: n.Upstream, Repository: n.Repository, Of: string(n.Digest)}}, nil)
	case 13:
		if rnd.IntN(2) == 0 {
			err = r.DropNames(nil, func(bool, int) {})
			break
		}
		err = r.PutAll(index.Change{Upstream: n.Upstream, Repository: n.Repository, Tag: n.Tag, Record: index.Tag{Digest: value}, Links: link,
			Referrers: map[digest.Digest]index.List{n.Digest: {Tags: []string{string(value)}}}})
	}
	if err != nil {
		t.Error(err)
	}
}

// ownTag writes and drops a tag that is this goroutine's alone.
func ownTag(t *testing.T, r *Records, rnd *rand.Rand, tag string) {
	n := oci.Target{Upstream: "hub", Repository: "app", Tag: tag}
	value := digest.FromString(fmt.Sprint(rnd.Int()))
	if err := r.Put(index.Change{Upstream: n.Upstream, Repository: n.Repository, Tag: tag, Record: index.Tag{Digest: value}}); err != nil {
		t.Error(err)
	}
	if rec, ok := r.Tag(n); !ok || rec.Digest != value {
		// DropNames of another goroutine forgets all tags.
		if ok {
			t.Errorf("%s is %v, and was just written as %v", tag, rec.Digest, value)
		}
	}
	if _, err := r.DropTags(n.Upstream, n.Repository, []string{tag}, nil); err != nil {
		t.Error(err)
	}
	if rec, ok := r.Tag(n); ok {
		t.Errorf("%s is %v, and was just dropped", tag, rec.Digest)
	}
}

// compare holds what the records say against the map, while nothing runs.
func compare(t *testing.T, r *Records, x *slowIndex) {
	t.Helper()
	for i := range someNames {
		n := target(i)
		rec, ok := r.Tag(n)
		if want, known := x.tags[at(n.Upstream, n.Repository, n.Tag)]; ok != known || rec.Digest != want.Digest {
			t.Errorf("%s: got %v, %v, want %v, %v", n.Tag, rec.Digest, ok, want.Digest, known)
		}
		l, ok := r.Link(n)
		if want, known := x.links[at(n.Upstream, n.Repository, string(n.Digest))]; ok != known || l != want {
			t.Errorf("link %d: got %+v, %v, want %+v, %v", i, l, ok, want, known)
		}
		if _, ok := r.JudgedLink(n, 1); ok && !known(x, n) {
			t.Errorf("link %d is judged, and isn't there", i)
		}
		for _, kind := range []string{index.Tags, index.Referrers} {
			list, ok := r.List(kind, n)
			want, known := x.lists[at(kind, n.Upstream, n.Repository, string(n.Digest))]
			if ok != known || !slices.Equal(list.Tags, want.Tags) {
				t.Errorf("%s of %d: got %v, %v, want %v, %v", kind, i, list.Tags, ok, want.Tags, known)
			}
		}
	}
}

func known(x *slowIndex, n oci.Target) bool {
	_, ok := x.links[at(n.Upstream, n.Repository, string(n.Digest))]
	return ok
}

// TestWhatTheDiskDoesNotTakeIsInMemory: a write that fails is served from memory.
func TestWhatTheDiskDoesNotTakeIsInMemory(t *testing.T) {
	x := newSlowIndex(1)
	x.broken = true
	r := newRecords(t, x, 1<<20)
	n := target(1)
	err := r.Put(index.Change{Upstream: n.Upstream, Repository: n.Repository, Tag: n.Tag, Record: index.Tag{Digest: n.Digest},
		Links: map[digest.Digest]index.Link{n.Digest: {Manifest: true, Proof: index.Fetched}}})
	if !errors.Is(err, errBroken) {
		t.Errorf("the error is %v", err)
	}
	r.memory.Wait()
	if rec, ok := r.Tag(n); !ok || rec.Digest != n.Digest {
		t.Errorf("the tag: %+v, %v", rec, ok)
	}
	if rec, ok := r.PeekTag(n); !ok || rec.Digest != n.Digest {
		t.Errorf("a look at the tag: %+v, %v", rec, ok)
	}
	if l, ok := r.Link(n); !ok || !l.Manifest {
		t.Errorf("the link: %+v, %v", l, ok)
	}
	if l, ok := r.PeekLink(n); !ok || !l.Manifest {
		t.Errorf("a look at the link: %+v, %v", l, ok)
	}
}

// TestARightIsForgottenWithItsLinkAndItsSettings: JudgedLink says yes only under the settings
// that a link was judged by, unless its content was fetched for its repository.
func TestARightIsForgottenWithItsLinkAndItsSettings(t *testing.T) {
	r := newRecords(t, newSlowIndex(1), 1<<20)
	n := target(1)
	put := func(p index.Proof) {
		if err := r.Put(index.Change{Upstream: n.Upstream, Repository: n.Repository, Links: map[digest.Digest]index.Link{n.Digest: {Proof: p}}}); err != nil {
			t.Fatal(err)
		}
		r.memory.Wait()
	}
	judge := func() {
		r.JudgeLink(n, 7, func(index.Link, bool) bool { return true })
		r.memory.Wait()
	}
	want := func(what string, settings uint64, want bool) {
		t.Helper()
		if _, ok := r.JudgedLink(n, settings); ok != want {
			t.Errorf("%s, settings %d: got %v, want %v", what, settings, ok, want)
		}
	}
	judge()
	want("not linked", 7, false)
	put(index.Named)
	want("not judged", 7, false)
	judge()
	want("judged", 7, true)
	want("judged", 8, false)
	if _, err := r.DropLinks(n.Upstream, n.Repository, []digest.Digest{n.Digest}, nil); err != nil {
		t.Fatal(err)
	}
	want("dropped", 7, false)
	put(index.Fetched)
	want("fetched", 8, true)
}

// TestRecordsAreThoseOfARealIndex runs the operations once on a real index.
func TestRecordsAreThoseOfARealIndex(t *testing.T) {
	ix, _, err := index.Open(filepath.Join(t.TempDir(), "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ix.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, bytes := range []int64{0, 1 << 20} {
		r := newRecords(t, ix, bytes)
		n := target(1)
		links := map[digest.Digest]index.Link{}
		for i := range 600 { // several of a stripe
			links[digestOf(i)] = index.Link{Size: int64(i), Proof: index.Fetched}
		}
		if err := r.Put(index.Change{Upstream: n.Upstream, Repository: n.Repository, Tag: n.Tag, Record: index.Tag{Digest: n.Digest, Checked: time.Now()}, Links: links}); err != nil {
			t.Fatal(err)
		}
		r.memory.Wait()
		if bytes > 0 {
			inMemory := 0
			for d := range maps.Keys(links) {
				if _, ok := r.PeekLinkInMemory(oci.Target{Upstream: n.Upstream, Repository: n.Repository, Digest: d}); ok {
					inMemory++
				}
			}
			if inMemory < 300 { // ristretto may drop some of so many at once
				t.Errorf("%d of 600 links are in memory", inMemory)
			}
		}
		for i := range 600 {
			if l, ok := r.Link(oci.Target{Upstream: n.Upstream, Repository: n.Repository, Digest: digestOf(i)}); !ok || l.Size != int64(i) {
				t.Fatalf("link %d: %+v, %v", i, l, ok)
			}
		}
		if rec, ok := r.Tag(n); !ok || rec.Digest != n.Digest {
			t.Errorf("the tag: %+v, %v", rec, ok)
		}
		if dropped, err := r.DropTags(n.Upstream, n.Repository, []string{n.Tag}, nil); err != nil || dropped != 1 {
			t.Errorf("dropped %d, %v", dropped, err)
		}
		if rec, ok := r.Tag(n); ok {
			t.Errorf("the dropped tag is %+v", rec)
		}
	}
}
