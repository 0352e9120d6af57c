package proxy

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"github.com/entrepot-dev/entrepot/e2e/hub"
)

// Options say how to run the program.
type Options struct {
	// Upstreams are the hubs that it mirrors, by name: "docker.io". Each is
	// configured with its endpoint, its realm and its CDN.
	Upstreams map[string]*hub.Hub
	// Dir is the cache directory; one of the test's if empty. Give one to keep
	// a cache from one process to the next, or use Restart.
	Dir string
	// Config is YAML that is laid over the generated configuration, key by key.
	Config string
	// Ulimit are arguments of the shell's ulimit under which the process runs,
	// "-n 256"; none if empty.
	Ulimit string
	// Env are variables beside PATH and HOME, "KEY=value".
	Env []string
	// Output takes what the process writes to stdout and stderr, which Log then
	// does not have. The caller closes it. Nil leaves both to Log.
	Output *os.File
}

// writeConfig writes the configuration file of p into dir and gives its path.
func writeConfig(dir string, p *Process, o Options) (string, error) {
	upstreams := map[string]any{}
	for name, h := range o.Upstreams {
		ca := filepath.Join(dir, name+".pem")
		if pem := h.CA(); pem != nil {
			if err := os.WriteFile(ca, pem, 0o600); err != nil {
				return "", err
			}
		}
		upstreams[name] = h.Upstream(ca)
	}
	cfg := map[string]any{
		"listen": p.listen,
		"admin":  map[string]any{"listen": p.admin},
		// However full the machine's disk is, nothing is evicted for that.
		"cache":     map[string]any{"dir": p.Dir, "max_size": "1TiB", "min_free": 0},
		"upstreams": upstreams,
		"log":       map[string]any{"level": "debug", "format": "json"},
	}
	var extra map[string]any
	if err := yaml.Unmarshal([]byte(o.Config), &extra); err != nil {
		return "", fmt.Errorf("proxy.Options.Config: %w\n%s", err, o.Config)
	}
	overlay(cfg, extra)
	b, err := yaml.Marshal(cfg)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "entrepot.yml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return "", err
	}
	return path, nil
}

// overlay lays extra over cfg: maps key by key, all else replaces.
func overlay(cfg, extra map[string]any) {
	for k, v := range extra {
		have, ok := cfg[k].(map[string]any)
		more, also := v.(map[string]any)
		if ok && also {
			have = maps.Clone(have)
			overlay(have, more)
			cfg[k] = have
			continue
		}
		cfg[k] = v
	}
}

// freeAddresses gives two addresses that nobody listens at just now.
func freeAddresses() (a, b string, err error) {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", fmt.Errorf("look for a free port: %w", err)
	}
	defer first.Close() // only once there is another, so that they differ
	second, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", fmt.Errorf("look for a second free port: %w", err)
	}
	defer second.Close()
	return first.Addr().String(), second.Addr().String(), nil
}
