package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The CNCF's registry, built once into the user's cache directory.
const (
	distributionVersion = "v3.0.0"
	distributionPackage = "github.com/distribution/distribution/v3/cmd/registry@" + distributionVersion
)

// buildDistribution gives the path of the registry, built where it is not yet.
func buildDistribution(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "entrepot-bench", "distribution-"+distributionVersion)
	path := filepath.Join(dir, "registry")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	cmd := exec.CommandContext(ctx, "go", "install", distributionPackage)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("go install: %w: %s", err, lines[len(lines)-1])
	}
	return path, nil
}

const distributionConfig = `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %[1]s/store}
  cache: {blobdescriptor: inmemory}
http: {addr: %[2]q}
proxy: {remoteurl: %[3]q, ttl: 168h}
`

// distributionLaunch prepares the registry with an empty store.
func (b *bench) distributionLaunch(dir string, from hubAddress) (launch, error) {
	l := launch{subject: distribution, dir: dir, path: b.tools.distribution}
	var err error
	if l.address, err = freeAddress(); err != nil {
		return l, err
	}
	file := filepath.Join(dir, "config.yml")
	l.args = []string{"serve", file}
	return l, os.WriteFile(file, fmt.Appendf(nil, distributionConfig, dir, l.address, from.URL), 0o600)
}
