// Package metrics declares every Prometheus collector of Entrepot in one place,
// so that one file tells all that can be watched.
//
// Labels are bounded: upstream is a configured name, endpoint a configured host,
// the others are small fixed sets. No label ever holds a repository, a tag, a
// digest or a client's address.
package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metrics holds the collectors. Its fields are safe for concurrent use. Parts
// that record are handed the whole; each touches its own fields only.
type Metrics struct {
	// Registry is what the admin listener exposes.
	Registry *prometheus.Registry

	// Requests counts client requests by upstream ("" where none was found),
	// kind (ping, manifest, blob, tags, referrers, catalog, other), outcome
	// (hit, stale, revalidated, miss, collapsed, error, none) and HTTP status.
	Requests *prometheus.CounterVec
	// RequestSeconds is the time from a request's header to the first byte of
	// its answer, by kind and outcome.
	RequestSeconds *prometheus.HistogramVec
	// TransferSeconds is the time to the last byte of a body, by kind and outcome.
	TransferSeconds *prometheus.HistogramVec
	// ClientBytes counts body bytes sent to clients, without those of errors, by upstream and kind.
	ClientBytes *prometheus.CounterVec
	// RequestsInFlight is the number of requests being answered.
	RequestsInFlight prometheus.Gauge

	// Connections is the number of client connections.
	Connections prometheus.Gauge
	// Refused counts what was refused because a limit was reached, by limit
	// (connections, connections_per_address, requests, fills, manifests, lists, grants, and
	// files: those that the system lets the process open).
	Refused *prometheus.CounterVec
	// Denied counts requests that were refused because of who asked, by reason
	// (anonymous, credentials, rule, issuer, busy).
	Denied *prometheus.CounterVec
	// LogDropped counts log lines that were dropped because the reader of the log
	// was too slow or gone.
	LogDropped prometheus.Counter
	// CertificateSeconds is how long until the certificates of a configured file end, negative
	// after their end, by role (listener, client_ca, admin_listener, admin_client_ca,
	// upstream_client, upstream_ca, oidc_ca) and upstream ("" if for none).
	CertificateSeconds *prometheus.GaugeVec
	// Limits are the limits in force, by the key below "limits" and "files".
	Limits *prometheus.GaugeVec

	// UpstreamRequests counts requests to upstreams, by upstream, operation
	// (resolve, manifest, stat, blob, tags, referrers, token, probe, examine) and HTTP status
	// ("error" where none came).
	UpstreamRequests *prometheus.CounterVec
	// UpstreamSeconds is the time to an upstream's response header, by
	// upstream and operation.
	UpstreamSeconds *prometheus.HistogramVec
	// UpstreamBytes counts body bytes read from upstreams.
	UpstreamBytes *prometheus.CounterVec
	// UpstreamErrors counts failures by upstream and reason (connect, tls,
	// timeout, stall, status, ratelimit, protocol, canceled, other; open: not
	// sent, for the endpoint is left alone; held: not sent, for the upstream's
	// rate limit would refuse it).
	UpstreamErrors *prometheus.CounterVec
	// EndpointState is the state of an endpoint's circuit breaker, by upstream
	// and endpoint: 0 closed, 1 half-open, 2 open. EndpointOpenings counts how
	// often it has opened.
	EndpointState    *prometheus.GaugeVec
	EndpointOpenings *prometheus.CounterVec
	// UpstreamRetries counts attempts after the first, by upstream.
	UpstreamRetries *prometheus.CounterVec
	// TokenFetches counts requests to token servers, by upstream and result
	// (ok, refused, error).
	TokenFetches *prometheus.CounterVec
	// GrantChecks counts questions to upstreams whether someone may pull, by upstream,
	// whose right it is (everyone, client) and result (granted, refused, error), and
	// GrantsStretched what was admitted on a grant past its lease while the upstream
	// could not be asked.
	GrantChecks     *prometheus.CounterVec
	GrantsStretched *prometheus.CounterVec
	// RateLimit and RateRemaining are the last values of an upstream's
	// ratelimit-limit and ratelimit-remaining headers, and RateReset is when
	// its window ends at the latest, in Unix time. An upstream that never sent
	// them has no series; what remains is not known after the window's end.
	RateLimit     *prometheus.GaugeVec
	RateRemaining *prometheus.GaugeVec
	RateReset     *prometheus.GaugeVec
	// RateReserve is how many of RateRemaining are kept for what isn't cached.
	RateReserve *prometheus.GaugeVec
	// UpstreamPulls counts the manifests that were fetched by GET, which is
	// what upstreams count, and PullsSaved the clients' GETs of manifests that
	// were answered without one.
	UpstreamPulls *prometheus.CounterVec
	PullsSaved    *prometheus.CounterVec
	// TagMoves counts the tags that were seen to move. on_move: follow, warn,
	// hold, block, as their rules say.
	TagMoves *prometheus.CounterVec
	// LedgerDropped counts observations of tags that the ledger had no room for. kind:
	// ended, standing.
	LedgerDropped *prometheus.CounterVec

	// Fills counts ended fills by upstream and result (ok, error, mismatch,
	// canceled).
	Fills *prometheus.CounterVec
	// FillsInFlight is the number of blobs being fetched.
	FillsInFlight prometheus.Gauge
	// Prefetches counts blobs whose fetch began before a client asked, by
	// upstream.
	Prefetches *prometheus.CounterVec
	// FillResumes counts upstream transfers continued by Range after a break.
	FillResumes *prometheus.CounterVec
	// DigestMismatches counts bytes that were not the digest's, by upstream.
	DigestMismatches *prometheus.CounterVec
	// CacheBytes and CacheBlobs are the content on disk.
	CacheBytes prometheus.Gauge
	CacheBlobs prometheus.Gauge
	// Damaged counts stored content that was found to be damaged, by how it was
	// found (open, serving, scrub).
	Damaged *prometheus.CounterVec
	// Scrubbed counts bytes read by passes over all that is stored, Healed what
	// they found damaged and fetched again; ScrubFinished is when the last pass
	// ended, in seconds since 1970.
	Scrubbed      prometheus.Counter
	Healed        prometheus.Counter
	ScrubFinished prometheus.Gauge
	// DiskDegraded is 1 while the cache's disk fails, by cause (full, read-only,
	// io, files, permission, missing, other).
	DiskDegraded *prometheus.GaugeVec
	// PassedOn counts blobs that were sent to a client without being kept, by
	// upstream.
	PassedOn *prometheus.CounterVec
	// CacheLimit is what the content and the parts may have in bytes, and
	// CacheParts what parts of content that is not complete have on disk.
	CacheLimit prometheus.Gauge
	CacheParts prometheus.Gauge
	// MemoryHits and MemoryMisses count look-ups in the memory tier.
	MemoryHits   prometheus.Counter
	MemoryMisses prometheus.Counter
	// Evictions and EvictedBytes count what was dropped from disk.
	Evictions    prometheus.Counter
	EvictedBytes prometheus.Counter
}

// New makes the collectors in a registry of their own, with those of the Go
// runtime and the process. version, revision and goVersion become labels of
// entrepot_build_info.
func New(version, revision, goVersion string) *Metrics {
	reg := prometheus.NewRegistry()
	f := factory{reg}
	m := &Metrics{
		Registry: reg,

		Requests:           f.counters("requests_total", "Client requests.", "upstream", "kind", "outcome", "status"),
		RequestSeconds:     f.histograms("request_duration_seconds", "Time from a request to the first byte of its answer.", "kind", "outcome"),
		TransferSeconds:    f.histograms("transfer_duration_seconds", "Time from a request to the last byte of its answer.", "kind", "outcome"),
		ClientBytes:        f.counters("client_bytes_total", "Body bytes sent to clients, without those of errors.", "upstream", "kind"),
		RequestsInFlight:   f.gauge("requests_in_flight", "Client requests being answered."),
		Connections:        f.gauge("connections", "Client connections."),
		Refused:            f.counters("refused_total", "What was refused because a limit was reached.", "limit"),
		Denied:             f.counters("denied_total", "Requests refused because of who asked.", "reason"),
		LogDropped:         f.counter("log_lines_dropped_total", "Log lines dropped because the log's reader was too slow or gone."),
		CertificateSeconds: f.gauges("certificate_expiry_seconds", "Time until the certificates of a configured file end; negative after their end.", "role", "upstream"),
		Limits:             f.gauges("limit", "The limits in force.", "limit"),

		UpstreamRequests: f.counters("upstream_requests_total", "Requests to upstreams.", "upstream", "operation", "status"),
		UpstreamSeconds:  f.histograms("upstream_request_duration_seconds", "Time to an upstream's response header.", "upstream", "operation"),
		UpstreamBytes:    f.counters("upstream_bytes_total", "Body bytes read from upstreams.", "upstream"),
		UpstreamErrors:   f.counters("upstream_errors_total", "Failed requests to upstreams.", "upstream", "reason"),
		EndpointState:    f.gauges("upstream_endpoint_state", "Circuit breaker of an endpoint: 0 closed, 1 half-open, 2 open.", "upstream", "endpoint"),
		EndpointOpenings: f.counters("upstream_endpoint_openings_total", "How often an endpoint's circuit breaker has opened.", "upstream", "endpoint"),
		UpstreamRetries:  f.counters("upstream_retries_total", "Attempts after the first.", "upstream"),
		TokenFetches:     f.counters("upstream_token_fetches_total", "Requests to token servers.", "upstream", "result"),
		GrantChecks:      f.counters("grant_checks_total", "Questions to upstreams whether someone may pull from a repository.", "upstream", "whose", "result"),
		GrantsStretched:  f.counters("grants_stretched_total", "What was admitted on a grant past its lease, for the upstream could not be asked.", "upstream"),
		RateLimit:        f.gauges("upstream_ratelimit_limit", "Pulls that the upstream grants in its window.", "upstream"),
		RateRemaining:    f.gauges("upstream_ratelimit_remaining", "Pulls that the upstream still grants.", "upstream"),
		RateReserve:      f.gauges("upstream_ratelimit_reserve", "Pulls of those left that are kept for images that aren't cached.", "upstream"),
		RateReset:        f.gauges("upstream_ratelimit_reset_timestamp_seconds", "When the upstream's window of pulls ends at the latest.", "upstream"),
		UpstreamPulls:    f.counters("upstream_pulls_total", "Manifests fetched by GET, which is what upstreams count as pulls.", "upstream"),
		PullsSaved:       f.counters("upstream_pulls_saved_total", "GETs of manifests that were answered without a pull.", "upstream"),
		LedgerDropped:    f.counters("ledger_dropped_total", "Observations dropped because the ledger of tags was full: ended (what a tag was before) or standing (since when it is what it is).", "kind"),
		TagMoves:         f.counters("tag_moves_total", "Tags that came to stand for something else, by what their rule says of that.", "upstream", "on_move"),

		Fills:            f.counters("fills_total", "Blobs fetched, by how it ended.", "upstream", "result"),
		FillsInFlight:    f.gauge("fills_in_flight", "Blobs being fetched."),
		Prefetches:       f.counters("prefetches_total", "Blobs fetched ahead of the clients that pull their image.", "upstream"),
		FillResumes:      f.counters("fill_resumes_total", "Transfers continued by Range after a break.", "upstream"),
		DigestMismatches: f.counters("digest_mismatches_total", "Bytes from an upstream that were not the digest's.", "upstream"),
		CacheBytes:       f.gauge("cache_size_bytes", "Content on disk."),
		CacheBlobs:       f.gauge("cache_blobs", "Blobs and manifests on disk."),
		Damaged:          f.counters("cache_damaged_total", "Stored content found to be damaged, by how it was found.", "found"),
		Scrubbed:         f.counter("cache_scrubbed_bytes_total", "Bytes read by passes over all that is stored."),
		Healed:           f.counter("cache_healed_total", "Damaged content that such a pass has fetched again."),
		ScrubFinished:    f.gauge("cache_scrub_finished_timestamp_seconds", "When the last pass over all that is stored ended."),
		DiskDegraded:     f.gauges("cache_disk_degraded", "1 while the cache's disk fails, by cause.", "cause"),
		PassedOn:         f.counters("cache_passed_on_total", "Blobs sent to a client without being kept, for the disk failed.", "upstream"),
		CacheLimit:       f.gauge("cache_limit_bytes", "Content and parts that the disk may hold."),
		CacheParts:       f.gauge("cache_parts_bytes", "Parts of content on disk that is not complete."),
		MemoryHits:       f.counter("cache_memory_hits_total", "Look-ups answered by the memory tier."),
		MemoryMisses:     f.counter("cache_memory_misses_total", "Look-ups that the memory tier could not answer."),
		Evictions:        f.counter("cache_evictions_total", "Blobs dropped from disk to make room."),
		EvictedBytes:     f.counter("cache_evicted_bytes_total", "Bytes dropped from disk to make room."),
	}
	build := f.gauges("build_info", "What runs; always 1.", "version", "revision", "goversion")
	build.WithLabelValues(version, revision, goVersion).Set(1)
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Expect lets the counters of an upstream's failures begin at zero: of a series
// that begins with the first failure, no query sees that as an increase.
func (m *Metrics) Expect(upstream string) {
	for _, c := range []*prometheus.CounterVec{m.UpstreamRetries, m.FillResumes, m.DigestMismatches} {
		c.WithLabelValues(upstream)
	}
	for _, reason := range []string{"connect", "tls", "timeout", "stall", "status", "ratelimit", "protocol", "canceled", "other", "open"} {
		m.UpstreamErrors.WithLabelValues(upstream, reason)
	}
	for _, result := range []string{"ok", "refused", "error"} {
		m.TokenFetches.WithLabelValues(upstream, result)
	}
	for _, word := range []string{"follow", "warn", "hold", "block"} {
		m.TagMoves.WithLabelValues(upstream, word)
	}
	for _, result := range []string{"ok", "error", "mismatch", "canceled"} {
		m.Fills.WithLabelValues(upstream, result)
	}
}

// Discard gives collectors that nobody reads, for tests and for commands that
// serve no metrics.
func Discard() *Metrics { return New("", "", "") }

const namespace = "entrepot"

// seconds spans a hit from memory (tens of microseconds) to a large layer over
// a slow line.
var seconds = []float64{.0001, .0005, .001, .005, .01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

type factory struct{ reg *prometheus.Registry }

func (f factory) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	f.reg.MustRegister(c)
	return c
}

func (f factory) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	f.reg.MustRegister(c)
	return c
}

func (f factory) gauge(name, help string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
	f.reg.MustRegister(g)
	return g
}

func (f factory) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
	f.reg.MustRegister(g)
	return g
}

func (f factory) histograms(name, help string, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: seconds}, labels)
	f.reg.MustRegister(h)
	return h
}
