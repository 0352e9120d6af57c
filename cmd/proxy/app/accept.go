package app

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
)

func newAccept(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "accept REFERENCE",
		Short: "Accept that a tag has moved, and serve it as it stands",
		Long: `Accept ends the hold of a tag that has moved, or its refusal, which the rules hold and
on_move have brought about (entrepot explain says so). The next move is held, or
refused, again. Of a tag that has not moved nothing changes. The upstream is not asked
for anything. It exits with 1 where nothing is known of the tag.`,
		Example: `  entrepot accept ghcr.io/org/app:stable`,
		Args:    cobra.ExactArgs(1),
		RunE:    p.operates(p.accept),
	}
	addOperatorFlags(cmd.Flags())
	return cmd
}

func (p *process) accept(o *operation, cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	var a cache.Acceptance
	if err := o.Post(o.ctx, "accept", url.Values{"reference": {args[0]}}, nil, &a); err != nil {
		return err
	}
	switch {
	case asJSON:
		return writeJSON(p.stdout, a)
	case a.From == "":
		_, err = fmt.Fprintf(p.stdout, "%s is served as %s already; there is nothing to accept\n", a.Reference, a.To)
	default:
		_, err = fmt.Fprintf(p.stdout, "%s is served as %s from now on; it was held at, or refused for, %s\n", a.Reference, a.To, a.From)
	}
	return err
}
