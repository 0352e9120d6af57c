package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
)

func newGC(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what nothing in the cache leads to",
		Long: `Gc removes what evictions, purges and deleted tags have left behind: links of content that is
not here any more and that no cached image consists of, lists of what no repository has, tags that
the registry has deleted and of which nothing is here, content that no repository may serve, and
parts of content that nobody has gone on with for a day. Nothing that clients are served goes, and
nothing that has come within a day. It may be ended at any time, and run beside a proxy that serves.`,
		Example: `  entrepot gc --dry-run
  entrepot gc`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errors.New("gc takes no reference: it removes what no image uses; to remove images, use `entrepot purge " + args[0] + "`")
			}
			return nil
		},
		RunE: p.operates(p.gc),
	}
	addDryRunFlag(cmd)
	addOperatorFlags(cmd.Flags())
	return cmd
}

func (p *process) gc(o *operation, cmd *cobra.Command, _ []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	dry, err := cmd.Flags().GetBool("dry-run")
	if err != nil {
		return err
	}
	var done cache.Collected
	err = o.Run(o.ctx, "gc", url.Values{"dry": {strconv.FormatBool(dry)}}, nil, func(event json.RawMessage) error {
		var c cache.Collected
		if err := json.Unmarshal(event, &c); err != nil {
			return err
		}
		_, err := fmt.Fprintf(p.stderr, "looked at %d of %d repositories\n", c.Repositories, c.RepositoriesTotal)
		return err
	}, &done)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(p.stdout, done)
	}
	return writeCollected(p.stdout, &done)
}

// writeCollected prints what was removed.
func writeCollected(w io.Writer, c *cache.Collected) error {
	would := ""
	if c.Dry {
		would = "would be "
	}
	_, err := fmt.Fprintf(w, "%sremoved: %s of %s, %s of %s, %s\n", would,
		count(c.Blobs, "blob"), bytesOf(c.Size), count(c.Parts, "partial file"), bytesOf(c.PartsSize),
		count(c.Links+c.Lists+c.Tags, "unused record"))
	if err == nil && c.Young > 0 {
		_, err = fmt.Fprintf(w, "skipped, fetched or used within a day: %s\n", count(c.Young, "blob"))
	}
	return err
}
