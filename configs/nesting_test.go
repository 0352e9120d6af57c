package configs

import (
	"errors"
	"fmt"
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

// TestManyKeysAndDocumentsAreToldInOneSentence reads documents for which the parser would take
// time that grows with the square of their size.
func TestManyKeysAndDocumentsAreToldInOneSentence(t *testing.T) {
	many := func(before, format, after string) string {
		b := strings.Builder{}
		b.WriteString(before)
		for i := 0; b.Len() < 500_000; i++ {
			fmt.Fprintf(&b, format, i)
		}
		return b.String() + after
	}
	const keys, documents = "more than 2000 keys lie side by side", "it has more than 10 documents; write only one"
	const empty = "it has more than 100 empty lines in a row"
	for text, want := range map[string]string{
		"a: >" + strings.Repeat("\n", 500_000):                          empty,
		"a: |\n  x" + strings.Repeat("\n \t", 200_000):                  empty,
		"a: |" + strings.Repeat("\r\n", 200_000):                        empty,
		"a: |" + strings.Repeat("\r", 200_000):                          empty,
		many("a: |\n", "  x%d"+strings.Repeat("\n", 500), ""):           empty,
		strings.Repeat("---\na: 1\n", 50_000):                           documents,
		strings.Repeat("a: 1\n...\n", 50_000):                           documents,
		many("", "k%d: 1\n", ""):                                        keys,
		many("upstreams:\n", "  r%d.test: {}\n", ""):                    keys,
		many("upstreams:\n", "  r%d.test:\n    tls: {}\n", "log: {}\n"): keys,
		many("{", "k%d: 1, ", "}"):                                      keys,
		many("{", "k%d, ", "}"):                                         keys,
		many("{", "\"k%d\": [], ", "}"):                                 keys,
		many("", "? k%d\n", ""):                                         keys,
		many("access:\n- a: 1\n", "  k%d: 1\n", ""):                     keys,
		many("a: [{", "k%d: [a, b], ", "}]"):                            keys,
	} {
		l := &loader{file: "bomb.yml", cfg: Default(), where: map[string]place{}}
		l.readYAML([]byte(text))
		if len(l.problems) != 1 || !strings.HasSuffix(l.problems[0].String(), ": this is not a configuration: "+want) {
			t.Errorf("%.30q: want %q, got %d problems: %v", text, want, len(l.problems), l.problems[:min(1, len(l.problems))])
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
		"a: [" + strings.Repeat("b, ", 5000) + "]\n", "a:\n" + strings.Repeat("- {b: 1, c: 2}\n- d: 1\n  e: 2\n", 2000), strings.Repeat("a:\n  b: 1\n", 1500),
		strings.Repeat("a: |\n"+strings.Repeat("\r\n", 90)+"# b\n", 100),
	} {
		if at, err := CheckYAML([]byte(text), 0); err != nil {
			t.Errorf("%.40q: %v at %v", text, err, at.Position)
		}
	}
}
