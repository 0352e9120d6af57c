package app

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
)

func newLs(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls [PATTERN]",
		Aliases: []string{"images", "list"},
		Short:   "List the images that are cached",
		Long: `Ls lists the images whose index or manifest is cached. An image without a tag is shown by its
digest. PLATFORMS says which platforms are complete, and of how many. SIZE is on disk; content that
several images share counts for each of them, and once in the sum.

PATTERN selects images:

  small            every image of docker.io/library/small
  docker.io        every image of a registry
  library/*        a pattern over the reference or its repository: * is any characters, ? is one;
                   docker.io/ and library/ may be left out
  app@sha256:1b5c3b6d2f44
                   the image without a tag that ls shows so`,
		Example: `  entrepot ls
  entrepot ls nginx
  entrepot ls 'ghcr.io/org/*'
  entrepot ls --pinned
  entrepot ls --output json 'node:2*'`,
		Args: cobra.MaximumNArgs(1),
		RunE: p.operates(p.ls),
	}
	cmd.Flags().Bool("pinned", false, "list those that are pinned")
	cmd.Flags().BoolP("all", "a", false, "list cosign's tags (sha256-….sig) on lines of their own too")
	addOperatorFlags(cmd.Flags())
	return cmd
}

func (p *process) ls(o *operation, cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	pinned, err := cmd.Flags().GetBool("pinned")
	if err != nil {
		return err
	}
	all, err := cmd.Flags().GetBool("all")
	if err != nil {
		return err
	}
	pattern := lengthen(strings.Join(args, ""))
	if asJSON {
		body, err := o.ImagesJSON(o.ctx, pattern, pinned)
		if err != nil {
			return err
		}
		defer body.Close()
		_, err = io.Copy(p.stdout, body)
		return err
	}
	// Who names such a tag, or lists pins, means it.
	all = all || pinned || strings.Contains(pattern, "sha256-")
	return writeImages(p.page(), time.Now(), all, func(fn func(cache.Image) error) (size int64, err error) {
		return o.Images(o.ctx, pattern, pinned, fn)
	})
}

// maxPlatforms is how many platforms are named in a line.
const maxPlatforms = 3

// writeImages prints for people the images for which each calls its function, and the size
// that it gives. Unless all is set, it counts the images under cosign's tags instead: they belong
// to the image that they sign. It holds a few of them at a time.
func writeImages(w io.Writer, now time.Time, all bool, each func(func(cache.Image) error) (size int64, err error)) error {
	t := &longTable{w: w, optional: []string{"DIGEST", "FETCHED", "PINNED", "LAST USED"}}
	if err := t.row("REFERENCE", "DIGEST", "PLATFORMS", "SIZE", "FETCHED", "LAST USED", "PINNED"); err != nil {
		return err
	}
	n, signatures := 0, 0
	size, err := each(func(i cache.Image) error {
		if _, tag, tagged := strings.Cut(i.Reference[strings.LastIndexByte(i.Reference, '/')+1:], ":"); !all && tagged && cache.IsSignatureTag(tag) {
			signatures++
			return nil
		}
		n++
		pinned := "no"
		if i.Pinned {
			pinned = "yes"
		}
		return t.row(i.Reference, whole(i.Digest), platforms(i.Platforms), bytesOf(i.Size), column(w, i.Fetched, now), column(w, i.Used, now), pinned)
	})
	if err != nil {
		return err
	}
	if err := t.flush(); err != nil {
		return err
	}
	hidden := ""
	if signatures > 0 {
		hidden = fmt.Sprintf("; %s of cosign not listed (--all lists them)", count(signatures, "tag"))
	}
	_, err = fmt.Fprintf(w, "%s, %s on disk%s\n", count(n, "image"), bytesOf(size), hidden)
	return err
}

// platforms says for which platforms an image is whole, and how many there are.
func platforms(list []cache.ImagePlatform) string {
	var whole []string
	n := 0
	for _, p := range list {
		if !p.Whole {
			continue
		}
		if n++; p.Name != "" && n <= maxPlatforms {
			whole = append(whole, p.Name)
		}
	}
	if n > maxPlatforms {
		whole = append(whole, "…")
	}
	return strings.TrimSpace(fmt.Sprintf("%s (%d of %d)", strings.Join(whole, ", "), n, len(list)))
}
