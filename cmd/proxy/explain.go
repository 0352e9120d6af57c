package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/rewrite"
)

func newExplain(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain REFERENCE",
		Short: "Say what a running entrepot has of an image, and what a client would get",
		Long: `Explain asks the admin listener that the same settings would open. It says whether
a pull would be answered from the cache, how old the answer is, when the upstream
will be asked again and under which rule, how much is on disk, and which platforms
and layers are there. The upstream is not asked for anything.`,
		Example: `  entrepot explain nginx:1.27
  entrepot explain ghcr.io/org/app@sha256:…
  entrepot explain --json docker.io/library/nginx:1.27`,
		Args: cobra.ExactArgs(1),
		RunE: does(p.explain),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	cmd.Flags().Duration("timeout", 10*time.Second, "`time` to wait for the answer")
	cmd.Flags().String("admin-listen", "", "`address` of the admin listener")
	return cmd
}

func (p *process) explain(cmd *cobra.Command, args []string) error {
	cfg, err := p.load(cmd, "")
	if err != nil {
		return err
	}
	if cfg.Admin.Listen == configs.AdminOff {
		return errors.New("admin.listen is off, so that there is nothing to ask; set it to an address, such as 127.0.0.1:5001")
	}
	timeout, err := cmd.Flags().GetDuration("timeout")
	if err != nil {
		return err
	}
	asJSON, err := cmd.Flags().GetBool("json")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	answer, err := ask(ctx, cfg.Admin, "/explain?reference="+url.QueryEscape(args[0]))
	if err != nil {
		return err
	}
	if asJSON {
		_, err = fmt.Fprintln(p.stdout, answer)
		return err
	}
	var e cache.Explanation
	if err := json.Unmarshal([]byte(answer), &e); err != nil {
		return fmt.Errorf("the admin listener at %s answered what is no explanation: %w", cfg.Admin.Listen, err)
	}
	return writeExplanation(p.stdout, &e, time.Now())
}

// explain says what the cache has of a reference as people write it.
func (p *parts) explain(ctx context.Context, ref string) (any, error) {
	t, err := targetOf(p.router, ref)
	if err != nil {
		return nil, err
	}
	return p.cache.Explain(ctx, t)
}

// targetOf reads a reference as people write it: "nginx" is
// docker.io/library/nginx:latest.
func targetOf(router *rewrite.Router, ref string) (rewrite.Target, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return rewrite.Target{}, fmt.Errorf("%q is no reference of an image, such as docker.io/library/nginx:1.27: %w", ref, err)
	}
	t, err := router.Route(reference.Path(named), reference.Domain(named), "")
	if err != nil {
		return rewrite.Target{}, err
	}
	switch r := reference.TagNameOnly(named).(type) {
	case reference.Digested: // a digest counts, whatever tag stands beside it
		t.Digest = r.Digest()
	case reference.Tagged:
		t.Tag = r.Tag()
	}
	return t, nil
}

// writeExplanation prints e for people.
func writeExplanation(w io.Writer, e *cache.Explanation, now time.Time) error {
	var s strings.Builder
	status := string(e.Status)
	if e.Status == cache.Revalidated {
		status = "past its time"
	}
	fmt.Fprintf(&s, "%s: %s", e.Reference, status)
	if e.Reason != "" {
		fmt.Fprintf(&s, " (%s)", e.Reason)
	}
	s.WriteByte('\n')
	tw := tabwriter.NewWriter(&s, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "  %s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	if e.Digest != "" {
		line("digest", "%s", e.Digest)
	}
	if e.MediaType != "" {
		line("type", "%s", e.MediaType)
	}
	if !e.Checked.IsZero() {
		line("confirmed", "%s (%s ago)", e.Checked.Format(time.RFC3339), now.Sub(e.Checked).Round(time.Second))
	}
	if !e.NextCheck.IsZero() {
		line("asked again", "with the first pull after %s", e.NextCheck.Format(time.RFC3339))
		line("if that fails", "served until %s", e.StaleUntil.Format(time.RFC3339))
	} else if !e.Checked.IsZero() {
		line("asked again", "never: the tag is immutable")
	}
	if e.Rule != "" {
		line("rule", "match: %q", e.Rule)
	}
	if e.Digest != "" {
		line("on disk", "%s", units.BytesSize(float64(e.Size)))
	}
	for _, m := range e.Manifests {
		name := "manifest"
		if rewrite.IsIndex(m.MediaType) {
			name = "index"
		}
		if m.Platform != "" {
			name = m.Platform
		}
		line(name, "%s %s", m.Digest, presence(m))
		for _, b := range m.Blobs {
			here := "here"
			if !b.Stored {
				here = "not here"
			}
			line("", "  %s %s %s", b.Digest, units.BytesSize(float64(b.Size)), here)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, s.String())
	return err
}

func presence(m cache.ExplainedManifest) string {
	if !m.Stored {
		return "not here"
	}
	stored := 0
	for _, b := range m.Blobs {
		if b.Stored {
			stored++
		}
	}
	if stored == len(m.Blobs) {
		return "here"
	}
	return fmt.Sprintf("here, and %d of its %d blobs", stored, len(m.Blobs))
}
