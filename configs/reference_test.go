package configs

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func TestReferenceShowsTheDefaults(t *testing.T) {
	got, err := Load(Source{File: "reference.yml", Environ: cacheDir})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Cache.Dir = "/cache"
	if !reflect.DeepEqual(got, want) {
		gotText, _ := got.YAML()
		wantText, _ := want.YAML()
		t.Errorf("want the defaults\n%s\ngot\n%s", wantText, gotText)
	}
}

// example is a line that would be a key if it had no # before it.
var example = regexp.MustCompile(`(?m)^#( *["a-z0-9-].*)$`)

func TestReferenceExamplesLoad(t *testing.T) {
	text := readReference(t)
	var lines []string
	examples := 0
	for line := range strings.Lines(text) {
		// Prose begins with one blank, or three for a table.
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") || strings.HasPrefix(line, "#  ") && !strings.HasPrefix(line, "#   entrepot") {
			if example.MatchString(line) {
				line = line[1:]
				examples++
			}
		}
		lines = append(lines, line)
	}
	if examples < 30 {
		t.Fatalf("found %d lines of examples; there are more", examples)
	}
	file := filepath.Join(t.TempDir(), "reference.yml")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(Source{File: file})
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(lines, ""))
	}
	if got := cfg.Upstreams["123456789012.dkr.ecr.eu-central-1.amazonaws.com"]; got == nil || got.Credentials.Helper != "ecr-login" {
		t.Errorf("the last example is not in force: %+v", got)
	}
	if cfg.TLS.Cert == "" || cfg.Cache.Dir == "" {
		t.Errorf("the first examples are not in force: %+v", cfg)
	}
}

func TestReferenceHasEveryKey(t *testing.T) {
	text := readReference(t)
	for _, k := range Keys() {
		name := k.Path[strings.LastIndexAny(k.Path, ".]")+1:]
		if !regexp.MustCompile(`(?m)[ #{]` + name + `:|^` + name + `:`).MatchString(text) {
			t.Errorf("reference.yml does not have %s", k.Path)
		}
	}
}

func readReference(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("reference.yml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
