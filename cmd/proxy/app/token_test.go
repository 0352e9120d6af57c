package app

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/entrepot-dev/entrepot/admin"
)

// TestACommandShowsTheListenerTheRightToken has a listener that names files, and takes
// one token.
func TestACommandShowsTheListenerTheRightToken(t *testing.T) {
	dir := t.TempDir()
	var named, taken, shown atomic.Value
	listener := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			shown.Store(a)
			if a == "Bearer "+taken.Load().(string) {
				_, _ = w.Write([]byte(`{"version":"v9","cacheDir":"` + filepath.Join(dir, "cache") + `","changed":["log.level"],"needRestart":[]}`))
				return
			}
		}
		if path := named.Load().(string); path != "" {
			w.Header().Set(admin.TokenHeader, path)
		}
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer listener.Close()
	at := strings.TrimPrefix(listener.URL, "http://")
	_, port, _ := net.SplitHostPort(at)
	write := func(name, address string) (path, secret string) {
		token := admin.NewToken(address)
		path, err := token.Write([]string{filepath.Join(dir, name)})
		if err != nil {
			t.Fatal(err)
		}
		return path, token.Secret
	}
	own, secret := write(admin.TokenFile, at)
	others, _ := write("admin-9.token", "127.0.0.1:9")
	everywhere, wide := write("admin-8.token", "[::]:"+port)
	configured := filepath.Join(dir, "configured")
	if err := os.WriteFile(configured, []byte("a token of sixteen characters or more\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		named, taken string
		environ      []string
		args         []string
		code         int
		want, shown  string
	}{
		"its own":                         {own, secret, nil, nil, 0, "changed: log.level", secret},
		"of all addresses":                {everywhere, wide, nil, nil, 0, "changed: log.level", wide},
		"of another listener":             {others, "", nil, nil, 1, "is the token file of the one at 127.0.0.1:9", ""},
		"none":                            {"", "", nil, nil, 1, "it has no token file on this machine", ""},
		"a file that is not there":        {filepath.Join(dir, "admin-7.token"), "", nil, nil, 1, "is not here; if it runs in a container", ""},
		"a file of somebody's":            {"/etc/passwd", "", nil, nil, 1, "is not the path of a token file", ""},
		"none, and a configured one":      {"", "a token of sixteen characters or more", []string{"ENTREPOT_ADMIN_AUTH_TOKEN_FILE=" + configured}, nil, 0, "changed: log.level", "a token of sixteen characters or more"},
		"its own before a configured one": {own, secret, []string{"ENTREPOT_ADMIN_AUTH_TOKEN_FILE=" + configured}, nil, 0, "changed: log.level", secret},
		"by an address that is named":     {own, secret, nil, []string{"--admin-listen", at}, 0, "changed: log.level", secret},
	} {
		named.Store(c.named)
		taken.Store(c.taken)
		shown.Store("")
		environ := append([]string{"ENTREPOT_ADMIN_LISTEN=" + at, "ENTREPOT_CACHE_DIR=" + filepath.Join(dir, "cache")}, c.environ...)
		got := runCommand(environ, append([]string{"reload"}, c.args...)...)
		if got.code != c.code || !strings.Contains(got.stdout+got.stderr, c.want) {
			t.Errorf("%s: want %d and %q, got %+v", name, c.code, c.want, got)
		}
		if s := strings.TrimPrefix(shown.Load().(string), "Bearer "); s != c.shown {
			t.Errorf("%s: shown %q, want %q", name, s, c.shown)
		}
	}
}

func TestOneHost(t *testing.T) {
	for _, c := range []struct {
		local, remote string
		want          bool
	}{
		{"127.0.0.1:1", "127.0.0.1:2", true}, {"127.0.0.1:1", "127.0.0.2:2", true}, {"[::1]:1", "[::1]:2", true}, {"192.0.2.1:1", "192.0.2.1:2", true},
		{"192.0.2.1:1", "192.0.2.2:2", false}, {"192.0.2.1:1", "127.0.0.1:2", false},
	} {
		local, err := net.ResolveTCPAddr("tcp", c.local)
		if err != nil {
			t.Fatal(err)
		}
		remote, err := net.ResolveTCPAddr("tcp", c.remote)
		if err != nil {
			t.Fatal(err)
		}
		if got := isOneHost(local, remote); got != c.want {
			t.Errorf("%s and %s: got %v", local, remote, got)
		}
	}
}
