package main

import (
	"github.com/spf13/cobra"
)

func newServe(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve (also without a subcommand)",
		Long: `Serve listens for clients and mirrors the configured registries until a SIGTERM or
SIGINT. It then takes no new connection and lets running transfers finish within
shutdown_timeout; a second signal ends them at once.`,
		Example: `  entrepot serve
  entrepot serve --config /etc/entrepot.yml
  ENTREPOT_CACHE_DIR=/srv/cache entrepot serve --listen :8080 --log-level debug`,
		Args: cobra.NoArgs,
		RunE: does(p.serve),
	}
	addKeyFlags(cmd.Flags())
	return cmd
}

func (p *process) serve(cmd *cobra.Command, _ []string) error {
	_, err := p.load(cmd, "")
	return err
}
