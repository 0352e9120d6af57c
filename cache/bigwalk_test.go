package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	dto "github.com/prometheus/client_model/go"

	"github.com/entrepot-dev/entrepot/cache/index"
)

// addRecords gives the index n repositories with a tag and two links each, of which nothing
// is stored.
func addRecords(t *testing.T, c *Cache, n int) {
	t.Helper()
	var changes []index.Change
	for i := range n {
		root := digest.FromString(fmt.Sprintf("manifest %d", i))
		changes = append(changes, index.Change{
			Upstream: "docker.io", Repository: fmt.Sprintf("crowd/app-%06d", i), Tag: "1",
			Record: index.Tag{Digest: root, MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 10, Checked: time.Now()},
			Links: map[digest.Digest]index.Link{
				root: {Manifest: true, Size: 10, Proof: index.Fetched},
				digest.FromString(fmt.Sprint("layer", i)): {Size: 10, Proof: index.Fetched},
			},
		})
	}
	if err := c.index.Put(changes...); err != nil {
		t.Fatal(err)
	}
}

func TestWhatAPatternOrPinsTakeCostsTheSameHoweverMuchElseIsThere(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
	app := hub.addImage("team/app", []byte("layer"))
	hub.tag("team/app", "1", app)
	wantManifest(t, c, tagged("team/app", "1"), app, Miss)
	if _, err := c.Pin(t.Context(), tagged("team/app", "1")); err != nil {
		t.Fatal(err)
	}
	filters := []ImagesFilter{{Pattern: "team/app"}, {Pattern: "docker.io/team/app:1"}, {Pattern: "team/*"}, {Pattern: "team/ap?:*"}, {Pinned: true}}
	cost := func(f ImagesFilter) float64 {
		return testing.AllocsPerRun(5, func() {
			list, err := c.Images(t.Context(), f)
			if err != nil || len(list.Images) != 1 || list.Images[0].Reference != "docker.io/team/app:1" {
				t.Errorf("%+v lists %+v, %v", f, list, err)
			}
		})
	}
	var before []float64
	for _, f := range filters {
		before = append(before, cost(f))
	}
	const others = 3000
	addRecords(t, c, others)
	for i, f := range filters {
		// A record that is decoded costs more than one allocation.
		if now := cost(f); now > before[i]+others/4 {
			t.Errorf("%+v costs %.0f allocations beside %d other repositories, and %.0f without", f, now, others, before[i])
		}
	}
	if all := testing.AllocsPerRun(1, func() { _, _ = c.Images(t.Context(), ImagesFilter{}) }); all < others {
		t.Errorf("a list of all costs %.0f allocations: this test could not fail", all)
	}
}

func TestAWalkLeavesMemoryAndItsCountsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		dir := t.TempDir()
		c := open(t, Options{Dir: dir, MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		idx, amd64, _, _, _ := hub.addIndex("library/app", "1")
		wantManifest(t, c, tagged("library/app", "1"), idx, Miss)
		pullTree(t, c, hub, "library/app", amd64)
		settle()
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c = open(t, Options{Dir: dir, MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		value := func() (n float64) {
			for _, counter := range []interface{ Write(*dto.Metric) error }{c.metrics.MemoryHits, c.metrics.MemoryMisses} {
				var m dto.Metric
				if err := counter.Write(&m); err != nil {
					t.Fatal(err)
				}
				n += m.GetCounter().GetValue()
			}
			return n
		}
		was := value()
		for range 2 {
			if list, err := c.Images(t.Context(), ImagesFilter{}); err != nil || len(list.Images) != 1 {
				t.Fatalf("%+v, %v", list, err)
			}
			if _, err := c.CollectGarbage(t.Context(), true, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Purge(t.Context(), PurgeOptions{Target: tagged("library/app", "1"), Dry: true}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Named(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if now := value(); now != was {
			t.Errorf("%.0f look-ups in memory were counted that no client has made", now-was)
		}
		for _, d := range []digest.Digest{idx.Digest, amd64.Digest} {
			if _, ok := c.memory.manifest(d); ok {
				t.Errorf("a walk has brought %s into memory", d)
			}
		}
		wantManifest(t, c, tagged("library/app", "1"), idx, Hit)
		wantManifest(t, c, tagged("library/app", "1"), idx, Hit)
		if value() == was {
			t.Error("a client's look-ups were not counted: this test could not fail")
		}
	})
}

func TestOneLargeWalkGoesOnAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Options{}, map[string]*registry{"docker.io": newRegistry()})
		walk := func(ctx context.Context) *bigWalk {
			w := c.newWalk(ctx)
			for range smallWalk {
				if err := w.step(); err != nil {
					t.Fatal(err)
				}
			}
			return w
		}
		first := walk(t.Context())
		if err := first.step(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		second := walk(t.Context()) // small walks go on beside it
		if err := second.step(); !errors.Is(err, errWalking) || time.Since(began) != walkPatience {
			t.Errorf("want to be told after %v, got %v after %v", walkPatience, err, time.Since(began))
		}
		second.end()
		gone, leave := context.WithCancelCause(t.Context())
		third, left := walk(gone), errors.New("the client has left")
		leave(left)
		if err := third.step(); !errors.Is(err, left) {
			t.Errorf("want the client's end, got %v", err)
		}
		third.end()
		fourth := walk(t.Context())
		done := make(chan error)
		go func() { done <- fourth.step() }()
		synctest.Wait()
		first.end()
		if err := <-done; err != nil {
			t.Errorf("the walk after it has ended: %v", err)
		}
		fourth.end()
	})
}

func TestAListEndsWithItsClient(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	for _, tag := range []string{"1", "2", "3"} {
		d := hub.addImage("library/app", []byte(tag))
		hub.tag("library/app", tag, d)
		wantManifest(t, c, tagged("library/app", tag), d, Miss)
	}
	ctx, leave := context.WithCancelCause(t.Context())
	left, told := errors.New("the client has left"), 0
	_, err := c.EachImage(ctx, ImagesFilter{}, func(*Image) error {
		told++
		leave(left)
		return nil
	})
	if !errors.Is(err, left) || told != 1 {
		t.Errorf("want the client's end after one image, got %v after %d", err, told)
	}
	full := errors.New("the disk is full")
	if _, err := c.EachImage(t.Context(), ImagesFilter{}, func(*Image) error { return full }); !errors.Is(err, full) {
		t.Errorf("want the error of the function, got %v", err)
	}
}

func TestAPatternReadsNamesThatBeginLikeIt(t *testing.T) {
	c := open(t, Options{}, map[string]*registry{"docker.io": newRegistry()})
	for _, name := range []string{"docker.io/library/nginx", "docker.io/library/nginx-extras", "docker.io/ng/inx", "docker.io/team/app", "localhost:5000/app", "quay.io/ng"} {
		upstream, repo, _ := strings.Cut(name, "/")
		if err := c.index.PutTag(upstream, repo, "1", index.Tag{Digest: digest.FromString(name), Checked: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	for pattern, want := range map[string][]string{
		"nginx":                       {"docker.io/library/nginx", "docker.io/nginx"},
		"ng*":                         {"docker.io/library/nginx", "docker.io/library/nginx-extras", "docker.io/ng/inx"},
		"nginx:1.*":                   {"docker.io/library/nginx", "docker.io/nginx"},
		"docker.io/library/nginx:1.2": {"docker.io/docker.io/library/nginx", "docker.io/library/docker.io/library/nginx", "docker.io/library/library/nginx", "docker.io/library/nginx"},
		"localhost:5000/*":            {"docker.io/library/localhost", "docker.io/localhost", "localhost:5000/app"},
		"localhost:5*":                {"docker.io/library/localhost", "docker.io/localhost", "localhost:5000/app"},
		"q*":                          {"quay.io/ng"},
		"docker.io/ng*":               {"docker.io/library/nginx", "docker.io/library/nginx-extras", "docker.io/ng/inx"},
		"quay.io":                     {"docker.io/library/quay.io", "docker.io/quay.io", "quay.io/ng"},
		"localhost:5000":              {"docker.io/library/localhost", "docker.io/localhost", "localhost:5000/app"},
		"*/app":                       {"docker.io/library/nginx", "docker.io/library/nginx-extras", "docker.io/ng/inx", "docker.io/team/app", "localhost:5000/app", "quay.io/ng"},
	} {
		got, err := newImagePattern(pattern).repositories(c.index)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q reads %q, want %q, %v", pattern, got, want, err)
		}
	}
	for pattern, want := range map[string]bool{"nginx:1.*": true, "nginx": false, "localhost:5*": true, "localhost:5*:*": false, "localhost:5000/app:1*": true, "localhost:5000/*": false, "nginx@sha256:*": false, "*:1": false} {
		if got := newImagePattern(pattern).tagsOnly; got != want {
			t.Errorf("%q is for tags only: %v", pattern, got)
		}
	}
}

func TestAListIsInOrderThoughTwoRepositoriesAreLookedAt(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{}, map[string]*registry{"docker.io": hub})
	var want []string
	for _, repo := range []string{"a", "b", "c", "d", "e"} {
		for _, tag := range []string{"1", "2"} {
			d := hub.addImage("library/"+repo, []byte(repo+tag), []byte("shared by all"))
			hub.tag("library/"+repo, tag, d)
			wantManifest(t, c, tagged("library/"+repo, tag), d, Miss)
			want = append(want, "docker.io/library/"+repo+":"+tag)
		}
	}
	list, err := c.Images(t.Context(), ImagesFilter{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range list.Images {
		got = append(got, i.Reference)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
