package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/admin"
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/doctor"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/operator"
)

// askTimeout bounds the question whether an entrepot runs.
const askTimeout = 5 * time.Second

// operator makes the operator's API of the parts.
// load reads the configuration again; nil where nothing is served.
func (p *parts) operator(cfg *configs.Config, file string, load func() (*configs.Config, error)) *operator.API {
	o := operator.Options{
		Cache: p.cache, Router: p.router, Version: p.build.Version, CacheDir: absolute(cfg.Cache.Dir), Log: p.log,
		Private: p.isPrivate, Examine: p.examine, Process: operator.Process{PID: os.Getpid(), UID: os.Getuid(), OpenFiles: openFiles(), OpenFilesWanted: filesFor(p.started)},
	}
	if load != nil {
		o.Reload = func() (operator.Reloaded, error) { return p.follow(load) }
		o.Watch = p.watch
		o.Counts = p.metrics
		o.Configuration = func() operator.Configuration { return p.configuration(file, load) }
	}
	return operator.New(o)
}

// isPrivate tells whether each client has what its own credentials can pull of an
// upstream.
func (p *parts) isPrivate(upstream string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.mirrors[upstream]
	return m != nil && m.configured.Access == configs.AccessPassthrough
}

// operation is an operator's command that has been given what it works on.
type operation struct {
	*operator.Client
	// ctx ends at a signal.
	ctx context.Context
	cfg *configs.Config
	// broken is what is wrong with the configuration file, of which cfg has what could be
	// read: enough to find a running proxy. Nil if nothing is.
	broken error
	// running is set where a running proxy does the work, else this process does.
	running bool
}

// operates makes what a command does of f, which uses the operator's API: that of the
// proxy that runs with these settings, else of this process on the cache directory.
func (p *process) operates(f func(o *operation, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return p.operatesBy(p.connect, f)
}

// asks makes what a command does of f, which uses the operator's API of the proxy that
// runs with these settings.
func (p *process) asks(f func(o *operation, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return p.operatesBy(func(o *operation, cmd *cobra.Command) (func() error, error) {
		end, err := p.connectRunning(o, isNamed(cmd))
		if err != nil && o.broken != nil {
			err = fmt.Errorf("%w\n%w", err, o.broken)
		}
		return end, err
	}, f)
}

func (p *process) operatesBy(connect func(*operation, *cobra.Command) (end func() error, err error), f func(o *operation, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return does(func(cmd *cobra.Command, args []string) (err error) {
		cfg, broken, err := p.loadToAsk(cmd)
		if err != nil {
			return err
		}
		ctx, stop := p.interruptible(cmd.Context())
		defer stop()
		o := &operation{ctx: ctx, cfg: cfg, broken: broken}
		end, err := connect(o, cmd)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, end()) }()
		if err := f(o, cmd, args); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return told(err)
		}
		return nil
	})
}

// told gives the error of a command for what the API has said: what was not understood
// is one of usage.
func told(err error) error {
	if e := (*operator.Error)(nil); errors.As(err, &e) && e.Status == http.StatusBadRequest {
		return misuse{err}
	}
	return err
}

// errInterrupted is why a command ended that was asked to.
var errInterrupted = errors.New("interrupted: what was done until now is kept")

// interruptible gives a context that ends at a signal. The caller calls stop.
func (p *process) interruptible(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals, unnotify := p.signals()
	// It ends with ctx.
	go func() {
		select {
		case <-signals:
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		unnotify()
	}
}

// connect gives o its client. The caller calls end when o is done.
func (p *process) connect(o *operation, cmd *cobra.Command) (end func() error, err error) {
	named := isNamed(cmd)
	end, err = p.connectRunning(o, named)
	switch {
	case err == nil:
		o.running = true
		p.warnBroken(o)
		return end, nil
	case o.broken != nil: // a command alone needs all of it
		return nil, fmt.Errorf("%w\nand no running entrepot can be asked instead: %w", o.broken, err)
	case named || !errors.Is(err, errNotRunning):
		return nil, err
	}
	if none := checkDirectory(cmd, o.cfg.Cache.Dir); none != nil {
		return nil, none
	}
	end, here := p.connectDirectory(o)
	if errors.Is(here, store.ErrInUse) {
		if o.cfg.Admin.Listen == configs.AdminOff {
			return nil, fmt.Errorf("%w; and admin.listen is off, so that it can not be asked to do it", here)
		}
		return nil, fmt.Errorf("%w; and it can not be asked to do it: %w", here, err)
	}
	return end, here
}

// warnBroken says that the configuration file is wrong, and that the running proxy was found
// all the same.
func (p *process) warnBroken(o *operation) {
	if o.broken != nil {
		fmt.Fprintf(p.stderr, "entrepot: warning: %v\nentrepot: warning: the running entrepot, which uses the configuration that it read before, is asked all the same\n", o.broken)
	}
}

// isNamed tells whether the command line names the admin listener.
func isNamed(cmd *cobra.Command) bool {
	flag := cmd.Flags().Lookup("admin-listen")
	return flag != nil && flag.Changed
}

// errNotRunning says that no proxy with these settings answers.
var errNotRunning = errors.New("no entrepot runs with these settings")

// errNoToken says that the running proxy's token cannot be used.
var errNoToken = errors.New("cannot use the entrepot")

// connectRunning uses the API of a running proxy: the one at the configured address,
// if it has the configured cache directory, or if its address was named or its
// directory was not; else the one whose token file is in the cache directory, which says
// its address: the configuration may have changed since that started. The proxy's token
// file proves that this user may use it. The caller calls end when o is done.
func (p *process) connectRunning(o *operation, named bool) (end func() error, err error) {
	end, err = p.connectAt(o, named)
	if named || o.cfg.Admin.Listen == configs.AdminOff || !errors.Is(err, errNotRunning) {
		return end, err
	}
	token, unread := admin.ReadToken(filepath.Join(absolute(o.cfg.Cache.Dir), admin.TokenFile))
	if unread != nil || token.Listener == o.cfg.Admin.Listen {
		return end, err
	}
	moved := *o.cfg
	moved.Admin.Listen = token.Listener
	there := &operation{ctx: o.ctx, cfg: &moved}
	endThere, failed := p.connectAt(there, false)
	if failed != nil { // it has ended
		return end, err
	}
	o.Client = there.Client
	return endThere, nil
}

// connectAt is connectRunning for the configured address alone.
func (p *process) connectAt(o *operation, named bool) (end func() error, err error) {
	if o.cfg.Admin.Listen == configs.AdminOff {
		if named {
			return nil, errors.New("admin.listen is off, so that there is nothing to ask; set it to an address, such as 127.0.0.1:5001")
		}
		return nil, errNotRunning
	}
	listener, err := newOperatorListener(o.cfg.Admin)
	if err != nil {
		return nil, err
	}
	o.Client = &operator.Client{HTTP: &http.Client{Transport: listener}, Base: listener.url("")}
	ctx, cancel := context.WithTimeout(o.ctx, askTimeout)
	defer cancel()
	at, dir := reachable(o.cfg.Admin.Listen), absolute(o.cfg.Cache.Dir)
	var s operator.Status
	place, err := listener.authenticate(ctx, o.cfg.Admin, named)
	if err == nil {
		err = o.Get(ctx, "status", nil, &s)
	}
	anyDir := named || o.cfg.Cache.HasDefaultDir()
	switch {
	case err == nil && !anyDir && s.CacheDir != dir:
		err = fmt.Errorf("%w: the one at %s has its cache in %s, and not in %s", errNotRunning, at, s.CacheDir, o.cfg.Cache.Dir)
	case errors.Is(err, errNoToken) && !anyDir && filepath.Dir(place) != dir:
		err = fmt.Errorf("%w: the one at %s may have another cache directory than %s: %w", errNotRunning, at, o.cfg.Cache.Dir, err)
	case errors.Is(err, errNoToken): // it says all
	case errors.Is(err, syscall.ECONNREFUSED) && named:
		err = fmt.Errorf("%w: none listens at %s; --admin-listen asks a proxy alone, so %s was not looked at: leave it out to work on that directory", errNotRunning, at, o.cfg.Cache.Dir)
	case errors.Is(err, syscall.ECONNREFUSED):
		err = fmt.Errorf("%w: none listens at %s: start it, or name its admin.listen (--admin-listen, ENTREPOT_ADMIN_LISTEN)", errNotRunning, at)
	case !named && isStranger(err):
		err = fmt.Errorf("%w: what listens at %s is none: %w", errNotRunning, at, unwrapURL(err))
	case err != nil:
		err = fmt.Errorf("ask the entrepot at %s: %w", at, unwrapURL(err))
	}
	if err != nil {
		listener.transport.CloseIdleConnections()
		return nil, err
	}
	return func() error {
		listener.transport.CloseIdleConnections()
		return nil
	}, nil
}

// isStranger tells whether an error says that what answers has no operator's API: then it
// is another program. The directory's lock says whether an entrepot runs all the same.
func isStranger(err error) bool {
	e := (*operator.Error)(nil)
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// absolute gives the path of dir from the root, where that can be told.
func absolute(dir string) string {
	if path, err := filepath.Abs(dir); err == nil {
		return path
	}
	return dir
}

// unwrapURL leaves away what net/http puts before an error: method and URL, which
// people who type a command have not asked for.
func unwrapURL(err error) error {
	if e := (*url.Error)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// checkDirectory returns why cmd cannot use dir: it is not a cache, and cmd begins none
// there. Only a command with --init begins one: in a directory that is empty or missing,
// and in any with that flag. Nothing is written.
func checkDirectory(cmd *cobra.Command, dir string) error {
	flag := cmd.Flags().Lookup(initFlag)
	if flag == nil {
		err := store.Require(dir)
		if errors.Is(err, store.ErrNoCache) {
			err = fmt.Errorf("%w; name the directory of one (--cache-dir, ENTREPOT_CACHE_DIR, cache.dir); serve, warm and import begin one", err)
		}
		return err
	}
	if flag.Value.String() == "true" {
		_, _, err := store.Inspect(dir)
		return inCacheDir(err)
	}
	_, err := inspectDirectory(dir)
	return err
}

// inspectDirectory reports whether dir, which no process holds, is a cache. Its error says why
// serve does not begin one there without --init, or does not serve it.
func inspectDirectory(dir string) (complete bool, err error) {
	kind, other, err := store.Inspect(dir)
	switch {
	case err != nil:
		return false, inCacheDir(err)
	case kind == store.Occupied:
		return false, fmt.Errorf("cache.dir: %w %s, which holds other files (%s); name an empty directory (--cache-dir, ENTREPOT_CACHE_DIR, cache.dir), or begin a cache beside those files with --init", store.ErrNoCache, dir, other)
	}
	missing := (*store.BlobsMissingError)(nil)
	if kind == store.Complete && errors.As(store.Readable(dir, true), &missing) && countsContent(dir) {
		return false, inCacheDir(missing)
	}
	return kind == store.Complete, nil
}

// countsContent reports whether the index in dir, which no process holds, counts any content.
func countsContent(dir string) bool {
	ix, _, err := index.OpenWith(filepath.Join(dir, "index.db"), index.Options{ReadOnly: true})
	if err != nil {
		return false
	}
	blobs, _ := ix.Totals()
	return ix.Close() == nil && blobs > 0
}

// inCacheDir adds the setting to an error about the cache directory; nil stays nil.
func inCacheDir(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cache.dir: %w", err)
}

// connectDirectory serves the API of the cache directory to this very process.
func (p *process) connectDirectory(o *operation) (end func() error, err error) {
	b := buildOf(readBuildInfo())
	o.cfg.Cache.ScrubRate = 0 // nothing goes on behind the command
	log, _, err := newLog(configs.Log{Level: "warn", Format: o.cfg.Log.Format}, p.stderr)
	if err != nil {
		return nil, err
	}
	// What may not be looked at is not gone: no command works as if nothing were cached.
	var denied *store.DeniedError
	if errors.As(store.Listable(o.cfg.Cache.Dir), &denied) {
		return nil, fmt.Errorf("cache.dir: %w", denied)
	}
	parts, err := wire(o.cfg, o.cfg, p.environ, b, log, metrics.New(b.Version, b.Revision, b.Go))
	if err != nil {
		return nil, err
	}
	s := &http.Server{Handler: parts.operator(o.cfg, "", nil), ReadHeaderTimeout: time.Minute, BaseContext: func(net.Listener) context.Context { return o.ctx }}
	ln := newPipeListener()
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(ln) }) // it ends by Shutdown
	transport := &http.Transport{DialContext: ln.dial}
	o.Client = &operator.Client{HTTP: &http.Client{Transport: transport}, Base: "http://entrepot"}
	return func() error {
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		err := s.Shutdown(ctx)
		serving.Wait()
		err = errors.Join(err, parts.cache.Close(ctx))
		parts.close()
		_ = log.Sync() // of a terminal that can not
		return err
	}, nil
}

// pipeListener accepts connections of this process alone.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newPipeListener() *pipeListener {
	ln := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	ln.close = sync.OnceFunc(func() { close(ln.closed) })
	return ln
}

func (ln *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case ln.conns <- server:
		return client, nil
	case <-ln.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (ln *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-ln.conns:
		return conn, nil
	case <-ln.closed:
		return nil, net.ErrClosed
	}
}

func (ln *pipeListener) Close() error {
	ln.close()
	return nil
}

func (ln *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// operatorListener is the admin listener that the same settings would open, as seen
// by the program's commands. The caller closes the transport's connections.
type operatorListener struct {
	// listen is the address that is dialled.
	listen, scheme string
	token          string // empty until authenticate has found it
	transport      *http.Transport
}

func newOperatorListener(a configs.Admin) (*operatorListener, error) {
	o := &operatorListener{listen: a.Listen, scheme: "http"}
	// No proxy from the environment: it would be asked for this machine's own
	// address.
	o.transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSelf(ctx, o.listen) }}
	if a.TLS.Cert != "" {
		var err error
		if o.transport.TLSClientConfig, err = onlyCertificate("admin.tls", a.TLS); err != nil {
			return nil, err
		}
		o.scheme = "https"
	}
	return o, nil
}

// authenticate finds the token that the listener takes: the one in the file that the
// listener names, or else that of admin.auth.token_file. place is the path of the named
// file, if there is one. If the listener needs no token, there is none, and no error.
// An error is errNoToken if there is no token to use, with the reason and the remedy.
func (o *operatorListener) authenticate(ctx context.Context, a configs.Admin, named bool) (place string, err error) {
	place, err = o.readNamed(ctx, named)
	if a.Auth.TokenFile != "" && errors.Is(err, errNoToken) {
		o.token, err = readToken(a.Auth.TokenFile)
	}
	return place, err
}

// readNamed is authenticate without admin.auth.token_file.
//
// The listener may be an impostor: any user can open its port while Entrepot does not
// run. So an address that nobody named on the command line gets only a token that was
// made for it: Entrepot held the address when it made the token, and takes a new one
// at each start.
//
// A listener on another machine is given no token of this one, however it is named.
func (o *operatorListener) readNamed(ctx context.Context, named bool) (place string, err error) {
	self := false
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		self = isOneHost(c.Conn.LocalAddr(), c.Conn.RemoteAddr())
	}})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url(operator.Prefix+"status"), nil)
	if err != nil {
		return "", err
	}
	req.Close = true // a later request must not take this connection, which may lead elsewhere
	resp, err := o.transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	_ = resp.Body.Close() // nothing of it is needed
	place = resp.Header.Get(admin.TokenHeader)
	if resp.StatusCode != http.StatusUnauthorized {
		return "", nil
	}
	at := reachable(o.listen)
	if place == "" || !self {
		return "", fmt.Errorf("%w at %s: it has no token file on this machine; run this command where it runs (docker exec, kubectl exec), or give both the same admin.auth.token_file", errNoToken, at)
	}
	token, err := admin.ReadToken(place)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return place, fmt.Errorf("%w at %s: this user may not read its token file %s; run this command as %s", errNoToken, at, place, usersOf(place))
	case errors.Is(err, fs.ErrNotExist):
		return place, fmt.Errorf("%w at %s: its token file %s is not here; if it runs in a container, run this command there (docker exec, kubectl exec) or give both the same admin.auth.token_file; if the file was removed, restart it", errNoToken, at, place)
	case err != nil:
		return place, fmt.Errorf("%w at %s: its token file: %w; restart entrepot, which makes a new one", errNoToken, at, err)
	case !named && !isPort(token.Listener, o.listen):
		return place, fmt.Errorf("%w at %s: %s is the token file of the one at %s; name that address by --admin-listen", errNoToken, at, place, token.Listener)
	case !named:
		o.listen = token.Listener
	}
	o.token = token.Secret
	return place, nil
}

// isOneHost tells whether both ends of a connection are on this machine: they have the
// same IP address, or both are loopback.
func isOneHost(local, remote net.Addr) bool {
	one, err := netip.ParseAddrPort(local.String())
	other, also := netip.ParseAddrPort(remote.String())
	a, b := one.Addr().Unmap(), other.Addr().Unmap()
	return err == nil && also == nil && (a == b || a.IsLoopback() && b.IsLoopback())
}

// isPort tells whether two addresses have the same port.
func isPort(a, b string) bool {
	_, one, err := net.SplitHostPort(a)
	_, other, also := net.SplitHostPort(b)
	return err == nil && also == nil && one == other
}

// usersOf says which users may read a file in a private directory.
func usersOf(path string) string {
	for _, p := range []string{path, filepath.Dir(path)} {
		if info, err := os.Stat(p); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
				return fmt.Sprintf("the user that it runs as (%s) or as root", doctor.UserName(int(st.Uid)))
			}
		}
	}
	return "the user that it runs as, or as root"
}

// onlyCertificate takes the certificate of c, which the settings at key name, and no
// other: the name in it is not this machine's localhost.
func onlyCertificate(key string, c configs.ServerTLS) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // #nosec G402 -- VerifyConnection takes one certificate alone
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 || !bytes.Equal(s.PeerCertificates[0].Raw, pair.Certificate[0]) {
				return fmt.Errorf("the listener shows another certificate than %s.cert", key)
			}
			return nil
		},
	}, nil
}

// url gives the URL of a path of the listener.
func (o *operatorListener) url(path string) string {
	return o.scheme + "://" + reachable(o.listen) + path
}

// RoundTrip sends a request, with the token.
func (o *operatorListener) RoundTrip(req *http.Request) (*http.Response, error) {
	if o.token != "" {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", "Bearer "+o.token)
	}
	return o.transport.RoundTrip(req)
}
