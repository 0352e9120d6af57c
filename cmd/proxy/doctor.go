package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/doctor"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/operator"
)

// patience is how long one check may take.
const patience = 10 * time.Second

func newDoctor(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong with this host and the running proxy",
		Long: `Doctor looks at this host and at the proxy that runs with these settings: the
listeners, the configuration, the cache directory and its disk, the files that may be
open, the clock, and each upstream, with its credentials and what it still grants. It
asks nothing that an upstream counts as a pull, and shows no secret.

With --url it looks at a cache on another machine, as the clients of this one see it.

It exits with 0 where nothing has failed, also where it warns, and with 1 elsewhere.`,
		Example: `  entrepot doctor
  entrepot doctor --config /etc/entrepot.yml --output json
  entrepot doctor --url http://cache:5000`,
		Args: cobra.NoArgs,
		RunE: does(p.doctor),
	}
	cmd.Flags().String("url", "", "`address` by which clients reach the cache, http://cache:5000")
	addOperatorFlags(cmd.Flags())
	return cmd
}

// examined is what the doctor prints.
type examined struct {
	Findings []doctor.Finding `json:"findings"`
}

func (p *process) doctor(cmd *cobra.Command, _ []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	at, err := cmd.Flags().GetString("url")
	if err != nil {
		return err
	}
	if at, err = cacheURL(at); err != nil {
		return misuse{err}
	}
	ctx, stop := p.interruptible(cmd.Context())
	defer stop()
	e := p.newExamination(ctx, cmd, at)
	defer e.end()
	result := examined{Findings: doctor.Run(ctx, e.checks, patience)}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if asJSON {
		err = writeJSON(p.stdout, result)
	} else {
		err = writeFindings(p.stdout, result.Findings)
	}
	if err != nil {
		return err
	}
	if _, _, failures := doctor.Counts(result.Findings); failures > 0 {
		return fmt.Errorf("%d of %d checks have failed", failures, len(result.Findings))
	}
	return nil
}

// cacheURL reads --url; empty is empty. What has no scheme is http.
func cacheURL(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("--url: write the scheme, the host and the port of the cache alone, such as http://cache:5000")
	}
	return u.Scheme + "://" + u.Host, nil
}

// errUnnamed is why a cache on another machine is not asked.
var errUnnamed = errors.New("that of the cache is not known here")

// examination is what the doctor looks at, and by what. The caller calls end.
type examination struct {
	url    string
	checks []doctor.Check
	end    func()
}

// newExamination finds out what there is to look at: the host and the proxy of these
// settings, or, where at is not empty, the cache there as its clients see it.
func (p *process) newExamination(ctx context.Context, cmd *cobra.Command, at string) *examination {
	e := &examination{url: at, end: func() {}}
	cfg, loadErr := p.load(cmd, "")
	remote := at != ""
	if loadErr != nil {
		cfg = nil
	}
	var front http.RoundTripper = &http.Transport{TLSHandshakeTimeout: patience}
	if !remote && cfg != nil {
		e.url, front = ownListener(cfg)
	}
	if e.url != "" {
		e.checks = append(e.checks, doctor.Listener{URL: e.url, HTTP: front})
	}
	var client *operator.Client
	if cfg != nil {
		o := &operation{ctx: ctx, cfg: cfg}
		err := errUnnamed
		if !remote || isNamed(cmd) {
			var end func() error
			if end, err = p.connectRunning(o, isNamed(cmd)); err == nil {
				client, e.end = o.Client, func() { _ = end() }
			}
		}
		e.checks = append(e.checks, doctor.Admin{Client: client, Err: err, Optional: remote || cfg.Admin.Listen == configs.AdminOff})
	}
	if !remote {
		e.checks = append(e.checks, doctor.Configuration{File: p.configFile(cmd), Config: cfg, Err: loadErr, Given: given(cmd), Client: client})
		if cfg != nil {
			e.checks = append(e.checks, doctor.Directory{Cache: cfg.Cache, Client: client, Lock: filepath.Join(cfg.Cache.Dir, store.LockFile)},
				p.filesCheck(ctx, cfg, client))
		}
	}
	if client != nil || cfg != nil && !remote {
		e.checks = append(e.checks, doctor.Upstreams{Ask: func(ctx context.Context) (*operator.Upstreams, error) { return p.askUpstreams(ctx, cfg, client) }, Unasked: unasked(cfg)})
	}
	if e.url != "" {
		e.checks = append(e.checks, doctor.Environment{URL: e.url, Proxy: http.ProxyFromEnvironment})
	}
	return e
}

// ownListener gives the URL of the listener that cfg opens, and what asks it.
func ownListener(cfg *configs.Config) (string, http.RoundTripper) {
	t := &http.Transport{
		TLSHandshakeTimeout: patience,
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSelf(ctx, cfg.Listen) },
	}
	if cfg.TLS.Cert == "" {
		return "http://" + reachable(cfg.Listen), t
	}
	at := "https://" + reachable(cfg.Listen)
	secure, err := onlyCertificate("tls", cfg.TLS)
	if err != nil {
		return at, broken{err}
	}
	t.TLSClientConfig = secure
	return at, t
}

// broken sends nothing, for a reason.
type broken struct{ err error }

func (b broken) RoundTrip(*http.Request) (*http.Response, error) { return nil, b.err }

// given are the keys that flags of cmd have set.
func given(cmd *cobra.Command) []string {
	var keys []string
	for _, f := range keyFlags {
		if flag := cmd.Flags().Lookup(f.name); flag != nil && flag.Changed {
			keys = append(keys, f.key)
		}
	}
	return keys
}

// filesCheck is about the running proxy, or about one that this shell would start.
func (p *process) filesCheck(ctx context.Context, cfg *configs.Config, client *operator.Client) doctor.Check {
	if client != nil {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		var running operator.Process
		if err := client.Get(ctx, "process", nil, &running); err == nil {
			return doctor.Files{Allowed: running.OpenFiles, Wanted: running.OpenFilesWanted, Whose: "the running entrepot"}
		}
	}
	return doctor.Files{Allowed: openFiles(), Wanted: filesFor(cfg), Whose: "what this shell starts"}
}

// unasked are the upstreams of cfg that are there by default, as they are by default;
// the default upstream is not among them.
func unasked(cfg *configs.Config) map[string]bool {
	list := map[string]bool{}
	for name, u := range configs.Default().Upstreams {
		list[name] = name != cfg.DefaultUpstream && reflect.DeepEqual(u, cfg.Upstreams[name])
	}
	return list
}

// askUpstreams has the running proxy ask the upstreams, or asks them itself where
// client is nil.
func (p *process) askUpstreams(ctx context.Context, cfg *configs.Config, client *operator.Client) (*operator.Upstreams, error) {
	u := &operator.Upstreams{Offline: cfg.Cache.Offline}
	if client != nil {
		return u, client.Get(ctx, "upstreams", nil, u)
	}
	if u.Offline {
		return u, nil
	}
	b := buildOf(readBuildInfo())
	parts := &parts{environ: p.environ, build: b, log: zap.NewNop(), metrics: metrics.Discard(), mirrors: map[string]*mirror{}}
	defer parts.close()
	made, err := parts.newMirrors(cfg)
	for name, n := range made {
		parts.mirrors[name] = n.mirror()
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience-time.Second)
	defer cancel()
	u.Endpoints = parts.examine(ctx)
	return u, nil
}

// writeFindings prints them for people.
func writeFindings(w io.Writer, list []doctor.Finding) error {
	tw := newTable(w)
	for i, f := range list {
		seen, more, _ := strings.Cut(f.Seen, "\n")
		fmt.Fprintf(tw, "%s\t%s\t%s\n", f.Status, f.Check, seen)
		for line := range strings.Lines(more) {
			fmt.Fprintf(tw, "\t\t%s\n", strings.TrimRight(line, "\n"))
		}
		// Once for several that follow each other.
		if f.Advice != "" && (i+1 == len(list) || list[i+1].Advice != f.Advice) {
			fmt.Fprintf(tw, "\t\t→ %s\n", f.Advice)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	ok, warnings, failures := doctor.Counts(list)
	_, err := fmt.Fprintf(w, "%d ok, %d warnings, %d failures\n", ok, warnings, failures)
	return err
}
