// Package server is the fasthttp front end: it reads requests, has them routed
// and answered by a Content, and speaks the distribution-spec and HTTP around
// what that gives. It keeps nothing and decides nothing about freshness.
//
// fasthttp is used nowhere else. Bodies go out by sendfile where the connection
// is plain TCP.
package server

import (
	"context"
	"crypto/tls"
	"hash/maphash"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// Content answers requests. All methods are safe for concurrent use. The strings of
// t, but for its upstream's name, are good until they return: the next request is
// read into the same bytes. Their
// context ends when the server gives up waiting for running requests. Errors
// are *oci.Error, else they are told as 500 without their text. The outcome
// counts with an error too.
type Content interface {
	// Manifest gives a manifest or index, its Bytes included.
	Manifest(ctx context.Context, t oci.Target, a rewrite.Accept) (*cache.Manifest, cache.Outcome, error)
	// Describe is Manifest for HEAD; Bytes may be nil.
	Describe(ctx context.Context, t oci.Target, a rewrite.Accept) (*cache.Manifest, cache.Outcome, error)
	// Blob opens a blob; the server closes it. hint is the span that will be sent
	// first. A From of -n stands for the last n bytes: the size may not be known.
	Blob(ctx context.Context, t oci.Target, hint oci.Span) (cache.Blob, cache.Outcome, error)
	// Stat gives a blob's size in bytes, for HEAD.
	Stat(ctx context.Context, t oci.Target) (int64, cache.Outcome, error)
	// Tags gives all tags, sorted.
	Tags(ctx context.Context, t oci.Target) ([]string, cache.Outcome, error)
	// Referrers gives the manifests whose subject is t.Digest.
	Referrers(ctx context.Context, t oci.Target) ([]v1.Descriptor, cache.Outcome, error)
	// Repositories gives up to n names of what is cached, as
	// "docker.io/library/nginx", sorted: the first that sort behind after, of one
	// upstream only if upstream is not empty. Fewer than n are the last ones.
	Repositories(ctx context.Context, upstream, after string, n int) ([]string, error)
}

// Options says what a Server is made of. Router and Content are required.
type Options struct {
	Router  *rewrite.Router
	Content Content
	// Grants decides on requests to upstreams at which each client has credentials
	// of its own; nil where there is no such upstream.
	Grants Grants
	// Log gets a line for each request; nil logs nothing.
	Log *zap.Logger
	// Metrics may be nil.
	Metrics *metrics.Metrics
	// Guard says who may pull what; nil lets everybody pull everything.
	Guard Guard
	// TLS, where set, makes every listener speak TLS.
	TLS *tls.Config
	// MaxConnections is the most client connections at a time; more are
	// refused with 503. Zero means 8192.
	MaxConnections int
	// MaxConnectionsPerAddress is the most of one client address (of IPv6, one /64);
	// more are refused with 429. Zero means no such limit. Proxies that Guard trusts
	// and SharedAddresses, behind which there are many clients, have none.
	MaxConnectionsPerAddress int
	SharedAddresses          []netip.Prefix
	// MaxRequests is the most requests at a time that are being answered, the
	// transfer of their bodies included; more are refused with 503. Zero means
	// 4096.
	MaxRequests int
	// BodyMemory is the most bytes of lists, and as much again of manifests, that
	// clients are reading at a time, however slowly; more are refused with 503.
	// Clients that read the same share its bytes. Zero means 64 MiB.
	BodyMemory int64
	// StallTimeout is for how long, a fifth more or less, a client may take
	// nothing of an answer before it is cut off. Whole transfers have no limit. Zero means two minutes.
	StallTimeout time.Duration
	// HeaderTimeout is for how long a client may take to send a request's
	// header. Zero means 10 seconds.
	HeaderTimeout time.Duration
	// IdleTimeout is for how long a connection without requests is kept. Zero
	// means two minutes.
	IdleTimeout time.Duration
}

// Limits that nobody had a reason to configure yet.
const (
	maxHeaderBytes  = 16 << 10
	writeBufferSize = 16 << 10
)

// Server answers the registry API. Make one with New.
type Server struct {
	router   *rewrite.Router
	content  Content
	admit    atomic.Pointer[admission]
	bypasses *bypasses
	watches  watches
	log      *zap.Logger
	metrics  *metrics.Metrics
	series   *seriesOf
	tls      *tls.Config
	stall    time.Duration
	http     *fasthttp.Server
	pool     sync.Pool // of *exchange

	// base is the context of all requests; giveUp ends it.
	base   context.Context
	giveUp context.CancelFunc
	// draining ends when Shutdown begins; drain ends it.
	draining context.Context
	drain    context.CancelFunc

	door        *door
	shared      []netip.Prefix
	maxRequests int64
	requests    atomic.Int64 // in flight
	longRanges  atomic.Int64 // places that are taken
	refused     refused
	lists       *holding       // the lists that clients are reading
	manifests   *holding       // and the manifests
	seed        maphash.Seed   // of the hashes of lists
	turns       chan struct{}  // a token for each long list that is being made
	refusing    chan struct{}  // a place for each refusal under way
	refusals    sync.WaitGroup // their goroutines

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	gone  chan struct{} // where set, closed when conns is empty
}

// New makes a server. It opens and starts nothing.
func New(o Options) *Server {
	s := &Server{
		router:  o.Router,
		content: o.Content,
		log:     o.Log,
		metrics: o.Metrics,
		tls:     o.TLS,
		stall:   or(o.StallTimeout, 2*time.Minute),
		conns:   make(map[net.Conn]struct{}),

		maxRequests: int64(or(o.MaxRequests, 4096)),
		refusing:    make(chan struct{}, maxRefusals),
	}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.metrics == nil {
		s.metrics = metrics.Discard()
	}
	s.series = newSeriesOf(s.metrics)
	s.bypasses = newBypasses(s.log)
	maxConnections := or(o.MaxConnections, 8192)
	s.door = newDoor(maxConnections, o.MaxConnectionsPerAddress, s.metrics.Connections)
	s.shared = o.SharedAddresses
	s.refused = refused{
		connections: s.metrics.Refused.WithLabelValues("connections"),
		address:     s.metrics.Refused.WithLabelValues("connections_per_address"),
		requests:    s.metrics.Refused.WithLabelValues("requests"),
		files:       s.metrics.Refused.WithLabelValues("files"),
		lists:       s.metrics.Refused.WithLabelValues("lists"),
	}
	bodyMemory := or(o.BodyMemory, 64<<20)
	s.lists = newHolding(bodyMemory, s.refused.lists)
	s.manifests = newHolding(bodyMemory, s.metrics.Refused.WithLabelValues("manifests"))
	s.seed = maphash.MakeSeed()
	s.turns = make(chan struct{}, turns())
	s.Admit(o.Guard, o.Grants)
	s.pool.New = func() any { return new(exchange) }
	s.base, s.giveUp = context.WithCancel(context.Background())
	s.draining, s.drain = context.WithCancel(context.Background())
	s.http = &fasthttp.Server{
		Handler:      s.handle,
		ErrorHandler: s.badRequest,
		// fasthttp waits for the first byte of a body whose length it is told before it
		// calls the handler; it may never come. So a push has a body of unknown length,
		// which nobody reads, and its connection ends with the answer.
		HeaderReceived: func(h *fasthttp.RequestHeader) (c fasthttp.RequestConfig) {
			if !h.IsGet() && !h.IsHead() {
				h.SetContentLength(-1)
				h.SetConnectionClose()
			}
			return c
		},
		ConnState: s.track,
		Logger:    connectionLog{s.log},
		// The door refuses, and in words. A connection has left by it a moment
		// before fasthttp's worker is free, so there are workers to spare.
		Concurrency:    2 * maxConnections,
		ReadBufferSize: maxHeaderBytes,
		// Wide enough for a header with a common manifest in one write, and
		// for a full TLS record.
		WriteBufferSize: writeBufferSize,
		ReadTimeout:     or(o.HeaderTimeout, 10*time.Second),
		// The deadline of each answer's beginning; while a body moves, the
		// exchange puts it off.
		WriteTimeout: s.stall,
		IdleTimeout:  or(o.IdleTimeout, 2*time.Minute),
		// A push is answered without reading its gigabytes: a byte is what
		// fasthttp reads of a body before it calls the handler.
		StreamRequestBody:            true,
		MaxRequestBodySize:           1,
		DisablePreParseMultipartForm: true,
		CloseOnShutdown:              true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
	}
	return s
}

// admission is who decides on a request. Each may be nil: then nobody is refused.
type admission struct {
	guard  Guard
	grants Grants
}

// Admit has guard and grants, each of which may be nil, decide on the requests that
// come from now on.
func (s *Server) Admit(guard Guard, grants Grants) {
	s.admit.Store(&admission{guard: guard, grants: grants})
}

// Serve answers on a listener until Shutdown, and then gives nil at once while
// running requests go on. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	g := gate{Listener: l, s: s}
	if s.tls != nil {
		return s.http.Serve(secureListener{g, s.tls})
	}
	return s.http.Serve(g)
}

// Shutdown closes the listeners and the connections that are not being answered
// (a request that has begun to come has a second to be complete) and waits for
// running requests until ctx ends; what runs then is cut off, and ctx's error
// given.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.giveUp()
	defer s.refusals.Wait() // they have ended with draining
	s.drain()
	for _, c := range s.open() {
		own(c).drain()
	}
	err := s.http.ShutdownWithContext(ctx)
	if err == nil || ctx.Err() == nil {
		return err
	}
	s.giveUp()
	s.mu.Lock()
	gone := make(chan struct{})
	if len(s.conns) == 0 {
		close(gone)
	} else {
		s.gone = gone
	}
	s.mu.Unlock()
	for _, c := range s.open() {
		_ = c.Close()
	}
	// Whoever was cut off notices at once; who does not is left behind.
	patience := time.NewTimer(5 * time.Second)
	defer patience.Stop()
	select {
	case <-gone:
	case <-patience.C:
	}
	return err
}

// open gives the connections of this moment.
func (s *Server) open() []net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.conns))
}

// refused counts what was refused, by limit.
type refused struct{ connections, address, requests, files, lists prometheus.Counter }

// track knows the open connections and what they do, for Shutdown.
func (s *Server) track(c net.Conn, state fasthttp.ConnState) {
	switch state {
	case fasthttp.StateNew:
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		if s.draining.Err() != nil { // Shutdown may not have seen it
			own(c).drain()
		}
	case fasthttp.StateActive:
		own(c).enter(reading)
	case fasthttp.StateIdle:
		own(c).enter(idle)
	case fasthttp.StateClosed, fasthttp.StateHijacked:
		s.mu.Lock()
		delete(s.conns, c)
		if s.gone != nil && len(s.conns) == 0 {
			close(s.gone)
			s.gone = nil
		}
		s.mu.Unlock()
	}
}

func or[T int | int64 | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

// connectionLog takes fasthttp's words on connections that broke: of use only
// to who looks for them.
type connectionLog struct{ log *zap.Logger }

func (l connectionLog) Printf(format string, args ...any) {
	l.log.Sugar().Debugf(format, args...)
}
