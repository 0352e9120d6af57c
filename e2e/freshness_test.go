package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
)

const tagPath = "/v2/library/app/manifests/1.0"

func TestAFreshTagIsNotAskedForAgain(t *testing.T) {
	h, p := start(t, believing)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	get(t, p, tagPath)
	before := manifestAsks(h)
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 2})) // not looked at
	for range 3 {
		a := get(t, p, tagPath)
		wantBytes(t, "tag", i.Bytes(), a.body)
		if cs := a.header.Get("Cache-Status"); !strings.Contains(cs, "; hit") {
			t.Errorf("want a hit, got Cache-Status %q", cs)
		}
	}
	if after := manifestAsks(h); after != before {
		t.Errorf("want %s, got %s", before, after)
	}
}

// manifestAsks says how often manifests were asked for.
func manifestAsks(h *hub.Hub) string {
	c := h.Counts()
	return fmt.Sprintf("%d HEADs and %d GETs", c.ManifestHeads, c.ManifestGets)
}

func TestATagPastItsTimeIsRevalidatedByHeadWhichIsNoPull(t *testing.T) {
	h, p := start(t, doubting)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	h.LimitPulls(100, 100, 21600)
	get(t, p, tagPath)
	before, left := h.Counts(), h.PullsLeft()
	if left != 99 {
		t.Errorf("the first pull: want 99 left, got %d", left)
	}
	const asks = 4
	for range asks {
		wantBytes(t, "tag", i.Bytes(), get(t, p, tagPath).body)
	}
	after := h.Counts()
	if heads := after.ManifestHeads - before.ManifestHeads; heads != asks {
		t.Errorf("want %d HEADs, got %d", asks, heads)
	}
	if gets := after.ManifestGets - before.ManifestGets; gets != 0 || h.PullsLeft() != left {
		t.Errorf("want no GET, got %d, and %d of %d pulls left", gets, h.PullsLeft(), left)
	}
}

func TestATagThatMovedIsFetchedAnew(t *testing.T) {
	h, p := start(t, doubting)
	first, second := image.New(image.Options{Seed: 1}), image.Index(image.Options{Seed: 2})
	h.Push("library/app", "1.0", first)
	wantBytes(t, "before", first.Bytes(), get(t, p, tagPath).body)
	h.Push("library/app", "1.0", second)
	a := get(t, p, tagPath)
	wantBytes(t, "after", second.Bytes(), a.body)
	a.wantHeader(t, "Content-Type", second.MediaType())
	// What it was can still be had, also when the upstream is gone.
	h.Down()
	wantBytes(t, "by the old digest", first.Bytes(), get(t, p, "/v2/library/app/manifests/"+first.Digest.String()).body)
}

func TestAStaleTagIsServedWhenTheUpstreamFails(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*hub.Hub){
		"refuses connections": func(h *hub.Hub) { h.Down() },
		"never answers":       func(h *hub.Hub) { h.BlackHole() },
		"answers 500":         func(h *hub.Hub) { h.Inject(hub.Answer(hub.Any, 500)) },
		"answers 503": func(h *hub.Hub) {
			h.Inject(hub.Answer(hub.ManifestHead, 503))
			h.Inject(hub.Answer(hub.ManifestGet, 503))
		},
		"limits pulls": func(h *hub.Hub) {
			h.Inject(hub.Answer(hub.ManifestHead, 429).With("Retry-After", "60"))
			h.Inject(hub.Answer(hub.ManifestGet, 429))
		},
		"limits all requests": func(h *hub.Hub) { h.Inject(hub.TooManyRequests(hub.Any)) },
		"has no tokens":       func(h *hub.Hub) { h.ExpireTokens(); h.Down(hub.TokenServer) },
	} {
		t.Run(name, func(t *testing.T) {
			h, p := start(t, `upstreams: {docker.io: {header_timeout: 1s, tags: [{match: "*", ttl: 0s}]}}`)
			i := image.New(image.Options{Seed: 1})
			h.Push("library/app", "1.0", i)
			get(t, p, tagPath)
			pullRaw(t, p, "library/app", i)
			gets := h.Counts().ManifestGets
			fail(h)
			for range 2 {
				a := get(t, p, tagPath)
				wantBytes(t, "stale tag", i.Bytes(), a.body)
				a.wantHeader(t, "Docker-Content-Digest", i.Digest.String())
				if w := a.header.Get("Warning"); !strings.HasPrefix(w, "110 ") {
					t.Errorf("want Warning 110, got %q", w)
				}
				if age, err := strconv.Atoi(a.header.Get("Age")); err != nil || age < 0 {
					t.Errorf("want an Age, got %q", a.header.Get("Age"))
				}
				head := ask(t, p, "HEAD", tagPath)
				head.wantHeader(t, "Docker-Content-Digest", i.Digest.String(), "Content-Length", fmt.Sprint(len(i.Bytes())))
			}
			pullRaw(t, p, "library/app", i)
			if got := h.Counts().ManifestGets; got != gets && strings.HasPrefix(name, "limits") {
				t.Errorf("a HEAD that was limited was followed by %d GETs", got-gets)
			}
		})
	}
}

func TestATagIsFreshAgainWhenTheUpstreamIsBack(t *testing.T) {
	t.Parallel()
	h, p := start(t, doubting)
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
	get(t, p, tagPath)
	h.Down()
	get(t, p, tagPath)
	second := image.New(image.Options{Seed: 2})
	h.Push("library/app", "1.0", second)
	if err := h.Up(); err != nil {
		t.Fatal(err)
	}
	// An endpoint that has failed may be left alone for a moment.
	var a answer
	until(t, "the new tag", func() bool {
		a = get(t, p, tagPath)
		return string(a.body) == string(second.Bytes())
	})
	a.wantHeader(t, "Warning", "")
}

func TestATagThatIsGoneIsBelievedToBeGone(t *testing.T) {
	h, p := start(t, doubting)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	get(t, p, tagPath)
	h.Untag("library/app", "1.0")
	ask(t, p, "GET", tagPath).wantError(t, 404, "MANIFEST_UNKNOWN")
	wantBytes(t, "by digest", i.Bytes(), get(t, p, "/v2/library/app/manifests/"+i.Digest.String()).body)
}

func TestATagThatIsNotThereIsRemembered(t *testing.T) {
	h, p := start(t, "")
	h.Push("library/app", "1.0", image.New(image.Options{}))
	ask(t, p, "GET", "/v2/library/app/manifests/none").wantError(t, 404, "MANIFEST_UNKNOWN")
	before := h.Counts()
	for range 3 {
		ask(t, p, "GET", "/v2/library/app/manifests/none").wantError(t, 404, "MANIFEST_UNKNOWN")
	}
	wantUnmoved(t, before, h.Counts())
}

func TestAnImmutableTagIsNeverAskedForAgain(t *testing.T) {
	h, p := start(t, `upstreams: {docker.io: {tags: [{match: "library/*:1.*", immutable: true}, {match: "*", ttl: 0s}]}}`)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	h.Push("library/app", "latest", i)
	get(t, p, tagPath)
	get(t, p, "/v2/library/app/manifests/latest")
	before := manifestAsks(h)
	get(t, p, tagPath)
	if after := manifestAsks(h); after != before {
		t.Errorf("immutable: want %s, got %s", before, after)
	}
	get(t, p, "/v2/library/app/manifests/latest")
	if after := manifestAsks(h); after == before {
		t.Errorf("not immutable: want a revalidation, got none")
	}
}

func TestOfflineServesWhatIsKeptAndAsksForNothing(t *testing.T) {
	h, p := start(t, doubting)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	get(t, p, tagPath)
	pullRaw(t, p, "library/app", i)
	p.Stop(t)
	before := h.Counts()
	off := restartWith(t, p, h, "cache: {offline: true}\n"+doubting)
	wantBytes(t, "tag", i.Bytes(), get(t, off, tagPath).body)
	pullRaw(t, off, "library/app", i)
	if a := ask(t, off, "GET", "/v2/library/other/manifests/1"); a.status < 500 && a.status != 404 {
		t.Errorf("what is not kept: want a failure, got %s", a)
	}
	wantUnmoved(t, before, h.Counts())
}

func TestTheLimitThatTheUpstreamTellsIsAMetric(t *testing.T) {
	h, p := start(t, believing)
	h.Push("library/app", "1.0", image.New(image.Options{}))
	h.LimitPulls(100, 77, 21600)
	get(t, p, tagPath)
	m := p.Metrics(t)
	if got := m.Sum("entrepot_upstream_ratelimit_limit", "upstream", "docker.io"); got != 100 {
		t.Errorf("limit: want 100, got %g", got)
	}
	if got := m.Sum("entrepot_upstream_ratelimit_remaining", "upstream", "docker.io"); got != float64(h.PullsLeft()) {
		t.Errorf("remaining: want %d, got %g", h.PullsLeft(), got)
	}
}
