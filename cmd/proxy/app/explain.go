package app

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

func newExplain(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain REFERENCE...",
		Short: "Say how fresh what is here of an image is, and what a client would get",
		Long: `Explain says whether a pull would be answered from the cache, how old the answer is,
when Entrepot will ask the upstream again and under which rule, how much is on disk, and
which platforms and layers are cached. It asks no upstream.

` + patternHelp,
		Example: `  entrepot explain nginx:1.27
  entrepot explain ghcr.io/org/app@sha256:…
  entrepot explain --output json docker.io/library/nginx:1.27`,
		Args: references,
		RunE: p.operates(p.explain),
	}
	addOperatorFlags(cmd.Flags())
	return cmd
}

func (p *process) explain(o *operation, cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	var results []cache.Explanation
	err = o.each(args, func(ref string) error {
		var e cache.Explanation
		if err := o.Get(o.ctx, "explain", url.Values{"reference": {ref}}, &e); err != nil {
			return err
		}
		results = append(results, e)
		if asJSON {
			return nil
		}
		return writeExplanation(p.page(), &e, time.Now())
	})
	if asJSON && len(results) > 0 {
		return errors.Join(writeJSON(p.stdout, document(args, results)), err)
	}
	return err
}

// writeExplanation prints e for people.
func writeExplanation(w io.Writer, e *cache.Explanation, now time.Time) error {
	s := newSheet(w)
	status := string(e.Status)
	if e.Status == cache.Revalidated {
		status = "due"
	}
	fmt.Fprintf(s, "%s: %s", e.Reference, status)
	if e.Reason != "" {
		fmt.Fprintf(s, " (%s)", e.Reason)
	}
	s.WriteByte('\n')
	tw := newTable(s)
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
		line("confirmed", "%s", when(e.Checked, now))
	}
	if !e.NextCheck.IsZero() {
		line("asked again", "with the first pull after %s", second(e.NextCheck))
		line("if that fails", "served until %s", second(e.StaleUntil))
	} else if e.Offline {
		line("asked again", "not while the cache is offline: it is served as it is")
	} else if !e.Checked.IsZero() {
		line("asked again", "never: the tag is immutable")
	}
	if m := e.Move; m != nil {
		line("moved", "from %s", m.From)
		line("", "to   %s, first seen %s", m.To, when(m.Seen, now))
		until := "an operator accepts it: entrepot accept " + e.Reference
		if !m.Until.IsZero() {
			until = second(m.Until) + ", or " + until
		}
		word := "held until"
		if e.Status == cache.Blocked {
			word = "refused until"
		}
		line(word, "%s", until)
	}
	if e.Rule != "" {
		line("rule", "match: %q", e.Rule)
	}
	if e.Digest != "" {
		line("on disk", "%s", bytesOf(e.Size))
	}
	for _, m := range e.Manifests {
		name := "manifest"
		if oci.IsIndex(m.MediaType) {
			name = "index"
		}
		if m.Platform != "" {
			name = m.Platform
		}
		line(name, "%s %s", m.Digest, presence(m))
		for _, b := range m.Blobs {
			cached := "cached"
			if !b.Stored {
				cached = "not cached"
			}
			line("", "  %s %s %s", b.Digest, bytesOf(b.Size), cached)
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
		return "not cached"
	}
	stored := 0
	for _, b := range m.Blobs {
		if b.Stored {
			stored++
		}
	}
	if stored == len(m.Blobs) {
		return "cached"
	}
	return fmt.Sprintf("cached, with %d of its %d blobs", stored, len(m.Blobs))
}
