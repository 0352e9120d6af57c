package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// newConfig makes the commands around the configuration.
func newConfig(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check and show the settings",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigCheck(p), newConfigShow(p))
	return cmd
}

func newConfigCheck(p *process) *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Say what is wrong with a configuration, and where",
		Long: `Check reads the file, or the one of --config or $ENTREPOT_CONFIG, and the
environment as serving would. It prints every problem with file, line and key, and
then exits with 1. It prints a warning for a setting that is valid, but probably not
what was meant. It touches no network and no cache.`,
		Example: `  entrepot config check /etc/entrepot/entrepot.yml`,
		Args:    cobra.MaximumNArgs(1),
		RunE: does(func(cmd *cobra.Command, args []string) error {
			file := p.configFile(cmd)
			if len(args) > 0 {
				file = args[0]
			}
			cfg, err := p.load(cmd, file)
			if err != nil {
				return err
			}
			if file == "" {
				file = "no file: the defaults and the environment"
			}
			for _, w := range cfg.Warnings() {
				if _, err := fmt.Fprintf(p.stdout, "%s: warning: %s\n", file, w); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(p.stdout, "%s: ok\n", file)
			return err
		}),
	}
}

func newConfigShow(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print the settings in force, secrets hidden",
		Long: `Show prints the settings that serving with the same flags, file and environment
would use, the defaults filled in. What it prints is a configuration file again,
but for the secrets.`,
		Example: `  entrepot config show
  ENTREPOT_CACHE_DIR=/srv/cache entrepot config show --config /etc/entrepot.yml`,
		Args: cobra.NoArgs,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			cfg, err := p.load(cmd, "")
			if err != nil {
				return err
			}
			text, err := cfg.YAML()
			if err != nil {
				return err
			}
			_, err = p.stdout.Write(text)
			return err
		}),
	}
	addKeyFlags(cmd.Flags())
	return cmd
}
