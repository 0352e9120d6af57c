package app

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/operator"
)

// outputNames is the value of missing's --output for a reference on each line.
const outputNames = "names"

func newMissing(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "missing",
		Short: "List the images that clients asked for and did not get",
		Long: `Missing lists the images that clients asked for while Entrepot was offline or the upstream did not
answer, and that are still not cached, the newest last. It is the list for the next bundle: warm and
export take it by --file. The list is bounded and survives a restart. An image of which only a layer
is missing is found by entrepot rehearse.`,
		Example: `  entrepot missing
  entrepot missing -o names > list
  entrepot warm --file list                       outside, where the registries can be reached
  entrepot export --bundle next.tar --file list`,
		Args: cobra.NoArgs,
		RunE: p.operates(p.missing),
	}
	addChecked(cmd.Flags(), "output", "o", outputTable, "`format` to print: table, json or names", func(text string) error {
		if text == outputNames || checkOutput(text) == nil {
			return nil
		}
		return fmt.Errorf("give %s or %s, or %s", outputTable, outputJSON, outputNames)
	})
	addDirectoryFlags(cmd.Flags())
	return cmd
}

func (p *process) missing(o *operation, cmd *cobra.Command, _ []string) error {
	format, err := cmd.Flags().GetString("output")
	if err != nil {
		return err
	}
	var list operator.Missing
	if err := o.Get(o.ctx, "missing", nil, &list); err != nil {
		return err
	}
	switch format {
	case outputJSON:
		return writeJSON(p.stdout, list)
	case outputNames:
		for _, i := range list.Images {
			if _, err := fmt.Fprintln(p.stdout, i.Reference); err != nil {
				return err
			}
		}
		return nil
	}
	return writeMissing(p.page(), &list, time.Now())
}

// writeMissing prints the list for people.
func writeMissing(w io.Writer, list *operator.Missing, now time.Time) error {
	tw := newTable(w, "FIRST ASKED")
	fmt.Fprintln(tw, "REFERENCE\tTIMES\tFIRST ASKED\tLAST ASKED")
	for _, i := range list.Images {
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\n", printable(i.Reference), i.Times, column(w, i.First, now), column(w, i.Last, now))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s missing\n", count(len(list.Images), "image"))
	return err
}
