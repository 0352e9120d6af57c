package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/entrepot-dev/entrepot/"

// mayImport says which packages of the project each may import, its tests
// aside; docs/architecture.md says why.
var mayImport = map[string][]string{
	"access":        {"fair", "oci"},
	"admin":         {"metrics"},
	"bundle":        {"cache", "oci"},
	"cache":         {"cache/evict", "cache/index", "cache/memory", "cache/records", "cache/store", "metrics", "oci", "rewrite"},
	"cache/evict":   {},
	"cache/index":   {"cache/store"},
	"cache/memory":  {"metrics"},
	"cache/records": {"cache/index", "cache/memory", "oci"},
	"cache/store":   {"oci"},
	"clouds":        {},
	"configs":       {"clouds"},
	"doctor":        {"configs", "doctor/client", "operator", "upstream"},
	"fair":          {},
	"grants":        {"fair", "metrics", "oci", "rewrite", "upstream"},
	"images":        {},
	"operator":      {"bundle", "cache", "cache/index", "metrics", "rewrite", "oci", "upstream"},
	"metrics":       {},
	"oci":           {},
	"rewrite":       {"oci"},
	"server":        {"access", "cache", "fair", "metrics", "oci", "rewrite"},
	"upstream":      {"metrics", "oci", "rewrite"},

	"doctor/client": {"configs"},
}

// TestImportsPointOneWay also holds that fasthttp is known to server only.
func TestImportsPointOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(name, "cmd/") || name == "e2e" || strings.HasPrefix(name, "e2e/") {
			continue
		}
		allowed, ok := mayImport[name]
		if !ok {
			t.Errorf("package %s has no place in the layout", name)
			continue
		}
		seen++
		for _, imported := range p.Imports {
			if own, ok := strings.CutPrefix(imported, module); ok && !slices.Contains(allowed, own) {
				t.Errorf("%s imports %s", name, own)
			}
			if strings.HasPrefix(imported, "github.com/valyala/fasthttp") && name != "server" {
				t.Errorf("%s imports %s", name, imported)
			}
		}
	}
	if seen != len(mayImport) {
		t.Errorf("%d packages were looked at, want %d", seen, len(mayImport))
	}
}
