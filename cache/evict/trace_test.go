package evict

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// The trace: images in order of fame, asked for as Zipf says, each of its own
// layers on one of a few bases; now and then an image that is new (a build) takes
// the place of an old one; and now and then a giant that nobody asks for again.
const (
	traceImages  = 600
	traceBases   = 30
	tracePulls   = 40_000
	traceSeed    = 7
	giantEvery   = 60 // pulls
	releaseEvery = 8  // pulls
	pullsApart   = 90 * time.Second
	promise      = time.Hour // that what was pulled stays where it can
)

type layer struct {
	id   int
	size int64
}

type image struct{ layers []layer }

// trace gives the pulls, each the things that are asked for, and which of the
// things are giants; none where every is 0, else one in so many pulls.
func trace(every int) (pulls [][]layer, giants map[int]bool) {
	rnd := rand.New(rand.NewPCG(traceSeed, traceSeed))
	next := 0
	some := func(low, high int64) layer {
		next++
		return layer{next, low + rnd.Int64N(high-low)}
	}
	bases := make([]image, traceBases)
	for b := range bases {
		for range 1 + rnd.IntN(4) {
			bases[b].layers = append(bases[b].layers, some(5*mib, 120*mib))
		}
	}
	baseOf := rand.NewZipf(rnd, 1.2, 1, traceBases-1)
	build := func(base image) image {
		i := image{layers: slices.Clone(base.layers)}
		for range 1 + rnd.IntN(4) {
			i.layers = append(i.layers, some(mib/4, 80*mib))
		}
		// The manifest and the configuration.
		i.layers = append(i.layers, some(1<<10, 4<<10), some(2<<10, 12<<10))
		return i
	}
	images, of := make([]image, traceImages), make([]image, traceImages)
	for i := range images {
		of[i] = bases[baseOf.Uint64()]
		images[i] = build(of[i])
	}
	fame := rand.NewZipf(rnd, 1.1, 4, traceImages-1)
	giants = map[int]bool{}
	for n := range tracePulls {
		if n%releaseEvery == 0 {
			i := fame.Uint64()
			images[i] = build(of[i])
		}
		if every > 0 && n%every == every-1 {
			g := some(2<<30, 9<<30)
			giants[g.id] = true
			pulls = append(pulls, []layer{g})
		}
		pulls = append(pulls, images[fame.Uint64()].layers)
	}
	return pulls, giants
}

// score counts what was asked for, and what of it was there.
type score struct{ requests, hits, bytes, hitBytes int64 }

func (s *score) count(size int64, hit bool) {
	s.requests++
	s.bytes += size
	if hit {
		s.hits++
		s.hitBytes += size
	}
}

func (s score) byRequests() float64 { return float64(s.hits) / float64(s.requests) }
func (s score) byBytes() float64    { return float64(s.hitBytes) / float64(s.bytes) }

type kept struct {
	size int64
	used time.Duration
	uses uint32
}

// replay runs a trace through a cache of limit bytes that choose makes smaller
// whenever it is full. all counts everything, repeated what is no giant.
func replay(pulls [][]layer, giants map[int]bool, limit int64, choose func(n Need, now time.Duration, stored map[int]*kept) []int) (all, repeated score) {
	stored := map[int]*kept{}
	var total int64
	for n, pull := range pulls {
		now := time.Duration(n) * pullsApart
		for _, l := range pull {
			k, hit := stored[l.id]
			all.count(l.size, hit)
			if !giants[l.id] {
				repeated.count(l.size, hit)
			}
			if !hit {
				k = &kept{size: l.size}
				stored[l.id] = k
				total += l.size
			}
			if !hit || now-k.used >= 10*time.Minute {
				k.uses++
			}
			k.used = now
		}
		if total <= limit {
			continue
		}
		for _, id := range choose(Need{Limit: limit, Must: total - limit, Want: total - limit*17/20}, now, stored) {
			total -= stored[id].size
			delete(stored, id)
		}
	}
	return all, repeated
}

// lru chooses the least recently used, whatever it is.
func lru(n Need, _ time.Duration, stored map[int]*kept) []int {
	ids := make([]int, 0, len(stored))
	for id := range stored {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b int) int {
		if d := stored[a].used - stored[b].used; d != 0 {
			return int(d / time.Second)
		}
		return a - b
	})
	for k, id := range ids {
		if n.Want <= 0 {
			return ids[:k]
		}
		n.Want -= stored[id].size
	}
	return ids
}

// planned chooses as a Plan does.
func planned(n Need, now time.Duration, stored map[int]*kept) []int {
	p := NewPlan(n)
	ids := make([]int, 0, len(stored))
	for id := range stored {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	item := func(id int) Item {
		k := stored[id]
		return Item{Size: k.size, Age: now - k.used, Uses: k.uses, Promised: now-k.used < promise}
	}
	for _, id := range ids {
		p.Add(item(id))
	}
	return slices.DeleteFunc(ids, func(id int) bool { return !p.Evict(item(id)) })
}

// TestTraceHitsMoreThanPlainLRU prints what docs/decisions/0007-eviction.md
// quotes.
func TestTraceHitsMoreThanPlainLRU(t *testing.T) {
	if testing.Short() {
		t.Skip("a replay of several seconds")
	}
	for _, every := range []int{giantEvery, 0} {
		pulls, giants := trace(every)
		t.Logf("%d pulls, %d giants, %d GiB in all beside the giants", len(pulls), len(giants), distinct(pulls, giants)>>30)
		t.Logf("%8s  %-8s  %-22s  %s", "limit", "", "everything", "without the giants")
		t.Logf("%8s  %-8s  %10s  %10s  %10s  %10s", "", "", "requests", "bytes", "requests", "bytes")
		for _, limit := range []int64{10 << 30, 20 << 30, 40 << 30, 80 << 30} {
			plain := replayed(t, "lru", pulls, giants, limit, lru)
			got := replayed(t, "evict", pulls, giants, limit, planned)
			// With the giants clearly more, without them as many but for noise.
			more := 0.03
			if len(giants) == 0 {
				more = -0.002
			}
			if got.byRequests() < plain.byRequests()+more || got.byBytes() < plain.byBytes()+more {
				t.Errorf("limit %d GiB, %d giants: want hit ratios at least %g above those of plain LRU, %.4f by requests and %.4f by bytes; got %.4f and %.4f",
					limit>>30, len(giants), more, plain.byRequests(), plain.byBytes(), got.byRequests(), got.byBytes())
			}
		}
	}
}

// replayed is the score of a replay but for the giants; it prints a line of the
// table.
func replayed(t *testing.T, name string, pulls [][]layer, giants map[int]bool, limit int64, choose func(Need, time.Duration, map[int]*kept) []int) score {
	all, repeated := replay(pulls, giants, limit, choose)
	t.Logf("%8s  %-8s  %9.1f%%  %9.1f%%  %9.1f%%  %9.1f%%", fmt.Sprint(limit>>30, " GiB"), name,
		100*all.byRequests(), 100*all.byBytes(), 100*repeated.byRequests(), 100*repeated.byBytes())
	return repeated
}

// distinct is how many bytes there are to ask for, the giants aside.
func distinct(pulls [][]layer, giants map[int]bool) (total int64) {
	seen := map[int]bool{}
	for _, pull := range pulls {
		for _, l := range pull {
			if !seen[l.id] && !giants[l.id] {
				total += l.size
			}
			seen[l.id] = true
		}
	}
	return total
}
