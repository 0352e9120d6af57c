package app

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// TestEveryCommandThatPrintsAResultPrintsJSON runs them as people type them, into a pipe.
func TestEveryCommandThatPrintsAResultPrintsJSON(t *testing.T) {
	good := writeFile(t, "good.yml", "listen: \":1001\"\n")
	bad := writeFile(t, "bad.yml", "lisen: \":5000\"\n")
	warned := writeFile(t, "warned.yml", "upstreams: {plain.test: {endpoints: [\"http://127.0.0.1:7000\"], realms: [\"127.0.0.2:7001\"]}}\n")
	for _, c := range []struct {
		args string
		code int
		want map[string]any
	}{
		{"version -o json", 0, map[string]any{"version": "devel"}},
		{"config show -o json --config " + good, 0, map[string]any{"listen": ":1001"}},
		{"config check -o json " + good, 0, map[string]any{"ok": true, "file": good}},
		{"config check -o json " + bad, 1, map[string]any{"ok": false}},
		{"config check -o json /none.yml", 1, map[string]any{"ok": false}},
	} {
		got := runCommand(nil, strings.Fields(c.args)...)
		var v map[string]any
		if err := json.Unmarshal([]byte(got.stdout), &v); err != nil || got.code != c.code {
			t.Errorf("entrepot %s: want %d and a document, got %+v: %v", c.args, c.code, got, err)
		}
		for key, want := range c.want {
			if v[key] != want {
				t.Errorf("entrepot %s: %s is %v, want %v", c.args, key, v[key], want)
			}
		}
	}
	if got := runCommand(nil, "config", "check", "-o", "json", warned); !strings.Contains(got.stdout, "write http://127.0.0.2:7001") {
		t.Errorf("config check does not say how to write a realm over plain http: %+v", got)
	}
	for _, args := range []string{"version -o xml", "config show -o xml", "config check -o xml", "healthcheck -o xml", "export -o xml nginx"} {
		if got := runCommand(nil, strings.Fields(args)...); got.code != exitUsage || !strings.Contains(got.stderr, "give table or json") {
			t.Errorf("entrepot %s: want %d, got %+v", args, exitUsage, got)
		}
	}
}

// TestAliasesAreTheCommandsThatPeopleMean runs what other programs call the same.
func TestAliasesAreTheCommandsThatPeopleMean(t *testing.T) {
	for alias, command := range map[string]string{"images": "ls", "list": "ls", "rm": "purge", "status": "stats", "pull": "warm"} {
		a, c := runCommand(nil, alias, "--help"), runCommand(nil, command, "--help")
		if a.code != exitOK || a.stdout != c.stdout {
			t.Errorf("entrepot %s is not entrepot %s: %+v", alias, command, a)
		}
	}
}

// TestTheOldFlagOfExportStillNamesABundle is about -o FILE, and about -o json, which is a format.
func TestTheOldFlagOfExportStillNamesABundle(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + filepath.Join(dir, "cache")}
	archive := layoutArchive(t, "docker.io/library/app:1")
	if got := runCommand(environ, "import", archive); got.code != exitOK {
		t.Fatalf("import: %+v", got)
	}
	old := runCommand(environ, "export", "-o", "old.tar", "app:1")
	if old.code != exitOK || !strings.Contains(old.stderr, "warning: -o is the output format; write --bundle old.tar") {
		t.Errorf("export -o old.tar: want a warning, got %+v", old)
	}
	if _, err := os.Stat("old.tar"); err != nil {
		t.Error(err)
	}
	for _, args := range []string{"export -o json app:1", "export --bundle new.tar -o json app:1"} {
		got := runCommand(environ, strings.Fields(args)...)
		var doc struct {
			Images []struct{ Reference string }
			Paths  []string
		}
		if err := json.Unmarshal([]byte(got.stdout), &doc); err != nil || got.code != exitOK || got.stderr != "" || len(doc.Images) != 1 || doc.Paths == nil {
			t.Errorf("entrepot %s: want a document, got %+v: %v", args, got, err)
		}
	}
	if _, err := os.Stat("json"); err == nil {
		t.Error("export -o json has written a bundle called json")
	}
	if _, err := os.Stat("new.tar"); err != nil {
		t.Error(err)
	}
}

// TestPatternsSelectCachedImagesForEveryCommand pins, explains and unpins what ls lists.
func TestPatternsSelectCachedImagesForEveryCommand(t *testing.T) {
	dir := t.TempDir()
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + filepath.Join(dir, "cache")}
	for _, name := range []string{"docker.io/library/app:1", "docker.io/library/app:2", "docker.io/org/tool:1"} {
		if got := runCommand(environ, "import", layoutArchive(t, name)); got.code != exitOK {
			t.Fatalf("import: %+v", got)
		}
	}
	for pattern, want := range map[string]int{"docker.io": 3, "app": 2, "library/*": 2, "app:2": 1, "org/tool": 1, "docker.io/app": 2, "docker.io/": 3} {
		var list struct{ Images []struct{ Reference string } }
		if got := runCommand(environ, "ls", "-o", "json", pattern); json.Unmarshal([]byte(got.stdout), &list) != nil || len(list.Images) != want {
			t.Errorf("ls %s: want %d images, got %+v", pattern, want, got)
		}
		if pattern == "docker.io/" {
			continue // not a reference
		}
		for _, command := range []string{"pin", "explain", "unpin"} {
			got := runCommand(environ, command, pattern)
			if got.code != exitOK {
				t.Errorf("%s %s: %+v", command, pattern, got)
			}
			for _, i := range list.Images {
				if !strings.Contains(got.stdout, i.Reference) {
					t.Errorf("%s %s: want %s, got %+v", command, pattern, i.Reference, got)
				}
			}
		}
	}
	if got := runCommand(environ, "pin", "app:1", "none:1", "org/tool:1"); got.code != exitFailed ||
		!strings.Contains(got.stdout, "app:1 is pinned") || !strings.Contains(got.stdout, "org/tool:1 is pinned") || !strings.Contains(got.stderr, "none:1") {
		t.Errorf("pin of two images and one that is not cached: %+v", got)
	}
	if got := runCommand(environ, "pin", "quay.io/*"); got.code != exitFailed || !strings.Contains(got.stderr, "no cached image matches quay.io/*") {
		t.Errorf("pin of a pattern that selects nothing: %+v", got)
	}
}

// layoutArchive writes an image layout of a small image called name, and returns its path.
func layoutArchive(t *testing.T, name string) string {
	t.Helper()
	names, files := layoutFiles(t, image.New(image.Options{Seed: uint64(len(name)) + uint64(name[len(name)-1])}), name)
	path := filepath.Join(t.TempDir(), "layout.tar")
	if err := os.WriteFile(path, tarOf(t, names, files), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
