package main

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

A tag that is past its time is stale: it is served until its rule's ttl and stale_if_error are
over, and after that not, unless cache.offline is set, or --offline is given: then it is served
for ever.

` + imageListHelp + `

It exits with 1 where a pull would fail, and tells what is missing. entrepot warm fetches it.`,
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
	req, list, err := p.rehearseRequest(cmd, args)
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
		err = writeRehearsal(p.stdout, &done)
	}
	if err == nil && done.Failed > 0 {
		err = fmt.Errorf("%d of %d images could not be pulled with the uplink cut", done.Failed, len(done.Images))
	}
	return err
}

// rehearseRequest makes the request that a command line asks for.
func (p *process) rehearseRequest(cmd *cobra.Command, args []string) (*operator.RehearseRequest, *imageList, error) {
	req := &operator.RehearseRequest{}
	list, err := p.readImages(cmd, args)
	if err != nil {
		return nil, nil, err
	}
	req.Images = list.images
	if req.Platforms, err = platformsOf(cmd); err != nil {
		return nil, nil, err
	}
	flags := cmd.Flags()
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
func writeRehearsal(w io.Writer, done *cache.Rehearsal) error {
	var s strings.Builder
	if len(done.Images) > 0 {
		tw := newTable(&s)
		fmt.Fprintln(tw, "IMAGE\tDIGEST\tPLATFORMS\tPULLS\tSERVED UNTIL\tRESULT")
		for _, i := range done.Images {
			var platforms []string
			for _, p := range i.Platforms {
				name := p.Platform
				if !p.OK {
					name += " (not whole)"
				}
				platforms = append(platforms, name)
			}
			until, pulls := "for ever", ""
			switch {
			case i.Status == cache.RehearsedFailed:
				until = ""
			case !i.Until.IsZero():
				until = second(i.Until)
			}
			if i.Pulls > 0 {
				pulls = fmt.Sprint(i.Pulls)
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", i.Reference, short(i.Digest), strings.Join(platforms, ","), pulls, until, i.Status)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	for _, i := range done.Images {
		for _, problem := range i.Problems {
			fmt.Fprintf(&s, "%s: %s\n", i.Reference, problem)
		}
	}
	fmt.Fprintf(&s, "%d images: %d would be served, %d of them stale, and %d would fail\n",
		len(done.Images), len(done.Images)-done.Failed, done.Stale, done.Failed)
	_, err := io.WriteString(w, s.String())
	return err
}
