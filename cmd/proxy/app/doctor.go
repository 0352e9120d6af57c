package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/doctor"
	"github.com/entrepot-dev/entrepot/doctor/client"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/operator"
)

// defaultImage is small.
const defaultImage = "docker.io/library/hello-world:latest"

// patience is how long one check may take.
const patience = 10 * time.Second

func newDoctor(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong with this host and the running proxy",
		Long: `Doctor looks at this host and at the proxy that runs with these settings: the
listeners, the configuration, its certificates, the cache directory and its disk, the files
that may be open, the clock, and each upstream, with its credentials and what it still grants. It
asks nothing that an upstream counts as a pull, and shows no secret.

With --url it looks at a cache on another machine, as the clients of this one see it.

With --client it prints what the configuration of a client on this host has to say, or
puts it into place with --write: what else the files say stays, and a copy of what was
there is kept beside them. No service is restarted; it is said what is to be.

Then the client pulls a small image, and the running proxy tells whether it was asked
for it: a client that fails at its mirror goes to the registry itself, without a word.
Where that happens the reasons that can be found are told. An image that was not there
before is removed again. With --root nothing is pulled without --image, because the
client of this host does not read those files.

It exits with 0 where nothing has failed, also where it warns, and with 1 elsewhere.`,
		Example: `  entrepot doctor
  entrepot doctor --config /etc/entrepot.yml --output json
  entrepot doctor --url http://cache:5000
  entrepot doctor --client docker
  entrepot doctor --client docker --image ghcr.io/org/app:1
  entrepot doctor --client containerd --url http://cache:5000 --write`,
		Args: cobra.NoArgs,
		RunE: does(p.doctor),
	}
	cmd.Flags().String("url", "", "`address` by which clients reach the cache, http://cache:5000")
	cmd.Flags().String("client", "", "`name` of a client: "+strings.Join(client.Names(), ", "))
	cmd.Flags().Bool("write", false, "put the client's configuration into place")
	cmd.Flags().String("image", defaultImage, "`reference` of the image that the client pulls")
	cmd.Flags().Bool("no-pull", false, "have the client pull nothing")
	cmd.Flags().String("root", "", "`directory` that stands for / where the client's files are looked for")
	addOfflineFlag(cmd.Flags())
	addOperatorFlags(cmd.Flags())
	return cmd
}

// examined is what the doctor prints.
type examined struct {
	Findings []doctor.Finding `json:"findings"`
	// Files are those of the client; nil where none was named.
	Files []clientFile `json:"files,omitempty"`
}

// doctorFlags is what the doctor was told.
type doctorFlags struct {
	asJSON, write, noPull    bool
	url, client, root, image string
}

func readDoctorFlags(cmd *cobra.Command) (f doctorFlags, err error) {
	if f.asJSON, err = asJSON(cmd); err != nil {
		return f, err
	}
	flags := cmd.Flags()
	for name, to := range map[string]*string{"url": &f.url, "client": &f.client, "root": &f.root, "image": &f.image} {
		if *to, err = flags.GetString(name); err != nil {
			return f, err
		}
	}
	if f.root != "" { // the files' paths are joined to it, and written
		if f.root, err = filepath.Abs(f.root); err != nil {
			return f, fmt.Errorf("--root: %w", err)
		}
	}
	if f.write, err = flags.GetBool("write"); err != nil {
		return f, err
	}
	if f.noPull, err = flags.GetBool("no-pull"); err != nil {
		return f, err
	}
	named, err := reference.ParseNormalizedNamed(f.image)
	if err != nil {
		return f, misuse{fmt.Errorf("--image: %q is no reference of an image, such as %s", f.image, defaultImage)}
	}
	f.image = reference.TagNameOnly(named).String()
	switch {
	case f.client != "" && !slices.Contains(client.Names(), f.client):
		return f, misuse{fmt.Errorf("--client: %q is not known; give one of %s", f.client, strings.Join(client.Names(), ", "))}
	case f.client == "" && (f.write || f.root != "" || f.noPull || flags.Changed("image")):
		return f, misuse{errors.New("--write, --root, --image and --no-pull are for --client")}
	}
	if f.url, err = cacheURL(f.url); err != nil {
		return f, misuse{err}
	}
	return f, nil
}

func (p *process) doctor(cmd *cobra.Command, _ []string) error {
	f, err := readDoctorFlags(cmd)
	if err != nil {
		return err
	}
	ctx, stop := p.interruptible(cmd.Context())
	defer stop()
	e := p.newExamination(ctx, cmd, f.url)
	defer e.end()
	result := examined{Findings: doctor.Run(ctx, e.checks, patience)}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if f.client != "" {
		switch ready := e.treat(ctx, f, &result); {
		case !ready || f.noPull:
		case f.root != "" && f.root != "/" && !cmd.Flags().Changed("image"):
			result.Findings = append(result.Findings, doctor.Finding{Check: f.client + " pull", Status: doctor.Warning,
				Seen:   "nothing was pulled: the " + f.client + " of this host does not read the files in " + f.root,
				Advice: "run this command without --root on the host that these files are for; to pull with this host's client all the same, name an image (--image)"})
		default:
			result.Findings = append(result.Findings, e.trace(ctx, f)...)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if f.asJSON {
		err = writeJSON(p.stdout, result)
	} else {
		err = writeExamined(p.stdout, p.page(), &result)
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
	url string
	// cfg are the settings; nil where they are wrong.
	cfg *configs.Config
	// front reaches url, and running is the API of the proxy there; nil where that is
	// not known.
	front   http.RoundTripper
	running *operator.Client
	checks  []doctor.Check
	end     func()
}

// newExamination finds out what there is to look at: the host and the proxy of these
// settings, or, where at is not empty, the cache there as its clients see it.
func (p *process) newExamination(ctx context.Context, cmd *cobra.Command, at string) *examination {
	e := &examination{url: at, end: func() {}}
	// Of a file that is wrong cfg has what finds the running proxy and its directory.
	cfg, loadErr := configs.LoadPartly(p.source(cmd, ""))
	remote := at != ""
	if loadErr == nil {
		e.cfg = cfg
	}
	var front http.RoundTripper = &http.Transport{TLSHandshakeTimeout: patience}
	var running *operator.Client
	o := &operation{ctx: ctx, cfg: cfg}
	end, err := p.connectRunning(o, isNamed(cmd) || remote)
	if err == nil {
		running, e.end = o.Client, func() { _ = end() }
	}
	if !remote {
		e.url, front = ownListener(listening(ctx, cfg, running))
	}
	if e.url != "" {
		e.checks = append(e.checks, doctor.Listener{URL: e.url, HTTP: front})
	}
	// One that answers here may have nothing to do with a cache elsewhere.
	if remote && err == nil {
		if _, err = (doctor.Cache{URL: e.url, HTTP: front, Operator: running}).Address(ctx); err != nil {
			running = nil
		}
	}
	if remote && !isNamed(cmd) && err != nil {
		err = errUnnamed
	}
	e.checks = append(e.checks, doctor.Admin{Client: running, Err: err, Optional: remote || cfg.Admin.Listen == configs.AdminOff})
	e.front, e.running = front, running
	if !remote {
		e.checks = append(e.checks, doctor.Configuration{File: p.configFile(cmd), Config: cfg, Err: loadErr, Given: given(cmd), Client: running})
		e.checks = append(e.checks, doctor.Directory{Cache: cfg.Cache, Client: running, Lock: filepath.Join(cfg.Cache.Dir, store.LockFile),
			Inspect: func() (bool, error) { return inspectDirectory(cfg.Cache.Dir) }, Strangers: func(uid int) (int, error) { return store.Strangers(cfg.Cache.Dir, uid) }},
			p.filesCheck(ctx, cfg, running))
		if files := cfg.CertificateFiles(); len(files) > 0 {
			e.checks = append(e.checks, doctor.Certificates{Files: files, Unusable: cfg.UnusableCertificates()})
		}
	}
	if running != nil || loadErr == nil && !remote {
		e.checks = append(e.checks, doctor.Upstreams{Ask: func(ctx context.Context) (*operator.Upstreams, error) { return p.askUpstreams(ctx, cfg, running) }, Unasked: unasked(cfg)})
	}
	if e.url != "" {
		e.checks = append(e.checks, doctor.Environment{URL: e.url, Proxy: http.ProxyFromEnvironment})
	}
	return e
}

// listening returns cfg with the listener that the running proxy has, which may have been
// started with other settings. It is cfg itself if running is nil or does not say.
func listening(ctx context.Context, cfg *configs.Config, running *operator.Client) *configs.Config {
	if running == nil {
		return cfg
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var c operator.Configuration
	if err := running.Get(ctx, "configuration", nil, &c); err != nil {
		return cfg
	}
	used := *cfg
	for key, to := range map[string]*string{"listen": &used.Listen, "tls.cert": &used.TLS.Cert, "tls.key": &used.TLS.Key} {
		if text, ok := c.Values[key]; ok && json.Unmarshal([]byte(text), to) != nil {
			return cfg
		}
	}
	return &used
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
	if flag := cmd.Flags().Lookup(offlineFlag); flag != nil && flag.Changed {
		keys = append(keys, "cache.offline")
	}
	return keys
}

// filesCheck is about the running proxy, or about one that this shell would start.
func (p *process) filesCheck(ctx context.Context, cfg *configs.Config, asked *operator.Client) doctor.Check {
	if asked != nil {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		var running operator.Process
		if err := asked.Get(ctx, "process", nil, &running); err == nil {
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

// askUpstreams has the running proxy ask the upstreams, or asks them itself if asked is nil.
// If cfg is offline, nobody asks them.
func (p *process) askUpstreams(ctx context.Context, cfg *configs.Config, asked *operator.Client) (*operator.Upstreams, error) {
	u := &operator.Upstreams{Offline: cfg.Cache.Offline}
	if u.Offline {
		return u, nil
	}
	if asked != nil {
		return u, asked.Get(ctx, "upstreams", nil, u)
	}
	b := buildOf(readBuildInfo())
	parts := &parts{environ: p.environ, build: b, log: zap.NewNop(), metrics: metrics.Discard(), mirrors: map[string]*mirror{}}
	defer parts.close()
	made, err := parts.newMirrors(cfg.Exact(nil))
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

// writeExamined prints the findings on page, and then the text of files on w: it is to be
// pasted, so that no line of it is wrapped.
func writeExamined(w, page io.Writer, e *examined) error {
	if err := writeFindings(page, e.Findings); err != nil {
		return err
	}
	for _, f := range e.Files {
		if err := f.print(w); err != nil {
			return err
		}
	}
	return nil
}

// writeFindings prints them. Some of it is what upstreams and programs say.
func writeFindings(w io.Writer, list []doctor.Finding) error {
	tw := newTable(w)
	for i, f := range list {
		seen, more, _ := strings.Cut(f.Seen, "\n")
		fmt.Fprintf(tw, "%s\t%s\t%s\n", f.Status, f.Check, printable(seen))
		for line := range strings.Lines(more) {
			fmt.Fprintf(tw, "\t\t%s\n", printable(strings.TrimRight(line, "\n")))
		}
		// Once for several that follow each other.
		if f.Advice != "" && (i+1 == len(list) || list[i+1].Advice != f.Advice) {
			fmt.Fprintf(tw, "\t\t→ %s\n", printable(f.Advice))
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	ok, warnings, failures := doctor.Counts(list)
	_, err := fmt.Fprintf(w, "%d ok, %d warnings, %d failures\n", ok, warnings, failures)
	return err
}
