package e2e

import (
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
)

// TestCacheStatusTellsWhatTheUpstreamAnswered holds RFC 9211: fwd-status is the
// upstream's own, and stored is said of what is stored.
func TestCacheStatusTellsWhatTheUpstreamAnswered(t *testing.T) {
	h, p := start(t, doubting)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	want := func(what string, a answer, status int, member string) {
		t.Helper()
		cs := a.header.Get("Cache-Status")
		if a.status != status || !strings.HasPrefix(cs, "entrepot; "+member+";") {
			t.Errorf("%s: want %d %s, got %d %s", what, status, member, a.status, cs)
		}
	}
	config := "/v2/library/app/blobs/" + i.Parsed(i.Digest).Config.Digest.String()
	want("a tag that is fetched", ask(t, p, "GET", tagPath), 200, "fwd=miss; fwd-status=200; stored")
	want("a tag that is revalidated", ask(t, p, "GET", tagPath), 200, "fwd=stale; fwd-status=200")
	want("a small blob", ask(t, p, "GET", config), 200, "fwd=miss; fwd-status=200; stored")
	want("a small blob again", ask(t, p, "GET", config), 200, "hit")
	want("a tag that is not there", ask(t, p, "GET", "/v2/library/app/manifests/none"), 404, "fwd=miss; fwd-status=404")
	want("a tag that is not there, again", ask(t, p, "GET", "/v2/library/app/manifests/none"), 404, "hit")

	undo := h.Inject(hub.Answer(hub.Any, 503))
	want("a tag that can not be revalidated", ask(t, p, "GET", tagPath), 200, "fwd=stale; fwd-status=503")
	want("the same, and not asked again", ask(t, p, "GET", tagPath), 200, "hit")
	undo()
}

// What is still on its way is not said to be stored: it may yet turn out to be
// wrong.
func TestCacheStatusClaimsNothingOfABlobThatIsOnItsWay(t *testing.T) {
	h, p := start(t, believing)
	d, content, path := blobOf(h, "library/big", 1, 1<<20)
	gate := make(chan struct{})
	h.Inject(hub.StallAfter(512<<10, gate).On(d))
	res, err := open(t.Context(), p, "GET", path)
	if err != nil {
		t.Fatal(err)
	}
	cs := res.Header.Get("Cache-Status")
	close(gate)
	body, err := readAndClose(res.Body, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "the blob", content, body)
	if !strings.HasPrefix(cs, "entrepot; fwd=miss; fwd-status=200; detail=") {
		t.Errorf("want a miss of which nothing is said to be stored, got %s", cs)
	}
}
