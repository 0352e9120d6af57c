package app

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/operator"
)

func newStats(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "stats",
		Aliases: []string{"status"},
		Short:   "Show what the cache has saved, what is left of quotas, and what takes the room",
		Long: `Stats shows for each upstream how many requests for manifests and blobs were answered from the
cache and how many were not, the bytes that were sent and fetched, the pulls that were spent and
saved, and what is left of the upstream's quota: since the running proxy started. It also shows what
each upstream has on disk and which images were used most since they were fetched; those outlive a
restart, and are shown of a directory on which no proxy runs as well.`,
		Example: `  entrepot stats
  entrepot stats --top 50
  entrepot stats --output json`,
		Args: cobra.NoArgs,
		RunE: p.operates(p.stats),
	}
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if top, err := cmd.Flags().GetInt("top"); err != nil || top < 0 {
			return fmt.Errorf("invalid argument \"%d\" for --top: it takes a whole number from 0 on", top)
		}
		return nil
	}
	cmd.Flags().Int("top", 10, "`number` of the most used images to show")
	addOperatorFlags(cmd.Flags())
	return cmd
}

func (p *process) stats(o *operation, cmd *cobra.Command, _ []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	top, err := cmd.Flags().GetInt("top")
	if err != nil {
		return err
	}
	var s operator.Stats
	if err := o.Get(o.ctx, "stats", url.Values{"top": {strconv.Itoa(top)}}, &s); err != nil {
		return err
	}
	if asJSON {
		return writeJSON(p.stdout, s)
	}
	return writeStats(p.page(), &s, time.Now())
}

// writeStats prints s for people.
func writeStats(w io.Writer, s *operator.Stats, now time.Time) error {
	b := newSheet(w)
	if s.Since.IsZero() {
		fmt.Fprintln(b, "No proxy runs on this directory: what is served is counted while one does.")
	} else {
		fmt.Fprintf(b, "Since the proxy started, %s:\n", when(s.Since, now))
		writeServed(b, s, now)
	}
	fmt.Fprintln(b, "\nOn disk now:")
	tw := newTable(b)
	fmt.Fprintln(tw, "UPSTREAM\tBLOBS\tSIZE")
	for _, name := range slices.Sorted(maps.Keys(s.Disk.Upstreams)) {
		u := s.Disk.Upstreams[name]
		fmt.Fprintf(tw, "%s\t%d\t%s\n", name, u.Blobs, bytesOf(u.Size))
	}
	fmt.Fprintf(tw, "all\t%d\t%s\n", s.Disk.Blobs, bytesOf(s.Disk.Size))
	_ = tw.Flush() // of memory
	if s.Disk.Limit > 0 {
		fmt.Fprintf(b, "The cache may have %s.\n", bytesOf(s.Disk.Limit))
	}
	if s.Disk.Pins > 0 {
		fmt.Fprintf(b, "%s pinned: %s.\n", count(s.Disk.Pins, "image"), bytesOf(s.Disk.PinnedSize))
	}
	if len(s.Top) > 0 {
		fmt.Fprintln(b, "\nMost used since they were fetched:")
		tw = newTable(b, "FETCHED")
		fmt.Fprintln(tw, "USES\tLAST USED\tFETCHED\tSIZE\tREFERENCE")
		for _, i := range s.Top {
			fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%s\n", i.Uses, column(w, i.Used, now), column(w, i.Fetched, now), bytesOf(i.Size), i.Reference)
		}
		_ = tw.Flush() // of memory
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeServed prints what clients were given.
func writeServed(w io.Writer, s *operator.Stats, now time.Time) {
	if len(s.Served) == 0 {
		fmt.Fprintln(w, "nothing was asked for")
		return
	}
	if widthOf(w) > 0 {
		writeNarrow(w, s, now)
		return
	}
	tw := newTable(w)
	fmt.Fprintln(tw, "UPSTREAM\tHITS\tSTALE\tJOINED\tMISSES\tERRORS\tSENT\tFETCHED\tSAVED\tPULLS\tPULLS SAVED\tPULLS LEFT")
	line := func(name string, u operator.Served) {
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%d\t%d\t%s\n", name, hits(u), u.StaleHits, u.Joined, u.Misses, u.Errors,
			bytesOf(u.Bytes), bytesOf(u.Fetched), bytesOf(u.Saved), u.Pulls, u.PullsSaved, quotaLeft(u.Quota, now))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Served)) {
		line(name, s.Served[name])
	}
	if len(s.Served) > 1 {
		line("all", s.All)
	}
	_ = tw.Flush() // of memory
}

// writeNarrow is writeServed for a terminal: two tables, of requests and of what was fetched.
func writeNarrow(w io.Writer, s *operator.Stats, now time.Time) {
	names := slices.Sorted(maps.Keys(s.Served))
	each := func(line func(name string, u operator.Served)) {
		for _, name := range names {
			line(name, s.Served[name])
		}
		if len(names) > 1 {
			line("all", s.All)
		}
	}
	tw := newTable(w)
	fmt.Fprintln(tw, "UPSTREAM\tHITS\tSTALE\tJOINED\tMISSES\tERRORS")
	each(func(name string, u operator.Served) {
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\n", name, hits(u), u.StaleHits, u.Joined, u.Misses, u.Errors)
	})
	_ = tw.Flush() // of memory
	fmt.Fprintln(w)
	tw = newTable(w)
	fmt.Fprintln(tw, "UPSTREAM\tSENT\tFETCHED\tSAVED\tPULLS\tPULLS SAVED\tPULLS LEFT")
	each(func(name string, u operator.Served) {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", name, bytesOf(u.Bytes), bytesOf(u.Fetched), bytesOf(u.Saved), u.Pulls, u.PullsSaved, quotaLeft(u.Quota, now))
	})
	_ = tw.Flush() // of memory
}

// hits says how many requests were answered from the cache, and of a hundred.
func hits(u operator.Served) string {
	all := u.Hits + u.Joined + u.Misses
	if all == 0 {
		return strconv.FormatInt(u.Hits, 10)
	}
	return fmt.Sprintf("%d (%d%%)", u.Hits, 100*u.Hits/all)
}

// quotaLeft says what an upstream still grants.
func quotaLeft(q *operator.StatsQuota, now time.Time) string {
	if q == nil {
		return "–"
	}
	of := ""
	if q.Limit > 0 {
		of = fmt.Sprintf(" of %d", q.Limit)
	}
	if q.Reserve > 0 {
		of += fmt.Sprintf(" (%d kept for new images)", min(q.Reserve, q.Remaining))
	}
	return fmt.Sprintf("%d%s, new ones in %s", q.Remaining, of, cmp.Or(units.HumanDuration(max(0, q.Resets.Sub(now))), "a moment"))
}
