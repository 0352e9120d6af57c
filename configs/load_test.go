package configs

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// cacheDir keeps the directory out of the golden files, for it depends on the
// machine.
var cacheDir = []string{"ENTREPOT_CACHE_DIR=/cache"}

func TestGoodFilesGiveTheirConfiguration(t *testing.T) {
	for _, file := range glob(t, "testdata/good/*.yml") {
		t.Run(file, func(t *testing.T) {
			cfg, err := Load(Source{File: file, Environ: cacheDir})
			if err != nil {
				t.Fatalf("want no error, got %v", err)
			}
			text, err := cfg.YAML()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(file, ".yml")+".out", changes(t, string(text)))
		})
	}
}

func TestBadFilesGiveTheirError(t *testing.T) {
	for _, file := range glob(t, "testdata/bad/*.yml") {
		t.Run(file, func(t *testing.T) {
			cfg, err := Load(Source{File: file, Environ: cacheDir})
			if err == nil {
				t.Fatalf("want an error, got %+v", cfg)
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("want an *Error, got %T", err)
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error shows a secret: %v", err)
			}
			var all strings.Builder
			for _, p := range e.Problems {
				all.WriteString(p.String() + "\n")
			}
			golden(t, strings.TrimSuffix(file, ".yml")+".err", all.String())
		})
	}
}

func TestShownConfigurationLoadsAsTheSame(t *testing.T) {
	for _, file := range glob(t, "testdata/good/*.yml") {
		first, err := Load(Source{File: file, Environ: cacheDir})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range first.Upstreams {
			if u.Credentials.Password != "" { // It is hidden, and so can not come back.
				u.Credentials = Credentials{}
			}
		}
		text, err := first.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again := filepath.Join(t.TempDir(), "again.yml")
		if err := os.WriteFile(again, text, 0o600); err != nil {
			t.Fatal(err)
		}
		second, err := Load(Source{File: again})
		if err != nil {
			t.Fatalf("%s: %v\n%s", file, err, text)
		}
		// Nil and empty lists say the same.
		want, _ := first.YAML()
		got, _ := second.YAML()
		if string(want) != string(got) {
			t.Errorf("%s: want\n%s\ngot\n%s", file, want, got)
		}
	}
}

func TestDefaultsAreValid(t *testing.T) {
	cfg, err := Load(Source{Environ: cacheDir})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Cache.Dir = "/cache"
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("want %+v, got %+v", want, cfg)
	}
}

func TestLaterSourcesWin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "entrepot.yml")
	text := "cache: {dir: /file, memory: 1MiB}\nlog: {level: error, format: json}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(Source{
		File:    file,
		Environ: []string{"ENTREPOT_CACHE_DIR=/environ", "ENTREPOT_CACHE_MEMORY=2MiB", "HOME=/root"},
		Flags:   []Flag{{Name: "--cache-dir", Key: "cache.dir", Value: "/flag"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := []any{cfg.Listen, cfg.Log.Level, cfg.Cache.Memory, cfg.Cache.Dir}
	want := []any{":5000", "error", Bytes(2 << 20), "/flag"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("default, file, environment, flag: want %v, got %v", want, got)
	}
}

func TestFileThatCanNotBeReadIsNamed(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.yml")
	if err := os.WriteFile(big, make([]byte, maxFileSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none.yml"): "does not exist",
		dir:                            "is a directory",
		big:                            "at most 1048576 bytes are read",
		"/dev/zero":                    "at most 1048576 bytes are read",
	} {
		_, err := Load(Source{File: path})
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %s and %q, got %v", path, want, err)
		}
	}
}

func TestOnlyTheFirstProblemsAreShown(t *testing.T) {
	for n, want := range map[int]string{
		10:  "unknown key",
		12:  "and 2 more; correct these first",
		500: "and more than 90 other problems; correct these first",
	} {
		file := filepath.Join(t.TempDir(), "wrong.yml")
		var text strings.Builder
		for i := range n {
			fmt.Fprintf(&text, "key%d: 1\n", i)
		}
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(Source{File: file, Environ: cacheDir})
		if err == nil {
			t.Fatal("want an error")
		}
		lines := strings.Split(err.Error(), "\n")
		if last := lines[len(lines)-1]; len(lines) != min(n, 11) || !strings.Contains(last, want) || !strings.Contains(lines[9], ":10:1: key9: unknown key") {
			t.Errorf("%d problems: want 10 lines and %q, got\n%v", n, want, err)
		}
	}
}

func TestImmutableRuleKeepsTheDefaultTimes(t *testing.T) {
	cfg, err := Load(Source{File: "testdata/good/last-tag-rule-is-added.yml"})
	if err != nil {
		t.Fatal(err)
	}
	want := []TagRule{
		{Match: "library/*:*.*.*", TTL: time.Minute, StaleIfError: 720 * time.Hour, Immutable: true, OnUpstreamDelete: "follow", OnMove: "follow"},
		DefaultTagRule(),
	}
	if got := cfg.Upstreams["docker.io"].Tags; !reflect.DeepEqual(got, want) {
		t.Errorf("want %+v, got %+v", want, got)
	}
}

// FuzzLoadEnds holds that no document, however built, makes Load panic or run
// without an end.
func FuzzLoadEnds(f *testing.F) {
	for _, dir := range []string{"testdata/good/*.yml", "testdata/bad/*.yml"} {
		files, _ := filepath.Glob(dir)
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil {
				f.Add(text)
			}
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 4096 {
			return
		}
		l := &loader{file: "fuzz.yml", cfg: Default(), where: map[string]place{}}
		l.readYAML(text)
		l.complete()
		l.validate()
	})
}

// changes gives the lines of a shown configuration that the shown defaults do
// not have, so that a golden file holds what its input does.
func changes(t *testing.T, shown string) string {
	t.Helper()
	cfg := Default()
	cfg.Cache.Dir = "/cache"
	usual, err := cfg.YAML()
	if err != nil {
		t.Fatal(err)
	}
	known := blocks(string(usual))
	var b strings.Builder
	for _, block := range blocks(shown) {
		if !slices.Contains(known, block) {
			b.WriteString(block)
		}
	}
	return b.String()
}

// blocks cuts a shown configuration into its top-level keys and its upstreams.
func blocks(shown string) []string {
	var list []string
	inUpstreams := false
	for line := range strings.Lines(shown) {
		top := line[0] != ' '
		if top {
			inUpstreams = strings.HasPrefix(line, "upstreams:")
		}
		name := inUpstreams && strings.HasPrefix(line, "  ") && line[2] != ' '
		if top || name {
			list = append(list, "")
		}
		list[len(list)-1] += line
	}
	return list
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files match %s: %v", pattern, err)
	}
	return files
}

// golden compares got with what a file holds.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if string(want) != got {
		t.Errorf("%s: want\n%s\ngot\n%s", file, want, got)
	}
}

func TestOfAWrongFileWhatFindsTheProxyIsRead(t *testing.T) {
	for name, text := range map[string]string{
		"an unknown key":  "admin: {listen: \"127.0.0.1:6001\"}\ncache: {dir: /srv/cache}\ncach: 3\n",
		"a wrong value":   "admin: {listen: \"127.0.0.1:6001\"}\ncache: {dir: /srv/cache, max_size: much}\n",
		"no YAML":         "# mine\ncache:\n  dir: /srv/cache\n\n  # here\n  offline: true\nadmin:\n  listen: 127.0.0.1:6001\n]:\n\tx\n",
		"no YAML at once": "}{\nadmin: {listen: \"127.0.0.1:6001\"}\ncache: {dir: /srv/cache}\n",
	} {
		file := filepath.Join(t.TempDir(), "entrepot.yml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if cfg, err := Load(Source{File: file}); err == nil || cfg != nil {
			t.Errorf("%s: Load gives %v, %v", name, cfg, err)
		}
		cfg, err := LoadPartly(Source{File: file})
		if err == nil || cfg.Cache.Dir != "/srv/cache" || cfg.Admin.Listen != "127.0.0.1:6001" {
			t.Errorf("%s: got %s and %s, %v", name, cfg.Cache.Dir, cfg.Admin.Listen, err)
		}
		// The environment and the flags still win.
		cfg, _ = LoadPartly(Source{File: file, Environ: []string{"ENTREPOT_CACHE_DIR=/env"}, Flags: []Flag{{Name: "--admin-listen", Key: "admin.listen", Value: "127.0.0.1:7001"}}})
		if cfg.Cache.Dir != "/env" || cfg.Admin.Listen != "127.0.0.1:7001" {
			t.Errorf("%s: over it: got %s and %s", name, cfg.Cache.Dir, cfg.Admin.Listen)
		}
	}
}
