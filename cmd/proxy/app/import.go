package app

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/bundle"
	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/operator"
)

func newImport(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import ARCHIVE...",
		Short: "Take in images that were carried here in a file",
		Long: `Import takes in bundles that export has written: a file, a directory, or volumes, of
which one may be named and the others are found. The images are served by the same names,
tags and digests as where they come from, also offline, with the signatures and SBOMs
that came with them. Plain OCI image layouts and what docker save and crane pull write are
taken as well; - is standard input.

All of an archive is verified before any of it becomes visible. One that is wrong,
truncated or hostile is refused whole, with the reason. What is here already is not
written again, so that an import that was interrupted goes on where it was.

A tag that stands for something else is not moved silently: on a terminal import says what
it stands for and asks; elsewhere it takes in the content, leaves the tag and exits with 1.
--replace moves such tags. A tag that was seen to stand for something else since the archive
was made stays in any case.`,
		Example: `  entrepot import bundle.tar
  entrepot import --replace next.tar             move tags that the bundle has newer
  entrepot import bundle.tar.001                 the other volumes are found beside it
  entrepot import --name docker.io/library/app:1 layout.tar
  docker save app:1 | entrepot import -`,
		Args: checkImport,
		RunE: p.operates(p.importArchives),
	}
	cmd.Flags().String("name", "", "`reference` of the image, where an archive has one and does not say it, or says another")
	cmd.Flags().Bool("replace", false, "move tags that stand for something else")
	addOperatorFlags(cmd.Flags())
	addInitFlag(cmd.Flags())
	return cmd
}

// checkImport tells what is wrong with a command line, before anything is done.
func checkImport(cmd *cobra.Command, args []string) error {
	if err := cobra.MinimumNArgs(1)(cmd, args); err != nil || len(args) == 1 {
		return err
	}
	if n := slices.Index(args, "-"); n >= 0 {
		return fmt.Errorf("- is standard input, and stands alone (argument %d)", n+1)
	}
	if cmd.Flags().Changed("name") {
		return errors.New("--name is for one archive")
	}
	return nil
}

func (p *process) importArchives(o *operation, cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	name, err := cmd.Flags().GetString("name")
	if err != nil {
		return err
	}
	replace, err := cmd.Flags().GetBool("replace")
	if err != nil {
		return err
	}
	as := importAs{name: name, replace: replace}
	var all cache.Imported
	if args[0] == "-" {
		err = p.importArchive(o, "standard input", as, 0, io.NopCloser(cmd.InOrStdin()), &all)
	} else {
		err = p.importFiles(o, args, as, &all)
	}
	if refused := refusedTags(&all); err == nil && len(refused) > 0 && args[0] != "-" && p.interactive() {
		if err := writeRefused(p.stderr, refused); err != nil {
			return err
		}
		if p.confirm(o.ctx, "Move "+count(len(refused), "tag")+"?") == nil {
			as.replace = true
			err = p.replaceTags(o, args, as, &all)
		}
	}
	if err != nil && len(all.Images) == 0 {
		return err
	}
	// Of several archives those before the one that failed have been taken in.
	if asJSON {
		err = errors.Join(err, writeJSON(p.stdout, all))
	} else {
		err = errors.Join(err, writeImported(p.page(), &all))
	}
	if refused := refusedTags(&all); err == nil && len(refused) > 0 {
		return fmt.Errorf("%s not moved: %s; to move them, import again with --replace", count(len(refused), "tag"), tagNames(refused))
	}
	return err
}

// importAs says how archives are taken in.
type importAs struct {
	name    string // of the image of an archive; empty if that says it
	replace bool   // tags that stand for something else are moved
}

// refusedTags returns the images whose tags were not moved.
func refusedTags(all *cache.Imported) []cache.ImportedImage {
	var list []cache.ImportedImage
	for _, i := range all.Images {
		if i.Refused {
			list = append(list, i)
		}
	}
	return list
}

// maxTagNames is how many tags a line names.
const maxTagNames = 10

func tagNames(list []cache.ImportedImage) string {
	var names []string
	for n, i := range list {
		if n == maxTagNames {
			names = append(names, fmt.Sprintf("and %d more", len(list)-n))
			break
		}
		names = append(names, i.Reference)
	}
	return strings.Join(names, ", ")
}

// writeRefused says what the tags stand for that were not moved.
func writeRefused(w io.Writer, refused []cache.ImportedImage) error {
	var s strings.Builder
	for _, i := range refused {
		fmt.Fprintf(&s, "%s stands for %s; the archive has %s\n", i.Reference, short(i.Previous), short(i.Digest))
	}
	_, err := io.WriteString(w, s.String())
	return err
}

// replaceTags takes the archives in once more, whose content is there by now, and moves the
// tags that were refused. It changes all to say so.
func (p *process) replaceTags(o *operation, args []string, as importAs, all *cache.Imported) error {
	var again cache.Imported
	err := p.importFiles(o, args, as, &again)
	for n := range all.Images {
		for _, i := range again.Images {
			if i.Reference == all.Images[n].Reference && i.Digest == all.Images[n].Digest {
				all.Images[n].Refused, all.Images[n].Note = i.Refused, i.Note
			}
		}
	}
	return err
}

func (p *process) importFiles(o *operation, paths []string, as importAs, all *cache.Imported) error {
	sources, err := bundle.Archives(paths)
	if err != nil {
		return err
	}
	for _, s := range sources {
		r, err := s.Open()
		if err != nil {
			return err
		}
		if err := p.importArchive(o, s.Name, as, s.Size, r, all); err != nil {
			return err
		}
	}
	return nil
}

// sent is what is sent, by another goroutine, and why that broke off.
type sent struct {
	io.ReadCloser
	err atomic.Pointer[error]
}

func (s *sent) Read(b []byte) (int, error) {
	n, err := s.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		s.err.Store(&err)
	}
	return n, err
}

// importArchive sends r, which it closes, and adds to all what has become of it.
func (p *process) importArchive(o *operation, what string, as importAs, size int64, r io.ReadCloser, all *cache.Imported) error {
	q := url.Values{"bytes": {strconv.FormatInt(size, 10)}}
	if as.name != "" {
		q.Set("name", as.name)
	}
	if as.replace {
		q.Set("replace", "true")
	}
	body := &sent{ReadCloser: r}
	defer body.Close()
	progress := p.newProgress("import")
	var done cache.Imported
	err := o.Upload(o.ctx, "import", q, body, progress.event, &done)
	progress.end()
	switch e := (*operator.Error)(nil); {
	case err == nil:
	case errors.As(err, &e):
		return fmt.Errorf("%s: nothing of it is taken in: %w", what, err)
	case body.err.Load() != nil:
		return *body.err.Load()
	default:
		return fmt.Errorf("%s: %w", what, unwrapURL(err))
	}
	all.Images = append(all.Images, done.Images...)
	all.Blobs += done.Blobs
	all.Bytes += done.Bytes
	all.BlobsThere += done.BlobsThere
	all.BytesThere += done.BytesThere
	return nil
}

// writeImported prints what was taken in for people.
func writeImported(w io.Writer, done *cache.Imported) error {
	tw := newTable(w, "DIGEST", "ALREADY THERE")
	fmt.Fprintln(tw, "IMAGE\tDIGEST\tPLATFORMS\tNEW BLOBS\tALREADY THERE\tNEW BYTES")
	for _, i := range done.Images {
		platforms := strings.Join(i.Platforms, ",")
		if platforms == "" {
			platforms = "–"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%s\n", i.Reference, i.Digest, platforms, i.Blobs, i.BlobsThere, bytesOf(i.Bytes))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, i := range done.Images {
		switch {
		case i.Note != "":
			fmt.Fprintf(w, "%s: %s\n", i.Reference, i.Note)
		case i.Previous != "":
			fmt.Fprintf(w, "%s: moved from %s to %s\n", i.Reference, i.Previous, i.Digest)
		}
	}
	_, err := fmt.Fprintf(w, "new: %d blobs, %s; already there: %d blobs, %s\n",
		done.Blobs, bytesOf(done.Bytes), done.BlobsThere, bytesOf(done.BytesThere))
	return err
}
