package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// countedStats is what stats --output json prints, in part.
type countedStats struct {
	Since  time.Time
	Served map[string]struct {
		Hits, Joined, Misses, Bytes, Fetched, Saved, Pulls, PullsSaved int64
		Quota                                                          *struct{ Limit, Remaining int64 }
	}
	Disk struct {
		Blobs, Size, Pins, PinnedSize int64
		Upstreams                     map[string]struct{ Blobs, Size int64 }
	}
	Top []struct {
		Reference string
		Uses      int64
	}
}

func TestStatsTellWhatWasSavedAndWhatIsOnDisk(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	h.LimitPulls(100, 80, 3600)
	i := image.Index(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	operate(t, p, "stats").want(t, 0, "Since the proxy started", "nothing was asked for", "On disk now:")
	ask(t, p, "GET", "/v2/library/never/manifests/1.0").wantError(t, 404, "MANIFEST_UNKNOWN") // its text is not counted as sent
	for range 3 {
		pullTagged(t, p, "library/app", "1.0", i)
	}
	operate(t, p, "pin", "app:1.0").want(t, 0)
	stats := func(args ...string) countedStats {
		t.Helper()
		out := operate(t, p, append([]string{"stats", "--output", "json"}, args...)...)
		var s countedStats
		if err := json.Unmarshal([]byte(out.out), &s); err != nil || out.code != 0 {
			t.Fatalf("%v, exit code %d:\n%s%s", err, out.code, out.out, out.err)
		}
		return s
	}
	blobs, size := int64(len(i.Manifests)+len(i.Blobs)), int64(0)
	for _, m := range i.Manifests {
		size += int64(len(m.Bytes))
	}
	for _, b := range i.Blobs {
		size += int64(len(b))
	}
	wantDisk := func(s countedStats) {
		t.Helper()
		if d := s.Disk; d.Blobs != blobs || d.Size != size || d.Upstreams["docker.io"].Blobs != blobs || d.Upstreams["docker.io"].Size != size || d.Pins != 1 || d.PinnedSize != size {
			t.Errorf("on disk: %+v; want %d blobs of %d bytes, all pinned", d, blobs, size)
		}
		if len(s.Top) != 1 || s.Top[0].Reference != "docker.io/library/app:1.0" || s.Top[0].Uses < 1 {
			t.Errorf("most used: %+v", s.Top)
		}
	}
	s := stats()
	wantDisk(s)
	// Three times all of it and the tag once more were sent, and it came once, with tokens.
	// Layers that were fetched ahead are no misses.
	u := s.Served["docker.io"]
	sent := 3 * (size + int64(len(i.Bytes())))
	if u.Bytes != sent || u.Fetched < size || u.Fetched > size+2000 || u.Saved != sent-u.Fetched || u.Misses < 1 || u.Misses > blobs ||
		u.Hits+u.Joined+u.Misses != 3*(blobs+1) || u.Hits < 2*(blobs+1) || u.Pulls != int64(len(i.Manifests)) || u.PullsSaved != 2*u.Pulls+3 {
		t.Errorf("served %+v; want %d bytes sent, %d fetched, %d requests for %d blobs", u, sent, size, 3*(blobs+1), blobs)
	}
	if u.Quota == nil || u.Quota.Limit != 100 || u.Quota.Remaining != 80-u.Pulls {
		t.Errorf("quota %+v, want %d of 100", u.Quota, 80-u.Pulls)
	}
	table := operate(t, p, "stats")
	table.want(t, 0, "docker.io", "PULLS LEFT", " of 100 (76 kept for new images), new ones in ", "1 image pinned: ", "Most used", "docker.io/library/app:1.0")
	operate(t, p, "stats", "--top", "-1").want(t, 2, "it takes a whole number from 0 on")
	operate(t, p, "stats", "all").want(t, 2, "unknown command")
	if s := stats("--top", "0"); len(s.Top) != 0 {
		t.Errorf("%d images, want none", len(s.Top))
	}

	p.Stop(t)
	s = stats()
	wantDisk(s)
	if !s.Since.IsZero() || len(s.Served) != 0 {
		t.Errorf("without a proxy %+v was served since %v", s.Served, s.Since)
	}
	if out := operate(t, p, "stats"); !strings.Contains(out.out, "No proxy runs on this directory") || strings.Contains(out.out, "HITS") {
		t.Errorf("without a proxy it prints\n%s%s", out.out, out.err)
	}
}
