package cache

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// askedOf writes what the index knows of what was asked, sorted.
func askedOf(t *testing.T, c *Cache) []string {
	t.Helper()
	list, err := c.index.AskedSince(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, a := range list {
		name := a.Tag
		switch {
		case a.Referrers:
			name = "referrers of " + string(a.Digest)
		case name == "":
			name = string(a.Digest)
		default:
			name += "=" + string(a.Digest)
		}
		var days []string
		for _, d := range a.Days {
			days = append(days, fmt.Sprintf("%d:%d+%d", d.Day, d.Gets, d.Heads))
		}
		lines = append(lines, fmt.Sprintf("%s %s %s", a.Repository, name, strings.Join(days, " ")))
	}
	slices.Sort(lines)
	return lines
}

func TestWhatClientsAskForIsNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		idx, amd64, _, _, _ := hub.addIndex("app", "1")
		hub.tag("app", "2", amd64)
		dir := t.TempDir()
		c := open(t, Options{Dir: dir, MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub})
		all := rewrite.Accept{}
		ask := func(target oci.Target) {
			t.Helper()
			if _, _, err := c.Manifest(t.Context(), target, all); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			ask(tagged("app", "1"))
		}
		ask(digested("app", amd64.Digest))
		// A client that takes no index.
		if _, _, err := c.Manifest(t.Context(), tagged("app", "1"), rewrite.ParseAccept([]byte(v1.MediaTypeImageManifest))); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Describe(t.Context(), tagged("app", "2"), all); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Referrers(t.Context(), digested("app", idx.Digest)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Manifest(t.Context(), tagged("app", "none"), all); !oci.IsAbsent(err) {
			t.Fatal(err)
		}
		warm(t, c, WarmOptions{Referrers: true}, tagged("app", "1")) // which no client has asked for
		if list := askedOf(t, c); len(list) != 0 {
			t.Errorf("it is written at once: %q", list)
		}
		time.Sleep(askedEvery + time.Second)
		synctest.Wait()
		day := index.DayOf(time.Now())
		want := []string{
			fmt.Sprintf("app 1=%s %d:4+0", amd64.Digest, day), fmt.Sprintf("app 2=%s %d:0+1", amd64.Digest, day),
			fmt.Sprintf("app %s %d:1+0", amd64.Digest, day), fmt.Sprintf("app referrers of %s %d:1+0", idx.Digest, day),
		}
		slices.Sort(want)
		if got := askedOf(t, c); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}

		// What is noted when the cache is closed is written, too, and the day is another.
		time.Sleep(24 * time.Hour)
		ask(tagged("app", "1"))
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c = open(t, Options{Dir: dir}, map[string]*registry{"docker.io": hub})
		if got, want := askedOf(t, c), fmt.Sprintf("app 1=%s %d:4+0 %d:1+0", idx.Digest, day, day+1); !slices.Contains(got, want) {
			t.Errorf("got %q, want %q among it", got, want)
		}
	})
}

func TestWhatIsNotedAtATimeIsBoundedAndForgotten(t *testing.T) {
	a := newAsked()
	for i := range 20 * maxAskedShard {
		a.note(tagged("app", fmt.Sprint(i)), "", false)
	}
	held := func() (n int) {
		for i := range a.shards {
			n += len(a.shards[i].held)
		}
		return n
	}
	if n := held(); n != 16*maxAskedShard {
		t.Errorf("%d are held, want the bound %d", n, 16*maxAskedShard)
	}
	if n := len(a.drain(time.Now())); n != 16*maxAskedShard {
		t.Errorf("%d were noted", n)
	}
	for range askedRounds + 1 {
		a.note(tagged("app", "1"), "", false)
		if n := len(a.drain(time.Now())); n != 1 {
			t.Fatalf("%d were noted, want 1", n)
		}
	}
	if n := held(); n != 1 {
		t.Errorf("%d are held, want the one that is asked for", n)
	}
}

func TestNotingWhatIsHeldAllocatesNothing(t *testing.T) {
	a := newAsked()
	target, d := tagged("library/nginx", "1.27"), digested("library/nginx", digest.FromString("x"))
	note := func() {
		a.note(target, d.Digest, false)
		a.note(d, d.Digest, true)
	}
	note()
	if n := testing.AllocsPerRun(200, note); n != 0 {
		t.Errorf("%g allocations, want none", n)
	}
	a.drain(time.Now())
	if n := testing.AllocsPerRun(200, note); n != 0 {
		t.Errorf("after a round: %g allocations, want none", n)
	}
}

func BenchmarkNoteAsked(b *testing.B) {
	a := newAsked()
	target, d := tagged("library/nginx", "1.27"), digest.FromString("x")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			a.note(target, d, false)
		}
	})
}

func TestAskedImagesAreTagsWithTheirPlatforms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		was, wasAmd64, _, _, _ := hub.addIndex("app", "was")
		is, _, isArm64, _, _ := hub.addIndex("app", "is")
		hub.tag("app", "1", was)
		lone, _, loneArm64, _, _ := hub.addIndex("lone", "x")
		single := hub.addImage("single", []byte("single"))
		hub.tag("single", "1", single)
		looked := hub.addImage("single", []byte("looked"))
		hub.tag("single", "2", looked)
		c := open(t, Options{MemoryBytes: 1 << 20}, map[string]*registry{"docker.io": hub}, TagRule{Match: "*"})
		get := func(targets ...oci.Target) {
			t.Helper()
			for _, target := range targets {
				if _, _, err := c.Manifest(t.Context(), target, rewrite.Accept{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		head := func(target oci.Target) {
			t.Helper()
			if _, _, err := c.Describe(t.Context(), target, rewrite.Accept{}); err != nil {
				t.Fatal(err)
			}
		}
		// A tag that has moved since: what it stood for is its own, too.
		get(tagged("app", "1"), digested("app", wasAmd64.Digest))
		time.Sleep(24 * time.Hour)
		since := time.Now()
		hub.tag("app", "1", is)
		get(tagged("app", "1"), digested("app", isArm64.Digest), digested("app", wasAmd64.Digest))
		// By digest alone: the index, and a manifest of it.
		get(digested("lone", lone.Digest), digested("lone", loneArm64.Digest))
		// As containerd pulls: HEAD of the tag, then what it stands for by digest.
		head(tagged("single", "1"))
		get(digested("single", single.Digest))
		if _, _, err := c.Referrers(t.Context(), digested("single", single.Digest)); err != nil {
			t.Fatal(err)
		}
		head(tagged("single", "2"))

		all, err := c.Asked(t.Context(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range all {
			got = append(got, fmt.Sprintf("%s %s %s %d %d %v", i.Reference, i.Digest, strings.Join(i.Platforms, ","), i.Pulls, len(i.Days), i.Referrers))
		}
		want := []string{
			fmt.Sprintf("docker.io/app:1 %s linux/amd64,linux/arm64 2 2 false", is.Digest),
			fmt.Sprintf("docker.io/lone@%s %s linux/arm64 1 1 false", lone.Digest, lone.Digest),
			fmt.Sprintf("docker.io/single:1 %s  1 1 true", single.Digest),
		}
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if some, err := c.Asked(t.Context(), since); err != nil || len(some) != 3 || some[0].Pulls != 1 || some[0].Days[0].Day != "2000-01-02" {
			t.Errorf("since a day later: %+v, %v", some, err)
		}
		if none, err := c.Asked(t.Context(), time.Now().Add(time.Minute)); err != nil || len(none) != 0 {
			t.Errorf("of the future: %+v, %v", none, err)
		}
	})
}
