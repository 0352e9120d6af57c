package app

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/operator"
)

func newInspect(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect REFERENCE",
		Short: "Show what an image consists of, and what of it is cached",
		Long: `Inspect shows the index, its platforms and manifests, configs, layers and what refers to the
image, and what of all that is cached. What is not is asked of the upstream, and not kept: the
index or manifest, which counts as a pull, and the manifests for the platforms of the
configuration, or for those of --platform, each of which counts as one more. It exits with 1
where the image is not to be had, or with --verify where anything is not what its digest says.`,
		Example: `  entrepot inspect nginx:1.27
  entrepot inspect --platform linux/arm64 --platform linux/amd64 nginx:1.27
  entrepot inspect --cached nginx:1.27                 ask no upstream
  entrepot inspect --raw nginx:1.27 | sha256sum        the index's own bytes
  entrepot inspect --verify --platform all nginx:1.27  hash all of it`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("raw") && (cmd.Flags().Changed("verify") || cmd.Flags().Changed("output")) {
				return errors.New("--raw prints the manifest's bytes alone: it goes with neither --verify nor --output")
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: p.operates(p.inspect),
	}
	addPlatformFlag(cmd.Flags())
	cmd.Flags().Bool("raw", false, "print the bytes of the manifest or index alone; with --platform, of that platform's manifest")
	cmd.Flags().Bool("verify", false, "hash all of the image that is cached or was asked for")
	cmd.Flags().Bool("cached", false, "show what is cached and ask no upstream")
	addOperatorFlags(cmd.Flags())
	return cmd
}

// addPlatformFlag adds the flag that says which of an index are wanted.
func addPlatformFlag(flags *pflag.FlagSet) {
	flags.StringSlice("platform", nil, "`platforms` of an index, such as linux/amd64,linux/arm64; or all")
}

func (p *process) inspect(o *operation, cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	platforms, err := cmd.Flags().GetStringSlice("platform")
	if err != nil {
		return err
	}
	ref, err := o.one(args[0])
	if err != nil {
		return err
	}
	query := url.Values{"reference": {ref}, "platform": platforms}
	set := map[string]bool{}
	for _, name := range []string{"raw", "verify", "cached"} {
		if set[name], err = cmd.Flags().GetBool(name); err != nil {
			return err
		}
	}
	if set["cached"] {
		query.Set("cached", "true")
	}
	if set["raw"] {
		return p.inspectRaw(o, query)
	}
	var i operator.Inspection
	if set["verify"] {
		err = p.inspectVerified(o, query, &i)
	} else {
		err = o.Get(o.ctx, "inspect", query, &i)
	}
	if err != nil {
		return err
	}
	if asJSON {
		err = writeJSON(p.stdout, i)
	} else {
		err = writeInspection(p.page(), &i, time.Now())
	}
	if err == nil && i.Bad > 0 {
		err = fmt.Errorf("%d of %s of %s could not be verified; what is damaged here is set aside, and fetched with the next pull", i.Bad, count(i.Verified, "content"), i.Reference)
	}
	return err
}

// inspectRaw prints the bytes of a manifest or index.
func (p *process) inspectRaw(o *operation, query url.Values) error {
	var m operator.ManifestBytes
	if err := o.Get(o.ctx, "manifest", query, &m); err != nil {
		return err
	}
	if m.Digest.Validate() != nil || m.Digest.Algorithm().FromBytes(m.Bytes) != m.Digest {
		return fmt.Errorf("the bytes that came are not those of %s", m.Digest)
	}
	_, err := p.stdout.Write(m.Bytes)
	return err
}

// inspectVerified reads an Inspection whose contents were hashed.
func (p *process) inspectVerified(o *operation, query url.Values, i *operator.Inspection) error {
	progress := p.newProgress("verify")
	defer progress.end()
	return o.Run(o.ctx, "verify", query, nil, progress.event, i)
}

// writeInspection prints i for people. Most of it is strangers' words.
func writeInspection(w io.Writer, i *operator.Inspection, now time.Time) error {
	s := newSheet(w)
	fmt.Fprintf(s, "%s\n", i.Reference)
	if !i.Checked.IsZero() {
		fmt.Fprintf(s, "the upstream confirmed the tag %s\n", when(i.Checked, now))
	}
	tw := newTable(s)
	fmt.Fprintln(tw, "WHAT\tDIGEST\tSIZE\tCACHED\tTYPE")
	writeManifest(tw, &i.Image, "", i.Verified > 0)
	if err := tw.Flush(); err != nil {
		return err
	}
	shown := map[digest.Digest]bool{}
	writeConfigs(s, &i.Image, shown)
	_, err := io.WriteString(w, s.String())
	return err
}

// writeManifest adds the lines of a manifest and all below it.
func writeManifest(w io.Writer, m *operator.InspectedManifest, indent string, verified bool) {
	name := cmp.Or(m.Platform, string(m.Kind))
	if m.Tag != "" {
		name = "signature"
	}
	writeInspected(w, &m.Inspected, indent+name, verified)
	indent += "  "
	for i := range m.Blobs {
		writeInspected(w, &m.Blobs[i], indent+string(m.Blobs[i].Kind), verified)
	}
	for i := range m.Manifests {
		writeManifest(w, &m.Manifests[i], indent, verified)
	}
	for i := range m.Referrers {
		r := m.Referrers[i]
		r.Platform = "referrer"
		writeManifest(w, &r, indent, verified)
	}
	if m.ReferrersProblem != "" {
		fmt.Fprintf(w, "%sreferrers\t\t\t\tnot known: %s\n", indent, printable(m.ReferrersProblem))
	}
}

func writeInspected(w io.Writer, i *operator.Inspected, name string, verified bool) {
	cached := "no"
	switch {
	case i.Foreign:
		cached = "elsewhere"
	case i.Cached:
		cached = "yes"
	}
	kind := i.MediaType
	if i.ArtifactType != "" {
		kind = i.ArtifactType
	}
	if verified && i.Verified {
		kind += " (verified)"
	}
	if i.Problem != "" && (verified || i.Kind == cache.KindConfig) {
		kind += " (" + i.Problem + ")"
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", name, i.Digest, bytesOf(i.Size), cached, printable(kind))
}

// maxLabels is how many labels are printed of a config.
const maxLabels = 30

// writeConfigs prints the configs of m and of the manifests below it, each once.
func writeConfigs(w io.Writer, m *operator.InspectedManifest, shown map[digest.Digest]bool) {
	if c := m.Config; c != nil && !shown[m.Digest] {
		shown[m.Digest] = true
		fmt.Fprintf(w, "\n%s %s\n", cmp.Or(m.Platform, c.Platform, "config"), short(m.Digest))
		tw := newTable(w)
		line := func(name, value string) {
			if value != "" {
				fmt.Fprintf(tw, "  %s\t%s\n", name, printable(value))
			}
		}
		if !c.Created.IsZero() {
			line("created", second(c.Created))
		}
		line("author", c.Author)
		line("entrypoint", words(c.Entrypoint))
		line("cmd", words(c.Cmd))
		line("user", c.User)
		line("working dir", c.WorkingDir)
		line("environment", count(c.Env, "variable"))
		line("ports", strings.Join(c.ExposedPorts, ", "))
		for i, name := range slices.Sorted(maps.Keys(c.Labels)) {
			if i == maxLabels {
				line("label", fmt.Sprintf("… and %d more", len(c.Labels)-maxLabels))
				break
			}
			line("label", name+"="+c.Labels[name])
		}
		_ = tw.Flush() // of memory
	}
	for i := range m.Manifests {
		writeConfigs(w, &m.Manifests[i], shown)
	}
}

// words writes a list of words so that it can be told where each ends.
func words(list []string) string {
	if len(list) == 0 {
		return ""
	}
	b, err := json.Marshal(list)
	if err != nil {
		return strings.Join(list, " ")
	}
	return string(b)
}
