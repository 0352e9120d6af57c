package app

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/configs"
)

func newScrub(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scrub",
		Short: "Verify all that is cached, and fetch again what is damaged",
		Long: `Scrub reads all that is stored and compares it with its digests. What is damaged is
set aside and fetched again from an upstream that has it. It may be ended at any time.
It exits with 1 where damage remains.`,
		Example: `  entrepot scrub
  entrepot scrub --rate 50MiB --output json
  entrepot scrub --offline                  fetch nothing (of a cache that is not served)`,
		Args: cobra.NoArgs,
		RunE: p.operates(p.scrub),
	}
	addChecked(cmd.Flags(), "rate", "", "0", "`bytes` a second to read, such as 50MiB; 0 is no limit", func(text string) error {
		_, err := configs.ParseBytes(text)
		return err
	})
	addOfflineFlag(cmd.Flags())
	addOperatorFlags(cmd.Flags())
	return cmd
}

func (p *process) scrub(o *operation, cmd *cobra.Command, _ []string) error {
	text, err := cmd.Flags().GetString("rate")
	if err != nil {
		return err
	}
	rate, err := configs.ParseBytes(text)
	if err != nil {
		return err
	}
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	var last index.Scrub
	err = o.Run(o.ctx, "scrub", url.Values{"rate": {strconv.FormatInt(int64(rate), 10)}}, nil, func(event json.RawMessage) error {
		var s index.Scrub
		if err := json.Unmarshal(event, &s); err != nil {
			return err
		}
		return writeScrub(p.stderr, s)
	}, &last)
	if err != nil {
		return err
	}
	if asJSON {
		err = writeJSON(p.stdout, last)
	} else {
		err = writeScrub(p.stdout, last)
	}
	if err != nil {
		return err
	}
	if last.Denied > 0 {
		return fmt.Errorf("%d stored files could not be read: %s", last.Denied, last.DeniedFile)
	}
	if left := last.Damaged - last.Healed; left > 0 {
		return fmt.Errorf("%d damaged blobs could not be fetched again; they are set aside in the directory damaged, and missing", left)
	}
	return nil
}

// writeScrub prints how far a pass has come.
func writeScrub(w io.Writer, s index.Scrub) error {
	word, took := "verified so far", time.Since(s.Started)
	if !s.Finished.IsZero() {
		word, took = "verified", s.Finished.Sub(s.Started)
	}
	_, err := fmt.Fprintf(w, "%s: %d blobs, %s in %s; damaged: %d, fetched again: %d\n",
		word, s.Blobs, bytesOf(s.Bytes), took.Round(time.Millisecond), s.Damaged, s.Healed)
	return err
}
