package app

import (
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
)

func newPin(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pin REFERENCE...",
		Short: "Keep an image from being evicted",
		Long: `Pin keeps images from being evicted: their indexes, manifests, configs and layers, and what
refers to them. It fetches nothing. If a pinned tag moves, the new image is pinned; pin a digest
to keep that alone. It exits with 1 if nothing of an image is cached.

` + patternHelp,
		Example: `  entrepot pin nginx:1.27
  entrepot pin ghcr.io/org/app@sha256:… nginx:1.27
  entrepot pin 'ghcr.io/org/*'
  entrepot ls --pinned`,
		Args: references,
		RunE: p.operates(func(o *operation, cmd *cobra.Command, args []string) error {
			return p.changePin(o, cmd, "pin", args, func(w io.Writer, r *cache.Pinned) error {
				word := "is pinned"
				if !r.Changed {
					word = "was pinned before"
				}
				_, err := fmt.Fprintf(w, "%s %s: %s, %s on disk\n", r.Reference, word, count(r.Blobs, "blob"), bytesOf(r.Size))
				return err
			})
		}),
	}
	addOperatorFlags(cmd.Flags())
	return cmd
}

func newUnpin(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unpin REFERENCE...",
		Short: "Let a pinned image be evicted again",
		Long: `Unpin undoes pin. It removes nothing: the images can be evicted again when the cache needs
room. An image that was not pinned is not an error.

` + patternHelp,
		Example: `  entrepot unpin nginx:1.27`,
		Args:    references,
		RunE: p.operates(func(o *operation, cmd *cobra.Command, args []string) error {
			return p.changePin(o, cmd, "unpin", args, func(w io.Writer, r *cache.Pinned) error {
				if !r.Changed {
					_, err := fmt.Fprintf(w, "%s was not pinned\n", r.Reference)
					return err
				}
				_, err := fmt.Fprintf(w, "%s is not pinned any more: %s, %s on disk\n", r.Reference, count(r.Blobs, "blob"), bytesOf(r.Size))
				return err
			})
		}),
	}
	addOperatorFlags(cmd.Flags())
	return cmd
}

// changePin pins or unpins what args select, and has write print each result for people.
func (p *process) changePin(o *operation, cmd *cobra.Command, name string, args []string, write func(io.Writer, *cache.Pinned) error) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	var results []cache.Pinned
	err = o.each(args, func(ref string) error {
		var r cache.Pinned
		if err := o.Post(o.ctx, name, url.Values{"reference": {ref}}, nil, &r); err != nil {
			return err
		}
		results = append(results, r)
		if asJSON {
			return nil
		}
		return write(p.stdout, &r)
	})
	if asJSON && len(results) > 0 {
		return errors.Join(writeJSON(p.stdout, document(args, results)), err)
	}
	return err
}

// references checks the arguments of a command that takes references and patterns.
func references(cmd *cobra.Command, args []string) error {
	if err := cobra.MinimumNArgs(1)(cmd, args); err != nil {
		return err
	}
	return checkReferences(args)
}
