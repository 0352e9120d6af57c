package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/entrepot-dev/entrepot/metrics"
)

func TestPathsAnswer(t *testing.T) {
	s := New(Options{Metrics: metrics.New("v1.2.3", "abc", "go1")})
	for _, c := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/", 200, "/metrics"},
		{"GET", "/healthz", 200, "ok\n"},
		{"HEAD", "/healthz", 200, ""},
		{"GET", "/readyz", 200, "ok\n"},
		{"GET", "/metrics", 200, `entrepot_build_info{goversion="go1",revision="abc",version="v1.2.3"} 1`},
		{"GET", "/metrics", 200, "go_goroutines"},
		{"GET", "/debug/pprof/", 200, "goroutine"},
		{"GET", "/debug/pprof/cmdline", 200, ""},
		{"GET", "/v2/", 404, ""},
		{"GET", "/elsewhere", 404, ""},
		{"POST", "/healthz", 405, ""},
	} {
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, httptest.NewRequest(c.method, "http://localhost"+c.path, nil))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s %s: want %d and %q, got %d and %q", c.method, c.path, c.status, c.body, w.Code, w.Body)
		}
	}
}

func TestProbesTellWhatTheirCheckSays(t *testing.T) {
	s := New(Options{
		Metrics: metrics.Discard(),
		Alive:   func(context.Context) error { return nil },
		Ready:   func(context.Context) error { return errors.New("the cache directory is full") },
	})
	for path, want := range map[string]string{
		"/healthz": "200 ok\n",
		"/readyz":  "503 not ready: the cache directory is full\n",
	} {
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost"+path, nil))
		if got := w.Result().Status[:4] + w.Body.String(); got != want {
			t.Errorf("%s: want %q, got %q", path, want, got)
		}
	}
}

func TestReadyTellsWhatIsDegraded(t *testing.T) {
	for note, want := range map[string]string{
		"the cache's disk is full": "200 ok, degraded: the cache's disk is full\n",
		"":                         "200 ok\n",
	} {
		s := New(Options{Metrics: metrics.Discard(), Degraded: func() string { return note }})
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/readyz", nil))
		if got := w.Result().Status[:4] + w.Body.String(); got != want {
			t.Errorf("with %q: want %q, got %q", note, want, got)
		}
	}
}

func TestCheckThatHangsIsToldAndHoldsOneGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung := make(chan struct{})
		var calls atomic.Int32
		p := newProbe("ready", func(context.Context) error { calls.Add(1); <-hung; return nil }, nil)
		begun := time.Now()
		for range 3 {
			_, err := p.ask(t.Context())
			if err == nil || !strings.Contains(err.Error(), "did not end within") {
				t.Errorf("want an error that tells of the time, got %v", err)
			}
		}
		if got := time.Since(begun); got != 3*probeTimeout {
			t.Errorf("want three waits of %s, waited %s", probeTimeout, got)
		}
		if got := calls.Load(); got != 1 {
			t.Errorf("want one check for all, got %d", got)
		}
		close(hung)
		synctest.Wait()
		if _, err := p.ask(t.Context()); err != nil {
			t.Errorf("want no error once the check ends, got %v", err)
		}
	})
}

func TestServeEndsWithShutdown(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Metrics: metrics.Discard()})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ln) }()
	resp, err := http.Get("http://" + ln.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if string(body) != "ok\n" {
		t.Errorf("want ok, got %q", body)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve: want nil after Shutdown, got %v", err)
	}
}

func TestShutdownCutsAnswersAtItsDeadline(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Metrics: metrics.Discard()})
	answered := make(chan error, 1)
	started := make(chan struct{})
	s.http.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateActive {
			close(started)
		}
	}
	go func() { _ = s.Serve(ln) }()
	go func() {
		resp, err := http.Get("http://" + ln.Addr().String() + "/debug/pprof/trace?seconds=600")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		answered <- err
	}()
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("want %v, got %v", context.Canceled, err)
	}
	if err := <-answered; err == nil {
		t.Error("want the running answer cut, it ended well")
	}
}
