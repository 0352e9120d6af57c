package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/metrics"
)

// Check tells whether something is in order: nil where it is, else an error
// that is a sentence for the operator. It is called by one goroutine at a time.
type Check func(ctx context.Context) error

// Options are what a Server tells about.
type Options struct {
	// Metrics are exposed on /metrics.
	Metrics *metrics.Metrics
	// Alive is asked by /healthz: does the process still do its work? Nil is
	// yes for as long as it answers.
	Alive Check
	// Ready is asked by /readyz: may clients be sent here? Nil is yes.
	Ready Check
	// Degraded says in a sentence what is not in order although clients may be
	// sent here; empty where all is. /readyz tells it. Nil is nothing.
	Degraded func() string
	// API answers below /api/; nil leaves that out.
	API http.Handler
	// Guard wraps a handler and refuses requests without proof that they come from
	// an operator. It guards everything but /healthz and /readyz; nil guards nothing.
	Guard func(http.Handler) http.Handler
	// OpenMetrics leaves /metrics without Guard. Browsers must then name the listener
	// as in Hosts.
	OpenMetrics bool
	// TokenFile is the path of the file with the token that Guard takes. Refused
	// requests from this machine learn it. Empty if there is none.
	TokenFile string
	// Hosts are names of the listener, beside addresses and localhost. They count if
	// Guard is nil or OpenMetrics is set.
	Hosts []string
	// TLS, where set, makes the listener speak https.
	TLS *tls.Config
	// Log takes what goes wrong in serving; nil drops it.
	Log *zap.Logger
}

// Server is the operator's listener. Its methods may be called from several
// goroutines.
type Server struct {
	http *http.Server
	tls  *tls.Config
}

// index is what / answers.
const index = `entrepot
/metrics       Prometheus metrics
/healthz       is the process in order?
/readyz        may clients be sent here?
/api/v1/       the operator's API, which the program's commands use
/debug/pprof/  profiles of the Go runtime
`

// New makes a server that listens nowhere yet.
func New(o Options) *Server {
	log := o.Log
	if log == nil {
		log = zap.NewNop()
	}
	mux := http.NewServeMux()
	scrape := promhttp.InstrumentMetricHandler(o.Metrics.Registry, promhttp.HandlerFor(o.Metrics.Registry, promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: 4,
	}))
	mux.Handle("GET /metrics", scrape)
	mux.Handle("GET /healthz", newProbe("alive", o.Alive, nil))
	mux.Handle("GET /readyz", newProbe("ready", o.Ready, o.Degraded))
	if o.API != nil {
		mux.Handle("/api/", o.API)
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, index) // the client is gone where this fails
	})
	stdlog, err := zap.NewStdLogAt(log, zap.WarnLevel)
	if err != nil {
		stdlog = zap.NewStdLog(log)
	}
	var inner http.Handler = mux
	if o.Guard != nil {
		inner = naming(o.TokenFile, o.Guard, mux)
	}
	own := browsers{names: o.Hosts, named: o.Guard == nil || o.OpenMetrics}
	guarded := own.before(inner)
	scraped := guarded
	if o.OpenMetrics {
		scraped = own.before(scrape)
	}
	return &Server{tls: o.TLS, http: &http.Server{
		Handler: routed(mux, scraped, guarded),
		// No limit on the answer: a profile is written for as long as it was
		// asked for.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          stdlog,
	}}
}

// routed sends requests for health, which supervisors ask without credentials and by
// any name, to health, scrapes to metrics, and everything else to guarded, unknown
// paths too.
func routed(health, metrics, guarded http.Handler) http.Handler {
	open := http.NewServeMux()
	open.Handle("/", guarded)
	open.Handle("GET /metrics", metrics)
	open.Handle("GET /healthz", health)
	open.Handle("GET /readyz", health)
	return open
}

// Serve answers on ln until Shutdown, and closes it. It gives nil after a
// Shutdown, else why it ended.
func (s *Server) Serve(ln net.Listener) error {
	if s.tls != nil {
		ln = tls.NewListener(ln, s.tls)
	}
	if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown closes the listener and waits for running answers until ctx ends;
// it then cuts those that still run, and gives ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		_ = s.http.Close() // what it could say is that it was closed
	}
	return err
}
