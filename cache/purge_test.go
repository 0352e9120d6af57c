package cache

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// stored lists what is stored, sorted.
func stored(t *testing.T, c *Cache) (list []digest.Digest) {
	t.Helper()
	if err := c.store.Walk(func(d digest.Digest, _ int64) error {
		list = append(list, d)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func purged(t *testing.T, c *Cache, o PurgeOptions) *Purged {
	t.Helper()
	p, err := c.Purge(t.Context(), o)
	if err != nil {
		t.Fatalf("purge %+v: %v", o, err)
	}
	return p
}

// pullTag pulls a tag with all that its platforms consist of.
func pullTag(t *testing.T, c *Cache, hub *registry, repo, tag string, platforms ...v1.Descriptor) {
	t.Helper()
	if _, _, err := c.Manifest(t.Context(), tagged(repo, tag), rewrite.Accept{}); err != nil {
		t.Fatal(err)
	}
	for _, d := range platforms {
		pullTree(t, c, hub, repo, d)
	}
}

func TestWhatIsPurgedIsFetchedAnewOrNotThere(t *testing.T) {
	for name, memory := range map[string]int64{"with memory": mib, "from disk": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := newRegistry()
				c := open(t, Options{MemoryBytes: memory}, map[string]*registry{"docker.io": hub})
				idx, amd64, arm64, _, signature := hub.addIndex("app", "1")
				pullTag(t, c, hub, "app", "1", amd64, arm64)
				pullTree(t, c, hub, "app", signature)
				if _, _, err := c.Referrers(t.Context(), digested("app", idx.Digest)); err != nil {
					t.Fatal(err)
				}
				pullTag(t, c, hub, "app", "1", amd64) // all of it hits, from memory where there is one
				settle()
				before := stored(t, c)
				one := tagged("app", "1")
				dry := purged(t, c, PurgeOptions{Target: one, Dry: true})
				if after := stored(t, c); !slices.Equal(before, after) {
					t.Errorf("a dry purge has left %d of %d blobs", len(after), len(before))
				}
				wantManifest(t, c, one, idx, Hit)
				done := purged(t, c, PurgeOptions{Target: one})
				if dry.Dry = false; !slices.Equal(done.Images, []string{"docker.io/app:1"}) || done.Blobs != len(before) || done.Tags != 1 || done.Lists != 1 ||
					dry.Blobs != done.Blobs || dry.Size != done.Size || dry.Links != done.Links || dry.Lists != done.Lists || dry.Tags != done.Tags {
					t.Errorf("purged %+v, and dry %+v; %d blobs were there", done, dry, len(before))
				}
				if left := stored(t, c); len(left) != 0 {
					t.Errorf("%v is left", left)
				}
				wantTotals(t, c)

				// While the upstream is down nothing of it is there.
				hub.set(errDown, 0)
				for _, target := range []oci.Target{one, digested("app", idx.Digest), digested("app", amd64.Digest)} {
					if _, _, err := c.Manifest(t.Context(), target, rewrite.Accept{}); !errors.Is(err, errDown) {
						t.Errorf("%v: %v, want that the upstream is down", target, err)
					}
					if _, _, err := c.Describe(t.Context(), target, rewrite.Accept{}); !errors.Is(err, errDown) {
						t.Errorf("HEAD of %v: %v, want that the upstream is down", target, err)
					}
				}
				for _, d := range hub.children(t, amd64) {
					if _, _, err := readBlob(t, c, digested("app", d)); err == nil {
						t.Errorf("%s is served", d)
					}
				}
				if _, _, err := c.Referrers(t.Context(), digested("app", idx.Digest)); !errors.Is(err, errDown) {
					t.Errorf("referrers: %v", err)
				}
				hub.set(nil, 0)
				time.Sleep(time.Minute)
				wantManifest(t, c, one, idx, Miss)
				wantManifest(t, c, digested("app", amd64.Digest), amd64, Miss)
				if _, err := c.Purge(t.Context(), PurgeOptions{Target: tagged("app", "2")}); !oci.IsAbsent(err) {
					t.Errorf("of what is not here: %v", err)
				}
				if _, err := c.Purge(t.Context(), PurgeOptions{Target: digested("other", amd64.Digest)}); !oci.IsAbsent(err) {
					t.Errorf("by another repository: %v", err)
				}
			})
		})
	}
}

func TestWhatOthersNameOutlivesAPurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub})
		shared, own, third := content(1, 5000), content(2, 5000), content(3, 5000)
		one, two := hub.addImage("app", shared, own), hub.addImage("app", shared, third)
		elsewhere := hub.addImage("other", own)
		hub.tag("app", "1", one)
		hub.tag("app", "same", one)
		hub.tag("app", "2", two)
		hub.tag("other", "1", elsewhere)
		pullTag(t, c, hub, "app", "1", one)
		pullTag(t, c, hub, "app", "same")
		pullTag(t, c, hub, "app", "2", two)
		pullTag(t, c, hub, "other", "1", elsewhere)
		settle()
		// Another tag stands for the same: the record goes, and nothing else.
		if p := purged(t, c, PurgeOptions{Target: tagged("app", "1")}); p.Blobs != 0 || p.Links != 0 || p.Tags != 1 {
			t.Errorf("purged %+v", p)
		}
		wantManifest(t, c, tagged("app", "same"), one, Hit)
		// Of the last one the manifest goes. Its layers are another image's, and another
		// repository's.
		if p := purged(t, c, PurgeOptions{Target: tagged("app", "same")}); p.Blobs != 1 || p.Tags != 1 {
			t.Errorf("purged %+v", p)
		}
		wantHeld(t, c, [][]byte{shared, own, third}, map[int]bool{0: true, 1: true, 2: true})
		wantManifest(t, c, tagged("app", "2"), two, Hit)
		pullTag(t, c, hub, "other", "1", elsewhere)
		if _, linked := c.index.Link("docker.io", "app", digest.FromBytes(own)); linked {
			t.Error("the repository may serve what it has no more")
		}
		// By its digest all tags go that stand for it.
		p := purged(t, c, PurgeOptions{Target: digested("app", two.Digest)})
		if !slices.Equal(p.Images, []string{"docker.io/app:2", "docker.io/app@" + two.Digest.String()}) || p.Tags != 1 || p.Blobs != 3 {
			t.Errorf("purged %+v", p)
		}
		wantHeld(t, c, [][]byte{shared, own, third}, map[int]bool{0: false, 1: true, 2: false})
		wantTotals(t, c)
	})
}

func TestAPurgeBreaksNeitherReadersNorFills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub})
		here, coming := content(1, mib), content(2, mib)
		image := hub.addImage("app", here, coming)
		hub.tag("app", "1", image)
		pullTag(t, c, hub, "app", "1")
		wantBlob(t, c, digested("app", digest.FromBytes(here)), here, Miss)
		settle()
		reader, _, err := c.Blob(t.Context(), digested("app", digest.FromBytes(here)), oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		hub.set(nil, time.Second)
		fetched := make(chan error)
		go func() {
			got, _, err := readBlob(t, c, digested("app", digest.FromBytes(coming)))
			if err == nil && !bytes.Equal(got, coming) {
				err = errors.New("other bytes")
			}
			fetched <- err
		}()
		synctest.Wait()
		p := purged(t, c, PurgeOptions{Target: tagged("app", "1")})
		if p.Busy != 0 || c.holds(digest.FromBytes(here)) {
			t.Errorf("purged %+v; the layer is held: %v", p, c.holds(digest.FromBytes(here)))
		}
		var got bytes.Buffer
		if _, err := reader.Send(&got, oci.Whole); err != nil || !bytes.Equal(got.Bytes(), here) {
			t.Errorf("who had it open has read %d bytes, %v", got.Len(), err)
		}
		if err := <-fetched; err != nil {
			t.Errorf("what was being fetched: %v", err)
		}
	})
}

func TestUnusedImagesArePurged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub, "ghcr.io": hub}, TagRule{Match: "*", Immutable: true})
		base := content(1, 5000)
		images := map[string]v1.Descriptor{}
		for i, tag := range []string{"old", "used", "pinned"} {
			images[tag] = hub.addImage("app", base, content(uint64(10+i), 5000))
			hub.tag("app", tag, images[tag])
			pullTag(t, c, hub, "app", tag, images[tag])
		}
		if _, err := c.Pin(t.Context(), tagged("app", "pinned")); err != nil {
			t.Fatal(err)
		}
		settle()
		time.Sleep(30 * 24 * time.Hour)
		pullTag(t, c, hub, "app", "used")
		settle()
		if p := purged(t, c, PurgeOptions{Upstream: "ghcr.io", Before: time.Now().Add(-time.Hour)}); len(p.Images)+p.Blobs != 0 {
			t.Errorf("of another upstream %+v", p)
		}
		p := purged(t, c, PurgeOptions{Before: time.Now().Add(-24 * time.Hour)})
		if !slices.Equal(p.Images, []string{"docker.io/app:old"}) || !slices.Equal(p.Pinned, []string{"docker.io/app:pinned"}) || p.Blobs != 2 {
			t.Errorf("purged %+v", p)
		}
		for tag, want := range map[string]bool{"old": false, "used": true, "pinned": true} {
			if c.holds(images[tag].Digest) != want {
				t.Errorf("%s is held: %v", tag, !want)
			}
		}
		if p := purged(t, c, PurgeOptions{Before: time.Now().Add(-24 * time.Hour), Force: true}); !slices.Equal(p.Images, []string{"docker.io/app:pinned"}) || p.Blobs != 2 {
			t.Errorf("purged by force %+v", p)
		}
		if _, pinned := c.index.Pin("docker.io", "app", "pinned"); pinned {
			t.Error("what is gone is pinned")
		}
	})
}

func TestPinnedImagesArePurgedByForceOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub})
		idx, amd64, arm64, _, _ := hub.addIndex("app", "1")
		hub.tag("app", "same", idx)
		pullTag(t, c, hub, "app", "1", amd64, arm64)
		pullTag(t, c, hub, "app", "same")
		if _, err := c.Pin(t.Context(), tagged("app", "1")); err != nil {
			t.Fatal(err)
		}
		settle()
		before := stored(t, c)
		for _, o := range []PurgeOptions{
			{Target: tagged("app", "1")}, {Target: digested("app", idx.Digest)}, {Target: digested("app", amd64.Digest)}, {Upstream: "docker.io"},
		} {
			if _, err := c.Purge(t.Context(), o); err == nil || !strings.Contains(err.Error(), "pinned") {
				t.Errorf("%+v: %v", o, err)
			}
		}
		// Its other name is not pinned, and does not take the content along.
		if p := purged(t, c, PurgeOptions{Target: tagged("app", "same")}); p.Blobs != 0 || p.Tags != 1 {
			t.Errorf("purged %+v", p)
		}
		if after := stored(t, c); !slices.Equal(before, after) {
			t.Errorf("%d of %d blobs are left", len(after), len(before))
		}
		if p := purged(t, c, PurgeOptions{Target: digested("app", amd64.Digest), Force: true}); c.holds(amd64.Digest) || !c.holds(arm64.Digest) || !c.holds(idx.Digest) {
			t.Errorf("of a part by force: %+v", p)
		}
		if p := purged(t, c, PurgeOptions{Target: tagged("app", "1"), Force: true}); len(stored(t, c)) != 0 {
			t.Errorf("by force: %+v; %d blobs are left", p, len(stored(t, c)))
		}
	})
}

func TestAnUpstreamIsPurgedAlsoWhenItIsConfiguredNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		dir := t.TempDir()
		c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": hub, "ghcr.io": hub})
		shared, own := content(1, 5000), content(2, 5000)
		image := hub.addImage("app", shared)
		both := hub.addImage("tool", shared, own)
		hub.tag("tool", "1", both)
		pullTree(t, c, hub, "app", image)
		ghcr := oci.Target{Upstream: "ghcr.io", Repository: "tool"}
		for _, d := range append([]digest.Digest{both.Digest}, hub.children(t, both)...) {
			target := withDigest(ghcr, d)
			var err error
			if d == both.Digest {
				_, _, err = c.Manifest(t.Context(), target, rewrite.Accept{})
			} else {
				_, _, err = readBlob(t, c, target)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := c.Tags(t.Context(), ghcr); err != nil {
			t.Fatal(err)
		}
		settle()
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c = open(t, Options{Dir: dir}, map[string]*registry{"docker.io": hub})
		p := purged(t, c, PurgeOptions{Upstream: "ghcr.io"})
		if p.Blobs != 2 || p.Lists != 1 || !slices.Equal(p.Images, []string{"ghcr.io/tool"}) {
			t.Errorf("purged %+v", p)
		}
		wantHeld(t, c, [][]byte{shared, own}, map[int]bool{0: true, 1: false})
		if names, err := c.Repositories(t.Context(), "", "", 10); err != nil || !slices.Equal(names, []string{"docker.io/app"}) {
			t.Errorf("%v is left, %v", names, err)
		}
		if _, err := c.Purge(t.Context(), PurgeOptions{Upstream: "ghcr.io"}); !oci.IsAbsent(err) {
			t.Errorf("once more: %v", err)
		}
		if lists, err := c.index.Lists("ghcr.io", ""); err != nil || len(lists) > 0 {
			t.Errorf("%v is left, %v", lists, err)
		}
	})
}

func TestGarbageIsWhatNothingLeadsTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub}, TagRule{Match: "*", TTL: time.Minute, KeepDeleted: true})
		idx, amd64, _, _, _ := hub.addIndex("app", "1")
		pullTag(t, c, hub, "app", "1", amd64)
		gone := hub.addImage("gone", content(5, 5000))
		hub.tag("gone", "1", gone)
		pullTag(t, c, hub, "gone", "1", gone)
		for _, d := range []digest.Digest{idx.Digest, gone.Digest} {
			repo := "app"
			if d == gone.Digest {
				repo = "gone"
			}
			if _, _, err := c.Referrers(t.Context(), digested(repo, d)); err != nil {
				t.Fatal(err)
			}
		}
		collect := func(dry bool) *Collected {
			t.Helper()
			settle()
			g, err := c.CollectGarbage(t.Context(), dry, nil)
			if err != nil {
				t.Fatal(err)
			}
			return g
		}
		if g := collect(false); g.Links+g.Lists+g.Tags+g.Blobs+g.Parts+g.Young != 0 || g.Repositories != 2 {
			t.Errorf("of what is all in use: %+v", g)
		}
		before := stored(t, c)
		// The upstream deletes the tag, and its content is evicted.
		hub.mu.Lock()
		delete(hub.tags, "gone")
		hub.mu.Unlock()
		time.Sleep(2 * time.Minute)
		wantManifest(t, c, tagged("gone", "1"), gone, Stale)
		settle()
		c.dropBatch(&evicted{}, append(hub.children(t, gone), gone.Digest), nil)
		// The layers of amd64 are evicted as well, and its manifest is not: what that
		// names is asked for by who pulls it.
		layers := hub.children(t, amd64)[1:]
		c.dropBatch(&evicted{}, layers, nil)
		// And there is content without any link, of today and of old.
		orphan, young := content(7, 5000), content(8, 5000)
		for _, b := range [][]byte{orphan, young} {
			if err := c.store.Put(digest.FromBytes(b), b); err != nil {
				t.Fatal(err)
			}
			if err := c.index.Put(index.Change{Blobs: c.recordOf(digest.FromBytes(b))}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(gcGrace - time.Hour)
		}
		left := stored(t, c)
		want := Collected{Repositories: 2, RepositoriesTotal: 2, Links: 3, Lists: 1, Tags: 1, Blobs: 1, Size: 5000, Young: 1}
		dry := collect(true)
		if dry.Dry = false; *dry != want {
			t.Errorf("dry: %+v, want %+v", dry, want)
		}
		if after := stored(t, c); !slices.Equal(left, after) {
			t.Errorf("a dry run has left %d of %d blobs", len(after), len(left))
		}
		if g := collect(false); *g != want {
			t.Errorf("collected %+v, want %+v", g, want)
		}
		if _, ok := c.index.Link("docker.io", "app", layers[0]); !ok {
			t.Error("the link of a layer has gone whose manifest is here")
		}
		wantHeld(t, c, [][]byte{orphan, young}, map[int]bool{0: false, 1: true})
		if g := collect(false); g.Links+g.Lists+g.Tags+g.Blobs != 0 {
			t.Errorf("once more: %+v", g)
		}
		// What is served is what was.
		wantManifest(t, c, digested("app", amd64.Digest), amd64, Hit)
		pullTree(t, c, hub, "app", amd64)
		settle()
		for _, d := range before {
			if d == gone.Digest || slices.Contains(hub.children(t, gone), d) {
				continue
			}
			if !c.holds(d) {
				t.Errorf("%s is not here", d)
			}
		}
		wantTotals(t, c)
	})
}

func TestOldPartsAreGarbage(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	for name, age := range map[string]time.Duration{"old": 25 * time.Hour, "new": time.Hour} {
		d := digest.FromString(name)
		p, _, _, err := c.store.Part(d, "docker.io")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.WriteAt(content(1, 5000), 0); err != nil {
			t.Fatal(err)
		}
		var have store.Spans
		have.Add(0, 5000)
		if err := errors.Join(p.Save(have, 10_000), p.Close()); err != nil {
			t.Fatal(err)
		}
		list, err := os.ReadDir(c.store.Dir() + "/ingest")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if strings.Contains(e.Name(), d.Encoded()) {
				at := time.Now().Add(-age)
				if err := os.Chtimes(c.store.Dir()+"/ingest/"+e.Name(), at, at); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for i, dry := range []bool{true, false, false} {
		g, err := c.CollectGarbage(t.Context(), dry, nil)
		if want := []int{1, 1, 0}[i]; err != nil || g.Parts != want || g.PartsSize > 0 != (want > 0) {
			t.Errorf("run %d: %+v, %v; want %d parts", i+1, g, err, want)
		}
	}
	left, err := c.store.Unfinished()
	if err != nil || len(left) != 1 || left[0].Digest != digest.FromString("new") {
		t.Errorf("%+v is left, %v", left, err)
	}
}

func TestWhatIsLinkedDuringAGarbageCollectionStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub})
		hub.addImage("other")
		orphan := content(7, 5000)
		d := digest.FromBytes(orphan)
		if err := c.store.Put(d, orphan); err != nil {
			t.Fatal(err)
		}
		if err := c.index.Put(index.Change{Blobs: c.recordOf(d)}); err != nil {
			t.Fatal(err)
		}
		if err := c.index.PutLinks("docker.io", "app", map[digest.Digest]index.Link{digest.FromString("x"): {}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * gcGrace)
		// It runs between the look at the repositories and that at the content.
		g, err := c.CollectGarbage(t.Context(), false, func(Collected) error {
			return c.index.PutLinks("docker.io", "new", map[digest.Digest]index.Link{d: {Size: 5000}})
		})
		if err != nil || g.Blobs != 0 || g.Links != 1 || !c.holds(d) {
			t.Errorf("%+v, %v; it is held: %v", g, err, c.holds(d))
		}
		stop := errors.New("enough")
		if _, err := c.CollectGarbage(t.Context(), false, func(Collected) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("%v, want that it ends", err)
		}
	})
}

func TestPurgesCollectionsAndPullsAtOnceAgree(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub}, TagRule{Match: "*", Immutable: true})
	shared := content(1, 40_000)
	var images []v1.Descriptor
	tags := []string{"1", "2", "3"}
	for i, tag := range tags {
		images = append(images, hub.addImage("app", shared, content(uint64(10+i), 40_000), content(uint64(20+i), 2000)))
		hub.tag("app", tag, images[i])
	}
	stop := make(chan struct{})
	var clients, operators sync.WaitGroup
	for range 3 {
		clients.Go(func() {
			for i := range 30 {
				tag, image := tags[i%3], images[i%3]
				m, _, err := c.Manifest(t.Context(), tagged("app", tag), rewrite.Accept{})
				if err != nil || m.Digest != image.Digest {
					t.Errorf("%s: %v, %v", tag, m, err)
					return
				}
				for _, d := range hub.children(t, image) {
					if b, _, err := readBlob(t, c, digested("app", d)); err != nil || digest.FromBytes(b) != d {
						t.Errorf("%s: %d bytes, %v", d, len(b), err)
						return
					}
				}
			}
		})
	}
	for _, do := range []func(i int) error{
		func(i int) error {
			o := []PurgeOptions{{Target: tagged("app", tags[i%3])}, {Target: digested("app", images[i%3].Digest)}, {Upstream: "docker.io"}}[i%7%3]
			_, err := c.Purge(t.Context(), o)
			return err
		},
		func(int) error { _, err := c.CollectGarbage(t.Context(), false, nil); return err },
	} {
		operators.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := do(i); err != nil && !oci.IsAbsent(err) && !errors.Is(err, errCleaning) {
					t.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
	close(stop)
	operators.Wait()
	for len(c.runningFills()) > 0 {
		time.Sleep(time.Millisecond)
	}
	// Once nobody pulls, what is purged is gone, from memory as well.
	if _, err := c.Purge(t.Context(), PurgeOptions{Upstream: "docker.io"}); err != nil && !oci.IsAbsent(err) {
		t.Fatal(err)
	}
	hub.set(errDown, 0)
	for i, tag := range tags {
		if _, out, err := c.Manifest(t.Context(), tagged("app", tag), rewrite.Accept{}); err == nil {
			t.Errorf("%s is served: %+v", tag, out)
		}
		for _, d := range append(hub.children(t, images[i]), images[i].Digest) {
			if _, st, err := readBlob(t, c, digested("app", d)); err == nil {
				t.Errorf("%s is served: %s", d, st)
			}
		}
	}
	if left := stored(t, c); len(left) > 0 {
		// Content that came while its links went is garbage, once it is old.
		t.Logf("%d blobs are left", len(left))
	}
	wantTotals(t, c)
}

// TestWhatIsImportedWhileAPurgeDecidesStays: with a part that it shares with what goes.
func TestWhatIsImportedWhileAPurgeDecidesStays(t *testing.T) {
	hub, home := newRegistry(), newRegistry()
	shared, own := content(1, 100_000), content(2, 100_000)
	gone := hub.addImage("app", shared)
	hub.tag("app", "1", gone)
	hub.tag("app", "2", gone)
	image := home.addImage("app", shared, own)
	c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub})
	pullTag(t, c, hub, "app", "1", gone)
	pullTag(t, c, hub, "app", "2", gone)
	p, end := c.newPurge(t.Context(), PurgeOptions{Upstream: "docker.io"})
	defer end()
	if err := p.choose(); err != nil {
		t.Fatal(err)
	}
	all, err := p.decide()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := importImage(t, c, home, tagged("app", "2"), image, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := p.run(all); err != nil {
		t.Fatal(err)
	}
	hub.set(errDown, 0)
	if _, _, err := c.Manifest(t.Context(), tagged("app", "1"), rewrite.Accept{}); err == nil {
		t.Error("what was purged is served")
	}
	m, _, err := c.Manifest(t.Context(), tagged("app", "2"), rewrite.Accept{})
	if err != nil || m.Digest != image.Digest {
		t.Fatalf("the imported image is %+v, %v", m, err)
	}
	for _, b := range [][]byte{shared, own} {
		wantBlob(t, c, digested("app", digest.FromBytes(b)), b, Hit)
	}
	if p.done.Tags != 1 {
		t.Errorf("%d tags were forgotten, want 1", p.done.Tags)
	}
	wantTotals(t, c)
}

func TestAnUpstreamIsPurgedOfListsToo(t *testing.T) {
	hub := newRegistry()
	hub.tag("app", "1", hub.addImage("app", []byte("layer")))
	c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub})
	if _, _, err := c.Tags(t.Context(), oci.Target{Upstream: "docker.io", Repository: "app"}); err != nil {
		t.Fatal(err)
	}
	if done := purged(t, c, PurgeOptions{Upstream: "docker.io"}); done.Lists != 1 || !slices.Equal(done.Images, []string{"docker.io/app"}) {
		t.Errorf("purged %+v", done)
	}
	hub.set(errDown, 0)
	if list, _, err := c.Tags(t.Context(), oci.Target{Upstream: "docker.io", Repository: "app"}); err == nil {
		t.Errorf("the tags that were purged are served: %v", list)
	}
}

// TestGarbageIsNotCollectedWhileTheIndexIsLost: then no repository seems to have anything.
func TestGarbageIsNotCollectedWhileTheIndexIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		o := Options{Dir: t.TempDir()}
		c := open(t, o, map[string]*registry{"docker.io": hub})
		image := hub.addImage("app", content(1, 100_000))
		hub.tag("app", "1", image)
		pullTag(t, c, hub, "app", "1", image)
		settle()
		before := stored(t, c)
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-10 * gcGrace)
		for _, d := range before {
			if err := os.Chtimes(filepath.Join(o.Dir, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded()), old, old); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Remove(filepath.Join(o.Dir, "index.db")); err != nil {
			t.Fatal(err)
		}
		c = open(t, o, map[string]*registry{"docker.io": hub})
		if done, err := c.CollectGarbage(t.Context(), false, nil); err != nil || done.Blobs != 0 || done.Repositories != 1 {
			t.Errorf("collected %+v, %v", done, err)
		}
		if left := stored(t, c); !slices.Equal(left, before) {
			t.Errorf("%v is left of %v", left, before)
		}
		g := &collector{ctx: t.Context(), cache: c, watch: &index.Watch{}, losses: c.losses.Load()}
		c.losses.Add(1) // it is lost while garbage is collected, and no link was seen
		time.Sleep(2 * gcGrace)
		if err := g.content(newDigestSet()); !errors.Is(err, errIndexLost) {
			t.Errorf("want %v, got %v", errIndexLost, err)
		}
		if left := stored(t, c); !slices.Equal(left, before) {
			t.Errorf("%v is left of %v", left, before)
		}
	})
}
