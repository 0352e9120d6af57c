package upstream

import (
	"strings"
	"sync"
	"testing"
	"time"
)

// remembering is a QuotaHistory in memory.
type remembering struct {
	mu   sync.Mutex
	keys map[string]QuotaNeeds
}

func (h *remembering) Load(key string) QuotaNeeds {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.keys[key]
}

func (h *remembering) Save(key string, n QuotaNeeds) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys[key] = n
}

func TestTheReserveIsLearned(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := &meter{limit: 100, window: 21600}
		w.host("reg.test:443", m.serve)
		kept := &remembering{keys: map[string]QuotaNeeds{}}
		o := Options{QuotaReserve: AutoReserve, QuotaHistory: kept}
		r := w.registry(o)
		// refreshes returns how many moved tags may be fetched until none may.
		refreshes := func() (n int) {
			for spares(t, r) {
				wantManifest(t, r, "a")
				n++
			}
			return n
		}
		// window sends misses, and then as many refreshes as it may.
		window := func(misses int) int {
			m.remaining = m.limit
			for range misses {
				wantManifest(t, r, "a")
			}
			n := refreshes()
			time.Sleep(6*time.Hour + time.Minute)
			return n
		}
		if n := window(20); n != 13 {
			t.Errorf("%d refreshes in the first window, want 13: an eighth", n)
		}
		for range 27 {
			window(20)
		}
		if n := window(20); n != 70 {
			t.Errorf("%d refreshes after 28 windows of 20 misses, want 70: a tenth is kept beside the 20", n)
		}
		window(60)
		if n := window(2); n != 25 {
			t.Errorf("%d refreshes after a window of 60 misses, want 25", n)
		}
		r.Close()
		r = w.registry(o)
		m.remaining = m.limit
		wantManifest(t, r, "a")
		if n := refreshes(); n != 25 {
			t.Errorf("%d refreshes after a restart, want 25", n)
		}
		if q := r.endpoints[0].governor.left(); q == nil || q.Reserve != 74 || !strings.Contains(q.ReserveWhy, "up to 60 pulls") {
			t.Errorf("the reserve is explained as %+v", q)
		}
	})
}

func TestRefusedPullsOfNewImagesRaiseTheReserve(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := &meter{limit: 20, remaining: 20, window: 3600}
		w.host("reg.test:443", m.serve)
		r := w.registry(Options{QuotaReserve: AutoReserve, QuotaHistory: &remembering{keys: map[string]QuotaNeeds{
			"reg reg.test": {Windows: make([]int, reserveWindows)}}}})
		wantManifest(t, r, "a")
		for spares(t, r) {
			wantManifest(t, r, "a")
		}
		for range 4 {
			wantManifest(t, r, "a")
		}
		for _, tag := range []string{"latest", "1", "1", "1", "2"} { // each counts once
			_, _ = r.Manifest(t.Context(), "b", tag)
		}
		time.Sleep(2 * time.Hour)
		m.remaining = 20
		wantManifest(t, r, "a")
		if q := r.endpoints[0].governor.left(); q == nil || q.Reserve < 7 || q.Reserve > 11 {
			t.Errorf("the reserve is %+v, want about those refused", q)
		}
	})
}
