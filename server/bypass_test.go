package server

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestClientThatAsksAndNeverPullsIsToldOfNowAndThen(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	b := newBypasses(zap.New(core))
	client, other := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")
	now := time.Now()
	ask := func(at netip.Addr, refused bool, n int, step time.Duration) {
		for range n {
			now = now.Add(step)
			b.asked(at, "docker.io/library/nginx:1", refused, now)
		}
	}
	ask(client, false, 5*bypassRequests, time.Second)
	if n := logs.Len(); n != 0 {
		t.Fatalf("told of %d after a minute", n)
	}
	ask(client, false, 1, bypassAfter)
	if n := logs.FilterField(zap.String("client", client.String())).Len(); n != 1 {
		t.Fatalf("want one warning, got %d", n)
	}
	ask(client, false, 100, time.Minute)
	if n := logs.Len(); n != 1 {
		t.Errorf("want no second one so soon, got %d", n)
	}
	ask(client, false, 1, bypassQuiet)
	if n := logs.Len(); n != 2 {
		t.Errorf("want another after a day, got %d", n)
	}
	// One pull in between, and all is well.
	for range 50 {
		ask(other, true, 1, bypassAfter/10)
		b.pulled(other)
	}
	if n := logs.Len(); n != 2 {
		t.Errorf("want none of a client that pulls, got %d", n)
	}
	ask(other, true, 2*bypassRequests, bypassAfter/10)
	if n := logs.FilterField(zap.Int("heads", 0)).Len(); n != 1 {
		t.Errorf("want one of a client that is refused, got %d", n)
	}
}

func TestWatchedAddressesAreBounded(t *testing.T) {
	b := newBypasses(zap.NewNop())
	now := time.Now()
	for i := range 5 * maxWatched {
		b.asked(netip.MustParseAddr(fmt.Sprintf("10.%d.%d.1", i>>8, i&255)), "x", false, now)
	}
	if n := len(b.of); n > maxWatched {
		t.Errorf("want at most %d, got %d", maxWatched, n)
	}
}

func TestHeadsOfTagsAreWatchedUntilAPull(t *testing.T) {
	s, base := start(t, newShelf())
	watched := func() int {
		s.bypasses.mu.Lock()
		defer s.bypasses.mu.Unlock()
		return len(s.bypasses.of)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{http.MethodHead, "/v2/library/nginx/manifests/" + string(manifestSum), 0},
		{http.MethodHead, "/v2/library/nginx/manifests/1", 1},
		{http.MethodGet, "/v2/library/nginx/tags/list", 1},
		{http.MethodGet, blobPath(blobDigest), 0},
	} {
		req, err := http.NewRequest(c.method, base+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		// It is noted once the answer is sent.
		for deadline := time.Now().Add(time.Minute); watched() != c.want; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("%s %s: want %d watched, got %d", c.method, c.path, c.want, watched())
			}
		}
	}
}

func TestManyHeadsOfAConnectionAreNotedOnce(t *testing.T) {
	s, base := start(t, newShelf())
	for range 20 {
		resp, err := http.Head(base + "/v2/library/nginx/manifests/1")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	s.bypasses.mu.Lock()
	defer s.bypasses.mu.Unlock()
	var heads int
	for _, one := range s.bypasses.of {
		heads += one.heads
	}
	if heads < 1 || heads > 10 {
		t.Errorf("of 20 HEADs by kept connections %d are noted, want one of each connection", heads)
	}
}

func TestNoNameOfARequestIsKeptInItsBuffer(t *testing.T) {
	b := newBypasses(zap.NewNop())
	at := netip.MustParseAddr("192.0.2.1")
	buffer := []byte("docker.io/library/mine")
	b.asked(at, inPlace(buffer), true, time.Now())
	copy(buffer, "Authorization: Basic c2VjcmV0")
	if last := b.of[at].last; last != "docker.io/library/mine" {
		t.Errorf("what was asked last is now %q", last)
	}
}
