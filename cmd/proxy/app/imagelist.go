package app

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/entrepot-dev/entrepot/images"
	"github.com/entrepot-dev/entrepot/operator"
)

// imageListHelp says what --file takes, for the help of the commands that have it.
const imageListHelp = `--file names a file with images, or - for stdin, and may be given several times. It is

  list        a reference on each line; # begins a comment
  compose     a Compose file: the images of services that are not built, and of volumes
  kubernetes  YAML or JSON, as "helm template" and "kubectl get -o yaml" print it: the images
              of all containers, of image volumes, and every other key "image" with a reference
  dockerfile  what a build pulls: FROM, COPY --from, RUN --mount=from=, the "# syntax=" line

and which of these is found out by its content, unless --format says it. Variables of Compose
files come from the environment and have their defaults; those of Dockerfiles have their defaults.`

// addImageFlags adds what a command takes that works on images.
func addImageFlags(flags *pflag.FlagSet) {
	flags.StringArrayP("file", "f", nil, "`file` that names images, or - for stdin")
	addChecked(flags, "format", "", string(images.Auto), "what --file is: auto, list, compose, kubernetes or dockerfile", func(text string) error {
		_, err := images.ParseFormat(text)
		return err
	})
	flags.StringSlice("platform", nil, "`platforms` to take of each image, linux/amd64,linux/arm64, or all (default: those of the configuration)")
}

// addFromLogFlags adds what a command takes that works on what clients have pulled.
func addFromLogFlags(flags *pflag.FlagSet) {
	flags.Bool("from-log", false, "take the images that clients have pulled lately")
	addLastFlag(flags)
}

func addLastFlag(flags *pflag.FlagSet) {
	addChecked(flags, "last", "", "7d", "since `when` pulls count: a duration such as 24h or 7d, a date, or a time; 30 days are known", func(text string) error {
		_, err := parseSince(text, time.Now())
		return err
	})
}

// addAsked adds to list what clients have pulled, if --from-log is given.
func addAsked(o *operation, cmd *cobra.Command, list *imageList) error {
	fromLog, err := cmd.Flags().GetBool("from-log")
	if err != nil || !fromLog {
		return err
	}
	asked, err := askedSince(o, cmd)
	if err != nil {
		return err
	}
	for _, img := range asked.Images {
		list.images = append(list.images, operator.ListedImage{Reference: img.Reference, Platforms: img.Platforms})
	}
	return nil
}

// askedSince gives what clients have pulled since --last.
func askedSince(o *operation, cmd *cobra.Command) (*operator.Asked, error) {
	last, err := cmd.Flags().GetString("last")
	if err != nil {
		return nil, err
	}
	since, err := parseSince(last, time.Now())
	if err != nil {
		return nil, err
	}
	asked := &operator.Asked{}
	return asked, o.Get(o.ctx, "asked", url.Values{"since": {since.Format(time.RFC3339Nano)}}, asked)
}

// imageList is what a command was told to work on.
type imageList struct {
	images []operator.ListedImage
	// unread are places of files that name images too, but not so that it can be told
	// which.
	unread []unreadImage
}

// unreadImage is such a place.
type unreadImage struct {
	// reference is what stands there, and reason why it is none, with file and line.
	reference, reason string
}

// checkImages tells what is wrong with the arguments and flags of a command that works on
// images, before anything is done.
func checkImages(cmd *cobra.Command, args []string) error {
	if err := checkReferences(args); err != nil {
		return err
	}
	_, err := platformsOf(cmd)
	return err
}

// readImages gives the images that the arguments and --file name. resolve is o's resolve or
// resolveListed. A reference that is none is misuse.
func (p *process) readImages(cmd *cobra.Command, args []string, resolve func([]string) ([]string, error)) (*imageList, error) {
	list := &imageList{}
	args, err := resolve(args)
	if err != nil {
		return nil, err
	}
	for _, text := range args {
		ref, err := images.Normalize(text)
		if err != nil {
			return nil, misuse{err}
		}
		list.images = append(list.images, operator.ListedImage{Reference: ref})
	}
	text, err := cmd.Flags().GetString("format")
	if err != nil {
		return nil, err
	}
	format, err := images.ParseFormat(text)
	if err != nil {
		return nil, err
	}
	files, err := cmd.Flags().GetStringArray("file")
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		if err := p.readImageFile(list, name, format); err != nil {
			return nil, err
		}
	}
	if len(list.images) > operator.MaxImages {
		return nil, fmt.Errorf("the arguments and files name %d images; at most %d may be named", len(list.images), operator.MaxImages)
	}
	return list, nil
}

func (p *process) readImageFile(list *imageList, name string, format images.Format) error {
	var r io.Reader = p.stdin
	switch {
	case name != "-":
		f, err := os.Open(name) // #nosec G304 -- the operator names the file
		if err != nil {
			return fmt.Errorf("--file: %w", err)
		}
		defer f.Close()
		r = f
	case r == nil:
		return errors.New("--file: there is no stdin")
	default:
		name = "stdin"
	}
	found, err := images.Read(r, images.Options{Format: format, Env: p.env})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(found.Images)+len(found.Unread) == 0 {
		// No error: what "entrepot missing -o names" writes may be empty.
		fmt.Fprintf(p.stderr, "entrepot: %s names no image\n", name)
	}
	for _, i := range found.Images {
		listed := operator.ListedImage{Reference: i.Reference}
		if i.Platform != "" {
			listed.Platforms = []string{i.Platform}
		}
		list.images = append(list.images, listed)
	}
	for _, u := range found.Unread {
		list.unread = append(list.unread, unreadImage{printable(u.Text), fmt.Sprintf("%s:%d: %s", name, u.Line, printable(u.Reason))})
	}
	return nil
}

// env gives a variable of the environment.
func (p *process) env(name string) (string, bool) {
	for _, pair := range p.environ {
		if value, ok := strings.CutPrefix(pair, name+"="); ok {
			return value, true
		}
	}
	return "", false
}

// platformsOf gives what --platform says; nil where it says nothing.
func platformsOf(cmd *cobra.Command) ([]string, error) {
	list, err := cmd.Flags().GetStringSlice("platform")
	if err != nil {
		return nil, err
	}
	if err := operator.CheckPlatforms(list); err != nil {
		return nil, misuse{fmt.Errorf("--platform: %w", err)}
	}
	return list, nil
}
