package configs

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// bombs are documents that are short to write and long to read, by what is repeated.
func bombs(size int) map[string]string {
	all := map[string]string{}
	for _, piece := range []string{
		"[", "{a: ", "- ", "? ", "{", "{a: [", "[{", "[a,", "- - ", "&a ", "*a ", "!a ", "a: ", "a: b: ", "- a: ", "? - ", "[ # ]\n", "[\"\n]\"\n,", "{a: ']\n',", "- [",
		"a:\n", "a: 1\n", "- a\n", "# c\n", "\"", "'", "x", "---\n", "\t", "\n", " ", "|\n", ">-\n", "a: |\n  x\n", "[]", "{},", "]", "}", "%Y\n", "\\",
		"\"\\x", "a: 'x\n", "<<: *a\n", " - a\n", "-\n ", ": ", ", ", "\r\n", "...\n", "@", "é", "\x00", "\xff", "a: &x [*x]\n",
	} {
		all[piece] = strings.Repeat(piece, size/len(piece))
	}
	// Each line lies deeper than the one before.
	var stairs, steps strings.Builder
	for n := 0; stairs.Len() < size; n++ {
		stairs.WriteString(strings.Repeat(" ", n) + "a:\n")
		steps.WriteString(strings.Repeat(" ", n) + "-\n")
	}
	all["stairs of keys"], all["stairs of lists"] = stairs.String(), steps.String()
	in := func(before, piece, after string) string {
		return before + strings.Repeat(piece, max(0, size-len(before)-len(after))/len(piece)) + after
	}
	all["a long text"] = in("listen: ", "x", "\n")
	all["a long number"] = in("limits: {connections: ", "1", "}\n")
	all["a long key"] = in("", "x", ": 1\n")
	all["a long quoted text"] = in("listen: \"", "\\u0041", "\"\n")
	all["a long text of lines"] = in("listen: |\n", "  x\n", "")
	all["unknown keys"] = in("cache: {", "memori: 1, ", "}\n")
	all["many upstreams"] = in("upstreams:\n", "  a.test: {}\n", "")
	all["unknown upstreams"] = in("upstreams: {", "b.test: null, ", "}\n")
	all["many rules"] = in("access:\n", "- {repositories: [ones], upstreams: [x, \"*\"], who: [a], action: deny}\n", "")
	all["many patterns"] = in("access: [{action: deny, repositories: [", "\"*a*\", ", "]}]\n")
	all["many names"] = in("auth: {htpasswd: /x}\naccess: [{action: deny, who: [", "a, ", "]}]\n")
	all["an alias bomb"] = "a: &a [" + strings.Repeat("x,", 100) + "]\nb: &b [" + strings.Repeat("*a,", 100) + "]\naccess: [" + strings.Repeat("*b,", 100) + "]\n"
	all["aliases of a long list"] = in("log: &l {level: info}\naccess:\n- &r {action: deny, who: &w ["+strings.Repeat("a,", size/6)+"]}\n", "- *r\n", "")
	all["aliases of an upstream"] = in("upstreams:\n  a.test: &u {endpoints: [http://a.test]}\n", "  b.test: *u\n", "")
	return all
}

func TestNoDocumentCostsMemoryOutOfProportion(t *testing.T) {
	for _, size := range []int{100_000} {
		for name, text := range bombs(size) {
			file := filepath.Join(t.TempDir(), "entrepot.yml")
			if err := os.WriteFile(file, []byte(text)[:min(len(text), maxFileSize)], 0o600); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Load(Source{File: file, Environ: cacheDir})
			runtime.ReadMemStats(&after)
			if taken := after.TotalAlloc - before.TotalAlloc; taken > 1<<30 {
				t.Errorf("%q of %d bytes: %d MiB were allocated", name, size, taken>>20)
			}
			var e *Error
			if err == nil || !errors.As(err, &e) {
				continue // it may be a good one
			}
			if len(e.Problems) > maxProblems+1 || len(err.Error()) > (maxProblems+1)*(3*maxMessage) {
				t.Errorf("%q of %d bytes: %d problems in %d bytes", name, size, len(e.Problems), len(err.Error()))
			}
		}
	}
}

func TestDeepNestingIsToldInOneSentenceWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		strings.Repeat("[", 100_000):                              "bomb.yml:1:101: this is not a configuration: lists and keys lie more than 100 deep in each other",
		strings.Repeat("{a: ", 25_000):                            "bomb.yml:1:401: this is not a configuration: lists and keys lie more than 100 deep in each other",
		strings.Repeat("- ", 50_000):                              "bomb.yml:1:201: this is not a configuration: lists and keys lie more than 100 deep in each other",
		"listen: x\nlog: [\n" + strings.Repeat("[ # ]\n", 10_000): "bomb.yml:101:1: this is not a configuration: lists and keys lie more than 100 deep in each other",
	} {
		l := &loader{file: "bomb.yml", cfg: Default(), where: map[string]place{}}
		l.readYAML([]byte(text))
		if len(l.problems) != 1 || l.problems[0].String() != want {
			t.Errorf("%.20q: want %q, got %v", text, want, l.problems)
		}
	}
}

func TestOrdinaryDocumentsAreNotDeep(t *testing.T) {
	var long strings.Builder
	for range 2000 {
		long.WriteString("- {name: it's, who: ['[[[[', \"{{{{\"], action: deny} # ((([[[\n- name: x[[[\n  who:\n  - a\n")
	}
	for _, text := range []string{
		long.String(), "a:\n  b:\n    c:\n      - d: 1\n        e:\n        - f\ng: 1\n", strings.Repeat("a:\n  - b: [c]\n    d: {e: f}\n", 1000), strings.Repeat("# [[[[{{{{\n", 1000),
	} {
		if at, err := CheckYAML([]byte(text), 0); err != nil {
			t.Errorf("%.40q: %v at %v", text, err, at.Position)
		}
	}
}
