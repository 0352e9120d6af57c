package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

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

// newTable gives a writer that aligns what is between tabs. The caller flushes it.
func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }
