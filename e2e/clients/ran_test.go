package clients

import (
	"bytes"
	"debug/buildinfo"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "write the table of docs/clients.md anew")

const clientsPage = "../../docs/clients.md"

// ran is which clients the tests of this process ran: the table of docs/clients.md.
var ran = struct {
	mu       sync.Mutex
	versions map[string]string
	tests    map[string]map[string]bool
}{versions: map[string]string{}, tests: map[string]map[string]bool{}}

// versionOf says how clients print their versions. What is not among them is no client.
var versionOf = map[string]string{
	"buildctl": "--version", "buildkitd": "--version", "containerd": "--version", "crane": "version", "ctr": "--version", "curl": "--version", "docker": "--version",
	"dockerd": "--version", "helm": "version", "oras": "version", "podman": "--version", "regctl": "version", "skopeo": "--version",
}

var versionNumber = regexp.MustCompile(`[0-9]+\.[0-9]+(\.[0-9]+)?(-(beta|rc|alpha)[.0-9]+)?`)

// noteProgram notes that a test runs a client's program.
func noteProgram(t *testing.T, program, path string) {
	t.Helper()
	arg, ok := versionOf[program]
	if !ok {
		return
	}
	version := moduleVersion(path)
	if version == "" {
		out, err := exec.CommandContext(t.Context(), path, arg).Output()
		if err != nil {
			t.Fatalf("%s %s: %v", path, arg, err)
		}
		version = string(out)
	}
	noteRan(t, program, versionNumber.FindString(version))
}

// moduleVersion gives the version of the module that a Go program was built from, or "".
func moduleVersion(path string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return ""
	}
	for _, m := range append(info.Deps, &info.Main) {
		if strings.HasPrefix(info.Path+"/", m.Path+"/") && m.Version != "(devel)" {
			return m.Version
		}
	}
	return ""
}

// noteLibrary notes that a test runs the code of a client's Go module.
func noteLibrary(t *testing.T, module string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}}", module).Output()
	if err != nil {
		t.Fatalf("go list -m %s: %v", module, err)
	}
	noteRan(t, module, versionNumber.FindString(string(out)))
}

func noteRan(t *testing.T, client, version string) {
	t.Helper()
	if version == "" {
		t.Fatalf("%s says no version", client)
	}
	test, _, _ := strings.Cut(t.Name(), "/")
	ran.mu.Lock()
	defer ran.mu.Unlock()
	key := client + " " + version
	ran.versions[key] = version
	if ran.tests[key] == nil {
		ran.tests[key] = map[string]bool{}
	}
	ran.tests[key][test] = true
}

// table gives what ran as a table in Markdown.
func table() string {
	var b strings.Builder
	b.WriteString("| client | version | tests |\n|---|---|---|\n")
	for _, key := range slices.Sorted(maps.Keys(ran.tests)) {
		client, version, _ := strings.Cut(key, " ")
		tests, more := slices.Sorted(maps.Keys(ran.tests[key])), ""
		if len(tests) > 4 {
			tests, more = tests[:4], fmt.Sprintf(" and %d more", len(tests)-4)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s%s |\n", client, version, strings.Join(tests, ", "), more)
	}
	return b.String()
}

var (
	begins, ends = []byte("<!-- what the tests ran -->\n"), []byte("<!-- end -->\n")
	// Only the clients are compared: packages get other versions, and tests other names.
	firstColumn = regexp.MustCompile("(?m)^\\| `[^|]+` \\|")
)

// checkPage compares the table of docs/clients.md with what ran, or writes it.
func checkPage() error {
	page, err := os.ReadFile(clientsPage)
	if err != nil {
		return err
	}
	from, to := bytes.Index(page, begins)+len(begins), bytes.Index(page, ends)
	if from < len(begins) || to < from {
		return fmt.Errorf("%s has no place for the table", clientsPage)
	}
	was, is := string(page[from:to]), table()
	if *update {
		return os.WriteFile(clientsPage, slices.Concat(page[:from], []byte(is), page[to:]), 0o644)
	}
	if clients := func(s string) []string { return slices.Compact(firstColumn.FindAllString(s, -1)) }; !slices.Equal(clients(was), clients(is)) {
		return fmt.Errorf("%s does not say what ran (go test -update writes it):\n%s", clientsPage, is)
	}
	return nil
}

// isWhole is whether all tests run, so that all clients do.
func isWhole() bool {
	run := flag.Lookup("test.run")
	return required() && (run == nil || run.Value.String() == "") && !testing.Short()
}
