package configs

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestAFlagOfOneListenerMayNameThePortOfTheOther(t *testing.T) {
	// As in `healthcheck --admin-listen :5000`, which opens neither.
	if _, err := Load(Source{Environ: cacheDir, Flags: []Flag{{Name: "--admin-listen", Key: "admin.listen", Value: ":5000"}}}); err != nil {
		t.Errorf("want no error, got %v", err)
	}
}

func TestEnvironmentSetsSingleKeys(t *testing.T) {
	cfg, err := Load(Source{Environ: []string{
		"ENTREPOT_CACHE_DIR=/srv/cache",
		"ENTREPOT_CACHE_MEMORY=1GiB",
		"ENTREPOT_CACHE_OFFLINE=true",
		"ENTREPOT_LISTEN=:8080",
		"ENTREPOT_ADMIN_LISTEN=off",
		"ENTREPOT_LOG_LEVEL=debug",
		"ENTREPOT_PLATFORMS=linux/arm64, linux/amd64",
		"ENTREPOT_SHUTDOWN_TIMEOUT=5s",
		"ENTREPOT_UPSTREAMS_DOCKER_IO_CREDENTIALS_USERNAME=alice",
		"ENTREPOT_UPSTREAMS_DOCKER_IO_CREDENTIALS_PASSWORD=a=b",
		"ENTREPOT_UPSTREAMS_REGISTRY_K8S_IO_MAX_CONNECTIONS=7",
		"ENTREPOT_UPSTREAMS_GHCR_IO_STALL_TIMEOUT=1m",
	}})
	if err != nil {
		t.Fatal(err)
	}
	hub := cfg.Upstreams["docker.io"].Credentials
	kept := Default().Cache
	kept.Dir, kept.Memory, kept.Offline = "/srv/cache", 1<<30, true
	got := []any{
		cfg.Cache, cfg.Listen, cfg.Admin.Listen, cfg.Log.Level, cfg.Platforms, cfg.ShutdownTimeout, hub.Username, hub.Password.Reveal(),
		cfg.Upstreams["registry.k8s.io"].MaxConnections, cfg.Upstreams["ghcr.io"].StallTimeout,
	}
	want := []any{
		kept, ":8080", "off", "debug", []string{"linux/arm64", "linux/amd64"}, 5 * time.Second, "alice", "a=b",
		7, time.Minute,
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("value %d: want %v, got %v", i, want[i], got[i])
		}
	}
}

func TestEnvironmentChangesAnUpstreamOfTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "entrepot.yml")
	if err := os.WriteFile(file, []byte("upstreams: {\"my-registry.example.test:5000\": {}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(Source{File: file, Environ: []string{"ENTREPOT_UPSTREAMS_MY_REGISTRY_EXAMPLE_TEST_5000_TLS_INSECURE=true"}})
	if err != nil {
		t.Fatal(err)
	}
	if !cfg.Upstreams["my-registry.example.test:5000"].TLS.Insecure {
		t.Error("want the upstream's tls.insecure set, it is not")
	}
}

func TestWrongVariablesAreReported(t *testing.T) {
	twins := filepath.Join(t.TempDir(), "twins.yml")
	if err := os.WriteFile(twins, []byte("upstreams: {a-b.test: {}, a.b.test: {}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ file, variable, want string }{
		{"", "ENTREPOT_LISTN=:1", "environment variable ENTREPOT_LISTN: there is no such key; did you mean ENTREPOT_LISTEN?"},
		{"", "ENTREPOT_CACHEDIR=/x", "environment variable ENTREPOT_CACHEDIR: there is no such key; did you mean ENTREPOT_CACHE_DIR?"},
		{"", "ENTREPOT_WHATEVER_ELSE_THERE_IS=1", "environment variable ENTREPOT_WHATEVER_ELSE_THERE_IS: there is no such key; a variable is ENTREPOT_ and a key's path in capitals, such as ENTREPOT_CACHE_DIR"},
		{"", "ENTREPOT_UPSTREAMS_REGISTRY_INTERNAL_EXAMPLE_TEST_ENDPOINTS=http://x", "environment variable ENTREPOT_UPSTREAMS_REGISTRY_INTERNAL_EXAMPLE_TEST_ENDPOINTS: there is no such key; upstreams are added in the file, and a variable can change only those that are there"},
		{"", "ENTREPOT_UPSTREAMS_NOPE_IO_ENDPOINTS=http://x", "environment variable ENTREPOT_UPSTREAMS_NOPE_IO_ENDPOINTS: there is no such key; upstreams are added in the file, and a variable can change only those that are there"},
		{"", "ENTREPOT_UPSTREAMS_QUAY_IO_CREDENTIALS_PASWORD=x", "environment variable ENTREPOT_UPSTREAMS_QUAY_IO_CREDENTIALS_PASWORD: there is no such key; did you mean ENTREPOT_UPSTREAMS_QUAY_IO_CREDENTIALS_PASSWORD?"},
		{"", "ENTREPOT_CACHE_OFFLINE=yes", `environment variable ENTREPOT_CACHE_OFFLINE: cache.offline: want true or false, got "yes"`},
		{"", "ENTREPOT_LOG_LEVEL=loud", `environment variable ENTREPOT_LOG_LEVEL: log.level: "loud" is not one of debug, info, warn, error`},
		{"", "ENTREPOT_PLATFORMS=linux/amd64,linux", `environment variable ENTREPOT_PLATFORMS: platforms[1]: "linux" is no platform; write os/architecture or os/architecture/variant, such as linux/arm64/v8`},
		{"", "ENTREPOT_UPSTREAMS_DOCKER_IO_MAX_CONNECTIONS=many", `environment variable ENTREPOT_UPSTREAMS_DOCKER_IO_MAX_CONNECTIONS: upstreams.docker.io.max_connections: want a whole number, got "many"`},
		{twins, "ENTREPOT_UPSTREAMS_A_B_TEST_MAX_CONNECTIONS=1", "environment variable ENTREPOT_UPSTREAMS_A_B_TEST_MAX_CONNECTIONS: could be upstreams.a-b.test.max_connections or upstreams.a.b.test.max_connections; set it in the file"},
	} {
		_, err := Load(Source{File: c.file, Environ: []string{c.variable}})
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: want\n%s\ngot\n%v", c.variable, c.want, err)
		}
	}
}

// Kubernetes sets these for every service whose name begins with entrepot; a
// pod must start all the same.
func TestVariablesOfOthersAreLeftAlone(t *testing.T) {
	_, err := Load(Source{Environ: []string{
		"ENTREPOT_CONFIG=/etc/entrepot.yml",
		"ENTREPOT_REQUIRE_CLIENTS=1",
		"ENTREPOT_SERVICE_HOST=10.0.0.1",
		"ENTREPOT_SERVICE_PORT=5000",
		"ENTREPOT_SERVICE_PORT_REGISTRY=5000",
		"ENTREPOT_PORT=tcp://10.0.0.1:5000",
		"ENTREPOT_PORT_5000_TCP=tcp://10.0.0.1:5000",
		"ENTREPOT_PORT_5000_TCP_ADDR=10.0.0.1",
		"ENTREPOT_ADMIN_SERVICE_HOST=10.0.0.2",
		"ENTREPOT_ADMIN_PORT_5001_TCP_PROTO=tcp",
		"ENTREPOTS=3",
	}})
	if err != nil {
		t.Errorf("want no error, got %v", err)
	}
}

func TestNoKeyIsTakenForAVariableOfOthers(t *testing.T) {
	for _, k := range Keys() {
		if foreignEnv.MatchString(k.Env) {
			t.Errorf("%s sets %s, but is ignored as another program's", k.Env, k.Path)
		}
	}
}

func TestWrongFlagNamesTheFlag(t *testing.T) {
	_, err := Load(Source{Flags: []Flag{{Name: "--listen", Key: "listen", Value: "5000"}}})
	if err == nil || !strings.HasPrefix(err.Error(), `flag --listen: listen: "5000" is no address`) {
		t.Errorf("want an error that names the flag, got %v", err)
	}
}
