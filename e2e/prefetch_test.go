package e2e

import (
	"net/http"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

func TestTheOtherLayersAreFetchedWhileAClientTakesTheFirst(t *testing.T) {
	h, p := start(t, "")
	manyLayers := make([]image.Layer, 12)
	for n := range manyLayers {
		manyLayers[n].Size = 100 << 10
	}
	i := image.New(image.Options{Seed: 60, Layers: manyLayers})
	h.Push("library/many", "1.0", i)
	layers := i.Layers("")

	get(t, p, "/v2/library/many/manifests/1.0")
	p.WaitIdle(t)
	if c := h.Counts(); c.BlobGets+c.CDNGets != 0 {
		t.Errorf("who asks for the manifest alone makes the upstream send blobs: %+v", c)
	}

	if err := download(t.Context(), p, "/v2/library/many/blobs/"+layers[0].Digest.String(), layers[0]); err != nil {
		t.Fatal(err)
	}
	until(t, "all layers to be fetched", func() bool {
		return p.Metrics(t).Sum("entrepot_fills_total") >= float64(len(layers))
	})
	if got := p.Metrics(t).Sum("entrepot_prefetches_total"); got != float64(len(layers)-1) {
		t.Errorf("%v layers were fetched ahead, want %d", got, len(layers)-1)
	}
	h.Down()
	for _, l := range layers {
		res := get(t, p, "/v2/library/many/blobs/"+l.Digest.String())
		if res.status != http.StatusOK || int64(len(res.body)) != l.Size {
			t.Errorf("layer %s with the upstream down: %d, %d bytes, want all %d", l.Digest, res.status, len(res.body), l.Size)
		}
	}
}
