package main

import (
	"fmt"
	"io"
	"net/url"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/cache"
)

func newPin(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pin REFERENCE",
		Short: "Keep an image from being evicted",
		Long: `Pin keeps all of an image that is cached, or comes later, from being evicted: its index,
manifests, configs, layers and what refers to it. It does not fetch anything. A tag that moves is
pinned as what it stands for then; name a digest to pin that alone. It exits with 1 where nothing
of the image is cached.`,
		Example: `  entrepot pin nginx:1.27
  entrepot pin ghcr.io/org/app@sha256:…
  entrepot ls --pinned`,
		Args: cobra.ExactArgs(1),
		RunE: p.operates(func(o *operation, cmd *cobra.Command, args []string) error {
			return p.changePin(o, cmd, "pin", args[0], func(w io.Writer, r *cache.Pinned) error {
				word := "is pinned"
				if !r.Changed {
					word = "was pinned before"
				}
				_, err := fmt.Fprintf(w, "%s %s: %s, %s on disk\n", r.Reference, word, count(r.Blobs, "blob"), units.BytesSize(float64(r.Size)))
				return err
			})
		}),
	}
	addOperatorFlags(cmd.Flags())
	return cmd
}

func newUnpin(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unpin REFERENCE",
		Short: "Let a pinned image be evicted again",
		Long: `Unpin undoes pin. Nothing is removed: the image goes when room is wanted and it is its
turn. What was not pinned is no error.`,
		Example: `  entrepot unpin nginx:1.27`,
		Args:    cobra.ExactArgs(1),
		RunE: p.operates(func(o *operation, cmd *cobra.Command, args []string) error {
			return p.changePin(o, cmd, "unpin", args[0], func(w io.Writer, r *cache.Pinned) error {
				if !r.Changed {
					_, err := fmt.Fprintf(w, "%s was not pinned\n", r.Reference)
					return err
				}
				_, err := fmt.Fprintf(w, "%s is not pinned any more: %s, %s on disk\n", r.Reference, count(r.Blobs, "blob"), units.BytesSize(float64(r.Size)))
				return err
			})
		}),
	}
	addOperatorFlags(cmd.Flags())
	return cmd
}

// changePin pins or unpins a reference, and has write tell it to people.
func (p *process) changePin(o *operation, cmd *cobra.Command, name, reference string, write func(io.Writer, *cache.Pinned) error) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	var r cache.Pinned
	if err := o.Post(o.ctx, name, url.Values{"reference": {reference}}, nil, &r); err != nil {
		return err
	}
	if asJSON {
		return writeJSON(p.stdout, r)
	}
	return write(p.stdout, &r)
}
