package server

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// counted says which series a request is counted in. There are as many as the
// labels have values, which are few.
type counted struct {
	upstream string // a configured name, or empty
	kind     rewrite.Resource
	outcome  string
	status   int
}

// series are the collectors of one counted, looked up by their labels once.
type series struct {
	requests        prometheus.Counter
	first, transfer prometheus.Observer
	metrics         *metrics.Metrics
	counted         counted
	// bytes begins with the first byte: nobody wants a series of zeros for
	// each HEAD.
	bytes atomic.Pointer[prometheus.Counter]
}

// sent counts body bytes of content. The text of an error is none: nothing was saved by it.
func (s *series) sent(n int64) {
	if n <= 0 || s.counted.status >= 400 {
		return
	}
	c := s.bytes.Load()
	if c == nil {
		made := s.metrics.ClientBytes.WithLabelValues(s.counted.upstream, s.counted.kind.String())
		c = &made
		s.bytes.Store(c)
	}
	(*c).Add(float64(n))
}

// seriesOf finds series without a lock and without an allocation.
type seriesOf struct {
	metrics *metrics.Metrics
	found   atomic.Pointer[map[counted]*series]

	mu sync.Mutex // held by who adds to found, which is copied for that
}

func newSeriesOf(m *metrics.Metrics) *seriesOf {
	s := &seriesOf{metrics: m}
	s.found.Store(&map[counted]*series{})
	return s
}

func (s *seriesOf) get(c counted) *series {
	if found := (*s.found.Load())[c]; found != nil {
		return found
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := *s.found.Load()
	if found := known[c]; found != nil {
		return found
	}
	kind := c.kind.String()
	made := &series{
		requests: s.metrics.Requests.WithLabelValues(c.upstream, kind, c.outcome, statusLabel(c.status)),
		first:    s.metrics.RequestSeconds.WithLabelValues(kind, c.outcome),
		transfer: s.metrics.TransferSeconds.WithLabelValues(kind, c.outcome),
		metrics:  s.metrics, counted: c,
	}
	next := maps.Clone(known)
	next[c] = made
	s.found.Store(&next)
	return made
}
