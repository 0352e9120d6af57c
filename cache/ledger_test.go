package cache

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

func asOf(t oci.Target, at time.Time) oci.Target {
	t.AsOf = at
	return t
}

// wantUnknown checks that a manifest is MANIFEST_UNKNOWN, to GET and HEAD, in words.
func wantUnknown(t *testing.T, c *Cache, target oci.Target, says ...string) {
	t.Helper()
	_, _, get := c.Manifest(t.Context(), target, rewrite.Accept{})
	_, _, head := c.Describe(t.Context(), target, rewrite.Accept{})
	for _, err := range []error{get, head} {
		var e *oci.Error
		if !errors.As(err, &e) || e.Code != oci.CodeManifestUnknown || e.HTTPStatus() != 404 {
			t.Errorf("%v as of %v: %v; want MANIFEST_UNKNOWN", target, target.AsOf, err)
			continue
		}
		for _, s := range says {
			if !strings.Contains(e.Message, s) {
				t.Errorf("%v as of %v: %q; want it to say %q", target, target.AsOf, e.Message, s)
			}
		}
	}
}

func TestLedgerTellsWhatATagStoodFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub}, TagRule{Match: "*", TTL: time.Minute, StaleIfError: time.Hour})
		target := tagged("app", "1")
		if _, err := c.History(t.Context(), target); !oci.IsAbsent(err) {
			t.Errorf("of what was never asked for: %v", err)
		}
		first, second := hub.addImage("app", content(1, 100)), hub.addImage("app", content(2, 100))
		hub.tag("app", "1", first)
		begun := time.Now()
		if _, _, err := c.Describe(t.Context(), target, rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		var last time.Time
		for range 10 {
			time.Sleep(time.Hour)
			last = time.Now()
			if _, _, err := c.Manifest(t.Context(), target, rewrite.Accept{}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		moved := time.Now()
		hub.tag("app", "1", second)
		wantManifest(t, c, target, second, Miss)
		h, err := c.History(t.Context(), target)
		if err != nil || h.Reference != "docker.io/app:1" || len(h.Observations) != 2 {
			t.Fatalf("%+v, %v", h, err)
		}
		was, is := h.Observations[0], h.Observations[1]
		if was.Digest != first.Digest || was.How != index.SeenHead || !was.First.Equal(begun) || !was.Last.Equal(last) || was.Kept != KeptPart {
			t.Errorf("before: %+v", was)
		}
		if is.Digest != second.Digest || is.How != index.SeenRevalidation || !is.First.Equal(moved) || is.Kept != KeptPart {
			t.Errorf("after: %+v", is)
		}
		wantBlob(t, c, digested("app", digest.FromBytes(content(2, 100))), content(2, 100), Miss)
		wantBlob(t, c, digested("app", digest.FromString(`{"architecture":"amd64","os":"linux"}`)), []byte(`{"architecture":"amd64","os":"linux"}`), Miss)
		settle()
		if h, err = c.History(t.Context(), target); err != nil || h.Observations[1].Kept != KeptWhole {
			t.Errorf("pulled: %+v, %v", h, err)
		}

		want := Move{Reference: "docker.io/app:1", From: first.Digest, To: second.Digest, Until: was.Last, Seen: is.First, How: index.SeenRevalidation}
		for name, f := range map[string]MovesFilter{
			"all": {}, "since then": {Since: moved}, "of the upstream": {Upstream: "docker.*"}, "of the repository": {Repository: "a?p"},
		} {
			if moves, err := c.Moves(t.Context(), f); err != nil || !slices.Equal(moves, []Move{want}) {
				t.Errorf("moves, %s: %+v, %v; want %+v", name, moves, err, want)
			}
		}
		for name, f := range map[string]MovesFilter{"later": {Since: moved.Add(1)}, "of others": {Upstream: "ghcr.io"}, "of another repository": {Repository: "ap"}} {
			if moves, err := c.Moves(t.Context(), f); err != nil || len(moves) != 0 {
				t.Errorf("moves, %s: %+v, %v", name, moves, err)
			}
		}
	})
}

func TestPullAsOfATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		o := Options{Dir: t.TempDir(), MemoryBytes: mib}
		c := open(t, o, map[string]*registry{"docker.io": hub}, TagRule{Match: "*", TTL: time.Minute, StaleIfError: time.Hour})
		target := tagged("app", "1")
		first, second := hub.addImage("app", content(1, 100)), hub.addImage("app", content(2, 100))
		early := time.Now()
		wantUnknown(t, c, asOf(target, early), "nothing is known here of docker.io/app:1")
		time.Sleep(time.Hour)
		hub.tag("app", "1", first)
		wantManifest(t, c, target, first, Miss)
		born := time.Now()
		time.Sleep(time.Hour)
		between := time.Now()
		time.Sleep(time.Hour)
		hub.tag("app", "1", second)
		moved := time.Now()
		wantManifest(t, c, target, second, Miss)
		time.Sleep(time.Hour)
		hub.mu.Lock()
		delete(hub.tags["app"], "1")
		hub.mu.Unlock()
		if _, _, err := c.Manifest(t.Context(), target, rewrite.Accept{}); !oci.IsAbsent(err) {
			t.Fatal(err)
		}
		deleted := time.Now()
		time.Sleep(time.Hour)

		before := hub.count()
		wantUnknown(t, c, asOf(target, early), "known here since "+born.UTC().Format(time.RFC3339), first.Digest.String())
		wantManifest(t, c, asOf(target, born), first, Hit)
		wantManifest(t, c, asOf(target, between), first, Hit)
		wantManifest(t, c, asOf(target, moved.Add(-1)), first, Hit)
		wantManifest(t, c, asOf(target, moved), second, Hit)
		wantUnknown(t, c, asOf(target, deleted), "there was no docker.io/app:1")
		wantUnknown(t, c, asOf(target, time.Now().Add(25*time.Hour)), "still to come")
		for at, want := range map[time.Time]v1.Descriptor{born: first, moved: second} {
			m, out, err := c.Describe(t.Context(), asOf(target, at), rewrite.Accept{})
			if err != nil || m.Digest != want.Digest || m.Size != want.Size || out.Status != Hit || !strings.HasPrefix(out.Reason, "as of ") {
				t.Errorf("HEAD: %+v, %+v, %v", m, out, err)
			}
		}
		for at, want := range map[time.Time][]string{between: {"1"}, moved: {"1"}} {
			if tags, _, err := c.Tags(t.Context(), asOf(oci.Target{Upstream: "docker.io", Repository: "app"}, at)); err != nil || !slices.Equal(tags, want) {
				t.Errorf("tags as of %v: %v, %v; want %v", at, tags, err, want)
			}
		}
		for _, at := range []time.Time{early, deleted} {
			if tags, _, err := c.Tags(t.Context(), asOf(oci.Target{Upstream: "docker.io", Repository: "app"}, at)); !oci.IsAbsent(err) {
				t.Errorf("tags as of %v: %v, %v; want none", at, tags, err)
			}
		}
		// By digest a date says nothing.
		wantManifest(t, c, asOf(digested("app", first.Digest), early), first, Hit)
		if now := hub.count(); now["resolve"] != before["resolve"] || now["manifest"] != before["manifest"] || now["tags"] != before["tags"] {
			t.Errorf("the upstream was asked: %v, before %v", now, before)
		}

		// What is not kept any more is had from the upstream by its digest, and kept.
		if err := c.store.Remove(first.Digest); err != nil {
			t.Fatal(err)
		}
		c.memory.Clear()
		wantManifest(t, c, asOf(target, born), first, Miss)
		wantManifest(t, c, asOf(target, born), first, Hit)
		// Where it is not there either, what is known is said.
		if err := c.store.Remove(first.Digest); err != nil {
			t.Fatal(err)
		}
		c.memory.Clear()
		hub.mu.Lock()
		delete(hub.manifests["app"], first.Digest)
		hub.mu.Unlock()
		wantUnknown(t, c, asOf(target, born), "stood for "+first.Digest.String(), "not kept here", "docker.io")
		// That the upstream fails is no absence.
		time.Sleep(time.Minute)
		hub.set(errDown, 0)
		if _, _, err := c.Manifest(t.Context(), asOf(target, born), rewrite.Accept{}); !oci.IsTransient(err) {
			t.Errorf("the upstream is down: %v", err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		o.Offline = true
		c = open(t, o, map[string]*registry{"docker.io": hub})
		wantManifest(t, c, asOf(target, moved), second, Hit)
		wantUnknown(t, c, asOf(target, born), first.Digest.String(), "offline")
	})
}

func TestPullAsOfATimeIsNegotiatedAsEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		image := hub.addImage("app", content(1, 100))
		image.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
		idx := hub.addDocument("app", v1.MediaTypeImageIndex, v1.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{image}})
		hub.tag("app", "1", idx)
		wantManifest(t, c, tagged("app", "1"), idx, Miss)
		single := rewrite.ParseAccept([]byte(v1.MediaTypeImageManifest))
		target := asOf(tagged("app", "1"), time.Now())
		m, _, err := c.Manifest(t.Context(), target, single)
		if err != nil || m.Digest != image.Digest || !m.Negotiated {
			t.Fatalf("GET: %+v, %v", m, err)
		}
		if m, _, err = c.Describe(t.Context(), target, single); err != nil || m.Digest != image.Digest || m.Bytes != nil {
			t.Fatalf("HEAD: %+v, %v", m, err)
		}
	})
}

func TestDeletedTagThatIsKeptIsInTheLedgerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{}, map[string]*registry{"docker.io": hub},
			TagRule{Match: "*", TTL: time.Minute, StaleIfError: time.Hour, KeepDeleted: true})
		image := hub.addImage("app", content(1, 100))
		hub.tag("app", "1", image)
		wantManifest(t, c, tagged("app", "1"), image, Miss)
		hub.mu.Lock()
		delete(hub.tags["app"], "1")
		hub.mu.Unlock()
		for range 3 {
			time.Sleep(time.Hour)
			wantManifest(t, c, tagged("app", "1"), image, Stale)
		}
		hub.tag("app", "1", image)
		time.Sleep(time.Hour)
		wantManifest(t, c, tagged("app", "1"), image, Revalidated)
		h, err := c.History(t.Context(), tagged("app", "1"))
		if err != nil || len(h.Observations) != 3 || h.Observations[1].Digest != "" || h.Observations[2].Digest != image.Digest {
			t.Errorf("%+v, %v; want it there, gone, and there", h, err)
		}
	})
}
