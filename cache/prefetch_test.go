package cache

import (
	"context"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// openAhead opens a cache that fetches n layers ahead at a time.
func openAhead(t *testing.T, hub *registry, n int) *Cache {
	t.Helper()
	c, err := Open(Options{Dir: t.TempDir(), MemoryBytes: 1 << 20, Settings: Settings{Upstreams: map[string]Upstream{"docker.io": {Origin: hub, Prefetch: n}}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func TestLayersAreFetchedAheadOnceAClientAsksForOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		var layers [][]byte
		for n := range 20 {
			layers = append(layers, content(uint64(n), 100<<10))
		}
		image := hub.addImage("library/nginx", layers...)
		hub.tag("library/nginx", "latest", image)
		hub.delay = time.Second
		c := openAhead(t, hub, 8)

		wantManifest(t, c, tagged("library/nginx", "latest"), image, Miss)
		synctest.Wait()
		time.Sleep(time.Minute)
		if got, want := hub.count(), map[string]int{"manifest": 1}; !maps.Equal(got, want) {
			t.Fatalf("who looks at a manifest makes the upstream be asked %v, want %v", got, want)
		}

		wantBlob(t, c, digested("library/nginx", digest.FromBytes(layers[0])), layers[0], Miss)
		// The first two eights have been fetched beside it, or are on their way.
		if got := hub.count()["blob"]; got < 9 || got > 18 {
			t.Errorf("when the first layer is there, %d are asked for, want 9 to 18", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for n, l := range layers[1:] {
			wantBlob(t, c, digested("library/nginx", digest.FromBytes(l)), l, Hit)
			if t.Failed() {
				t.Fatalf("layer %d was not there", n+1)
			}
		}
		if got, want := hub.count(), map[string]int{"manifest": 1, "blob": 20}; !maps.Equal(got, want) {
			t.Errorf("the upstream was asked %v, want %v", got, want)
		}
	})
}

func TestReadersOfPiecesHaveNothingFetchedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		one, other := content(1, 1<<20), content(2, 1<<20)
		hub.tag("library/nginx", "latest", hub.addImage("library/nginx", one, other))
		c := openAhead(t, hub, 8)
		if _, _, err := c.Manifest(t.Context(), tagged("library/nginx", "latest"), rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		b, _, err := c.Blob(t.Context(), digested("library/nginx", digest.FromBytes(one)), oci.Span{From: 1000, To: oci.Open})
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, ok := c.store.Has(digest.FromBytes(other)); ok {
			t.Error("the other layer was fetched, though only a piece of one was asked for")
		}
	})
}

func TestFetchingAheadEndsWithTheFirstFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		var layers [][]byte
		for n := range 20 {
			layers = append(layers, content(uint64(n), 100<<10))
		}
		hub.tag("library/nginx", "latest", hub.addImage("library/nginx", layers...))
		c := openAhead(t, hub, 2)
		if _, _, err := c.Manifest(t.Context(), tagged("library/nginx", "latest"), rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		hub.set(errDown, time.Second)
		if _, _, err := readBlob(t, c, digested("library/nginx", digest.FromBytes(layers[0]))); err == nil {
			t.Fatal("a blob came from an upstream that is down")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := hub.count()["blob"]; got > 4 {
			t.Errorf("%d blobs were asked for, want no more than those on their way when the first failed", got)
		}
	})
}

// Upstreams don't count layers as pulls.
func TestLayersAreFetchedAheadAlsoIfNoPullIsSpared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := &metered{registry: newRegistry()}
		layers := [][]byte{content(1, 100<<10), content(2, 100<<10), content(3, 100<<10)}
		image := hub.addImage("library/nginx", layers...)
		hub.tag("library/nginx", "latest", image)
		c, err := Open(Options{Dir: t.TempDir(), Settings: Settings{Upstreams: map[string]Upstream{"docker.io": {Origin: hub, Prefetch: 8}}}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close(context.Background()) }()
		wantManifest(t, c, tagged("library/nginx", "latest"), image, Miss)
		wantBlob(t, c, digested("library/nginx", digest.FromBytes(layers[0])), layers[0], Miss)
		time.Sleep(time.Minute)
		if got := hub.count()["blob"]; got != len(layers) {
			t.Errorf("%d layers were fetched, want %d", got, len(layers))
		}
	})
}
