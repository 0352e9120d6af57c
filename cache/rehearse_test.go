package cache

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// rehearse rehearses pulls of targets, which must come to an end.
func rehearse(t *testing.T, c *Cache, o RehearseOptions, targets ...oci.Target) *Rehearsal {
	t.Helper()
	var images []RehearseImage
	for _, target := range targets {
		images = append(images, RehearseImage{Target: target})
	}
	done, err := c.Rehearse(t.Context(), images, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(done.Images) != len(targets) {
		t.Fatalf("%d images were rehearsed, want %d", len(done.Images), len(targets))
	}
	return done
}

// want checks the status of an image, and that its problems have these parts, in order.
func (i RehearsedImage) want(t *testing.T, status string, problems ...string) {
	t.Helper()
	ok := i.Status == status && len(i.Problems) == len(problems)
	for n, p := range problems {
		ok = ok && strings.Contains(i.Problems[n], p)
	}
	if !ok {
		t.Errorf("%s: want %s and %q, got %s and %q", i.Reference, status, problems, i.Status, i.Problems)
	}
}

func TestARehearsalFindsWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		idx, amd64, _, attestation, signature := hub.addIndex("app", "1")
		single := hub.addImage("single", []byte("x"))
		hub.tag("single", "1", single)
		dir := t.TempDir()
		c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": hub})
		none := rehearse(t, c, RehearseOptions{}, tagged("app", "1"), digested("app", idx.Digest))
		none.Images[0].want(t, RehearsedFailed, "the tag is not known here")
		none.Images[1].want(t, RehearsedFailed, "is not in the cache")

		warm(t, c, WarmOptions{}, tagged("app", "1"), tagged("single", "1"))
		done := rehearse(t, c, RehearseOptions{Verify: true}, tagged("app", "1"), digested("app", idx.Digest), digested("app", amd64.Digest), tagged("single", "1"))
		for _, i := range done.Images {
			i.want(t, RehearsedOK)
			if len(i.Platforms) != 1 || i.Platforms[0] != (RehearsedPlatform{"linux/amd64", true}) {
				t.Errorf("%s: got %+v", i.Reference, i.Platforms)
			}
		}
		if left := time.Until(done.Images[0].Until) - DefaultTTL - DefaultStaleIfError; left.Abs() > time.Minute || !done.Images[1].Until.IsZero() {
			t.Errorf("served until %s, and by digest until %s", done.Images[0].Until, done.Images[1].Until)
		}

		// Of another platform there is nothing, and nobody knows what refers to it.
		more := rehearse(t, c, RehearseOptions{Platforms: []string{"linux/arm64", "linux/amd64"}, Referrers: true}, tagged("app", "1"), tagged("single", "1"))
		more.Images[0].want(t, RehearsedFailed, "the list of what refers to "+string(amd64.Digest), "linux/arm64: manifest", "is not cached", "manifest sha256:",
			"the list of what refers to "+string(attestation.Digest), "the list of what refers to "+string(idx.Digest))
		if got := more.Images[0].Platforms; len(got) != 2 || got[0].OK || got[1].OK {
			t.Errorf("got %+v", got)
		}
		rehearse(t, c, RehearseOptions{Platforms: []string{"windows/amd64"}}, tagged("app", "1"), tagged("single", "1")).Images[1].
			want(t, RehearsedFailed, "there is no manifest for windows/amd64; it is for linux/amd64")
		warm(t, c, WarmOptions{Platforms: []string{"linux/arm64", "linux/amd64"}, Referrers: true}, tagged("app", "1"))
		rehearse(t, c, RehearseOptions{Platforms: []string{"linux/arm64", "linux/amd64"}, Referrers: true}, tagged("app", "1")).Images[0].want(t, RehearsedOK)

		// Pieces go, or are changed on disk.
		before := hub.count()
		layer := digest.FromBytes(content(1, 3000))
		file := filepath.Join(dir, "blobs", "sha256", layer.Encoded()[:2], layer.Encoded())
		if err := os.WriteFile(file, append(content(1, 2999), 'x'), 0o600); err != nil {
			t.Fatal(err)
		}
		rehearse(t, c, RehearseOptions{}, tagged("app", "1")).Images[0].want(t, RehearsedOK)
		rehearse(t, c, RehearseOptions{Verify: true}, tagged("app", "1")).Images[0].want(t, RehearsedFailed, "linux/amd64: layer "+string(layer)+" is damaged")
		rehearse(t, c, RehearseOptions{}, tagged("app", "1")).Images[0].want(t, RehearsedFailed, "linux/amd64: layer "+string(layer)+" is not cached")
		if err := os.WriteFile(file, content(1, 10), 0o600); err != nil {
			t.Fatal(err)
		}
		rehearse(t, c, RehearseOptions{}, tagged("app", "1")).Images[0].want(t, RehearsedFailed, "is damaged: it has 10 bytes, and should have 3000")
		if err := os.Remove(filepath.Join(dir, "blobs", "sha256", signature.Digest.Encoded()[:2], signature.Digest.Encoded())); err != nil {
			t.Fatal(err)
		}
		rehearse(t, c, RehearseOptions{Platforms: []string{"linux/arm64"}}, tagged("app", "1")).Images[0].want(t, RehearsedOK)
		rehearse(t, c, RehearseOptions{Platforms: []string{"linux/arm64"}, Referrers: true}, tagged("app", "1")).Images[0].want(t, RehearsedFailed, "manifest "+string(signature.Digest)+" is not cached")
		if after := hub.count(); !maps.Equal(before, after) {
			t.Errorf("rehearsing asked the upstream: %v, before %v", after, before)
		}
	})
}

// What a rehearsal says is what becomes of the pull.
func TestARehearsalForetellsWhatBecomesOfATag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		for _, repo := range []string{"app", "kept", "blocked"} {
			hub.tag(repo, "1", hub.addImage(repo, []byte(repo)))
		}
		c, err := Open(Options{Dir: t.TempDir(), Settings: Settings{Upstreams: map[string]Upstream{"docker.io": {Origin: hub, Tags: []TagRule{
			{Match: "kept:*", Immutable: true}, {Match: "blocked:*", TTL: time.Minute, StaleIfError: time.Hour, OnMove: BlockOnMove},
			{Match: "*", TTL: time.Minute, StaleIfError: time.Hour},
		}}}}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(context.Background())
		all := []oci.Target{tagged("app", "1"), tagged("kept", "1"), tagged("blocked", "1")}
		warm(t, c, WarmOptions{}, all...)
		hub.tag("blocked", "1", hub.addImage("blocked", []byte("moved")))
		time.Sleep(2 * time.Minute)
		warm(t, c, WarmOptions{}, tagged("blocked", "1")).Images[0].wantError(t, "refused to clients")
		hub.set(errDown, 0)
		for _, at := range []struct {
			wait     time.Duration
			offline  bool
			statuses []string
		}{
			{0, false, []string{RehearsedStale, RehearsedOK, RehearsedFailed}},
			{0, true, []string{RehearsedStale, RehearsedOK, RehearsedFailed}},
			{time.Hour, false, []string{RehearsedFailed, RehearsedOK, RehearsedFailed}},
			{0, true, []string{RehearsedStale, RehearsedOK, RehearsedFailed}},
		} {
			time.Sleep(at.wait)
			s := c.settings().Settings
			if s.Offline = at.offline; at.offline {
				if err := c.Reconfigure(s); err != nil {
					t.Fatal(err)
				}
			} else {
				time.Sleep(time.Minute) // the upstream is asked again
			}
			said := rehearse(t, c, RehearseOptions{}, all...)
			var got []string
			for i, target := range all {
				status := said.Images[i].Status
				got = append(got, status)
				_, _, err := c.Manifest(t.Context(), target, rewrite.Accept{})
				if (err == nil) == (status == RehearsedFailed) {
					t.Errorf("%s is said to be %s, and a pull gives %v", target, status, err)
				}
			}
			if !slices.Equal(got, at.statuses) {
				t.Errorf("after %s, offline %v: got %s, want %s", at.wait, at.offline, got, at.statuses)
			}
			s.Offline = false
			s.Upstreams["docker.io"] = Upstream{Origin: hub, Tags: s.Upstreams["docker.io"].Tags}
			if err := c.Reconfigure(s); err != nil {
				t.Fatal(err)
			}
		}
		if rehearse(t, c, RehearseOptions{Offline: true}, tagged("app", "1")).Images[0].want(t, RehearsedStale); t.Failed() {
			t.Log("with the option")
		}
	})
}

func TestARehearsalEndsWithItsContext(t *testing.T) {
	c := open(t, Options{}, map[string]*registry{"docker.io": newRegistry()})
	enough := errors.New("enough")
	if _, err := c.Rehearse(t.Context(), []RehearseImage{{Target: tagged("app", "1")}}, RehearseOptions{Tell: func(WarmState) error { return enough }}); !errors.Is(err, enough) {
		t.Errorf("want %v, got %v", enough, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Rehearse(ctx, []RehearseImage{{Target: tagged("app", "1")}}, RehearseOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("want %v, got %v", context.Canceled, err)
	}
	done, err := c.Rehearse(t.Context(), []RehearseImage{{Name: "No Name", Err: errors.New("it is no reference")}}, RehearseOptions{})
	if err != nil || done.Failed != 1 || done.Images[0].Reference != "No Name" {
		t.Errorf("got %+v, %v", done, err)
	}
}
