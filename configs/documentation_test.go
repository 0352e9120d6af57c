package configs

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// row is a line of a table of docs/configuration.md.
type row struct{ key, usual, variable, meaning string }

func TestEveryKeyIsDocumentedWithItsDefaultAndVariable(t *testing.T) {
	rows := documented(t)
	cfg := Default()
	cfg.Upstreams = map[string]*Upstream{Placeholder: DefaultUpstream(Placeholder)}
	oneOfEach(cfg)
	var known []string
	for _, k := range keysIn(reflect.ValueOf(cfg).Elem(), "") {
		known = append(known, k.Path)
		got, ok := rows[k.Path]
		if !ok {
			t.Errorf("%s is not documented", k.Path)
			continue
		}
		want := row{key: k.Path, usual: documentedDefault(k), variable: k.Env}
		if got.usual != want.usual || got.variable != want.variable {
			t.Errorf("%s: want default %q and variable %q, got %q and %q", k.Path, want.usual, want.variable, got.usual, got.variable)
		}
		if len(got.meaning) < 20 {
			t.Errorf("%s: want a sentence on what it means, got %q", k.Path, got.meaning)
		}
	}
	for key := range rows {
		if !slices.Contains(known, key) {
			t.Errorf("%s is documented, but is no key", key)
		}
	}
}

func TestTheDocumentedMistakeIsAnsweredAsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "entrepot.yml")
	if err := os.WriteFile(file, []byte("listen: :8080\ncache:\n  direktory: /srv/cache\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Load(Source{File: file, Environ: cacheDir})
	if err == nil {
		t.Fatal("the mistake is taken for none")
	}
	want := "entrepot: /etc/entrepot/entrepot.yml" + strings.TrimPrefix(err.Error(), file)
	if !strings.Contains(string(text), want+"\n") {
		t.Errorf("docs/configuration.md does not show %q", want)
	}
}

// documentedDefault gives a key's default as the document writes it.
func documentedDefault(k Key) string {
	if k.value.Type() == reflect.TypeFor[[]TagRule]() {
		return "the rule below"
	}
	if k.value.Kind() == reflect.Slice && k.value.Type().Elem().Kind() == reflect.Struct {
		return "–"
	}
	if k.value.Kind() == reflect.Pointer {
		return "–"
	}
	if list, ok := k.value.Interface().([]string); ok {
		if len(list) == 0 {
			return "–"
		}
		return strings.Join(list, ", ")
	}
	if d, ok := k.value.Interface().(time.Duration); ok {
		return formatDuration(d)
	}
	if s := fmt.Sprint(k.value.Interface()); s != "" {
		return s
	}
	return "–"
}

// documented reads the tables of keys.
func documented(t *testing.T) map[string]row {
	t.Helper()
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]row{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 6 || !strings.HasPrefix(cells[1], " `") {
			continue
		}
		clean := func(s string) string { return strings.Trim(strings.TrimSpace(s), "`") }
		r := row{clean(cells[1]), clean(cells[2]), clean(cells[3]), strings.TrimSpace(cells[4])}
		if _, twice := rows[r.key]; twice {
			t.Errorf("%s is documented twice", r.key)
		}
		rows[r.key] = r
	}
	return rows
}
