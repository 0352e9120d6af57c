package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/bundle"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/operator"
)

// progressEvery is how often it is told how far an export has come.
const progressEvery = 100 * time.Millisecond

func newExport(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export --bundle FILE [REFERENCE...]",
		Short: "Write images into one file, to be carried to another cache",
		Long: `Export writes images that are cached, and the signatures and SBOMs that are here of
them, into a bundle: an OCI image layout, which skopeo, crane, oras and "docker load"
read as well, and "entrepot import" by the same names, tags and digests. Nothing is
fetched, and every byte is verified. Of an index those platforms are taken that are
here, or that --platform names; the index itself is never changed.

Images that are not cached completely are listed with what they lack, and no bundle is written;
with --all they are left out and named, and it exits with 1.

--output json prints a document about what is exported. Without --bundle nothing is
written: the document says what would be.

` + imageListHelp + `

It may be ended at any time: what is written stays in BUNDLE.partial, and the same
command goes on with it.`,
		Example: `  entrepot export --bundle bundle.tar nginx:1.27 ghcr.io/org/app:v3
  entrepot export --bundle bundle.tar --file images.txt --platform linux/amd64,linux/arm64
  entrepot export --bundle monday.tar --all --since friday.tar
  entrepot export --bundle bundle.tar --all --volume-size 4GiB    bundle.tar.001, .002, and so on
  entrepot export --bundle layout/ nginx:1.27                     a directory`,
		Args: checkExport,
		RunE: p.operates(p.export),
	}
	flags := cmd.Flags()
	flags.String("bundle", "", "`file` to write, or with a / at its end a directory")
	flags.VarP(&exportOutput{format: outputTable}, "output", "o", "`format` to print: table or json")
	addDirectoryFlags(flags)
	addImageFlags(flags)
	flags.Lookup("platform").Usage = "`platforms` to take of each image, linux/amd64,linux/arm64, or all (default: those that are here)"
	flags.Bool("all", false, "all that is cached, but for upstreams with access: passthrough")
	flags.String("since", "", "leave out blobs that `what` has, an earlier bundle, or that were stored before a time: a duration, a date or a time")
	addChecked(flags, "volume-size", "", "0", "`bytes` of a volume into which the bundle is split, such as 4GiB; 0 does not split it", func(text string) error {
		n, err := configs.ParseBytes(text)
		if err == nil && n != 0 && n < bundle.MinVolume {
			err = fmt.Errorf("a volume has %s at least", units.BytesSize(bundle.MinVolume))
		}
		return err
	})
	return cmd
}

// exportOutput is the value of export's --output. -o used to be the bundle: a value that
// is the name of a file is taken as that, with a warning.
type exportOutput struct{ format, file string }

func (o *exportOutput) Set(text string) error {
	err := checkOutput(text)
	switch {
	case err == nil:
		o.format = text
	case strings.ContainsAny(text, "./"):
		o.file = text
	default:
		return fmt.Errorf("%w, and name the bundle by --bundle", err)
	}
	return nil
}

func (o *exportOutput) String() string { return o.format }

// Type is what GetString asks for.
func (o *exportOutput) Type() string { return "string" }

// bundlePath returns --bundle, or the file that -o names in the old way.
func bundlePath(cmd *cobra.Command) (path string, old bool, err error) {
	path, err = cmd.Flags().GetString("bundle")
	if o, ok := cmd.Flags().Lookup("output").Value.(*exportOutput); ok && path == "" && o.file != "" {
		return o.file, true, err
	}
	return path, false, err
}

// exported is what the command prints.
type exported struct {
	bundle.Saved
	Images  []bundle.Taken   `json:"images"`
	LeftOut []bundle.LeftOut `json:"leftOut,omitempty"`
}

// exporting are the flags of the command.
type exporting struct {
	save    bundle.Save
	request operator.ExportRequest
	list    *imageList
}

func (p *process) export(o *operation, cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	e, err := p.readExport(o, cmd, args)
	if err != nil {
		return err
	}
	var plan bundle.Plan
	if err := o.Post(o.ctx, "export/plan", nil, e.request, &plan); err != nil {
		return err
	}
	if len(plan.Images) == 0 {
		p.sayLeftOut(plan.LeftOut)
		return errors.New("no bundle written: no complete image is cached that --all could take; fetch some first, by entrepot warm or by pulls, or name images")
	}
	e.save.Fetch = func(ctx context.Context, c *bundle.Contents, from int64) (io.ReadCloser, error) {
		resp, err := o.Download(ctx, "export", url.Values{"from": {strconv.FormatInt(from, 10)}}, operator.ExportFrom{Contents: c, Docker: plan.Docker})
		if err != nil {
			return nil, err
		}
		return resp.Body, nil
	}
	var saved bundle.Saved
	if e.save.Path != "" {
		saved, err = p.save(o.ctx, e.save, &plan)
	} else {
		saved.Paths = []string{}
	}
	if errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("%w: the file system takes no file as large as that; split the bundle by --volume-size 2GiB", err)
	}
	if err != nil {
		return err
	}
	result := exported{Saved: saved, Images: plan.Images, LeftOut: plan.LeftOut}
	for _, u := range e.list.unread {
		result.LeftOut = append(result.LeftOut, bundle.LeftOut{Reference: u.reference, Reason: u.reason})
	}
	if asJSON {
		err = writeJSON(p.stdout, result)
	} else {
		err = writeExported(p.page(), &result)
	}
	if err != nil {
		return err
	}
	for _, i := range result.Images {
		if len(i.Partial) > 0 {
			platforms := strings.Join(i.Partial, ",")
			fmt.Fprintf(p.stderr, "left out of %s: %s, which is partial; to take it: entrepot warm --platform %s %s\n", i.Reference, platforms, platforms, i.Reference)
		}
	}
	left := p.sayLeftOut(result.LeftOut)
	switch left {
	case 0:
		return nil
	case 1:
		return errors.New("an image was left out of the bundle")
	}
	return fmt.Errorf("%s left out of the bundle", count(left, "image"))
}

// sayLeftOut says what an export leaves out, and returns how many of these are images.
func (p *process) sayLeftOut(list []bundle.LeftOut) (images int) {
	for _, l := range list {
		fmt.Fprintf(p.stderr, "left out: %s\n", printable(l.String()))
		if !l.Referrer {
			images++
		}
	}
	return images
}

// save writes the bundle, and tells how far it has come.
func (p *process) save(ctx context.Context, s bundle.Save, plan *bundle.Plan) (bundle.Saved, error) {
	progress := p.newProgress("export")
	defer progress.end()
	var told time.Time
	s.Told = func(f *bundle.Files, written int64) {
		if now := time.Now(); now.Sub(told) >= progressEvery {
			told = now
			progress.tell(exportProgress(f, written))
		}
	}
	return s.Write(ctx, plan)
}

// exportProgress says how far a bundle has come.
func exportProgress(f *bundle.Files, written int64) operator.Progress {
	s := operator.Progress{Unit: "files", Total: len(f.List), Bytes: written, TotalBytes: f.Size}
	file, before := f.At(written)
	s.Done = before
	if file != nil {
		s.Current = []operator.Transfer{{Name: shownName(file), Bytes: max(0, written-file.Begin), TotalBytes: file.Size}}
	}
	return s
}

// shownName says in a few letters which file it is.
func shownName(f *bundle.File) string {
	if strings.HasPrefix(f.Name, bundle.BlobsDir+"/") {
		return short(f.Digest)
	}
	return f.Name
}

// checkExport tells what is wrong with a command line, before anything is done.
func checkExport(cmd *cobra.Command, args []string) error {
	if err := checkImages(cmd, args); err != nil {
		return err
	}
	path, _, err := bundlePath(cmd)
	if err != nil {
		return err
	}
	planOnly, err := asJSON(cmd)
	if err != nil {
		return err
	}
	all, err := cmd.Flags().GetBool("all")
	switch named := len(args) > 0 || cmd.Flags().Changed("file"); {
	case err != nil:
		return err
	case path == "" && (!planOnly || cmd.Flags().Changed("bundle")):
		return errors.New("name the bundle: --bundle bundle.tar")
	case !named && !all:
		return errors.New("name the images to export, a --file that names them, or --all")
	case named && all:
		return errors.New("--all is of all images: name none beside it")
	}
	return nil
}

// readExport reads the command line, and what it names.
func (p *process) readExport(o *operation, cmd *cobra.Command, args []string) (*exporting, error) {
	flags := cmd.Flags()
	var e exporting
	var err, errs error
	get := func(err error) { errs = errors.Join(errs, err) }
	var old bool
	e.save.Path, old, err = bundlePath(cmd)
	get(err)
	if old {
		fmt.Fprintf(p.stderr, "warning: -o is the output format; write --bundle %s, the next release no longer takes a file\n", e.save.Path)
	}
	e.request.All, err = flags.GetBool("all")
	get(err)
	e.request.Platforms, err = platformsOf(cmd)
	get(err)
	e.list, err = p.readImages(cmd, args, o.resolve)
	get(err)
	since, err := flags.GetString("since")
	get(err)
	text, err := flags.GetString("volume-size")
	get(err)
	size, err := configs.ParseBytes(text)
	get(err)
	if errs != nil {
		return nil, errs
	}
	e.save.Volume = int64(size)
	e.request.Images = e.list.images
	if len(e.request.Images) == 0 && !e.request.All {
		return nil, errors.New("the files name no image")
	}
	if since != "" {
		return &e, e.readSince(since)
	}
	return &e, nil
}

// readSince reads --since: a bundle where there is such a file, else a time.
func (e *exporting) readSince(text string) error {
	c, err := bundle.Peek(text)
	if errors.Is(err, os.ErrNotExist) {
		at, wrong := parseSince(text, time.Now())
		if wrong != nil {
			return misuse{fmt.Errorf("--since: there is no bundle %s, and %w", text, wrong)}
		}
		e.request.Since = &bundle.Since{Time: at.UTC().Truncate(time.Second)}
		return nil
	}
	if err != nil {
		return err
	}
	e.request.Since = &bundle.Since{Digest: c.Digest}
	e.request.Have = make([]digest.Digest, 0, len(c.Contents))
	for _, k := range c.Contents {
		e.request.Have = append(e.request.Have, k.Digest)
	}
	return nil
}

// writeExported prints e for people.
func writeExported(w io.Writer, e *exported) error {
	tw := newTable(w, "DIGEST", "LEFT OUT")
	fmt.Fprintln(tw, "IMAGE\tDIGEST\tPLATFORMS\tBLOBS\tBYTES\tLEFT OUT")
	for _, i := range e.Images {
		left := "–"
		if i.LeftOut > 0 {
			left = fmt.Sprintf("%d, %s", i.LeftOut, bytesOf(i.LeftOutBytes))
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\t%s\n", i.Reference, whole(i.Digest), cmp.Or(strings.Join(i.Platforms, ","), "–"), i.Blobs, bytesOf(i.Bytes), left)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	resumed := ""
	if e.Resumed > 0 {
		resumed = fmt.Sprintf(", of which %s were there", bytesOf(e.Resumed))
	}
	_, err := fmt.Fprintf(w, "%s: %s, %s%s, %s\n", strings.Join(e.Paths, ", "), count(len(e.Images), "image"), bytesOf(e.Size), resumed, e.Digest)
	return err
}
