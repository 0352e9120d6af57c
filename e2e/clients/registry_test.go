package clients

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
)

// cncfRegistry is the CNCF's registry, from which most others descend. It has
// no referrers API and takes no sha512.
type cncfRegistry struct {
	host string
	// root is the directory of its storage.
	root string
}

func startCNCFRegistry(t *testing.T) *cncfRegistry {
	t.Helper()
	program := needBuilt(t, "registry", "github.com/distribution/distribution/v3/cmd/registry@v3.0.0")
	r := &cncfRegistry{root: t.TempDir()}
	config := write(t, t.TempDir(), "config.yml", fmt.Sprintf(`version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: "127.0.0.1:0"}
`, r.root))
	cmd := exec.Command(program, "serve", config)
	cmd.Env = []string{"OTEL_TRACES_EXPORTER=none"}
	listening := regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)
	daemon(t, cmd, func(log string) bool {
		m := listening.FindStringSubmatch(log)
		if m != nil {
			r.host = m[1]
		}
		return m != nil
	})
	return r
}

// content lists what a repository holds, from the registry's storage.
func (r *cncfRegistry) content(t *testing.T, name string) hub.Content {
	t.Helper()
	dir := filepath.Join(r.root, "docker/registry/v2/repositories", name)
	list := func(pattern string) []string {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s in %s: %v, %v", pattern, dir, paths, err)
		}
		names := make([]string, len(paths))
		for i, p := range paths {
			names[i] = filepath.Base(p)
		}
		return names
	}
	digests := func(pattern string) []digest.Digest {
		var ds []digest.Digest
		for _, hex := range list(pattern) {
			ds = append(ds, digest.NewDigestFromEncoded(digest.SHA256, hex))
		}
		return ds
	}
	c := hub.Content{
		Tags:      list("_manifests/tags/*"),
		Manifests: digests("_manifests/revisions/sha256/*"),
		Blobs:     digests("_layers/sha256/*"),
	}
	subjects := map[digest.Digest]bool{}
	for _, d := range c.Manifests {
		b, err := os.ReadFile(filepath.Join(r.root, "docker/registry/v2/blobs/sha256", d.Encoded()[:2], d.Encoded(), "data"))
		if err != nil {
			t.Fatal(err)
		}
		var m struct{ Subject *v1.Descriptor }
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("manifest %s: %v", d, err)
		}
		if m.Subject != nil {
			subjects[m.Subject.Digest] = true
		}
	}
	c.Subjects = slices.Sorted(maps.Keys(subjects))
	return c
}
