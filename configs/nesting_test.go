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
		strings.Repeat("[", 100_000):                              "bomb.yml:1:10001: this is not a configuration: lists and keys lie more than 100 deep in each other",
		strings.Repeat("{a: ", 25_000):                            "bomb.yml:1:40001: this is not a configuration: lists and keys lie more than 100 deep in each other",
		strings.Repeat("- ", 50_000):                              "bomb.yml:1:20001: this is not a configuration: lists and keys lie more than 100 deep in each other",
		"listen: x\nlog: [\n" + strings.Repeat("[ # ]\n", 10_000): "bomb.yml:10002:1: this is not a configuration: lists and keys lie more than 100 deep in each other",
	} {
		l := &loader{file: "bomb.yml", cfg: Default(), where: map[string]place{}}
		l.readYAML([]byte(text))
		if len(l.problems) != 1 || l.problems[0].String() != want {
			t.Errorf("%.20q: want %q, got %v", text, want, l.problems)
		}
	}
}

// TestManyKeysAndDocumentsCostNoMoreThanTheirSize reads documents for which some parsers take
// time that grows with the square of their size.
func TestManyKeysAndDocumentsCostNoMoreThanTheirSize(t *testing.T) {
	many := func(before, format, after string) string {
		b := strings.Builder{}
		b.WriteString(before)
		for i := 0; b.Len() < 500_000; i++ {
			fmt.Fprintf(&b, format, i)
		}
		return b.String() + after
	}
	const unknown, documents, upstreams = "unknown key; ", "a second YAML document; ", "want at most 1000 upstreams"
	for text, want := range map[string]string{
		"a: >" + strings.Repeat("\n", 500_000):                          unknown,
		"a: |\n  x" + strings.Repeat("\n \t", 200_000):                  "found a tab character where an indentation space is expected",
		"a: |" + strings.Repeat("\r\n", 200_000):                        unknown,
		"a: |" + strings.Repeat("\r", 200_000):                          unknown,
		many("a: |\n", "  x%d"+strings.Repeat("\n", 500), ""):           unknown,
		strings.Repeat("---\na: 1\n", 50_000):                           documents,
		strings.Repeat("a: 1\n...\n", 50_000):                           "did not find expected <document start>",
		many("", "k%d: 1\n", ""):                                        unknown,
		many("upstreams:\n", "  r%d.test: {}\n", ""):                    upstreams,
		many("upstreams:\n", "  r%d.test:\n    tls: {}\n", "log: {}\n"): upstreams,
		many("{", "k%d: 1, ", "}"):                                      unknown,
		many("{", "k%d, ", "}"):                                         unknown,
		many("{", "\"k%d\": [], ", "}"):                                 unknown,
		many("", "? k%d\n", ""):                                         unknown,
		many("access:\n- a: 1\n", "  k%d: 1\n", ""):                     unknown,
		many("a: [{", "k%d: [a, b], ", "}]"):                            unknown,
		many("", "# c%d\n\n", ""):                                       "",
		many("", "a: 1 # c%d\n# d\n\n", ""):                             unknown,
	} {
		l := &loader{file: "bomb.yml", cfg: Default(), where: map[string]place{}}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		l.readYAML([]byte(text))
		runtime.ReadMemStats(&after)
		if taken := after.TotalAlloc - before.TotalAlloc; taken > 1<<30 {
			t.Errorf("%.30q: %d MiB were allocated", text, taken>>20)
		}
		said := fmt.Sprint(l.problems)
		if len(l.problems) > maxProblems || !strings.Contains(said, want) || want == "" && len(l.problems) > 0 {
			t.Errorf("%.30q: want %q, got %d problems: %v", text, want, len(l.problems), l.problems[:min(1, len(l.problems))])
		}
	}
}

// TestSyntaxErrorsHaveTheirPlace checks that a person finds the place of each mistake.
func TestSyntaxErrorsHaveTheirPlace(t *testing.T) {
	for text, want := range map[string]string{
		"listen: a\n\tb: c\n":                    "2:1: this is no valid YAML: found a tab character that violates indentation; indent with spaces",
		"listen: a: b\n":                         "1:10: this is no valid YAML: a key is not allowed here; check how far this line is indented, and put quotes around a text that has a colon and a space",
		"cache:\n  dir: *d\n":                    "2:8: this is no valid YAML: an alias has no anchor above it; put quotes around a text that begins with *",
		"listen: \"é\" x\n":                      "1:13: this is no valid YAML: did not find expected key; check how far this line is indented, and the brackets and quotes before it",
		"log: {level: info\nlisten: x\n":         "1:14: this is no valid YAML: did not find expected ',' or '}'",
		"listen: 'x\n":                           "1:9: this is no valid YAML: found unexpected end of stream",
		"listen: x\nlog: \x01\n":                 "2:6: this is no valid YAML: control characters are not allowed",
		"log:\n  level: \"info\n\nlisten: x\n":   "2:10: this is no valid YAML: found unexpected end of stream",
		"listen: x\nlisten: y\n":                 "2:1: listen: the key is already set in line 1; remove one of the two",
		"cache:\n  dir: /a\n  dir: /b\nlo: {}\n": "3:3: cache.dir: the key is already set in line 2; remove one of the two",
	} {
		l := &loader{file: "wrong.yml", cfg: Default(), where: map[string]place{}}
		l.readYAML([]byte(text))
		if len(l.problems) == 0 || l.problems[0].String() != "wrong.yml:"+want {
			t.Errorf("%q: want %q, got %v", text, want, l.problems)
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
		first, _, err := Documents([]byte(text))
		if err != nil {
			t.Errorf("%.40q: %v", text, err)
		} else if first == nil {
			continue // comments only
		} else if deep := TooDeep(first); deep != nil {
			t.Errorf("%.40q: too deep in line %d", text, deep.Line)
		}
	}
}
