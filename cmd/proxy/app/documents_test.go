package app

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documented matches the commands of this program in code blocks and in running text.
var documented = regexp.MustCompile("(?m)(?:^(?:\\$ )?(?:sudo )?|`)entrepot( [a-z][^`\\n]*)?")

// TestDocumentedCommandsAreTaken gives each command that the documents show to the program,
// with --help behind it: its name and its flags must be known, and its flags' values valid.
func TestDocumentedCommandsAreTaken(t *testing.T) {
	documents, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	ready, err := filepath.Glob("../../../configs/deploy/*")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, document := range append(append(documents, ready...), "../../../README.md") {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range documented.FindAllStringSubmatch(string(text), -1) {
			args := shellWords(m[1])
			if strings.ContainsAny(m[1], "…[") || seen[strings.Join(args, " ")] {
				continue // cut short, or usage
			}
			seen[strings.Join(args, " ")] = true
			if c := runCommand(nil, append(args, "--help")...); c.code != 0 {
				t.Errorf("%s: entrepot%s: exit code %d\n%s", document, m[1], c.code, c.stderr)
			}
		}
	}
	if len(seen) < 50 {
		t.Errorf("only %d commands were found", len(seen))
	}
}

// shellWords splits the words of one command, up to a comment, a pipe or a redirection.
func shellWords(text string) (words []string) {
	for _, w := range regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`).FindAllString(text, -1) {
		if strings.ContainsAny(w[:1], "#|>;&(→=") || w == "2>" {
			break
		}
		words = append(words, strings.Trim(w, `'"`))
	}
	return words
}
