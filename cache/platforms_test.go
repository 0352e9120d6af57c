package cache

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// openForPlatforms opens a cache for platforms in front of hub that fetches ahead.
func openForPlatforms(t *testing.T, hub Origin, platforms ...string) *Cache {
	t.Helper()
	c, err := Open(Options{Dir: t.TempDir(), MemoryBytes: 1 << 20, Settings: Settings{
		Platforms: platforms, Upstreams: map[string]Upstream{"docker.io": {Origin: hub, Prefetch: 8}},
	}})
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

func pullIndex(t *testing.T, c *Cache, target oci.Target, want v1.Descriptor) {
	t.Helper()
	m, _, err := c.Manifest(t.Context(), target, rewrite.ParseAccept([]byte("*/*")))
	if err != nil || m.Digest != want.Digest {
		t.Fatalf("want %s, got %v, %v", want.Digest, m, err)
	}
}

// Podman tries no other source if a mirror has an index and not the manifest of its platform.
func TestAnIndexThatWasPulledHasItsPlatformsWhenTheUpstreamIsGone(t *testing.T) {
	for _, by := range []string{"tag", "digest"} {
		synctest.Test(t, func(t *testing.T) {
			hub := newRegistry()
			idx, amd64, arm64, attestation, _ := hub.addIndex("library/app", "1")
			target := tagged("library/app", "1")
			if by == "digest" {
				target = digested("library/app", idx.Digest)
			}
			c := openForPlatforms(t, hub, "linux/amd64", "linux/arm64/v8", "windows/amd64")
			pullIndex(t, c, target, idx)
			time.Sleep(time.Minute)
			synctest.Wait()
			if got := hub.count(); got["manifest"] != 4 || got["referrers"] != 1 {
				t.Errorf("want the index, two manifests, an attestation and what refers to it fetched, got %v", got)
			}
			hub.set(errDown, 0)
			time.Sleep(2 * DefaultTTL)
			pullIndex(t, c, target, idx)
			for _, d := range []v1.Descriptor{amd64, arm64, attestation} {
				wantManifest(t, c, digested("library/app", d.Digest), d, Hit)
			}
			// Docker Engine 29 asks for it at each pull.
			if list, _, err := c.Referrers(t.Context(), digested("library/app", attestation.Digest)); err != nil || len(list) > 0 {
				t.Errorf("want it known that nothing refers to the attestation, got %v, %v", list, err)
			}
		})
	}
}

// The client that has pulled an index fetches its own platform's manifest, once.
func TestThePlatformThatAClientFetchesIsFetchedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		idx, amd64, _, _, _ := hub.addIndex("library/app", "1")
		hub.delay = 3 * time.Second
		c := openForPlatforms(t, hub)
		for range 5 {
			pullIndex(t, c, tagged("library/app", "1"), idx)
		}
		wantManifest(t, c, digested("library/app", amd64.Digest), amd64, Miss)
		time.Sleep(time.Minute)
		if got := hub.count()["manifest"]; got != 3 {
			t.Errorf("want the index, one manifest and its attestation fetched once, got %d", got)
		}
	})
}

func TestAttestationsOfOtherPlatformsAreNotFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		idx, _, _, _, _ := hub.addIndex("library/app", "1") // amd64 is attested
		c := openForPlatforms(t, hub, "linux/arm64")
		pullIndex(t, c, tagged("library/app", "1"), idx)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := hub.count(); got["manifest"] != 2 || got["referrers"] != 0 {
			t.Errorf("want the index and one manifest fetched, got %v", got)
		}
	})
}

func TestNoPullThatIsKeptIsSpentOnPlatforms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := &metered{registry: newRegistry()}
		idx, amd64, _, _, _ := hub.addIndex("library/app", "1")
		c := openForPlatforms(t, hub)
		pullIndex(t, c, tagged("library/app", "1"), idx)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := hub.count()["manifest"]; got != 1 {
			t.Errorf("want the index alone fetched, got %d manifests", got)
		}
		// The next revalidation finds that there are pulls again.
		hub.spares.Store(true)
		time.Sleep(2 * DefaultTTL)
		pullIndex(t, c, tagged("library/app", "1"), idx)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := hub.count()["manifest"]; got != 3 {
			t.Errorf("want the platform's manifest and its attestation fetched, got %d manifests", got)
		}
		wantManifest(t, c, digested("library/app", amd64.Digest), amd64, Hit)
	})
}

func TestPlatformsAreFetchedOutOfFewNestedIndexes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("app", content(1, 100))
		nested := func(platform *v1.Platform, n int, children ...v1.Descriptor) v1.Descriptor {
			doc := v1.Index{MediaType: v1.MediaTypeImageIndex, Annotations: map[string]string{"n": fmt.Sprint(n)}}
			doc.SchemaVersion = 2
			for _, d := range children {
				d.Platform = platform
				doc.Manifests = append(doc.Manifests, d)
			}
			return hub.addDocument("app", v1.MediaTypeImageIndex, doc)
		}
		hub.tag("app", "good", nested(nil, 0, nested(&v1.Platform{OS: "linux", Architecture: "amd64"}, 1, image)))
		var many []v1.Descriptor
		for i := range 100 {
			many = append(many, nested(&v1.Platform{OS: "linux", Architecture: "s390x"}, 100+i, image))
		}
		hub.tag("app", "endless", nested(nil, 2, many...))
		c := openForPlatforms(t, hub)
		for tag, most := range map[string]int{"good": 3, "endless": 1 + 1 + maxNestedLooks} {
			before := hub.count()["manifest"]
			if _, _, err := c.Manifest(t.Context(), tagged("app", tag), rewrite.ParseAccept([]byte("*/*"))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if got := hub.count()["manifest"] - before; got < 2 || got > most {
				t.Errorf("%s: want up to %d manifests fetched, got %d", tag, most, got)
			}
		}
		hub.set(errDown, 0)
		wantManifest(t, c, digested("app", image.Digest), image, Hit)
	})
}

func TestManyIndexesAreCompletedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := openForPlatforms(t, hub)
		const n = 3 * maxPlatformFetches
		for i := range n {
			m := hub.addImage("app", content(uint64(i), 100))
			m.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
			doc := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{m}}
			doc.SchemaVersion = 2
			tag := fmt.Sprint(i)
			hub.tag("app", tag, hub.addDocument("app", v1.MediaTypeImageIndex, doc))
			if _, _, err := c.Manifest(t.Context(), tagged("app", tag), rewrite.ParseAccept([]byte("*/*"))); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := hub.count()["manifest"]; got != n+maxPlatformFetches {
			t.Errorf("want %d indexes and the manifests of %d, got %d", n, maxPlatformFetches, got)
		}
	})
}

func TestClosingEndsTheWaitForPlatforms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		idx, _, _, _, _ := hub.addIndex("library/app", "1")
		c, err := Open(Options{Dir: t.TempDir(), Settings: Settings{Upstreams: map[string]Upstream{"docker.io": {Origin: hub, Prefetch: 8}}}})
		if err != nil {
			t.Fatal(err)
		}
		pullIndex(t, c, tagged("library/app", "1"), idx)
		began := time.Now()
		if err := c.Close(context.Background()); err != nil || time.Since(began) > 0 {
			t.Errorf("close: %v after %s", err, time.Since(began))
		}
		if got := hub.count()["manifest"]; got != 1 {
			t.Errorf("want nothing fetched behind the end, got %d", got)
		}
	})
}
