package app

import (
	"cmp"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
)

func newHistory(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history REFERENCE",
		Short: "List the digests that a tag has had, and when",
		Long: `History lists the digests that the upstream has given for a tag, when each was first and last
seen, how, and whether its content is cached: complete, partial or no. It asks no upstream. It
exits with 1 if nothing is known of the tag, and names the known tags of the repository.`,
		Example: `  entrepot history node:20
  entrepot history --output json ghcr.io/org/app:stable`,
		Args: cobra.ExactArgs(1),
		RunE: p.operates(p.history),
	}
	addOperatorFlags(cmd.Flags())
	return cmd
}

func (p *process) history(o *operation, cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	var h cache.History
	if err := o.Get(o.ctx, "history", url.Values{"reference": {args[0]}}, &h); err != nil {
		return err
	}
	if asJSON {
		return writeJSON(p.stdout, h)
	}
	return writeHistory(p.page(), &h, time.Now())
}

// cachedWord says how much of an image is cached.
func cachedWord(k cache.Kept) string {
	switch k {
	case cache.KeptWhole:
		return "complete"
	case cache.KeptPart:
		return "partial"
	case cache.KeptNone:
		return "no"
	}
	return "–"
}

// writeHistory prints h for people.
func writeHistory(w io.Writer, h *cache.History, now time.Time) error {
	fmt.Fprintln(w, h.Reference)
	tw := newTable(w)
	fmt.Fprintln(tw, "FIRST SEEN\tLAST SEEN\tHOW\tCACHED\tDIGEST")
	for _, e := range h.Observations {
		digest := cmp.Or(e.Digest.String(), "(no such tag)")
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", column(w, e.First, now), column(w, e.Last, now), cmp.Or(string(e.How), "–"), cachedWord(e.Kept), digest)
	}
	return tw.Flush()
}
