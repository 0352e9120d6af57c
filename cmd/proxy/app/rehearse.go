package app

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/operator"
)

func newRehearse(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rehearse [REFERENCE...]",
		Short: "Say whether pulls would work with the uplink cut",
		Long: `Rehearse tells whether images could be pulled if no upstream could be asked from now on: whether
their tags would still be served, and whether all is here that they stand for, has the right
size, and may be served by its repository. No upstream is asked. Without references and --file
it rehearses what clients have pulled lately, each image for the platforms that they pulled.

A tag that is past its ttl is due: Entrepot would ask the upstream about it. Without the upstream
it is served until its rule's ttl and stale_if_error are over; in the last day before that it is
stale. With cache.offline, or --offline here, tags are served for ever.

` + imageListHelp + `

It exits with 1 if a pull would fail, and says what is missing; entrepot warm fetches it. An image
that lacks some of the platforms is partial, which is exit code 1 too unless --allow-missing is
given.`,
		Example: `  entrepot rehearse
  entrepot rehearse --last 24h --verify
  entrepot rehearse --file images.txt --platform linux/amd64,linux/arm64 --with-referrers --offline`,
		Args: checkRehearse,
		RunE: p.operates(p.rehearse),
	}
	addImageFlags(cmd.Flags())
	addLastFlag(cmd.Flags())
	cmd.Flags().Bool("with-referrers", false, "signatures, SBOMs and attestations have to be here, too")
	cmd.Flags().Bool("verify", false, "hash all that is here")
	cmd.Flags().Bool(offlineFlag, false, "rehearse cache.offline, with which tags are served however old they are")
	addAllowMissingFlag(cmd.Flags())
	addOperatorFlags(cmd.Flags())
	return cmd
}

// checkRehearse tells what is wrong with a command line, before anything is done.
func checkRehearse(cmd *cobra.Command, args []string) error {
	if cmd.Flags().Changed("last") && (len(args) > 0 || cmd.Flags().Changed("file")) {
		return errors.New("--last is for what clients have pulled; images are named")
	}
	return checkImages(cmd, args)
}

func (p *process) rehearse(o *operation, cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	req, list, err := p.rehearseRequest(o, cmd, args)
	if err != nil {
		return err
	}
	progress := p.newProgress("rehearse")
	var done cache.Rehearsal
	err = o.Run(o.ctx, "rehearse", nil, req, progress.event, &done)
	progress.end()
	if err != nil {
		return err
	}
	for _, u := range list.unread {
		done.Images = append(done.Images, cache.RehearsedImage{
			Reference: u.reference, Status: cache.RehearsedFailed, Platforms: []cache.RehearsedPlatform{}, Problems: []string{u.reason},
		})
		done.Failed++
	}
	if asJSON {
		err = writeJSON(p.stdout, done)
	} else {
		err = writeRehearsal(p.page(), &done, time.Now())
	}
	if err == nil && done.Failed > 0 {
		err = fmt.Errorf("%d of %s could not be pulled with the uplink cut", done.Failed, count(len(done.Images), "image"))
	}
	return orPartial(cmd, err, done.Partial, len(done.Images))
}

// rehearseRequest makes the request that a command line asks for.
func (p *process) rehearseRequest(o *operation, cmd *cobra.Command, args []string) (*operator.RehearseRequest, *imageList, error) {
	req := &operator.RehearseRequest{}
	list, err := p.readImages(cmd, args, o.resolveListed)
	if err != nil {
		return nil, nil, err
	}
	req.Images = list.images
	if req.Platforms, err = platformsOf(cmd); err != nil {
		return nil, nil, err
	}
	flags := cmd.Flags()
	// Whatever makes the list may have failed: a rehearsal of nothing is no good sign.
	if flags.Changed("file") && len(list.images)+len(list.unread) == 0 {
		return nil, nil, errors.New("--file: no image is named, so there is nothing to rehearse")
	}
	var errs [4]error
	req.WithReferrers, errs[0] = flags.GetBool("with-referrers")
	req.Verify, errs[1] = flags.GetBool("verify")
	req.Offline, errs[2] = flags.GetBool(offlineFlag)
	last, err := flags.GetString("last")
	errs[3] = err
	if err := errors.Join(errs[:]...); err != nil {
		return nil, nil, err
	}
	if len(args) == 0 && !flags.Changed("file") {
		if req.Since, err = parseSince(last, time.Now()); err != nil {
			return nil, nil, err
		}
	}
	return req, list, nil
}

// writeRehearsal prints what would become of each image.
func writeRehearsal(w io.Writer, done *cache.Rehearsal, now time.Time) error {
	s := newSheet(w)
	if len(done.Images) > 0 {
		tw := newTable(s, "DIGEST", "PULLS")
		fmt.Fprintln(tw, "IMAGE\tDIGEST\tPLATFORMS\tPULLS\tSERVED UNTIL\tRESULT")
		for _, i := range done.Images {
			var platforms []string
			for _, p := range i.Platforms {
				name := p.Platform
				if !p.OK {
					name += " (partial)"
				}
				platforms = append(platforms, name)
			}
			until, pulls := "forever", ""
			switch {
			case i.Status == cache.RehearsedFailed:
				until = ""
			case !i.Until.IsZero():
				until = second(i.Until)
			}
			if i.Pulls > 0 {
				pulls = fmt.Sprint(i.Pulls)
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", i.Reference, whole(i.Digest), strings.Join(platforms, ","), pulls, until, rehearsedResult(&i, now))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	for _, i := range done.Images {
		for _, problem := range i.Problems {
			fmt.Fprintf(s, "%s: %s\n", i.Reference, problem)
		}
	}
	stale := 0
	for _, i := range done.Images {
		if i.Status == cache.RehearsedStale && !isDue(&i, now) {
			stale++
		}
	}
	fmt.Fprintf(s, "%s: %d would be served, and %d would fail", count(len(done.Images), "image"), len(done.Images)-done.Failed, done.Failed)
	if stale > 0 {
		fmt.Fprintf(s, "; %d stale", stale)
	}
	if due := done.Stale - stale; due > 0 {
		fmt.Fprintf(s, "; %d due", due)
	}
	if done.Partial > 0 {
		fmt.Fprintf(s, "; %d partial", done.Partial)
	}
	s.WriteByte('\n')
	_, err := io.WriteString(w, s.String())
	return err
}

// endsSoon is how long before the end of stale_if_error a tag counts as stale rather than due.
const endsSoon = 24 * time.Hour

// isDue reports whether a tag past its ttl is served for long enough that it does not matter.
func isDue(i *cache.RehearsedImage, now time.Time) bool {
	return i.Until.IsZero() || i.Until.Sub(now) > endsSoon
}

// rehearsedResult says in a few words what would become of the pulls of an image.
func rehearsedResult(i *cache.RehearsedImage, now time.Time) string {
	result := i.Status
	if i.Status == cache.RehearsedStale && isDue(i, now) {
		result = "due"
	}
	if i.Status == cache.RehearsedFailed || len(i.MissingPlatforms) == 0 {
		return result
	}
	if i.Status == cache.RehearsedOK {
		return partialResult(i.MissingPlatforms)
	}
	return result + ", " + partialResult(i.MissingPlatforms)
}
