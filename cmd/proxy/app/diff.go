package app

import (
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/operator"
)

func newDiff(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diff",
		Short: "List the tags that were seen to move",
		Long: `Diff lists the tags that came to stand for something else, or were deleted: from what,
to what, when that was seen, and when the tag was last seen to be what it was before.
What nobody asked for was not seen. The upstream is not asked for anything.`,
		Example: `  entrepot diff --since 24h
  entrepot diff --since 2026-11-01 --upstream docker.io --repository 'library/*'
  entrepot diff --since 2026-11-01T12:30:00Z --output json`,
		Args: cobra.NoArgs,
		RunE: p.operates(p.diff),
	}
	addChecked(cmd.Flags(), "since", "", "24h", "from `when` on: a duration such as 90m or 7d, a date in UTC, or a time such as 2026-11-01T12:30:00Z", func(text string) error {
		_, err := parseSince(text, time.Now())
		return err
	})
	cmd.Flags().String("upstream", "", "`pattern` of the upstreams; * is any characters, ? any one")
	cmd.Flags().String("repository", "", "`pattern` of the repositories")
	addOperatorFlags(cmd.Flags())
	return cmd
}

func (p *process) diff(o *operation, cmd *cobra.Command, _ []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	query := url.Values{}
	for _, name := range []string{"since", "upstream", "repository"} {
		value, err := cmd.Flags().GetString(name)
		if err != nil {
			return err
		}
		query.Set(name, value)
	}
	since, err := parseSince(query.Get("since"), time.Now())
	if err != nil {
		return err
	}
	query.Set("since", since.Format(time.RFC3339Nano))
	var d operator.Diff
	if err := o.Get(o.ctx, "diff", query, &d); err != nil {
		return err
	}
	if asJSON {
		return writeJSON(p.stdout, d)
	}
	return writeDiff(p.page(), &d, time.Now())
}

// parseSince reads a time in the past: a duration until now, a date in UTC, or a time
// as of RFC 3339.
func parseSince(text string, now time.Time) (time.Time, error) {
	if d, err := configs.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time; give a duration such as 24h or 7d, a date such as 2026-11-01, or a time such as 2026-11-01T12:30:00Z", text)
}

// writeDiff prints d for people.
func writeDiff(w io.Writer, d *operator.Diff, now time.Time) error {
	if len(d.Moves) == 0 {
		_, err := fmt.Fprintf(w, "no tag was seen to move since %s\n", when(d.Since, now))
		return err
	}
	tw := newTable(w, "BEFORE")
	fmt.Fprintln(tw, "SEEN\tREFERENCE\tFROM\tTO\tBEFORE")
	for _, m := range d.Moves {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", column(w, m.Seen, now), m.Reference, whole(m.From), whole(m.To), column(w, m.Until, now))
	}
	return tw.Flush()
}
