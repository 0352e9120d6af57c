package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// pullTagged pulls a tag and all that it stands for.
func pullTagged(t *testing.T, p *proxy.Proxy, repo, tag string, i *image.Image) {
	t.Helper()
	get(t, p, "/v2/"+repo+"/manifests/"+tag)
	pullRaw(t, p, repo, i)
	p.WaitIdle(t)
}

func TestWhatIsPurgedIsNotServedAnyMore(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{true, false} {
		h, p := start(t, believing)
		i, other := image.Index(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
		h.Push("library/app", "1.0", i)
		h.Push("library/app", "2.0", other)
		pullTagged(t, p, "library/app", "1.0", i)
		pullTagged(t, p, "library/app", "1.0", i) // from memory
		pullTagged(t, p, "library/app", "2.0", other)
		if !running {
			p.Stop(t)
		}
		operate(t, p, "purge", "--dry-run", "app:1.0").want(t, 0, "would be purged: docker.io/library/app:1.0", "would be removed: ", "(1 image, 1 tag)")
		operate(t, p, "ls", "app").want(t, 0, "app:1.0", "app:2.0", "2 images")
		done := operate(t, p, "purge", "app:1.0", "-o", "json")
		var doc struct {
			Images            []string
			Tags, Blobs, Busy int
		}
		if err := json.Unmarshal([]byte(done.out), &doc); err != nil || done.code != 0 || doc.Tags != 1 || doc.Blobs != len(i.Manifests)+len(i.Blobs) || doc.Busy != 0 {
			t.Errorf("exit code %d, %v, %s%s; want %d blobs", done.code, err, done.out, done.err, len(i.Manifests)+len(i.Blobs))
		}
		if !running {
			p.Restart(t)
		}
		// With the upstream's word it is not there, and without it is not known.
		h.Untag("library/app", "1.0")
		before := h.Counts()
		ask(t, p, http.MethodGet, "/v2/library/app/manifests/1.0").wantError(t, 404, "MANIFEST_UNKNOWN")
		if h.Counts().ManifestGets == before.ManifestGets {
			t.Error("the upstream was not asked")
		}
		h.Down()
		for path := range map[string]bool{"manifests/" + i.Digest.String(): true, "blobs/" + i.Layers("linux/amd64")[0].Digest.String(): true} {
			if a := ask(t, p, http.MethodGet, "/v2/library/app/"+path); a.status < 500 {
				t.Errorf("%s, want that the upstream can not be asked", a)
			}
		}
		// The other image is there.
		pullTagged(t, p, "library/app", "2.0", other)
		if err := h.Up(); err != nil {
			t.Fatal(err)
		}
		h.Push("library/app", "3.0", i)
		until(t, "the upstream is asked again", func() bool {
			return ask(t, p, http.MethodGet, "/v2/library/app/manifests/3.0").status == http.StatusOK
		})
		pullTagged(t, p, "library/app", "3.0", i)
		p.Stop(t)
	}
}

func TestPurgeAndGCSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	pullTagged(t, p, "library/app", "1.0", i)
	operate(t, p, "pin", "app:1.0").want(t, 0)
	bothWays(t, p, func() []string {
		refused := operate(t, p, "purge", "app:1.0")
		refused.want(t, 1, "nothing was removed: ", "docker.io/library/app:1.0 is pinned", "entrepot unpin docker.io/library/app:1.0", "--force")
		operate(t, p, "purge", "app@"+i.Digest.String()).want(t, 1, "pinned")
		operate(t, p, "purge", "--upstream", "docker.io").want(t, 1, "pinned", "--force")
		operate(t, p, "purge", "--older-than", "1h").want(t, 0, "removed: 0 blobs")
		operate(t, p, "purge", "app:none").want(t, 1, "docker.io/library/app:none is not in the cache")
		operate(t, p, "purge", "--upstream", "ghcr.io").want(t, 1, "nothing of ghcr.io is in the cache")
		operate(t, p, "purge", "quay.example.test/app:1").want(t, 1, "not configured")
		operate(t, p, "purge", "No Such Name").want(t, 2, "is no reference")
		operate(t, p, "purge").want(t, 2, "say what to purge")
		operate(t, p, "purge", "app:1.0", "--older-than", "1h").want(t, 2, "a reference goes with neither")
		operate(t, p, "purge", "--older-than", "long").want(t, 2, "--older-than")
		operate(t, p, "purge", "--older-than", "0s").want(t, 2, "--older-than")
		gc := operate(t, p, "gc", "--dry-run")
		gc.want(t, 0, "would be removed: 0 blobs of 0B")
		operate(t, p, "gc", "everything").want(t, 2, "gc takes no reference")
		asJSON := operate(t, p, "gc", "-o", "json")
		asJSON.want(t, 0, `"links": 0`, `"repositories": 1`)
		return []string{refused.err, gc.out, asJSON.out}
	})
	p.Restart(t)
	operate(t, p, "purge", "--force", "app:1.0").want(t, 0, "purged: docker.io/library/app:1.0", "1 tag)")
	operate(t, p, "ls", "--pinned").want(t, 0, "0 images")
}

func TestAPurgeBreaksNoPullThatIsUnderWay(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	layer, content, path := big(h, 8<<20)
	undo := h.Inject(hub.Slow(4 << 20).On(layer.Digest))
	repo, _, _ := strings.Cut(strings.TrimPrefix(path, "/v2/"), "/blobs/")
	type read struct {
		b   []byte
		err error
	}
	got := make(chan read, 1)
	go func() {
		resp, err := open(t.Context(), p, http.MethodGet, path)
		if err != nil {
			got <- read{nil, err}
			return
		}
		b, err := readAndClose(resp.Body, nil)
		got <- read{b, err}
	}()
	until(t, "the fill has begun", func() bool { return h.Sent(layer.Digest) > 0 })
	operate(t, p, "purge", "--upstream", "docker.io")
	operate(t, p, "gc").want(t, 0)
	r := <-got
	if r.err != nil {
		t.Error(r.err)
	}
	wantBytes(t, repo, content, r.b)
	undo()
	p.WaitIdle(t)
	wantBytes(t, "afterwards", content, get(t, p, path).body)
}
