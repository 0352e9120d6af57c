package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"github.com/entrepot-dev/entrepot/admin"
)

// program is the package of the command.
const program = "github.com/entrepot-dev/entrepot/cmd/proxy"

// buildEntrepot builds the program from the tree that the bench is run in.
func buildEntrepot(ctx context.Context, path string) error {
	if out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, program).CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", program, err, out)
	}
	return nil
}

// entrepotLaunch prepares Entrepot. The peers write no line
// for each request, so by default it writes none either.
func (b *bench) entrepotLaunch(dir string, from hubAddress, m manner) (launch, error) {
	l := launch{subject: entrepot, dir: dir, path: b.tools.entrepot}
	var err error
	if l.address, err = freeAddress(); err != nil {
		return l, err
	}
	if l.admin, err = freeAddress(); err != nil {
		return l, err
	}
	upstream := map[string]any{
		// What is hot stays fresh for as long as it is measured.
		"tags": []map[string]any{{"match": "*", "ttl": "24h"}},
	}
	for k, v := range from.Upstream {
		upstream[k] = v
	}
	if from.CA != nil {
		ca := filepath.Join(dir, "hub.pem")
		if err := os.WriteFile(ca, from.CA, 0o600); err != nil {
			return l, err
		}
		upstream["tls"] = map[string]any{"ca": ca}
	}
	cache := m.cache
	if cache == "" {
		cache = filepath.Join(dir, "cache")
	}
	l.token = filepath.Join(cache, admin.TokenFile)
	cfg := map[string]any{
		"listen":    l.address,
		"admin":     map[string]any{"listen": l.admin},
		"cache":     map[string]any{"dir": cache},
		"upstreams": map[string]any{"docker.io": upstream},
		"log":       map[string]any{"level": b.o.logLevel, "format": "json"},
	}
	if m.tls {
		l.trust = b.certificate.pool
		cfg["tls"] = map[string]any{"cert": b.certificate.certFile, "key": b.certificate.keyFile}
	}
	if m.login != "" {
		if cfg["auth"], err = m.login.configuration(dir); err != nil {
			return l, err
		}
	}
	text, err := yaml.Marshal(cfg)
	if err != nil {
		return l, err
	}
	file := filepath.Join(dir, "entrepot.yml")
	l.args = []string{"serve", "--config", file}
	return l, os.WriteFile(file, text, 0o600)
}
