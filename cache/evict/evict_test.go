package evict

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const mib = 1 << 20

// run makes a plan of items and gives the places of those that go.
func run(n Need, items []Item) []int {
	p := NewPlan(n)
	for _, i := range items {
		p.Add(i)
	}
	var gone []int
	for k, i := range items {
		if p.Evict(i) {
			gone = append(gone, k)
		}
	}
	return gone
}

func TestWhatGoesFirst(t *testing.T) {
	item := func(size int64, age time.Duration, uses uint32) Item {
		return Item{Size: size * mib, Age: age, Uses: uses}
	}
	pinned, told := item(10, 100*time.Hour, 1), item(10, time.Minute, 1)
	pinned.Pinned, told.Promised = true, true
	giant := item(120, time.Second, 1)
	giant.Promised = true
	for _, c := range []struct {
		name       string
		must, want int64
		items      []Item
		gone       []int
	}{
		{"nothing when nothing has to", 0, 0, []Item{item(10, time.Hour, 1)}, nil},
		{"the least recently used", 0, 10, []Item{item(10, time.Hour, 1), item(10, 3*time.Hour, 1), item(10, 2*time.Hour, 1)}, []int{1}},
		{"as many as it takes", 0, 15, []Item{item(10, time.Hour, 1), item(10, 3*time.Hour, 1), item(10, 2*time.Hour, 1)}, []int{1, 2}},
		{"what was used once before what was used again", 0, 10, []Item{item(10, 9*time.Hour, 2), item(10, time.Second, 1)}, []int{1}},
		{"then what was used again, the oldest first", 0, 25, []Item{item(10, 9*time.Hour, 2), item(10, time.Second, 1), item(10, time.Hour, 7), item(10, time.Minute, 2)}, []int{0, 1, 2}},
		{"a small thing late, although it was used once", 0, 10, []Item{{Size: Small, Age: time.Hour, Uses: 1}, item(10, time.Minute, 1)}, []int{1}},
		{"no pinned thing", 100, 100, []Item{pinned, item(10, time.Minute, 9)}, []int{1}},
		{"nothing promised for the sake of what should go", 0, 100, []Item{told, item(10, time.Minute, 9)}, []int{1}},
		{"what was promised if it must", 20, 20, []Item{told, item(10, time.Minute, 9)}, []int{0, 1}},
		{"of what was promised only what must", 15, 40, []Item{item(10, time.Minute, 9), told, told}, []int{0, 1}},
		{"a thing of more than half the limit before all else, promised or not", 1, 20, []Item{item(10, time.Hour, 1), giant}, []int{1}},
		{"then a thing of more than a sixteenth", 0, 10, []Item{item(10, 9*time.Hour, 1), item(13, time.Second, 1)}, []int{1}},
		{"but not one that is promised", 0, 10, []Item{item(10, 9*time.Hour, 1), {Size: 13 * mib, Uses: 1, Promised: true}}, []int{0}},
		{"once it is used again it is like the others", 0, 10, []Item{item(10, time.Hour, 1), item(120, time.Second, 2)}, []int{0}},
		{"what was used again beyond half of the limit, by age with the rest", 0, 10,
			[]Item{item(70, time.Hour, 2), item(29, 2*time.Hour, 2), item(10, 4*time.Hour, 2), item(10, 3*time.Hour, 1)}, []int{2}},
		{"a small thing that was not used for a month, with the rest", 0, 1, []Item{{Size: Small, Age: 31 * 24 * time.Hour, Uses: 9}, item(10, time.Hour, 1)}, []int{0, 1}},
		{"a time that lies ahead is now", 0, 10, []Item{item(10, -time.Hour, 1), item(10, time.Minute, 1)}, []int{1}},
		{"everything", 1000, 1000, []Item{item(10, 0, 1), item(10, 1000*time.Hour, 5), told}, []int{0, 1, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			need := Need{Limit: 200 * mib, Must: c.must * mib, Want: c.want * mib}
			if got := run(need, c.items); !slices.Equal(got, c.gone) {
				t.Errorf("want %v to go, got %v, of %+v", c.gone, got, c.items)
			}
		})
	}
}

func TestOlderAgesHaveNoLowerPlaces(t *testing.T) {
	last := -1
	for s := uint64(0); s < 1<<33; s += 1 + s/997 {
		b := bucket(time.Duration(s) * time.Second)
		if b < last || b >= ages {
			t.Fatalf("age of %d s: want a place from %d to %d, got %d", s, last, ages-1, b)
		}
		last = b
	}
	if last != ages-1 {
		t.Errorf("the greatest age: want the last place %d, got %d", ages-1, last)
	}
}

// TestPlanAgreesWithSorting compares plans with a plain model that sorts: as many
// bytes go as are wanted, no item goes before one of its class that is clearly
// older, and no class before a lower one is used up.
func TestPlanAgreesWithSorting(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		items := make([]Item, 1+rnd.IntN(400))
		var free, firm int64 // bytes that may go, without and with what is promised
		for k := range items {
			items[k] = Item{
				Size: 1 + rnd.Int64N(mib), Age: time.Duration(rnd.Int64N(int64(29 * 24 * time.Hour))),
				Uses: 1 + rnd.Uint32N(3), Pinned: rnd.IntN(20) == 0, Promised: rnd.IntN(10) == 0,
			}
			switch {
			case items[k].Pinned:
			case items[k].Promised:
				firm += items[k].Size
			default:
				free, firm = free+items[k].Size, firm+items[k].Size
			}
		}
		// A limit at which nothing is large; or one at which half is, and
		// nothing was used again. All that was may stay protected.
		limit := int64(1 << 40)
		if round%2 == 0 {
			limit = 8 * mib
			for k := range items {
				items[k].Uses = 1
			}
		}
		need := Need{Limit: limit, Want: rnd.Int64N(free + mib)}
		need.Must = rnd.Int64N(need.Want + 1)
		gone := run(need, items)

		var freed int64
		p := NewPlan(need)
		least := [classes]int{ages, ages, ages, ages, ages} // the youngest that went
		most := [classes]int{-1, -1, -1, -1, -1}            // the oldest that stayed
		for k, i := range items {
			c, age := p.class(i), bucket(i.Age)
			switch {
			case slices.Contains(gone, k):
				if i.Pinned {
					t.Fatalf("round %d: pinned %+v went", round, i)
				}
				freed += i.Size
				least[c] = min(least[c], age)
			case !i.Pinned:
				most[c] = max(most[c], age)
			}
		}
		if want := min(need.Want, free); freed < want && freed < firm || freed > max(need.Want, need.Must)+2*mib {
			t.Errorf("round %d: %+v of %d (%d with the promised): %d bytes went", round, need, free, firm, freed)
		}
		for c := range classes {
			if least[c] < most[c] {
				t.Errorf("round %d: of class %d one of age %d went and one of %d stayed", round, c, least[c], most[c])
			}
			for lower := range c {
				if least[c] < ages && most[lower] >= 0 {
					t.Errorf("round %d: class %d is touched while some of class %d stays", round, c, lower)
				}
			}
		}
	}
}

func BenchmarkPlanOfAMillion(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 2))
	items := make([]Item, 1_000_000)
	total := int64(0)
	for k := range items {
		items[k] = Item{Size: rnd.Int64N(4 * mib), Age: time.Duration(rnd.Int64N(int64(90 * 24 * time.Hour))), Uses: 1 + rnd.Uint32N(3)}
		total += items[k].Size
	}
	b.ReportAllocs()
	for b.Loop() {
		p := NewPlan(Need{Limit: total, Want: total / 10})
		for _, i := range items {
			p.Add(i)
		}
		for _, i := range items {
			p.Evict(i)
		}
	}
}
