package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/metrics"
)

func newScrub(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scrub",
		Short: "Verify all that is cached, and fetch again what is damaged",
		Long: `Scrub reads all that is stored and compares it with its digests. What is damaged is
set aside and fetched again from an upstream that has it. Where an entrepot runs on
the cache directory it is asked to do that, through its admin listener; else scrub
does it itself. It may be ended at any time. It exits with 1 where damage remains.`,
		Example: `  entrepot scrub
  entrepot scrub --rate 50MiB --json
  entrepot scrub --offline                  only look, and fetch nothing`,
		Args: cobra.NoArgs,
		RunE: does(p.scrub),
	}
	cmd.Flags().Bool("json", false, "print lines of JSON; the last is the result")
	cmd.Flags().String("rate", "0", "`bytes` a second to read, such as 50MiB; 0 is no limit")
	addKeyFlags(cmd.Flags())
	return cmd
}

// scrubLine is what is told of a pass: how far it has come, or why it failed.
type scrubLine struct {
	index.Scrub
	Error string `json:"error,omitempty"`
}

func (p *process) scrub(cmd *cobra.Command, _ []string) error {
	cfg, err := p.load(cmd, "")
	if err != nil {
		return err
	}
	text, err := cmd.Flags().GetString("rate")
	if err != nil {
		return err
	}
	rate, err := configs.ParseBytes(text)
	if err != nil {
		return fmt.Errorf("--rate: %w", err)
	}
	asJSON, err := cmd.Flags().GetBool("json")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(cmd.Context())
	defer cancel(nil)
	signals, stop := p.signals()
	defer stop()
	// It ends with ctx.
	go func() {
		select {
		case <-signals:
			cancel(errors.New("interrupted: what was read so far was verified"))
		case <-ctx.Done():
		}
	}()
	last, err := p.scrubHere(ctx, cfg, int64(rate), asJSON)
	if errors.Is(err, store.ErrInUse) {
		if cfg.Admin.Listen == configs.AdminOff {
			return fmt.Errorf("%w; and admin.listen is off, so that it can not be asked to do it", err)
		}
		last, err = p.scrubThere(ctx, cfg.Admin, int64(rate), asJSON)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if err := p.tellScrub(last, asJSON); err != nil {
		return err
	}
	if left := last.Damaged - last.Healed; left > 0 {
		return fmt.Errorf("%d damaged blobs could not be fetched again; they are set aside in the directory damaged, and missing", left)
	}
	return nil
}

// scrubHere verifies a directory that no other process holds.
func (p *process) scrubHere(ctx context.Context, cfg *configs.Config, rate int64, asJSON bool) (s index.Scrub, err error) {
	b := buildOf(readBuildInfo())
	cfg.Cache.ScrubRate = 0 // no second pass behind this one
	log, err := newLog(configs.Log{Level: "warn", Format: cfg.Log.Format}, p.stderr)
	if err != nil {
		return s, err
	}
	parts, err := wire(cfg, p.environ, b, log, metrics.New(b.Version, b.Revision, b.Go))
	if err != nil {
		return s, err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		err = errors.Join(err, parts.cache.Close(end))
		parts.closeUpstreams()
		_ = log.Sync() // of a terminal that can not
	}()
	return parts.cache.Scrub(ctx, rate, func(s index.Scrub) error { return p.tellScrub(s, asJSON) })
}

// scrubThere asks the process that holds the directory.
func (p *process) scrubThere(ctx context.Context, a configs.Admin, rate int64, asJSON bool) (index.Scrub, error) {
	o, err := newOperator(a)
	if err != nil {
		return index.Scrub{}, err
	}
	defer o.transport.CloseIdleConnections()
	path := "/scrub?rate=" + strconv.FormatInt(rate, 10)
	url := o.url(path)
	resp, err := o.do(ctx, http.MethodPost, path)
	if err != nil {
		return index.Scrub{}, fmt.Errorf("the cache directory is in use, and the admin listener of who uses it does not answer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return index.Scrub{}, fmt.Errorf("%s says %s", url, resp.Status)
	}
	var line scrubLine
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line = scrubLine{}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return index.Scrub{}, fmt.Errorf("%s answered what is no report: %w", url, err)
		}
		if line.Error != "" {
			return line.Scrub, errors.New(line.Error)
		}
		if line.Finished.IsZero() {
			if err := p.tellScrub(line.Scrub, asJSON); err != nil {
				return line.Scrub, err
			}
		}
	}
	if err := lines.Err(); err != nil {
		return line.Scrub, fmt.Errorf("ask %s: %w", url, err)
	}
	if line.Finished.IsZero() {
		return line.Scrub, errors.New("the proxy ended before the scrub did")
	}
	return line.Scrub, nil
}

// scrub verifies all that is stored, for the admin listener.
func (p *parts) scrub(ctx context.Context, rate int64, told func(any) error) error {
	s, err := p.cache.Scrub(ctx, rate, func(s index.Scrub) error { return told(s) })
	if err != nil {
		return err
	}
	return told(s)
}

// tellScrub prints how far a pass has come.
func (p *process) tellScrub(s index.Scrub, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(p.stdout).Encode(s)
	}
	word, took := "verified so far", time.Since(s.Started)
	if !s.Finished.IsZero() {
		word, took = "verified", s.Finished.Sub(s.Started)
	}
	_, err := fmt.Fprintf(p.stdout, "%s: %d blobs, %s in %s; damaged: %d, fetched again: %d\n",
		word, s.Blobs, units.BytesSize(float64(s.Bytes)), took.Round(time.Millisecond), s.Damaged, s.Healed)
	return err
}
