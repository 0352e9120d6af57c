package app

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What all commands print by: stdout has the result alone, with --output json one
// JSON document. How far a command has come goes to stderr, whatever --output says: as
// bars on a terminal, as lines elsewhere. So a result can be piped on, however long it
// took, and who wants the events as JSON has the operator's API.

// Values of --output.
const (
	outputTable = "table"
	outputJSON  = "json"
)

// addOutputFlag adds --output to a command that needs no cache.
func addOutputFlag(flags *pflag.FlagSet) {
	addChecked(flags, "output", "o", outputTable, "`format` to print: table or json", checkOutput)
}

// addOperatorFlags adds what every operator's command takes.
func addOperatorFlags(flags *pflag.FlagSet) {
	addOutputFlag(flags)
	addDirectoryFlags(flags)
}

// checkOutput says what is wrong with a value of --output.
func checkOutput(text string) error {
	if text != outputTable && text != outputJSON {
		return fmt.Errorf("give %s or %s", outputTable, outputJSON)
	}
	return nil
}

// asJSON tells whether --output is json.
func asJSON(cmd *cobra.Command) (bool, error) {
	text, err := cmd.Flags().GetString("output")
	return text == outputJSON, err
}

// writeJSON prints v for programs.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// longTable aligns columns as newTable does, of any number of lines: it prints longTableRows
// at a time, and a column becomes no narrower than it was.
type longTable struct {
	w        io.Writer
	optional []string // columns that a narrow terminal does without; see newTable
	headings []string
	widths   []int
	rows     [][]string
}

const longTableRows = 1000

// row adds a line. It may print what came before.
func (t *longTable) row(cells ...string) error {
	for i, cell := range cells {
		if i == len(t.widths) {
			t.widths = append(t.widths, 0)
		}
		t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
	}
	if t.rows = append(t.rows, cells); len(t.rows) < longTableRows {
		return nil
	}
	return t.flush()
}

// flush prints what is left.
func (t *longTable) flush() error {
	if width := widthOf(t.w); width > 0 {
		if t.headings == nil && len(t.rows) > 0 {
			t.headings = t.rows[0]
		}
		text := fit(t.rows, t.headings, width, t.optional)
		t.rows = t.rows[:0]
		_, err := io.WriteString(t.w, text)
		return err
	}
	var b strings.Builder
	for _, cells := range t.rows {
		for i, cell := range cells {
			b.WriteString(cell)
			if i < len(cells)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		b.WriteByte('\n')
	}
	t.rows = t.rows[:0]
	_, err := io.WriteString(t.w, b.String())
	return err
}
