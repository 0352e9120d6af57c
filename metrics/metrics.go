// Package metrics declares every Prometheus collector of Entrepot in one place,
// so that one file tells all that can be watched.
//
// Labels are bounded: upstream is a configured name, the others are small fixed
// sets. No label ever holds a repository, a tag, a digest or an address.
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
	// ClientBytes counts body bytes sent to clients, by upstream and kind.
	ClientBytes *prometheus.CounterVec
	// RequestsInFlight is the number of requests being answered.
	RequestsInFlight prometheus.Gauge

	// UpstreamRequests counts requests to upstreams, by upstream, operation
	// (resolve, manifest, stat, blob, tags, referrers, token) and HTTP status
	// ("error" where none came).
	UpstreamRequests *prometheus.CounterVec
	// UpstreamSeconds is the time to an upstream's response header, by
	// upstream and operation.
	UpstreamSeconds *prometheus.HistogramVec
	// UpstreamBytes counts body bytes read from upstreams.
	UpstreamBytes *prometheus.CounterVec
	// UpstreamErrors counts failures by upstream and reason (connect, tls,
	// timeout, stall, status, ratelimit, protocol, canceled, other).
	UpstreamErrors *prometheus.CounterVec
	// UpstreamRetries counts attempts after the first, by upstream.
	UpstreamRetries *prometheus.CounterVec
	// TokenFetches counts requests to token servers, by upstream and result
	// (ok, refused, error).
	TokenFetches *prometheus.CounterVec
	// RateLimit and RateRemaining are the last values of an upstream's
	// ratelimit-limit and ratelimit-remaining headers. An upstream that never
	// sent them has no series.
	RateLimit     *prometheus.GaugeVec
	RateRemaining *prometheus.GaugeVec

	// Fills counts ended fills by upstream and result (ok, error, mismatch,
	// canceled).
	Fills *prometheus.CounterVec
	// FillsInFlight is the number of blobs being fetched.
	FillsInFlight prometheus.Gauge
	// FillResumes counts upstream transfers continued by Range after a break.
	FillResumes *prometheus.CounterVec
	// DigestMismatches counts bytes that were not the digest's, by upstream.
	DigestMismatches *prometheus.CounterVec
	// CacheBytes and CacheBlobs are the content on disk.
	CacheBytes prometheus.Gauge
	CacheBlobs prometheus.Gauge
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

		Requests:         f.counters("requests_total", "Client requests.", "upstream", "kind", "outcome", "status"),
		RequestSeconds:   f.histograms("request_duration_seconds", "Time from a request to the first byte of its answer.", "kind", "outcome"),
		TransferSeconds:  f.histograms("transfer_duration_seconds", "Time from a request to the last byte of its answer.", "kind", "outcome"),
		ClientBytes:      f.counters("client_bytes_total", "Body bytes sent to clients.", "upstream", "kind"),
		RequestsInFlight: f.gauge("requests_in_flight", "Client requests being answered."),

		UpstreamRequests: f.counters("upstream_requests_total", "Requests to upstreams.", "upstream", "operation", "status"),
		UpstreamSeconds:  f.histograms("upstream_request_duration_seconds", "Time to an upstream's response header.", "upstream", "operation"),
		UpstreamBytes:    f.counters("upstream_bytes_total", "Body bytes read from upstreams.", "upstream"),
		UpstreamErrors:   f.counters("upstream_errors_total", "Failed requests to upstreams.", "upstream", "reason"),
		UpstreamRetries:  f.counters("upstream_retries_total", "Attempts after the first.", "upstream"),
		TokenFetches:     f.counters("upstream_token_fetches_total", "Requests to token servers.", "upstream", "result"),
		RateLimit:        f.gauges("upstream_ratelimit_limit", "Pulls that the upstream grants in its window.", "upstream"),
		RateRemaining:    f.gauges("upstream_ratelimit_remaining", "Pulls that the upstream still grants.", "upstream"),

		Fills:            f.counters("fills_total", "Blobs fetched, by how it ended.", "upstream", "result"),
		FillsInFlight:    f.gauge("fills_in_flight", "Blobs being fetched."),
		FillResumes:      f.counters("fill_resumes_total", "Transfers continued by Range after a break.", "upstream"),
		DigestMismatches: f.counters("digest_mismatches_total", "Bytes from an upstream that were not the digest's.", "upstream"),
		CacheBytes:       f.gauge("cache_size_bytes", "Content on disk."),
		CacheBlobs:       f.gauge("cache_blobs", "Blobs and manifests on disk."),
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
