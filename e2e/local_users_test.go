package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/entrepot-dev/entrepot/admin"
	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// knock sends the admin listener a request and gives the status. The answer is not
// read: some routes answer until they are cut off.
func knock(t *testing.T, c *http.Client, p *proxy.Proxy, method, path string, headers ...string) (int, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.AdminURL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	_ = res.Body.Close()
	return res.StatusCode, res.Header
}

// adminRoutes are all routes of the admin listener that are for the operator, as
// method, path, method, path. Those of the API are read from its description.
func adminRoutes(t *testing.T, p *proxy.Proxy) []string {
	t.Helper()
	res, err := p.AdminClient().Get(p.AdminURL() + "/api/v1/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	b, err := readAndClose(res.Body, nil)
	var api struct {
		Paths map[string]map[string]any
	}
	if err != nil || yaml.Unmarshal(b, &api) != nil || len(api.Paths) < 20 {
		t.Fatalf("%s: %d paths, %v", res.Status, len(api.Paths), err)
	}
	routes := []string{"GET", "/", "GET", "/api/", "GET", "/api/v1/", "GET", "/none", "POST", "/metrics", "POST", "/healthz",
		"GET", "/debug/pprof/", "GET", "/debug/pprof/heap", "GET", "/debug/pprof/goroutine?debug=2", "GET", "/debug/pprof/cmdline",
		"GET", "/debug/pprof/profile?seconds=1", "GET", "/debug/pprof/symbol", "POST", "/debug/pprof/symbol", "GET", "/debug/pprof/trace?seconds=1"}
	for path, methods := range api.Paths {
		for method := range methods {
			if method := strings.ToUpper(method); slices.Contains([]string{"GET", "POST", "PUT", "DELETE", "PATCH"}, method) {
				routes = append(routes, method, path)
			}
		}
	}
	return routes
}

// TestTheAdminListenerIsForWhoHasTheToken sends every route requests as any local
// process can send them, and as an operator's program does.
func TestTheAdminListenerIsForWhoHasTheToken(t *testing.T) {
	t.Parallel()
	_, p := start(t, "")
	before, err := admin.ReadToken(p.AdminTokenFile())
	if err != nil {
		t.Fatal(err)
	}
	p.Restart(t)
	now, err := admin.ReadToken(p.AdminTokenFile())
	if err != nil {
		t.Fatal(err)
	}
	routes := adminRoutes(t, p)
	for i := 0; i < len(routes); i += 2 {
		method, path := routes[i], routes[i+1]
		for what, authorization := range map[string]string{
			"nothing": "", "no secret": "Bearer ", "a guess": "Bearer " + strings.Repeat("A", len(now.Secret)), "a part of it": "Bearer " + now.Secret[1:],
			"the token of an earlier start": "Bearer " + before.Secret, "a password": basic("operator", "operator"),
		} {
			status, header := knock(t, http.DefaultClient, p, method, path, "Authorization", authorization)
			if status != http.StatusUnauthorized {
				t.Errorf("%s %s with %s: want 401, got %d", method, path, what, status)
			}
			if header.Get("WWW-Authenticate") == "" || header.Get(admin.TokenHeader) != p.AdminTokenFile() {
				t.Errorf("%s %s with %s: want a challenge and the token file, got %v", method, path, what, header)
			}
		}
		for what, authorization := range map[string]string{"the token": "Bearer " + now.Secret, "it as a password": basic("operator", now.Secret)} {
			status, header := knock(t, http.DefaultClient, p, method, path, "Authorization", authorization)
			if status == http.StatusUnauthorized || status == http.StatusForbidden || header.Get(admin.TokenHeader) != "" {
				t.Errorf("%s %s with %s: got %d", method, path, what, status)
			}
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if status, _ := knock(t, http.DefaultClient, p, "GET", path); status != http.StatusOK {
			t.Errorf("%s: want 200, got %d", path, status)
		}
	}
	if _, body, _ := fetch(t, http.DefaultClient, p.AdminURL()+"/api/v1/status"); !strings.Contains(body, "-H @admin.token") || strings.Contains(body, "docker login") {
		t.Errorf("want to read how to log in, got %s", body)
	}
	// A page of another site cannot use the login that a browser knows.
	if status, _ := knock(t, p.AdminClient(), p, "POST", "/api/v1/scrub", "Origin", "https://evil.example"); status != http.StatusForbidden {
		t.Errorf("a page of another site: want 403, got %d", status)
	}
}

// TestTheTokenIsWrittenForItsOwnerAlone starts on a directory in which things stand in
// the token's place.
func TestTheTokenIsWrittenForItsOwnerAlone(t *testing.T) {
	t.Parallel()
	dir, victim := filepath.Join(t.TempDir(), "cache"), filepath.Join(t.TempDir(), "victim")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(victim, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{admin.TokenFile, admin.TokenFile + ".new"} {
		if err := os.Symlink(victim, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	h := hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Dir: dir, Upstreams: map[string]*hub.Hub{"docker.io": h}, Ulimit: "-n 1024; umask 0"})
	for _, when := range []string{"over a link", "after a crash", "over a file that everybody may write"} {
		info, err := os.Lstat(p.AdminTokenFile())
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 {
			t.Fatalf("%s: want a file of mode 0600, got %v, %v", when, info.Mode(), err)
		}
		operate(t, p, "ls").want(t, 0)
		p.Kill(t)
		if when == "after a crash" {
			if err := os.Chmod(p.AdminTokenFile(), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Launch(); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "mine" {
		t.Errorf("the link was followed: %q, %v", b, err)
	}
	// The token in the running file is the one that counts: one that others could have
	// read or put there is not used.
	if err := os.Chmod(p.AdminTokenFile(), 0o644); err != nil {
		t.Fatal(err)
	}
	operate(t, p, "ls").want(t, 1, "other users can read or write it (mode 0644)", "restart entrepot")
}

// TestTheTokenFindsAnotherPlace has a cache directory that takes no token file.
func TestTheTokenFindsAnotherPlace(t *testing.T) {
	t.Parallel()
	dir, runtime := filepath.Join(t.TempDir(), "cache"), t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, admin.TokenFile, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	h := hub.New(t, hub.Options{})
	start := func() *proxy.Proxy {
		return proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Dir: dir, Env: []string{"XDG_RUNTIME_DIR=" + runtime}})
	}
	p := start()
	operate(t, p, "ls").want(t, 0)
	operate(t, p, "doctor").want(t, 0, "has run since")
	names, err := filepath.Glob(filepath.Join(runtime, "entrepot", "admin-*.token"))
	if err != nil || len(names) != 1 {
		t.Fatalf("want one token file in the runtime directory, got %v, %v", names, err)
	}
	for path, want := range map[string]os.FileMode{names[0]: 0o600, filepath.Dir(names[0]): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: want mode %v, got %v, %v", path, want, info.Mode(), err)
		}
	}
	// It goes with its process, and that of another stays.
	p.Stop(t)
	if _, err := os.Lstat(names[0]); !os.IsNotExist(err) {
		t.Errorf("%s is left behind: %v", names[0], err)
	}
	if err := p.Launch(); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.NewToken("127.0.0.1:9").Write(names); err != nil {
		t.Fatal(err)
	}
	p.Stop(t)
	if _, err := os.Lstat(names[0]); err != nil {
		t.Errorf("the token of another process is gone: %v", err)
	}
}

// asUser makes a command run as another user, in a directory of its own.
func asUser(cmd *exec.Cmd, uid uint32, home string) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
	cmd.Dir = home
	return cmd
}

// TestOtherUsersOfTheHostAreRefused runs the proxy as a service user, as in a
// container or under systemd, with the admin listener on all addresses and no settings
// for it. Commands come from that user, from root, and from a stranger.
func TestOtherUsersOfTheHostAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run programs as other users")
	}
	t.Parallel()
	const service, stranger = 65532, 65533
	// Not t.TempDir, which other users cannot enter.
	base, err := os.MkdirTemp("", "entrepot-users-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	dir := func(name string, uid int, mode os.FileMode) string {
		path := filepath.Join(base, name)
		if err := os.Mkdir(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(base, "entrepot")
	b, err := os.ReadFile(proxy.Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cache, serviceHome, strangerHome, rootHome := dir("cache", service, 0o700), dir("service", service, 0o700), dir("stranger", stranger, 0o700), dir("root", 0, 0o700)
	h := hub.New(t, hub.Options{})
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1", i)

	first, second := freePort(t), freePort(t)
	_, frontPort, _ := net.SplitHostPort(first.Addr().String())
	_, adminPort, _ := net.SplitHostPort(second.Addr().String())
	_, _ = first.Close(), second.Close() // the proxy opens them
	config := filepath.Join(base, "entrepot.yml")
	settings, err := yaml.Marshal(map[string]any{
		"listen": "127.0.0.1:" + frontPort, "admin": map[string]any{"listen": ":" + adminPort},
		"cache":     map[string]any{"dir": cache, "min_free": 0},
		"upstreams": map[string]any{"docker.io": h.Upstream("")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, settings, 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(base, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	logged := func() string {
		b, err := os.ReadFile(log.Name())
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	serve := asUser(exec.Command(binary, "serve", "--config", config), service, serviceHome)
	serve.Stdout, serve.Stderr = log, log
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = serve.Process.Signal(syscall.SIGTERM)
		if err := serve.Wait(); err != nil || t.Failed() {
			t.Errorf("serve: %v\n%s", err, logged())
		}
	}()
	registry, at := "http://127.0.0.1:"+frontPort, "127.0.0.1:"+adminPort
	until(t, "the proxy to be ready", func() bool {
		res, err := http.Get("http://" + at + "/readyz")
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	for path := range doorsOf(i) {
		res, err := http.Get(registry + path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readAndClose(res.Body, nil); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", path, res.Status, err)
		}
	}
	run := func(uid uint32, home string, args ...string) (string, int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		cmd := asUser(exec.CommandContext(ctx, binary, args...), uid, home)
		out, _ := cmd.CombinedOutput() // the code says how it ended
		return string(out), cmd.ProcessState.ExitCode()
	}
	bundles := dir("bundles", stranger, 0o777)
	if err := os.Chmod(bundles, 0o777); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(bundles, "mine.tar")
	// The service's own user, and root. --config is how they find this port; the token
	// they find themselves.
	for who, c := range map[string]struct {
		uid  uint32
		home string
	}{"the service's user": {service, serviceHome}, "root": {0, rootHome}} {
		for _, args := range [][]string{{"ls"}, {"stats"}, {"explain", "app:1"}, {"reload"}, {"healthcheck"}, {"warm", "app:1"}, {"purge", "--dry-run", "app:1"},
			{"export", "--bundle", filepath.Join(c.home, "bundle.tar"), "app:1"}, {"import", filepath.Join(c.home, "bundle.tar")}} {
			if out, code := run(c.uid, c.home, append(args, "--config", config)...); code != 0 {
				t.Errorf("%s: entrepot %v: exit code %d\n%s", who, args, code, out)
			}
		}
		if out, code := run(c.uid, c.home, "ls", "--admin-listen", at); code != 0 || !strings.Contains(out, "library/app") {
			t.Errorf("%s: entrepot ls --admin-listen: exit code %d\n%s", who, code, out)
		}
		if info, err := os.Stat(filepath.Join(c.home, "bundle.tar")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: the bundle: want mode 0600, got %v, %v", who, info.Mode(), err)
		}
	}
	if b, err = os.ReadFile(filepath.Join(rootHome, "bundle.tar")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(archive, b, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"ls"}, {"export", "--bundle", filepath.Join(strangerHome, "bundle.tar"), "app:1"}, {"import", archive}, {"purge", "app:1"}, {"reload"}, {"scrub"}} {
		for how, flags := range map[string][]string{"by the settings": {"--config", config}, "by its address": {"--admin-listen", at}} {
			out, code := run(stranger, strangerHome, append(slices.Clone(args), flags...)...)
			if code != 1 || !strings.Contains(out, "this user may not read its token file "+filepath.Join(cache, admin.TokenFile)) || !strings.Contains(out, "65532") || !strings.Contains(out, "or as root") {
				t.Errorf("a stranger: entrepot %v %s: want it refused with a way out, got exit code %d\n%s", args, how, code, out)
			}
		}
	}
	if out, code := run(stranger, strangerHome, "healthcheck", "--config", config); code != 0 {
		t.Errorf("a stranger: healthcheck: exit code %d\n%s", code, out)
	}
	if out, code := run(stranger, strangerHome, "doctor", "--config", config); code != 1 || !strings.Contains(out, "this user may not read its token file") {
		t.Errorf("a stranger: doctor: exit code %d\n%s", code, out)
	}
	if _, err := os.Stat(filepath.Join(strangerHome, "bundle.tar")); err == nil {
		t.Error("a stranger has a bundle")
	}
	if res, err := http.Get(registry + "/v2/library/app/manifests/1"); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("the image has gone: %v, %v", res, err)
	} else {
		_ = res.Body.Close()
	}
	if token, err := admin.ReadToken(filepath.Join(cache, admin.TokenFile)); err != nil || strings.Contains(logged(), token.Secret) {
		t.Errorf("the log has the token, or there is none: %v", err)
	}
}

// freePort opens a port. The caller closes it.
func freePort(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// doorsOf are the paths of an image's content.
func doorsOf(i *image.Image) map[string]bool {
	paths := map[string]bool{"/v2/library/app/manifests/1": true}
	for d := range i.Blobs {
		paths["/v2/library/app/blobs/"+d.String()] = true
	}
	return paths
}

// TestAnImpostorGetsNoToken has another program listen at the default address of the
// settings, and name the token file of a proxy that runs elsewhere.
func TestAnImpostorGetsNoToken(t *testing.T) {
	t.Parallel()
	_, p := start(t, "")
	var shown atomic.Int32
	ln := freePort(t)
	impostor := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			shown.Add(1)
		}
		w.Header().Set(admin.TokenHeader, p.AdminTokenFile())
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "{}")
	})}
	ended := make(chan error, 1)
	go func() { ended <- impostor.Serve(ln) }()
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), "ls", "--config", p.Config())
	cmd.Env = append(os.Environ(), "ENTREPOT_ADMIN_LISTEN="+ln.Addr().String())
	out, err := cmd.CombinedOutput()
	_ = impostor.Close()
	<-ended
	want := fmt.Sprintf("is the token file of the one at %s", strings.TrimPrefix(p.AdminURL(), "http://"))
	if err == nil || !strings.Contains(string(out), want) || shown.Load() > 0 {
		t.Errorf("want it refused with %q, got %v\n%s\nshown: %d", want, err, out, shown.Load())
	}
}
