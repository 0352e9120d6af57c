package app

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/operator"
)

func newPurge(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "purge [REFERENCE...]",
		Aliases: []string{"rm", "remove", "delete"},
		Short:   "Remove images from the cache",
		Long: `Purge removes images: their tags, the right of their repositories to serve them, and every
content that no other cached image uses. A digest removes that index or manifest and all tags that
stand for it. Running downloads of it end normally, and the next pull asks the registry.

On a terminal purge says what will go and asks first; --yes answers that. Without a terminal it
does not ask. --dry-run only says what would go.

Two flags take the place of references. --older-than 30d removes all images that nobody has used
for 30 days. --upstream NAME removes all images of a registry, even of one that is no longer
configured. Both together remove the images of that registry that nobody has used for so long.

--older-than leaves pinned images. Otherwise a pinned image is an error, and nothing is removed;
--force removes it with its pin. The history of tags stays. Purge exits with 1 if there is
nothing to remove.

` + patternHelp,
		Example: `  entrepot purge nginx:1.27
  entrepot purge docker.io/library/nginx@sha256:… 'library/old-*'
  entrepot purge --older-than 30d --dry-run
  entrepot purge --upstream quay.io --older-than 720h
  entrepot purge --yes --upstream registry.example.test     all of it`,
		Args: func(cmd *cobra.Command, args []string) error {
			if _, err := purgeQuery(cmd, args, time.Now()); err != nil {
				return err
			}
			return checkReferences(args)
		},
		RunE: p.operates(p.purge),
	}
	cmd.Flags().String("older-than", "", "remove images that have not been used for a `duration`, such as 720h or 30d")
	cmd.Flags().String("upstream", "", "remove what is from the upstream of this `name`")
	cmd.Flags().Bool("force", false, "remove also what is pinned")
	cmd.Flags().BoolP("yes", "y", false, "do not ask")
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
	yes, err := cmd.Flags().GetBool("yes")
	if err != nil {
		return err
	}
	query, err := purgeQuery(cmd, args, time.Now())
	if err != nil {
		return err
	}
	references, err := o.resolve(args)
	if err != nil {
		return err
	}
	if !yes && query.Get("dry") != "true" && p.interactive() {
		if err := p.confirmPurge(o, query, references); err != nil {
			return err
		}
	}
	done, err := o.purgeAll(query, references)
	switch {
	case err != nil && len(done.Images) > 0:
		return fmt.Errorf("%s removed before this failed: %w", countPurged(done), err)
	case errors.As(err, new(*operator.Error)): // it was refused; a connection that is lost says nothing
		return fmt.Errorf("nothing was removed: %w", err)
	case err != nil:
		return err
	}
	if asJSON {
		return writeJSON(p.stdout, done)
	}
	return writePurged(p.page(), done)
}

// confirmPurge says what a purge would remove, and returns an error unless the user agrees.
func (p *process) confirmPurge(o *operation, query url.Values, references []string) error {
	dry := maps.Clone(query)
	dry.Set("dry", "true")
	would, err := o.purgeAll(dry, references)
	if err != nil {
		return err
	}
	if err := writePurged(p.stderr, would); err != nil {
		return err
	}
	if len(would.Images) == 0 {
		return nil
	}
	return p.confirm(o.ctx, "Remove "+countPurged(would)+"?")
}

// purgeAtOnce is how many references one request names, so that its URL stays short enough.
const purgeAtOnce = 1000

// purgeAll purges references, or what query selects if there are none. With an error it returns
// what was purged before that.
func (o *operation) purgeAll(query url.Values, references []string) (*cache.Purged, error) {
	all := &cache.Purged{Images: []string{}, Pinned: []string{}}
	for first := true; first || len(references) > 0; first = false {
		n := min(len(references), purgeAtOnce)
		q := maps.Clone(query)
		if n > 0 {
			q["reference"] = references[:n]
		}
		references = references[n:]
		var done cache.Purged
		if err := o.Post(o.ctx, "purge", q, nil, &done); err != nil {
			return all, err
		}
		all.Images, all.Pinned = append(all.Images, done.Images...), append(all.Pinned, done.Pinned...)
		all.Tags += done.Tags
		all.Links += done.Links
		all.Lists += done.Lists
		all.Blobs += done.Blobs
		all.Size += done.Size
		all.Busy += done.Busy
		all.Dry = done.Dry
	}
	return all, nil
}

// purgeQuery returns the query of the command line, without the references.
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
	case len(args) > 0 && older == "" && upstream == "":
		return query, nil
	case len(args) > 0:
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
		fmt.Fprintf(&s, "skipped, pinned: %s\n", name)
	}
	fmt.Fprintf(&s, "%sremoved: %s\n", would, countPurged(p))
	if p.Busy > 0 {
		fmt.Fprintf(&s, "skipped, being fetched: %s\n", count(p.Busy, "blob"))
	}
	_, err := io.WriteString(w, s.String())
	return err
}

// countPurged says in a few words how much a purge removes.
func countPurged(p *cache.Purged) string {
	return fmt.Sprintf("%s of %s (%s, %s)", count(p.Blobs, "blob"), bytesOf(p.Size), count(len(p.Images), "image"), count(p.Tags, "tag"))
}
