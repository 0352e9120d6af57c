package app

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/operator"
)

func newWarm(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "warm [REFERENCE...]",
		Aliases: []string{"pull"},
		Short:   "Fetch images into the cache, and what refers to them",
		Long: `Warm fetches images before anybody pulls them: of an index the manifests of the platforms that
are asked for, configs and layers, and with --with-referrers the signatures, SBOMs and
attestations that refer to them, also those under cosign's tags. What is here is not fetched
again, and what breaks off, or is interrupted, is resumed by the next run. A tag stands for what
it has moved to once all of that is here.

` + imageListHelp + `

--from-log takes the images that clients have pulled through this cache lately, each for the
platforms that they pulled.

Manifests count as pulls at Docker Hub. Where it grants no more than upstreams.NAME.quota_reserve
keeps for clients, what needs one fails, unless --wait-for-quota is given; what needs none is
fetched. --dry-run says what would be fetched. Tags are asked for by HEAD, which is free; a
manifest that is not here has to be fetched, for else its layers are not known: it counts, and
is kept, so that the run afterwards does not pay for it again.

It exits with 1 if something could not be fetched, and says what and why. An image that has some
of the platforms is partial, which is exit code 1 too unless --allow-missing is given. An image
that has none of them has failed.`,
		Example: `  entrepot warm nginx:1.27 ghcr.io/org/app:2
  entrepot warm --file images.txt --platform linux/amd64,linux/arm64 --with-referrers
  helm template ./chart | entrepot warm --file - --dry-run
  entrepot warm --from-log --last 7d
  entrepot warm --file Dockerfile --file compose.yaml --platform all --output json`,
		Args: checkWarm,
		RunE: p.operates(p.warm),
	}
	addImageFlags(cmd.Flags())
	addFromLogFlags(cmd.Flags())
	cmd.Flags().Bool("with-referrers", false, "fetch signatures, SBOMs and attestations too")
	cmd.Flags().Bool("dry-run", false, "say what would be fetched")
	cmd.Flags().Int("jobs", cache.DefaultWarmJobs, fmt.Sprintf("`number` of images and blobs to fetch at a time, 1 to %d", cache.MaxWarmJobs))
	cmd.Flags().Bool("wait-for-quota", false, "wait until the upstream grants pulls again")
	addAllowMissingFlag(cmd.Flags())
	addOperatorFlags(cmd.Flags())
	addInitFlag(cmd.Flags())
	return cmd
}

// checkWarm tells what is wrong with a command line, before anything is done.
func checkWarm(cmd *cobra.Command, args []string) error {
	if err := checkImages(cmd, args); err != nil {
		return err
	}
	fromLog, err := cmd.Flags().GetBool("from-log")
	if err != nil {
		return err
	}
	jobs, err := cmd.Flags().GetInt("jobs")
	switch {
	case err != nil:
		return err
	case jobs < 1 || jobs > cache.MaxWarmJobs:
		return fmt.Errorf("--jobs: %d is not between 1 and %d", jobs, cache.MaxWarmJobs)
	case !fromLog && cmd.Flags().Changed("last"):
		return errors.New("--last goes with --from-log")
	case !fromLog && len(args) == 0 && !cmd.Flags().Changed("file"):
		return errors.New("name images, or a file that does by --file, or give --from-log")
	}
	return nil
}

func (p *process) warm(o *operation, cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	req, list, err := p.warmRequest(o, cmd, args)
	if err != nil {
		return err
	}
	progress := p.newProgress("warm")
	var done cache.Warmed
	err = o.Run(o.ctx, "warm", nil, req, progress.event, &done)
	progress.end()
	if err != nil {
		return err
	}
	for _, u := range list.unread {
		done.Images = append(done.Images, cache.WarmedImage{Reference: u.reference, Platforms: []string{}, Error: u.reason})
		done.Failed++
	}
	if asJSON {
		err = writeJSON(p.stdout, done)
	} else {
		err = writeWarmed(p.page(), &done)
	}
	if err == nil && done.Failed > 0 {
		err = fmt.Errorf("%d of %s could not be warmed", done.Failed, count(len(done.Images), "image"))
	}
	return orPartial(cmd, err, done.Partial, len(done.Images))
}

// partialResult is the result of an image that lacks platforms.
func partialResult(missing []string) string { return "partial: no " + strings.Join(missing, ", ") }

// addAllowMissingFlag adds the flag that accepts images that lack platforms.
func addAllowMissingFlag(flags *pflag.FlagSet) {
	flags.Bool("allow-missing", false, "exit with 0 if images lack some of the platforms")
}

// orPartial returns err, or else an error if images lack platforms and --allow-missing is
// not given.
func orPartial(cmd *cobra.Command, err error, partial, all int) error {
	allowed, wrong := cmd.Flags().GetBool("allow-missing")
	if err = errors.Join(err, wrong); err != nil || partial == 0 || allowed {
		return err
	}
	return fmt.Errorf("%d of %s lack some of the platforms; --allow-missing accepts that", partial, count(all, "image"))
}

// warmRequest makes the request that a command line asks for.
func (p *process) warmRequest(o *operation, cmd *cobra.Command, args []string) (*operator.WarmRequest, *imageList, error) {
	req := &operator.WarmRequest{}
	list, err := p.readImages(cmd, args, o.resolveListed)
	if err != nil {
		return nil, nil, err
	}
	if req.Platforms, err = platformsOf(cmd); err != nil {
		return nil, nil, err
	}
	flags := cmd.Flags()
	var errs [4]error
	req.WithReferrers, errs[0] = flags.GetBool("with-referrers")
	req.DryRun, errs[1] = flags.GetBool("dry-run")
	req.Jobs, errs[2] = flags.GetInt("jobs")
	req.WaitForQuota, errs[3] = flags.GetBool("wait-for-quota")
	if err := errors.Join(errs[:]...); err != nil {
		return nil, nil, err
	}
	if err := addAsked(o, cmd, list); err != nil {
		return nil, nil, err
	}
	req.Images = list.images
	return req, list, nil
}

// writeWarmed prints what became of each image.
func writeWarmed(w io.Writer, done *cache.Warmed) error {
	s := newSheet(w)
	tw := newTable(s, "DIGEST", "REFERRERS", "LAYERS")
	come, word := "FETCHED", "fetched"
	if done.DryRun {
		come, word = "TO FETCH", "to fetch"
	}
	fmt.Fprintf(tw, "IMAGE\tDIGEST\tPLATFORMS\tLAYERS\tREFERRERS\t%s\tHERE\tRESULT\n", come)
	for _, i := range done.Images {
		result, bytes := "ok", i.BytesFetched
		switch {
		case i.Error != "":
			result = "failed"
		case len(i.MissingPlatforms) > 0:
			result = partialResult(i.MissingPlatforms)
		case i.Stale:
			result = "stale"
		case i.Note != "":
			result = "noted"
		}
		if done.DryRun {
			bytes = i.BytesToFetch
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", i.Reference, whole(i.Digest), strings.Join(i.Platforms, ","),
			i.Layers, i.Referrers, bytesOf(bytes), bytesOf(i.BytesHere), result)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, i := range done.Images {
		if i.Error != "" {
			fmt.Fprintf(s, "%s failed: %s\n", i.Reference, i.Error)
		}
		if i.Note != "" {
			fmt.Fprintf(s, "%s: %s\n", i.Reference, i.Note)
		}
	}
	total := done.BytesFetched
	if done.DryRun {
		total = done.BytesToFetch
	}
	partial := ""
	if done.Partial > 0 {
		partial = fmt.Sprintf("; %d partial", done.Partial)
	}
	fmt.Fprintf(s, "%s, %d failed; %s %s, %s were here%s\n", count(len(done.Images), "image"), done.Failed,
		bytesOf(total), word, bytesOf(done.BytesHere), partial)
	for _, u := range done.Pulls {
		fmt.Fprintf(s, "%s was asked for %s, which it may count as pulls", u.Upstream, count(u.Pulls, "manifest"))
		if done.DryRun {
			s.WriteString("; they are kept, and a run does not ask for them again")
		}
		s.WriteByte('\n')
	}
	_, err := io.WriteString(w, s.String())
	return err
}
