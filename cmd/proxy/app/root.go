package app

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/entrepot-dev/entrepot/configs"
)

// newRoot makes the tree of commands. Without a subcommand it serves.
func newRoot(p *process) *cobra.Command {
	root := &cobra.Command{
		Use:   "entrepot",
		Short: "A caching pull-through proxy for container registries",
		Long: `Entrepot stands between container clients and the registries that they pull
from. The first pull of an image fetches, verifies and keeps it; every later one
is served from here, also while the registry is slow, rate-limited or gone.

Without a subcommand it serves, and without any setting it mirrors Docker Hub and
the other well-known registries on port 5000.`,
		Example: `  entrepot                                   serve with the defaults
  entrepot --config /etc/entrepot.yml        serve what a file says
  entrepot --cache-dir /srv/cache --listen :8080
  entrepot config check /etc/entrepot.yml    is the file right?`,
		RunE:          does(p.serve),
		Version:       buildOf(readBuildInfo()).String(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("entrepot {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	addConfigFlag(root.PersistentFlags())
	addServeFlags(root.Flags())
	root.AddCommand(
		newServe(p),
		newConfig(p),
		newReload(p),
		newLs(p),
		newInspect(p),
		newPin(p),
		newUnpin(p),
		newWarm(p),
		newRehearse(p),
		newMissing(p),
		newPurge(p),
		newGC(p),
		newStats(p),
		newExplain(p),
		newHistory(p),
		newDiff(p),
		newAccept(p),
		newExport(p),
		newScrub(p),
		newImport(p),
		newHealthcheck(p),
		newDoctor(p),
		newVersion(p),
	)
	root.SetHelpCommand(newHelp())
	return root
}

// newHelp makes the command help, whose errors are those of other commands.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Say how a command is used",
		RunE: func(cmd *cobra.Command, args []string) error {
			named, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				return fmt.Errorf("unknown command %q for %q", rest[0], named.CommandPath())
			}
			named.InitDefaultHelpFlag()
			return named.Help()
		},
	}
}

// needsSubcommand is what a command does that has subcommands and is called without one.
func needsSubcommand(cmd *cobra.Command, _ []string) error {
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	return fmt.Errorf("%s needs one of %s", cmd.CommandPath(), strings.Join(names, ", "))
}

// addCompletion adds the command completion, which writes to what root writes to by now. Without
// it cobra adds its own, which answers an unknown shell with help and exit code 0.
func addCompletion(root *cobra.Command, args []string) {
	root.InitDefaultCompletionCmd(args...)
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.RunE = needsSubcommand
		}
	}
}

// flagError says of a value that a flag can't take what it takes.
func flagError(_ *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	wants := map[string]string{"int": "a whole number", "int64": "a whole number", "bool": "true or false",
		"duration": "a duration such as 30s, 10m or 2h"}[invalid.GetFlag().Value.Type()]
	if wants == "" {
		return err
	}
	return fmt.Errorf("invalid argument %q for --%s: it takes %s", invalid.GetValue(), invalid.GetFlag().Name, wants)
}

// keyFlags are the flags that set a key of the configuration.
var keyFlags = []struct{ name, key, usage string }{
	{"listen", "listen", "`address` for clients, host:port or :port"},
	{"admin-listen", "admin.listen", "`address` for metrics and health, or off"},
	{"cache-dir", "cache.dir", "`directory` of the cache"},
	{"log-level", "log.level", "least severe `level` that is logged: debug, info, warn, error"},
}

// offlineFlag sets cache.offline; it is the one flag without a value.
const offlineFlag = "offline"

func addConfigFlag(flags *pflag.FlagSet) {
	flags.StringP("config", "c", "", "YAML `file` with the settings (or $ENTREPOT_CONFIG)")
}

func addKeyFlags(flags *pflag.FlagSet) {
	for _, f := range keyFlags {
		flags.String(f.name, "", f.usage)
	}
	addOfflineFlag(flags)
}

func addOfflineFlag(flags *pflag.FlagSet) {
	flags.Bool(offlineFlag, false, "serve what is kept and ask no upstream")
}

// initFlag has a command begin a cache in a directory that holds other files.
const initFlag = "init"

// addInitFlag adds the flag of the commands that begin a cache where there is none.
func addInitFlag(flags *pflag.FlagSet) {
	flags.Bool(initFlag, false, "begin a cache also in a directory that holds other files")
}

// addDirectoryFlags adds the flags that say which cache an operator's command is for.
func addDirectoryFlags(flags *pflag.FlagSet) {
	flags.String("admin-listen", "", "`address` of the admin listener of the entrepot to ask")
	flags.String("cache-dir", "", "`directory` of the cache")
}

// load makes the configuration of file, or else of --config or $ENTREPOT_CONFIG,
// with the environment and the command's flags over it.
func (p *process) load(cmd *cobra.Command, file string) (*configs.Config, error) {
	cfg, err := configs.Load(p.source(cmd, file))
	if isFlagError(err) {
		return nil, misuse{err}
	}
	return cfg, err
}

// loadToAsk makes the configuration of a command that asks a running proxy, which is told
// by no more than its address and directory. broken is what is wrong with the
// configuration file: cfg then has what could be read of it. A command line or environment
// that is wrong is an error, and so is a file that cannot be read if nothing else names
// the proxy.
func (p *process) loadToAsk(cmd *cobra.Command) (cfg *configs.Config, broken, err error) {
	src := p.source(cmd, "")
	cfg, broken = configs.LoadPartly(src)
	if isFlagError(broken) {
		return nil, nil, misuse{broken}
	}
	if broken == nil || src.File == "" {
		return cfg, nil, broken
	}
	var wrong *configs.Error
	if !errors.As(broken, &wrong) {
		if p.namesProxy(cmd) {
			return cfg, broken, nil
		}
		return nil, nil, broken
	}
	for _, problem := range wrong.Problems {
		if strings.HasPrefix(problem.Where, "flag ") {
			return nil, nil, broken
		}
	}
	return cfg, broken, nil
}

// namesProxy reports whether the command line or the environment names the running proxy,
// by its address or its directory.
func (p *process) namesProxy(cmd *cobra.Command) bool {
	if flag := cmd.Flags().Lookup("cache-dir"); isNamed(cmd) || flag != nil && flag.Changed {
		return true
	}
	getenv := variables(p.environ)
	return getenv("ENTREPOT_CACHE_DIR") != "" || getenv("ENTREPOT_ADMIN_LISTEN") != ""
}

// source says what the configuration of a command is made of, see load.
func (p *process) source(cmd *cobra.Command, file string) configs.Source {
	src := configs.Source{File: file, Environ: p.environ}
	if src.File == "" {
		src.File = p.configFile(cmd)
	}
	for _, f := range keyFlags {
		if flag := cmd.Flags().Lookup(f.name); flag != nil && flag.Changed {
			src.Flags = append(src.Flags, configs.Flag{Name: "--" + f.name, Key: f.key, Value: flag.Value.String()})
		}
	}
	if flag := cmd.Flags().Lookup(offlineFlag); flag != nil && flag.Changed {
		src.Flags = append(src.Flags, configs.Flag{Name: "--" + offlineFlag, Key: "cache.offline", Value: flag.Value.String()})
	}
	return src
}

// isFlagError reports whether all that is wrong with a configuration are values of flags.
func isFlagError(err error) bool {
	e := (*configs.Error)(nil)
	return errors.As(err, &e) && !e.More && !slices.ContainsFunc(e.Problems, func(p configs.Problem) bool { return !strings.HasPrefix(p.Where, "flag ") })
}

// configFile gives the path of the configuration file; empty for none.
func (p *process) configFile(cmd *cobra.Command) string {
	if flag := cmd.Flags().Lookup("config"); flag != nil && flag.Changed {
		return flag.Value.String()
	}
	for _, pair := range p.environ {
		if path, ok := strings.CutPrefix(pair, "ENTREPOT_CONFIG="); ok {
			return path
		}
	}
	return ""
}
