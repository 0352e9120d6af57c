package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
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
	"cache":         {"cache/evict", "cache/fill", "cache/index", "cache/memory", "cache/records", "cache/store", "metrics", "oci", "rewrite"},
	"cache/evict":   {},
	"cache/fill":    {"cache/store", "oci"},
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

// importsOf lists what each package of the project imports of the project, its tests aside, and
// which import fasthttp. Programs and e2e are left out.
func importsOf(t *testing.T) (imports map[string][]string, fasthttp []string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	imports = map[string][]string{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return imports, fasthttp
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(name, "cmd/") || name == "e2e" || strings.HasPrefix(name, "e2e/") {
			continue
		}
		imports[name] = []string{}
		for _, imported := range p.Imports {
			if own, ok := strings.CutPrefix(imported, module); ok {
				imports[name] = append(imports[name], own)
			}
			if strings.HasPrefix(imported, "github.com/valyala/fasthttp") {
				fasthttp = append(fasthttp, name)
			}
		}
	}
}

// TestImportsPointOneWay also holds that fasthttp is known to server only.
func TestImportsPointOneWay(t *testing.T) {
	imports, fasthttp := importsOf(t)
	for name, list := range imports {
		allowed, ok := mayImport[name]
		if !ok {
			t.Errorf("package %s has no place in the layout", name)
			continue
		}
		for _, own := range list {
			if !slices.Contains(allowed, own) {
				t.Errorf("%s imports %s", name, own)
			}
		}
	}
	for _, name := range fasthttp {
		if name != "server" && !strings.HasPrefix(name, "server/") {
			t.Errorf("%s imports fasthttp", name)
		}
	}
	if len(imports) != len(mayImport) {
		t.Errorf("%d packages were looked at, want %d", len(imports), len(mayImport))
	}
}

var update = flag.Bool("update", false, "write what is generated in docs anew")

// TestThePictureShowsTheImports compares the picture of the packages in docs/architecture.md with
// the imports. An arrow that follows from others is not drawn.
func TestThePictureShowsTheImports(t *testing.T) {
	imports, _ := importsOf(t)
	var reaches func(from, to string) bool
	reaches = func(from, to string) bool {
		return from == to || slices.ContainsFunc(imports[from], func(next string) bool { return reaches(next, to) })
	}
	var arrows []string
	for from, list := range imports {
		for _, to := range list {
			others := slices.DeleteFunc(slices.Clone(list), func(other string) bool { return other == to })
			if !slices.ContainsFunc(others, func(other string) bool { return reaches(other, to) }) {
				arrows = append(arrows, "    "+from+" --> "+to+"\n")
			}
		}
	}
	slices.Sort(arrows)
	want := "```mermaid\nflowchart TD\n" + strings.Join(arrows, "") + "```\n"

	const page, mark = "../docs/architecture.md", "<!-- Generated from the imports: go test ./e2e -run TestThePictureShowsTheImports -update -->\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), mark)
	_, after, ends := strings.Cut(rest, "\n```\n")
	if !found || !ends {
		t.Fatalf("%s has no picture behind %q", page, mark)
	}
	whole := before + mark + want + after
	if whole == string(text) {
		return
	}
	if !*update {
		t.Fatalf("the picture in %s is not that of the imports; write it with: go test ./e2e -run TestThePictureShowsTheImports -update", page)
	}
	if err := os.WriteFile(page, []byte(whole), 0o644); err != nil {
		t.Fatal(err)
	}
}
