package index

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestWhatIsAskedForAddsUpByDay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix, _, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	first := time.Unix(1_800_000_000, 0)
	d, e := digest.FromString("a"), digest.FromString("b")
	day := DayOf(first)
	add := func(now time.Time, list ...Asked) {
		t.Helper()
		if err := ix.AddAsked(list, now); err != nil {
			t.Fatal(err)
		}
	}
	tag := Asked{Upstream: "docker.io", Repository: "app", Tag: "1", Digest: d, Last: first, Days: []AskedDay{{Day: day, Gets: 2, Heads: 1}}}
	byDigest := Asked{Upstream: "docker.io", Repository: "app", Digest: d, Last: first, Days: []AskedDay{{Day: day, Gets: 1}}}
	referrers := Asked{Upstream: "docker.io", Repository: "app", Digest: d, Referrers: true, Last: first, Days: []AskedDay{{Day: day, Gets: 1}}}
	add(first, tag, byDigest, referrers)
	later := first.Add(48 * time.Hour)
	tag.Digest, tag.Last, tag.Days = e, later, []AskedDay{{Day: day + 2, Gets: 5}}
	add(later, tag)
	tag.Days = []AskedDay{{Day: day + 2, Heads: 1}}
	add(later, tag)
	tag.Days = []AskedDay{{day, 2, 1}, {day + 2, 5, 1}}

	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
	if ix, _, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	for since, want := range map[time.Time][]Asked{
		first:                  {tag, referrers, byDigest},
		first.Add(time.Second): {tag},
		later.Add(time.Minute): nil,
	} {
		got, err := ix.AskedSince(since)
		slices.SortFunc(got, func(x, y Asked) int {
			return slices.Index([]string{"1", ""}, x.Tag) - slices.Index([]string{"1", ""}, y.Tag)
		})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("since %s: got %+v, %v, want %+v", since, got, err, want)
		}
	}

	// What is too old goes, and of what is asked for still the days that are.
	tag.Days = []AskedDay{{Day: day + 31, Gets: 1}}
	tag.Last = first.Add(31 * 24 * time.Hour)
	add(tag.Last, tag)
	got, err := ix.AskedSince(time.Time{})
	tag.Days = []AskedDay{{day + 2, 5, 1}, {day + 31, 1, 0}}
	if err != nil || !reflect.DeepEqual(got, []Asked{tag}) {
		t.Errorf("got %+v, %v, want %+v", got, err, tag)
	}
}

func TestWhatIsAskedForIsBounded(t *testing.T) {
	ix, _, err := Open(filepath.Join(t.TempDir(), "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	now := time.Unix(1_800_000_000, 0)
	var list []Asked
	for i := range 2500 {
		at := now.Add(time.Duration(i) * time.Second)
		list = append(list, Asked{Upstream: "docker.io", Repository: "app", Tag: fmt.Sprint(i), Last: at, Days: []AskedDay{{Day: DayOf(at), Gets: 1}}})
	}
	if err := ix.AddAsked(list, now); err != nil {
		t.Fatal(err)
	}
	if err := ix.trimAsked(now, 100); err != nil {
		t.Fatal(err)
	}
	got, err := ix.AskedSince(time.Time{})
	if err != nil || len(got) != 100 {
		t.Fatalf("%d are kept, %v; want 100", len(got), err)
	}
	for _, a := range got {
		if a.Last.Before(now.Add(2400 * time.Second)) {
			t.Errorf("%s was kept, which was asked for long ago", a.Tag)
		}
	}
}
