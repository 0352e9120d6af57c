package app

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHealthcheckTellsWhatTheListenerSays(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			http.Error(w, "not ready: the disk is full", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	environ := []string{"ENTREPOT_ADMIN_LISTEN=" + address}

	if got := runCommand(environ, "healthcheck"); got != (result{0, "ok\n", ""}) {
		t.Errorf("want ok, got %+v", got)
	}
	if got := runCommand(nil, "healthcheck", "--admin-listen", address); got.code != 0 {
		t.Errorf("address by flag: want ok, got %+v", got)
	}
	_, port, _ := strings.Cut(address, ":")
	if got := runCommand(nil, "healthcheck", "--admin-listen", ":"+port); got.code != 0 {
		t.Errorf("every address: want ok, got %+v", got)
	}
	got := runCommand(environ, "healthcheck", "--ready")
	if got.code != 1 || !strings.Contains(got.stderr, "/readyz says 503 Service Unavailable: not ready: the disk is full") {
		t.Errorf("want what /readyz says, got %+v", got)
	}
	server.Close()
	if got := runCommand(environ, "healthcheck"); got.code != 1 || !strings.Contains(got.stderr, "no entrepot listens at "+address+": start it, or name its admin.listen") {
		t.Errorf("nobody listens: want exit 1 and what to do, got %+v", got)
	}
}

func TestHealthcheckWithoutAnAdminListenerSaysSo(t *testing.T) {
	got := runCommand([]string{"ENTREPOT_ADMIN_LISTEN=off"}, "healthcheck")
	if got.code != 1 || !strings.Contains(got.stderr, "admin.listen is off") {
		t.Errorf("want exit 1 and the setting, got %+v", got)
	}
}

func TestListenerIsReachedOnThisMachine(t *testing.T) {
	for listen, want := range map[string]string{
		":5001":          "localhost:5001",
		"0.0.0.0:5001":   "localhost:5001",
		"[::]:5001":      "localhost:5001",
		"127.0.0.1:5001": "127.0.0.1:5001",
		"[::1]:5001":     "[::1]:5001",
		"cache:5001":     "cache:5001",
	} {
		if got := reachable(listen); got != want {
			t.Errorf("reachable(%q): want %q, got %q", listen, want, got)
		}
	}
}
