package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
)

// Docker Hub says nothing of the quota in answers to pulls that it doesn't count.
func TestPullsThatAreNotCountedCostNothing(t *testing.T) {
	t.Parallel()
	for _, reserve := range []string{"auto", "10"} {
		h, p := start(t, `upstreams: {docker.io: {quota_reserve: `+reserve+`, tags: [{match: "*", ttl: 0s}]}}`)
		h.LimitPulls(100, 100, 21600)
		h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
		get(t, p, tagPath)
		for n := range 90 {
			h.Push(fmt.Sprintf("library/free%d", n), "1.0", image.New(image.Options{Seed: uint64(100 + n)}))
		}
		undo := h.Inject(hub.Uncounted())
		for n := range 90 {
			get(t, p, fmt.Sprintf("/v2/library/free%d/manifests/1.0", n))
		}
		undo()
		moved := image.New(image.Options{Seed: 2})
		h.Push("library/app", "1.0", moved)
		a := get(t, p, tagPath)
		wantBytes(t, "a moved tag with 99 pulls left", moved.Bytes(), a.body)
		if w := a.header.Get("Warning"); w != "" {
			t.Errorf("quota_reserve %s: it is served with the warning %q", reserve, w)
		}
		if left := h.PullsLeft(); left != 98 {
			t.Errorf("quota_reserve %s: the hub has %d pulls left, want 98", reserve, left)
		}
	}
}

// A day of a CI fleet: 40 pulls in six hours, 200 cached tags of which 150 move, 60 new
// images. No job may fail on a new image, whenever they come.
func TestMovedTagsLeaveThePullsToNewImages(t *testing.T) {
	t.Parallel()
	for _, day := range [][4]int{{15, 15, 15, 15}, {30, 25, 5, 0}, {2, 25, 30, 3}} {
		h, p := start(t, `upstreams: {docker.io: {tags: [{match: "*", ttl: 0s}]}}`)
		path := func(repo string, n int) string { return fmt.Sprintf("/v2/library/%s%d/manifests/1.0", repo, n) }
		for n := range 200 {
			h.Push(fmt.Sprintf("library/old%d", n), "1.0", image.New(image.Options{Seed: uint64(n)}))
			get(t, p, path("old", n))
		}
		news, moved, refreshed := 0, 0, 0
		for window, more := range day {
			h.LimitPulls(40, 40, 21600)
			for range 38 {
				if moved < 150 {
					h.Push(fmt.Sprintf("library/old%d", moved), "1.0", image.New(image.Options{Seed: uint64(1000 + moved)}))
					moved++
				}
			}
			for n := range 200 {
				a := get(t, p, path("old", n))
				if strings.Contains(a.header.Get("Warning"), "110") {
					continue
				}
				if n < moved {
					refreshed++
				}
			}
			for range more {
				h.Push(fmt.Sprintf("library/new%d", news), "1.0", image.New(image.Options{Seed: uint64(5000 + news)}))
				if a := ask(t, p, http.MethodGet, path("new", news)); a.status != http.StatusOK {
					t.Fatalf("day %v, window %d: a new image failed with %d pulls left: %s", day, window, h.PullsLeft(), a)
				}
				news++
			}
		}
		if refreshed == 0 {
			t.Errorf("day %v: no moved tag was refreshed", day)
		}
		t.Logf("day %v: %d refreshes of moved tags, %d pulls left", day, refreshed, h.PullsLeft())
	}
}
