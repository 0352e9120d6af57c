package client

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	daemonFile  = "/etc/docker/daemon.json"
	defaultFile = "/etc/docker/certs.d/_default/hosts.toml"
)

// startDockerAPI answers as a Docker daemon, on a socket that DOCKER_HOST names.
func startDockerAPI(t *testing.T, api string, info map[string]any) {
	t.Helper()
	dir, err := os.MkdirTemp("", "d") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", api)
		switch r.URL.Path {
		case "/_ping":
		case "/v" + api + "/info":
			_ = json.NewEncoder(w).Encode(info)
		default:
			http.NotFound(w, r)
		}
	}))
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	t.Setenv("DOCKER_HOST", "unix://"+socket)
}

func containerdStore(version string) map[string]any {
	return map[string]any{"ServerVersion": version, "DriverStatus": [][]string{{"driver-type", "io.containerd.snapshotter.v1"}}}
}

func TestDockerGetsTheFilesThatItsDaemonReads(t *testing.T) {
	for name, c := range map[string]struct {
		api          string
		info         map[string]any
		want         string
		capabilities string
	}{
		"29.10, containerd":      {"1.56", containerdStore("29.10.0"), defaultFile, `["pull", "resolve", "referrers"]`},
		"a build of one's own":   {"1.56", containerdStore("library-import"), defaultFile, `["pull", "resolve", "referrers"]`},
		"29.0, containerd":       {"1.52", containerdStore("29.0.1"), defaultFile, `["pull", "resolve"]`},
		"28, containerd":         {"1.48", containerdStore("28.0.1"), defaultFile, `["pull", "resolve"]`},
		"27, containerd":         {"1.47", containerdStore("27.5.0"), daemonFile, ""},
		"29.10, classic store":   {"1.56", map[string]any{"ServerVersion": "29.10.0", "DriverStatus": [][]string{{"Backing Filesystem", "extfs"}}}, daemonFile, ""},
		"20.10":                  {"1.41", map[string]any{"ServerVersion": "20.10.24", "DriverStatus": nil}, daemonFile, ""},
		"Podman under this name": {"1.41", map[string]any{"ServerVersion": "5.6.0", "DriverStatus": [][]string{{"Backing Filesystem", "extfs"}}}, daemonFile, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := site(t)
			startDockerAPI(t, c.api, c.info)
			files := planned(t, "docker", s)
			if got := slices.Collect(maps.Keys(files)); !slices.Equal(got, []string{c.want}) {
				t.Fatalf("want %s, got %v", c.want, got)
			}
			if c.capabilities != "" && !strings.Contains(files[c.want], "capabilities = "+c.capabilities+"\n") {
				t.Errorf("want the capabilities %s in\n%s", c.capabilities, files[c.want])
			}
		})
	}
}

// TestDockerGetsTheFilesThatItWouldRead has no daemon: what is on the disk tells.
func TestDockerGetsTheFilesThatItWouldRead(t *testing.T) {
	for name, c := range map[string]struct {
		daemon, drivers, version string
		uses, known              bool
	}{
		"fresh 29":               {version: "29.10.0", uses: true, known: true},
		"fresh 28":               {version: "28.5.2", known: true},
		"28 with the feature":    {daemon: `{"features": {"containerd-snapshotter": true}}`, version: "28.5.2", uses: true, known: true},
		"29 without the feature": {daemon: `{"features": {"containerd-snapshotter": false}}`, version: "29.0.0", known: true},
		"29 upgraded":            {drivers: "/var/lib/docker/overlay2/l", version: "29.0.0", known: true},
		"29 upgraded, elsewhere": {daemon: `{"data-root": "/srv/docker"}`, drivers: "/srv/docker/overlay2/l", version: "29.0.0", known: true},
		"29 beside vfs":          {drivers: "/var/lib/docker/vfs/dir", version: "29.0.0", uses: true, known: true},
		"29 with a driver":       {daemon: `{"storage-driver": "overlay2"}`, version: "29.0.0", known: true},
		"29 with a snapshotter":  {daemon: `{"storage-driver": "overlayfs"}`, version: "29.0.0", uses: true, known: true},
		"29 with remapped users": {daemon: `{"userns-remap": "default"}`, version: "29.0.0", known: true},
		"no version":             {},
		"unreadable":             {daemon: `{`, version: "29.0.0"},
	} {
		t.Run(name, func(t *testing.T) {
			s := site(t)
			if c.daemon != "" {
				put(t, s, daemonFile, c.daemon)
			}
			if c.drivers != "" {
				put(t, s, c.drivers+"/x", "")
			}
			if uses, known := usesContainerd(s, c.version); uses != c.uses || known != c.known {
				t.Errorf("want %v (known: %v), got %v (known: %v)", c.uses, c.known, uses, known)
			}
		})
	}
}

func TestDockerOfWhichNothingIsKnownGetsBothFiles(t *testing.T) {
	s := site(t)
	files := planned(t, "docker", s)
	if len(files) != 2 || files[daemonFile] == "" || files[defaultFile] == "" {
		t.Errorf("want both files, got %v", files)
	}
	e := dockerEngineOf(t.Context(), s)
	plan, err := planDocker(s, e)
	if err != nil || !strings.Contains(strings.Join(plan[1].Notes, " "), "both are prepared") {
		t.Errorf("want a note on why there are two, got %+v, %v", plan, err)
	}
}

// A directory of a registry's own hides the default, whatever is in it; the certificates in it still count.
func TestARegistryWithCertificatesGetsAFileOfItsOwn(t *testing.T) {
	s := site(t)
	s.Upstreams = append(s.Upstreams, "registry.test:5000", "registry.test:5001")
	startDockerAPI(t, "1.56", containerdStore("29.10.0"))
	put(t, s, "/etc/docker/certs.d/registry.test_5001_/hosts.toml", "# ours\n")
	put(t, s, "/etc/docker/certs.d/ghcr.io/ca.crt", "x")
	put(t, s, "/etc/docker/certs.d/registry.test:5000/client.cert", "x")
	put(t, s, "/etc/docker/certs.d/nobody.test/ca.crt", "x")
	files := planned(t, "docker", s)
	want := map[string]string{
		"/etc/docker/certs.d/ghcr.io/hosts.toml":            `ca = ["/etc/docker/certs.d/ghcr.io/ca.crt"]`,
		"/etc/docker/certs.d/registry.test:5000/hosts.toml": `client = [["/etc/docker/certs.d/registry.test:5000/client.cert", "/etc/docker/certs.d/registry.test:5000/client.key"]]`,
	}
	if text := files["/etc/docker/certs.d/registry.test_5001_/hosts.toml"]; !strings.HasPrefix(text, "# ours\n") || !strings.Contains(text, s.URL) {
		t.Errorf("want the cache beside what was there, got\n%s", text)
	}
	if len(files) != 4 {
		t.Errorf("want the default and three more, got %v", slices.Collect(maps.Keys(files)))
	}
	for path, line := range want {
		if !strings.HasPrefix(files[path], line+"\n") || !strings.Contains(files[path], s.URL) {
			t.Errorf("%s: want %s and the cache, got\n%s", path, line, files[path])
		}
	}
}

// In hosts.toml the certificates of a mirror are named; Docker does not look into the mirror's own directory.
func TestCertificatesForTheCacheAreNamed(t *testing.T) {
	s := site(t)
	s.URL = "https://cache.test:5000"
	startDockerAPI(t, "1.56", containerdStore("29.10.0"))
	put(t, s, "/etc/docker/certs.d/cache.test:5000/ca.crt", "x")
	put(t, s, "/etc/docker/certs.d/docker.io/hosts.toml", "server = \"https://registry-1.docker.io\"\n")
	const want = "[host.\"https://cache.test:5000\"]\n  capabilities = [\"pull\", \"resolve\", \"referrers\"]\n  ca = [\"/etc/docker/certs.d/cache.test:5000/ca.crt\"]\n"
	files := planned(t, "docker", s)
	for _, path := range []string{defaultFile, "/etc/docker/certs.d/docker.io/hosts.toml"} {
		if !strings.HasSuffix(files[path], want) {
			t.Errorf("%s: want at its end\n%s\ngot\n%s", path, want, files[path])
		}
	}
}

func TestInsecureRegistriesAreNeedlessBesideHostsTOML(t *testing.T) {
	s := site(t)
	startDockerAPI(t, "1.56", containerdStore("29.10.0"))
	put(t, s, daemonFile, `{"insecure-registries": ["10.0.0.5:5000"]}`)
	files, err := Plan(t.Context(), "docker", s)
	if err != nil || len(files) != 1 || !strings.Contains(strings.Join(files[0].Notes, " "), "makes needless") {
		t.Errorf("want a note, got %+v, %v", files, err)
	}
}

func TestAnOldEngineIgnoresAFileThatNamesReferrers(t *testing.T) {
	s := site(t)
	put(t, s, defaultFile, fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\", \"referrers\"]\n", s.URL))
	startDockerAPI(t, "1.52", containerdStore("29.0.0"))
	if _, err := Plan(t.Context(), "docker", s); err == nil || !strings.Contains(err.Error(), "ignores the whole file") {
		t.Errorf("want it said, got %v", err)
	}
}

func TestDockerWithHostsTOMLHasReasonsOfItsOwn(t *testing.T) {
	s := site(t)
	info := containerdStore("29.10.0")
	info["HttpProxy"] = "http://squid:3128"
	startDockerAPI(t, "1.56", info)
	found := dockerReasons(t.Context(), s, "ghcr.io")
	wantReason(t, found, defaultFile+" is not there")
	wantReason(t, found, "the Docker daemon send requests for the cache to squid:3128")
	planned(t, "docker", s)
	delete(info, "HttpProxy")
	wantReason(t, dockerReasons(t.Context(), s, "ghcr.io"), "name the cache, and the Docker daemon did not ask it")
	for _, f := range mustPlan(t, s) {
		if f.Restart != "" {
			t.Errorf("%s: Docker reads it at each pull, and %q is asked for", f.Path, f.Restart)
		}
	}
}

func mustPlan(t *testing.T, s Site) []*File {
	t.Helper()
	files, err := Plan(t.Context(), "docker", s)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestADaemonThatHangsIsNotWaitedForLong(t *testing.T) {
	dir, err := os.MkdirTemp("", "d")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "s")) // which nobody accepts from
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(dir, "s"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if info, err := askDocker(ctx); err == nil {
		t.Errorf("want an error, got %+v", info)
	}
}
