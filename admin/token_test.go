package admin

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/entrepot-dev/entrepot/metrics"
)

func TestTokenIsReadAsItWasWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("a long name ", 12))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	want := NewToken("[::]:5001")
	if other := NewToken("[::]:5001"); other.Secret == want.Secret || len(want.Secret) < 40 {
		t.Fatalf("tokens are not random: %q", want.Secret)
	}
	path, err := want.Write([]string{filepath.Join(dir, TokenFile)})
	if err != nil || path != filepath.Join(dir, TokenFile) {
		t.Fatal(path, err)
	}
	if got, err := ReadToken(path); err != nil || got != want {
		t.Errorf("want %+v, got %+v, %v", want, got, err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("want the token file alone, got %v, %v", names, err)
	}
}

func TestTokenPlacesOfTwoProxiesDiffer(t *testing.T) {
	env := map[string]string{"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/7"}
	a := TokenPlaces("/srv/a", "127.0.0.1:5001", func(k string) string { return env[k] })
	b := TokenPlaces("/srv/b", "[::1]:6001", func(k string) string { return env[k] })
	for i, want := range []string{"/srv/a/admin.token", "/run/a/admin-5001.token", "/run/b/admin-5001.token", "/run/user/7/entrepot/admin-5001.token", "/run/entrepot/admin-5001.token"} {
		if a[i] != want || a[i] == b[i] {
			t.Errorf("place %d: want %s, got %s, and %s of another proxy", i, want, a[i], b[i])
		}
	}
}

func TestTokenIsNotWrittenWhereOthersCouldReplaceIt(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	linked := filepath.Join(dir, "linked")
	if err := os.Symlink(t.TempDir(), linked); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(dir, "none", TokenFile)
	good := filepath.Join(dir, "run", TokenFile)
	places := []string{none, "relative/admin.token", filepath.Join(open, TokenFile), filepath.Join(linked, TokenFile), good}
	if path, err := NewToken("a:1").Write(places); err != nil || path != good {
		t.Errorf("want %s, got %s, %v", good, path, err)
	}
	if path, err := NewToken("a:1").Write(places[:4]); err == nil || path != "" || !strings.Contains(err.Error(), open) {
		t.Errorf("want an error that names all places, got %s, %v", path, err)
	}
}

func TestOnlyTokenFilesAreRead(t *testing.T) {
	dir := t.TempDir()
	good, err := NewToken("a:1").Write([]string{filepath.Join(dir, TokenFile)})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, content string, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(content), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link, fifo, directory := filepath.Join(dir, "admin-link.token"), filepath.Join(dir, "admin-fifo.token"), filepath.Join(dir, "admin-dir.token")
	if err := errors.Join(os.Symlink(good, link), syscall.Mkfifo(fifo, 0o600), os.Mkdir(directory, 0o700)); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"a link": link, "a pipe": fifo, "a directory": directory,
		"a readable one":   write("admin-1.token", string(text), 0o640),
		"a writable one":   write("admin-2.token", string(text), 0o602),
		"another secret":   write("admin-3.token", "Authorization: Bearer hunter2\nEntrepot-Listener: a:1\n", 0o600),
		"an empty one":     write("admin-4.token", "", 0o600),
		"a large one":      write("admin-5.token", strings.Repeat("x", 1<<20), 0o600),
		"one line":         write("admin-6.token", strings.SplitAfter(string(text), "\n")[0], 0o600),
		"another name":     write("id_rsa", string(text), 0o600),
		"a relative path":  "admin.token",
		"a path with dots": dir + "/x/../admin.token",
		"a control":        dir + "/\x1b[2J/admin.token",
		"nothing":          "",
	} {
		if got, err := ReadToken(path); err == nil || got != (Token{}) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error has the content: %v", name, err)
		}
	}
	if _, err := ReadToken(filepath.Join(dir, "admin-none.token")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("want %v, got %v", fs.ErrNotExist, err)
	}
}

// TestTheTokenFileIsNamedToThisMachineAlone also holds that metrics are open only if
// that is asked for, and under the listener's own names.
func TestTheTokenFileIsNamedToThisMachineAlone(t *testing.T) {
	guard := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	o := Options{Metrics: metrics.Discard(), Guard: guard, OpenMetrics: true, TokenFile: "/x/admin.token"}
	open := New(o)
	o.OpenMetrics = false
	closed := New(o)
	for name, c := range map[string]struct {
		s                    *Server
		path, peer, host     string
		authorization, named string
		status               int
	}{
		"a local program":           {open, "/debug/pprof/cmdline", "127.0.0.1:9", "localhost", "", "/x/admin.token", 401},
		"a local program, IPv6":     {open, "/debug/pprof/cmdline", "[::1]:9", "localhost", "", "/x/admin.token", 401},
		"another machine":           {open, "/debug/pprof/cmdline", "192.0.2.1:9", "localhost", "", "", 401},
		"an operator":               {open, "/debug/pprof/cmdline", "127.0.0.1:9", "localhost", "Bearer x", "", 200},
		"metrics":                   {open, "/metrics", "192.0.2.1:9", "192.0.2.2", "", "", 200},
		"metrics by a strange name": {open, "/metrics", "127.0.0.1:9", "evil.example", "", "", 421},
		"metrics with auth":         {closed, "/metrics", "127.0.0.1:9", "evil.example", "", "/x/admin.token", 401},
		"metrics, logged in":        {closed, "/metrics", "127.0.0.1:9", "evil.example", "Bearer x", "", 200},
	} {
		r := httptest.NewRequest("GET", "http://"+c.host+c.path, nil)
		r.RemoteAddr = c.peer
		if c.authorization != "" {
			r.Header.Set("Authorization", c.authorization)
		}
		w := httptest.NewRecorder()
		c.s.http.Handler.ServeHTTP(w, r)
		if w.Code != c.status || w.Header().Get(TokenHeader) != c.named {
			t.Errorf("%s: want %d and %q, got %d and %q", name, c.status, c.named, w.Code, w.Header().Get(TokenHeader))
		}
	}
}
