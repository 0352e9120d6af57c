package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/configs"
)

func newPurge(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "purge [REFERENCE]",
		Aliases: []string{"rm", "remove", "delete"},
		Short:   "Remove images from the cache",
		Long: `Purge removes an image: what is known of its tag, that its repository may serve what it
consists of, and the content that no other cached image names. By a digest it removes that index
or manifest whoever names it, with the tags that stand for it. Whoever is reading some of it reads
to the end, and the next pull asks the registry.

Instead of a reference, --older-than says for how long images have not been used that are removed,
and --upstream from which registry, also one that is configured no more. What is pinned is left by
--older-than, and is an error else, unless --force removes it with its pin. What tags stood for
stays in their history. It exits with 1 where there is nothing to remove.`,
		Example: `  entrepot purge nginx:1.27
  entrepot purge docker.io/library/nginx@sha256:…
  entrepot purge --older-than 30d --dry-run
  entrepot purge --upstream quay.io --older-than 720h
  entrepot purge --upstream registry.example.test      all of it`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.MaximumNArgs(1)(cmd, args); err != nil {
				return err
			}
			_, err := purgeQuery(cmd, args, time.Now())
			return err
		},
		RunE: p.operates(p.purge),
	}
	cmd.Flags().String("older-than", "", "remove images that have not been used for a `duration`, such as 720h or 30d")
	cmd.Flags().String("upstream", "", "remove what is from the upstream of this `name`")
	cmd.Flags().Bool("force", false, "remove also what is pinned")
	addDryRunFlag(cmd)
	addOperatorFlags(cmd.Flags())
	return cmd
}

func addDryRunFlag(cmd *cobra.Command) {
	cmd.Flags().Bool("dry-run", false, "say what would be removed, and remove nothing")
}

func (p *process) purge(o *operation, cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	query, err := purgeQuery(cmd, args, time.Now())
	if err != nil {
		return err
	}
	var done cache.Purged
	if err := o.Post(o.ctx, "purge", query, nil, &done); err != nil {
		return err
	}
	if asJSON {
		return writeJSON(p.stdout, done)
	}
	return writePurged(p.stdout, &done)
}

// purgeQuery makes the question of the command line.
func purgeQuery(cmd *cobra.Command, args []string, now time.Time) (url.Values, error) {
	query := url.Values{}
	older, err := cmd.Flags().GetString("older-than")
	if err != nil {
		return nil, err
	}
	upstream, err := cmd.Flags().GetString("upstream")
	if err != nil {
		return nil, err
	}
	for flag, name := range map[string]string{"force": "force", "dry-run": "dry"} {
		v, err := cmd.Flags().GetBool(flag)
		if err != nil {
			return nil, err
		}
		query.Set(name, strconv.FormatBool(v))
	}
	switch {
	case len(args) == 1 && older == "" && upstream == "":
		query.Set("reference", args[0])
		return query, nil
	case len(args) == 1:
		return nil, errors.New("a reference goes with neither --older-than nor --upstream")
	case older == "" && upstream == "":
		return nil, errors.New("say what to purge: a reference, --older-than or --upstream")
	}
	if upstream != "" {
		query.Set("upstream", upstream)
	}
	if older != "" {
		d, err := configs.ParseDuration(older)
		if err == nil && d <= 0 {
			err = fmt.Errorf("%q is no duration that is over", older)
		}
		if err != nil {
			return nil, fmt.Errorf("--older-than: %w", err)
		}
		query.Set("before", now.Add(-d).Format(time.RFC3339))
	}
	return query, nil
}

// writePurged prints what was removed.
func writePurged(w io.Writer, p *cache.Purged) error {
	var s strings.Builder
	would := ""
	if p.Dry {
		would = "would be "
	}
	for _, name := range p.Images {
		fmt.Fprintf(&s, "%spurged: %s\n", would, name)
	}
	for _, name := range p.Pinned {
		fmt.Fprintf(&s, "left, for it is pinned: %s\n", name)
	}
	fmt.Fprintf(&s, "%sremoved: %s of %s; forgotten: %s, %s, %s\n", would, count(p.Blobs, "blob"), units.BytesSize(float64(p.Size)),
		count(p.Tags, "tag"), count(p.Links, "link"), count(p.Lists, "list"))
	if p.Busy > 0 {
		fmt.Fprintf(&s, "left, for it is being fetched just now: %s\n", count(p.Busy, "blob"))
	}
	_, err := io.WriteString(w, s.String())
	return err
}
