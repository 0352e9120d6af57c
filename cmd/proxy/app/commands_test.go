package app

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write what is generated of the commands' help anew")

// regenerate is what to run where the documents and the commands differ.
const regenerate = "go test ./cmd/proxy/app -run TestCommandsAreDocumented -update"

// TestCommandsAreDocumented holds the table of commands in docs/README.md and docs/commands.md
// to what the commands say of themselves. With -update it writes both anew.
func TestCommandsAreDocumented(t *testing.T) {
	const readme, reference = "../../../docs/README.md", "../../../docs/commands.md"
	const begin, end = "<!-- commands: generated -->\n", "<!-- /commands -->\n"
	old := readText(t, readme)
	before, rest, ok := strings.Cut(old, begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no table of commands: want one between %q and %q", readme, begin, end)
	}
	commands := documentedCommands(documentedRoot())
	isUpToDate(t, readme, old, before+begin+commandTable(commands)+end+after)
	isUpToDate(t, reference, readText(t, reference), commandReference(t, commands))
}

// isUpToDate compares a document with what it should be, or writes that with -update.
func isUpToDate(t *testing.T, path, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	line, is, should := firstDifference(got, want)
	t.Errorf("%s does not say what the commands' help says; run\n  %s\nLine %d is %q, and should be %q.", path, regenerate, line, is, should)
}

// firstDifference gives the number of the first line in which two texts differ, and it.
func firstDifference(got, want string) (line int, is, should string) {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		is, should = "", ""
		if i < len(g) {
			is = g[i]
		}
		if i < len(w) {
			should = w[i]
		}
		if is != should {
			return i + 1, is, should
		}
	}
	return 0, "", ""
}

// readText gives a file's text; empty where there is none.
func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// documentedRoot gives the tree of commands, as it is when one runs.
func documentedRoot() *cobra.Command {
	root := newRoot(&process{})
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	return root
}

// documentedCommands lists root and the commands below it that do something, in the
// order in which help lists them. The shells of completion are told by its own help.
func documentedCommands(c *cobra.Command) []*cobra.Command {
	list := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		switch {
		case !sub.IsAvailableCommand() || sub.Name() == "help":
		case sub.Name() == "completion" || !sub.HasAvailableSubCommands():
			list = append(list, sub)
		default:
			list = append(list, documentedCommands(sub)[1:]...)
		}
	}
	return list
}

// commandTable is that of docs/README.md.
func commandTable(commands []*cobra.Command) string {
	var s strings.Builder
	s.WriteString("| command | what it does |\n|---|---|\n")
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	for _, c := range commands[1:] {
		usage := strings.TrimSuffix(c.UseLine(), " [flags]")
		fmt.Fprintf(&s, "| [`%s`](commands.md#%s) | %s |\n", cell.Replace(usage), anchor(c), cell.Replace(c.Short))
	}
	return s.String()
}

// anchor is what a heading with the command's name is linked by.
func anchor(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// commandReference is docs/commands.md.
func commandReference(t *testing.T, commands []*cobra.Command) string {
	t.Helper()
	var s strings.Builder
	fmt.Fprintf(&s, `# Commands

<!-- Generated of the commands' help: %s -->

What each command says with `+"`--help`"+`. All of them exit with

| code | when |
|---|---|
| %d | it is done, and what was asked about is in order |
| %d | it could not be done, or what was asked about is not in order: damage remains, something is missing. stderr says what, and the command's help when |
| %d | the command was called wrongly: an unknown flag, a value that is none. Nothing was done |
| %d | a signal (SIGINT, SIGTERM) ended it. What was done until then is kept. Serving ends with %d at a signal |

The result goes to stdout, and nothing else does: with `+"`--output json`"+` it is one JSON document. How far a command has
come, and errors, go to stderr.
`, regenerate, exitOK, exitFailed, exitUsage, exitInterrupted, exitOK)
	for _, c := range commands {
		path := strings.Fields(c.CommandPath())
		help := runCommand(nil, append(path[1:], "--help")...)
		if help.code != exitOK {
			t.Fatalf("%s --help: %+v", c.CommandPath(), help)
		}
		fmt.Fprintf(&s, "\n## %s\n\n```text\n%s\n```\n", c.CommandPath(), strings.TrimSpace(help.stdout))
	}
	return s.String()
}

func TestADocumentThatDiffersIsToldByItsLine(t *testing.T) {
	for _, c := range []struct {
		got, want  string
		line       int
		is, should string
	}{
		{"a\nb\n", "a\nc\n", 2, "b", "c"},
		{"a\n", "a\nc\n", 2, "", "c"},
		{"a\nb\n", "a\n", 2, "b", ""},
	} {
		if line, is, should := firstDifference(c.got, c.want); line != c.line || is != c.is || should != c.should {
			t.Errorf("%q and %q: want line %d, %q and %q, got %d, %q and %q", c.got, c.want, c.line, c.is, c.should, line, is, should)
		}
	}
}
