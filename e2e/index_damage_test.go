package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// pagesOfIndex returns the pages of an index file by kind, as their headers say.
func pagesOfIndex(b []byte) map[string][]int {
	const size = 4096
	kinds := map[uint16]string{1: "branch", 2: "leaf", 4: "meta", 16: "free list"}
	list := map[string][]int{}
	for id := range len(b) / size {
		head := b[id*size:]
		kind := kinds[binary.NativeEndian.Uint16(head[8:])]
		if kind == "meta" || binary.NativeEndian.Uint64(head) == uint64(id) && kind != "" {
			list[kind] = append(list[kind], id*size)
		}
	}
	return list
}

// damageIndex damages a page of a kind in an index file.
func damageIndex(t *testing.T, rnd *rand.Rand, path, kind, how string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if how == "cut short" {
		if err := os.Truncate(path, rnd.Int64N(int64(len(b)))); err != nil {
			t.Fatal(err)
		}
		return
	}
	pages := pagesOfIndex(b)[kind]
	if len(pages) == 0 {
		t.Fatalf("the index has no page of the kind %s", kind)
	}
	if kind != "meta" { // one of both does no harm
		pages = []int{pages[rnd.IntN(len(pages))]}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range pages {
		page := b[at:][:4096]
		switch how {
		case "bit":
			bit := rnd.IntN(80 * 8)
			page[bit/8] ^= 1 << (bit % 8)
		case "zeros":
			clear(page)
		case "random":
			for i := range page {
				page[i] = byte(rnd.Uint32())
			}
		}
		if _, err := f.WriteAt(page, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoDamageToTheIndexFailsAPull damages each kind of page of the index, while the proxy is
// stopped and while clients pull, again and again. No pull of what is cached fails, the
// process lives until it is told to end, and the next one serves as well.
func TestNoDamageToTheIndexFailsAPull(t *testing.T) {
	h, p := start(t, believing)
	var images []*image.Image
	for n := range 12 {
		i := image.New(image.Options{Seed: uint64(n + 1), Layers: []image.Layer{{Size: 30 << 10}, {Size: 2 << 10}, {Size: 1 << 10}}})
		images = append(images, i)
		for tag := range 6 {
			h.Push(fmt.Sprint("library/app", n), fmt.Sprint("v", tag), i)
			get(t, p, fmt.Sprintf("/v2/library/app%d/manifests/v%d", n, tag), "Accept", anything)
		}
		pullRaw(t, p, fmt.Sprint("library/app", n), i)
	}
	p.WaitIdle(t)
	pull := func(n int) {
		a := ask(t, p, http.MethodGet, fmt.Sprintf("/v2/library/app%d/manifests/v%d", n, n%6), "Accept", anything)
		if a.status != http.StatusOK || a.err != nil || string(a.body) != string(images[n].Bytes()) {
			t.Errorf("a pull by tag: %s", a)
		}
		pullRaw(t, p, fmt.Sprint("library/app", n), images[n])
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	path := filepath.Join(p.Dir, "index.db")
	round := 0
	for _, kind := range []string{"meta", "free list", "leaf", "branch"} {
		for _, how := range []string{"bit", "zeros", "random", "cut short"} {
			round++
			p.Stop(t) // fails unless SIGTERM ends it
			if b, err := os.ReadFile(path); err != nil || kind == "branch" && len(pagesOfIndex(b)[kind]) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if err := p.Launch(); err != nil {
					t.Fatal(err)
				}
				continue
			}
			damageIndex(t, rnd, path, kind, how)
			if err := p.Launch(); err != nil {
				t.Fatalf("%s of a %s page: %v", how, kind, err)
			}
			pull(round % len(images))
			fresh(t, h, p, fmt.Sprint("rest", round)) // a write
			var users sync.WaitGroup
			for u := range 3 {
				users.Go(func() {
					for n := range 8 {
						pull((u*5 + n) % len(images))
					}
				})
			}
			if b, err := os.ReadFile(path); err == nil && len(pagesOfIndex(b)[kind]) > 0 {
				damageIndex(t, rnd, path, kind, how)
			}
			fresh(t, h, p, fmt.Sprint("use", round))
			users.Wait()
			if p.Gone() {
				t.Fatalf("%s of a %s page: the process has ended\n%s", how, kind, p.Log())
			}
			if t.Failed() {
				t.Fatalf("%s of a %s page\n%s", how, kind, p.Log())
			}
		}
	}
	p.Stop(t)
	if aside, err := filepath.Glob(path + ".damaged-*"); err != nil || len(aside) == 0 {
		t.Errorf("no damage was noticed: %v", err)
	}
}

// fresh pulls an image that isn't cached.
func fresh(t *testing.T, h *hub.Hub, p *proxy.Proxy, name string) {
	t.Helper()
	i := image.New(image.Options{Seed: uint64(len(name))<<32 + uint64(name[len(name)-1]), Layers: []image.Layer{{Size: 5 << 10}}})
	h.Push("library/"+name, "1", i)
	get(t, p, "/v2/library/"+name+"/manifests/1", "Accept", anything)
	pullRaw(t, p, "library/"+name, i)
}
