package e2e

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// silentRanges are registries that say nothing, or stop saying anything, when they are asked
// for a range of a blob. Whole blobs come.
func silentRanges() map[string]hub.Fault {
	all := map[string]hub.Fault{}
	for when, from := range map[string]int64{"all": 0, "those behind the first byte": 1} {
		for what, n := range map[string]int64{"no header": -1, "a header": 0, "1000 bytes": 1000, "1 MiB": 1 << 20} {
			all[fmt.Sprintf("%s: %s, then silence", when, what)] = hub.SilentRange(from, n)
		}
	}
	return all
}

// silentWorld is a proxy before one such registry for each silence, and for a size of the
// blob that a manifest has told or not.
func silentWorld(t *testing.T, rate int64) (p *proxy.Proxy, hubs map[string]*hub.Hub, faults map[string]hub.Fault, layers map[string]digest.Digest) {
	hubs, faults, layers = map[string]*hub.Hub{}, map[string]hub.Fault{}, map[string]digest.Digest{}
	sized := map[string]bool{}
	n := 0
	for quirk, f := range silentRanges() {
		for _, known := range []bool{false, true} {
			h := hub.New(t, hub.Options{NoCDN: n%2 == 0})
			i := image.New(image.Options{Seed: uint64(n), Layers: []image.Layer{{Size: 20 << 20}}})
			h.Push("app", "1.0", i)
			h.Inject(hub.Slow(rate)) // more than one connection is worth while
			name := fmt.Sprintf("reg%d.test", n)
			t.Logf("%s: %s, size known: %v", name, quirk, known)
			hubs[name], faults[name], layers[name], sized[name] = h, f, i.Layers("")[0].Digest, known
			n++
		}
	}
	p = proxy.Start(t, proxy.Options{Upstreams: hubs})
	for name, known := range sized {
		if known {
			get(t, p, "/v2/"+name+"/app/manifests/1.0")
		}
	}
	return p, hubs, faults, layers
}

// wantInTime asks p for each hub's blob at once, and wants it within half the time that a
// silent connection may take.
func wantInTime(t *testing.T, p *proxy.Proxy, layers map[string]digest.Digest) {
	var g sync.WaitGroup
	defer g.Wait()
	for name, layer := range layers {
		g.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			began := time.Now()
			res, err := open(ctx, p, http.MethodGet, "/v2/"+name+"/app/blobs/"+layer.String())
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			defer res.Body.Close()
			got, err := digest.FromReader(res.Body)
			t.Logf("%s: %s after %s", name, res.Status, time.Since(began))
			if res.StatusCode != http.StatusOK || err != nil || got != layer {
				t.Errorf("%s: want 200 and the blob, got %s and other bytes, %v, after %s", name, res.Status, err, time.Since(began))
			}
		})
	}
}

// Silence upon ranges delays a blob a little, at the first range and at those that follow
// when more connections are put to work, and the next blob not at all.
func TestABlobComesThoughItsRangesAreSilent(t *testing.T) {
	t.Parallel()
	p, hubs, faults, layers := silentWorld(t, 20e6)
	for name, h := range hubs {
		h.Inject(faults[name])
	}
	wantInTime(t, p, layers)
}

// What an earlier process left is gone on with by a range, and if that is silent, by the
// whole.
func TestAPartialFileIsGoneOnWithThoughRangesAreSilent(t *testing.T) {
	t.Parallel()
	p, hubs, faults, layers := silentWorld(t, 50e6)
	var g sync.WaitGroup
	for name, h := range hubs {
		layer := layers[name]
		h.Inject(hub.CutAfter(1 << 20).On(layer).Times(1))
		h.Inject(hub.Answer(hub.CDNGet, 500).On(layer).After(1))
		h.Inject(hub.Answer(hub.BlobGet, 500).On(layer).After(1))
		g.Go(func() {
			if a := ask(t, p, http.MethodGet, "/v2/"+name+"/app/blobs/"+layer.String()); a.status == http.StatusOK && a.err == nil {
				t.Errorf("%s: the blob came", name)
			}
		})
	}
	g.Wait()
	p.WaitIdle(t)
	p.Stop(t)
	for name, h := range hubs {
		h.Mend()
		h.Inject(faults[name])
	}
	p.Restart(t)
	wantInTime(t, p, layers)
}
