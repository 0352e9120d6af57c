package app

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/operator"
)

// newConfig makes the commands around the configuration.
func newConfig(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check and show the settings",
		Args:  cobra.NoArgs,
		RunE:  needsSubcommand,
	}
	cmd.AddCommand(newConfigCheck(p), newConfigShow(p))
	return cmd
}

func newConfigCheck(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Say what is wrong with a configuration, and where",
		Long: `Check reads the file, or the one of --config or $ENTREPOT_CONFIG, and the
environment as serving would. It prints every problem with file, line and key, and
then exits with 1; also for a certificate, a key or an authority that cannot be read,
without which serve does not start. It prints a warning for a setting that is valid, but probably not
what was meant, and for a certificate that ends within 30 days or has ended. It
touches no network and no cache.`,
		Example: `  entrepot config check /etc/entrepot/entrepot.yml
  entrepot config check --output json`,
		Args: cobra.MaximumNArgs(1),
		RunE: does(p.checkConfig),
	}
	addOutputFlag(cmd.Flags())
	return cmd
}

// checkedConfig is what config check prints as JSON.
type checkedConfig struct {
	// File is empty if there is none.
	File     string            `json:"file,omitempty"`
	OK       bool              `json:"ok"`
	Problems []configs.Problem `json:"problems"`
	Warnings []string          `json:"warnings"`
}

func (p *process) checkConfig(cmd *cobra.Command, args []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	file := p.configFile(cmd)
	if len(args) > 0 {
		file = args[0]
	}
	cfg, err := p.load(cmd, file)
	if err == nil {
		err = unusableCertificates(file, cfg)
	}
	if asJSON {
		return errors.Join(writeJSON(p.stdout, describeCheck(file, cfg, err)), err)
	}
	if err != nil {
		return err
	}
	if file == "" {
		file = "no file: the defaults and the environment"
	}
	for _, w := range warnings(cfg) {
		if _, err := fmt.Fprintf(p.stdout, "%s: warning: %s\n", file, w); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(p.stdout, "%s: ok\n", file)
	return err
}

// warnings returns what is probably wrong with cfg although it is valid.
func warnings(cfg *configs.Config) []string {
	return append(cfg.Warnings(), expiringCertificates(cfg, time.Now())...)
}

// describeCheck returns the result of loading a configuration: cfg, or else err.
func describeCheck(file string, cfg *configs.Config, err error) checkedConfig {
	c := checkedConfig{File: file, OK: err == nil, Problems: []configs.Problem{}, Warnings: []string{}}
	e := (*configs.Error)(nil)
	switch {
	case err == nil:
		c.Warnings = append(c.Warnings, warnings(cfg)...)
	case errors.As(err, &e):
		c.Problems = append(c.Problems, e.Problems...)
	default:
		c.Problems = append(c.Problems, configs.Problem{Where: file, Message: err.Error()})
	}
	return c
}

func newConfigShow(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print the settings in force, secrets hidden",
		Long: `Show prints the settings that serving with the same flags, file and environment
would use, with all defaults. With --running it prints what the running proxy uses
now, and on stderr what a reload or a restart would change. The output is a valid
configuration file, except for the secrets.`,
		Example: `  entrepot config show
  entrepot config show --running
  entrepot config show --output json
  ENTREPOT_CACHE_DIR=/srv/cache entrepot config show --config /etc/entrepot.yml`,
		Args: cobra.NoArgs,
	}
	running := p.asks(p.showRunning)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if ask, err := cmd.Flags().GetBool("running"); err != nil || ask {
			return errors.Join(err, running(cmd, args))
		}
		return does(p.showConfig)(cmd, args)
	}
	addKeyFlags(cmd.Flags())
	addOutputFlag(cmd.Flags())
	cmd.Flags().Bool("running", false, "print the settings of the running proxy")
	return cmd
}

func (p *process) showConfig(cmd *cobra.Command, _ []string) error {
	cfg, err := p.load(cmd, "")
	if err != nil {
		return err
	}
	text, err := cfg.YAML()
	if err != nil {
		return err
	}
	return p.printConfig(cmd, text)
}

// showRunning prints what the running proxy uses.
func (p *process) showRunning(o *operation, cmd *cobra.Command, _ []string) error {
	var c operator.Configuration
	if err := o.Get(o.ctx, "configuration", nil, &c); err != nil {
		return err
	}
	if err := p.printConfig(cmd, []byte(c.YAML)); err != nil {
		return err
	}
	var err error
	switch {
	case c.Problem != "":
		_, err = fmt.Fprintf(p.stderr, "a reload would fail: %s\n", c.Problem)
	case len(c.Changed) > 0:
		_, err = fmt.Fprintf(p.stderr, "`entrepot reload` would change: %s\n", strings.Join(c.Changed, ", "))
	}
	if len(c.NeedRestart) > 0 {
		_, err = fmt.Fprintf(p.stderr, "a restart would change: %s\n", strings.Join(c.NeedRestart, ", "))
	}
	return err
}

// printConfig prints a configuration as it is, or as JSON.
func (p *process) printConfig(cmd *cobra.Command, text []byte) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	if !asJSON {
		_, err = p.stdout.Write(text)
		return err
	}
	v, err := configs.YAMLToJSON(text)
	if err != nil {
		return err
	}
	return writeJSON(p.stdout, v)
}
