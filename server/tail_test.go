package server

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// taken gives the next request that a watch is told of.
func taken(t *testing.T, w *Watch) Seen {
	t.Helper()
	select {
	case s := <-w.Requests:
		return s
	case <-time.After(time.Minute):
		t.Fatal("nothing was told within a minute")
		return Seen{}
	}
}

func TestWatchTellsOfRequestsUntilItStops(t *testing.T) {
	s, base := start(t, newShelf())
	all, err := s.Watch(Interest{})
	if err != nil {
		t.Fatal(err)
	}
	agents, err := s.Watch(Interest{Agent: "marked", Repository: "library/other"})
	if err != nil {
		t.Fatal(err)
	}
	ask(t, http.MethodGet, base+"/v2/library/nginx/manifests/1?ns=docker.io", "User-Agent: docker/29")
	got := taken(t, all)
	if got.Method != "GET" || got.Kind != "manifest" || got.Upstream != "docker.io" || got.Repository != "library/nginx" || got.Reference != "1" ||
		got.Status != 200 || got.Bytes == 0 || got.Client != "127.0.0.1" || got.UserAgent != "docker/29" || time.Since(got.At) > time.Hour {
		t.Errorf("got %+v", got)
	}
	ask(t, http.MethodGet, base+"/v2/library/other/manifests/none", "User-Agent: "+strings.Repeat("x", 5000))
	if got := taken(t, all); got.Status != 404 || got.Error == "" || len(got.UserAgent) != maxSeen {
		t.Errorf("want why, and no more than %d bytes of a text, got %+v", maxSeen, got)
	}
	ask(t, http.MethodGet, base+"/v2/", "User-Agent: it is marked so")
	if got := taken(t, all); got.Kind != "ping" {
		t.Errorf("got %+v", got)
	}
	for _, want := range []string{"library/other", ""} {
		if got := taken(t, agents); got.Repository != want {
			t.Errorf("want what is of interest alone, %q, got %+v", want, got)
		}
	}
	all.Stop()
	agents.Stop()
	all.Stop() // once more is no harm
	if s.watches.now.Load() != nil {
		t.Error("requests are still shown to nobody")
	}
	ask(t, http.MethodGet, base+"/v2/")
	if n := len(all.Requests) + len(agents.Requests); n != 0 {
		t.Errorf("%d requests were told of after the end", n)
	}
}

func TestWatchesAreBounded(t *testing.T) {
	s, base := start(t, newShelf())
	w, err := s.Watch(Interest{})
	if err != nil {
		t.Fatal(err)
	}
	for range maxWatchers - 1 {
		if _, err := s.Watch(Interest{}); err != nil {
			t.Fatal(err)
		}
	}
	var refused *oci.Error
	if _, err := s.Watch(Interest{}); !errors.As(err, &refused) || refused.HTTPStatus() != http.StatusTooManyRequests {
		t.Errorf("want a refusal of one too many, got %v", err)
	}
	const more = 10
	for range maxUntaken + more {
		ask(t, http.MethodGet, base+"/v2/")
	}
	for deadline := time.Now().Add(time.Minute); w.Dropped() < more && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if len(w.Requests) != maxUntaken || w.Dropped() != more {
		t.Errorf("want %d kept and %d dropped, got %d and %d", maxUntaken, more, len(w.Requests), w.Dropped())
	}
}
