package app

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/admin"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/operator"
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
	addServeFlags(cmd.Flags())
	return cmd
}

// serve runs the proxy until a signal ends it.
func (p *process) serve(cmd *cobra.Command, _ []string) (err error) {
	cfg, err := p.load(cmd, "")
	if err != nil {
		return err
	}
	if err := checkDirectory(cmd, cfg.Cache.Dir); err != nil {
		return err
	}
	if err := unusableCertificates(p.configFile(cmd), cfg); err != nil {
		return err
	}
	p.buffer()
	log, level, err := newLog(cfg.Log, p.stderr)
	if err != nil {
		return err
	}
	// net/http speaks to Go's own log where it has nobody else to tell: of bytes
	// that an upstream sends unasked.
	defer zap.RedirectStdLog(log)()
	// From here on a signal ends the program in order, also while it starts.
	signals, stop := p.signals()
	defer stop()

	// The listeners first: that a port is taken is the likeliest trouble, and
	// a second start of the same program is to hear of it.
	frontLn, adminLn, err := p.openInTurn(cmd, cfg, signals, log)
	if err != nil {
		return err
	}
	var operators *adminListener
	if adminLn != nil {
		if operators, err = newAdminListener(adminLn, cfg.Admin, log); err != nil {
			return errors.Join(err, closeListeners(frontLn, adminLn))
		}
		defer operators.guard.Close()
	}
	loaded := *cfg
	files := openFiles()
	fitLimits(cfg, files, log)
	b := buildOf(readBuildInfo())
	m := metrics.New(b.Version, b.Revision, b.Go)
	p.outlets[1].countTo(m.LogDropped)
	showLimits(cfg.Limits, files, m)
	parts, err := wire(&loaded, cfg, p.environ, b, log, m)
	if err != nil {
		return errors.Join(err, closeListeners(frontLn, adminLn))
	}
	parts.level = level
	load := func() (*configs.Config, error) { return p.load(cmd, "") }
	defer p.followHangups(func() (operator.Reloaded, error) { return parts.follow(load) }, log)()
	s := &service{
		front: parts.front, frontLn: frontLn,
		cache: parts.cache, closeUpstreams: parts.close,
		timeout: cfg.ShutdownTimeout, log: log,
	}
	shown := banner{version: b.Version, cfg: cfg, listen: frontLn.Addr().String(), others: otherHosts(frontLn.Addr()), open: parts.guard.Anonymous()}
	shown.mount, shown.size = fileSystem(cfg.Cache.Dir)
	tokenFile := ""
	if operators != nil {
		o := operators.options(cfg, log)
		defer operators.token.Remove(o.TokenFile)
		o.Metrics, o.Ready, o.Degraded, o.API = m, s.ready, parts.cache.Degraded, parts.operator(cfg, p.configFile(cmd), load)
		s.admin, s.adminLn = admin.New(o), adminLn
		shown.admin, tokenFile = adminLn.Addr().String(), o.TokenFile
	}
	if cfg.Log.Format != "json" && isTerminal(p.stdout) {
		shown.write(p.stdout)
		p.outlets[0].flush() // before the first lines of the log
	}
	log.Info("serving", zap.String("version", b.Version), zap.String("listen", shown.listen),
		zap.String("admin", shown.admin), zap.String("admin_token_file", tokenFile), zap.String("cache_dir", cfg.Cache.Dir), zap.Bool("offline", cfg.Cache.Offline),
		zap.Int("upstreams", len(cfg.Upstreams)))
	defer watchCertificates(parts.configured, parts.reloaded, log, m)()
	warnOf(cfg, log)
	warnOpen(cfg, parts.guard.Anonymous(), frontLn.Addr(), log)
	return s.run(signals)
}

// waitFlag has serve wait for an entrepot that is still ending.
const waitFlag = "wait"

func addServeFlags(flags *pflag.FlagSet) {
	addKeyFlags(flags)
	addInitFlag(flags)
	flags.Bool(waitFlag, false, "wait for an entrepot that is still ending on the same cache directory")
}

const (
	// waitEvery is how often serve looks whether the one before has ended.
	waitEvery = 100 * time.Millisecond
	// waitPorts is for how long its ports may stay taken after it has given up the directory.
	waitPorts = 10 * time.Second
)

// openInTurn opens the listeners, once an entrepot that is still ending has given up the
// cache directory and its ports. Without --wait it does not wait for that, and the error
// says so. A signal ends the wait.
func (p *process) openInTurn(cmd *cobra.Command, cfg *configs.Config, signals <-chan os.Signal, log *zap.Logger) (front, operator net.Listener, err error) {
	ending := store.StillEnding(cfg.Cache.Dir)
	if ending == nil {
		return openListeners(cfg)
	}
	if wait, err := cmd.Flags().GetBool(waitFlag); err != nil || !wait {
		return nil, nil, errors.Join(err, ending)
	}
	log.Info("waiting for an entrepot that is still ending", zap.Error(ending))
	var until time.Time
	for {
		select {
		case <-time.After(waitEvery):
		case <-signals:
			return nil, nil, fmt.Errorf("ended by a signal: %w", ending)
		}
		if store.StillEnding(cfg.Cache.Dir) != nil {
			continue
		}
		if until.IsZero() {
			until = time.Now().Add(waitPorts)
		}
		front, operator, err = openListeners(cfg)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(until) {
			return front, operator, err
		}
	}
}

// warnOf says what an operator should know about a configuration that is valid.
func warnOf(cfg *configs.Config, log *zap.Logger) {
	for _, w := range cfg.Warnings() {
		log.Warn("setting is probably not what was meant", zap.String("setting", w))
	}
	logins := cfg.Auth.Htpasswd != "" || len(cfg.Auth.Tokens) > 0 || cfg.Auth.OIDC.Issuer != ""
	if logins && cfg.TLS.Cert == "" && !isLoopback(cfg.Listen) {
		log.Warn("clients send this cache their passwords and tokens in plain http: set tls, or end TLS in front of it and listen on loopback", zap.String("key", "auth"))
	}
	for name, u := range cfg.Upstreams {
		if u.TLS.Insecure {
			log.Warn("the upstream's certificate is not verified: who is on the path can read the credentials and say what a tag stands for",
				zap.String("upstream", name), zap.String("key", fmt.Sprintf("upstreams.%s.tls.insecure", name)))
		}
		if u.Access == configs.AccessPassthrough && cfg.TLS.Cert == "" && !isLoopback(cfg.Listen) {
			log.Warn("clients send this cache their passwords in plain http: set tls, or end TLS in front of it by a proxy that is in auth.trusted_proxies and sends X-Forwarded-Proto: https",
				zap.String("upstream", name), zap.String("key", fmt.Sprintf("upstreams.%s.access", name)))
		}
	}
}

// isLoopback tells whether nobody but this machine can reach address.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// openListeners opens what the configuration says to listen on. The second is
// nil where there is to be no admin listener.
func openListeners(cfg *configs.Config) (front, operator net.Listener, err error) {
	if front, err = listen("listen", "listen", cfg.Listen); err != nil {
		return nil, nil, err
	}
	if cfg.Admin.Listen == configs.AdminOff {
		return front, nil, nil
	}
	if operator, err = listen("admin.listen", "admin-listen", cfg.Admin.Listen); err != nil {
		if _, port, _ := net.SplitHostPort(front.Addr().String()); strings.HasSuffix(cfg.Admin.Listen, ":"+port) {
			err = fmt.Errorf("admin.listen: %s has the port of listen, %s; set one of them (--admin-listen, --listen) to another", cfg.Admin.Listen, cfg.Listen)
		}
		return nil, nil, errors.Join(err, front.Close())
	}
	return front, operator, nil
}

// closeListeners closes those that are there.
func closeListeners(list ...net.Listener) error {
	var errs []error
	for _, ln := range list {
		if ln != nil {
			errs = append(errs, ln.Close())
		}
	}
	return errors.Join(errs...)
}
