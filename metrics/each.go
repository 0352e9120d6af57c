package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Each calls fn for each series of a collector of counters or gauges, with its labels
// and its value.
func Each(c prometheus.Collector, fn func(labels map[string]string, value float64)) {
	series := make(chan prometheus.Metric)
	// It ends when all have been taken below.
	go func() {
		c.Collect(series)
		close(series)
	}()
	for s := range series {
		var d dto.Metric
		if s.Write(&d) != nil {
			continue // of no collector that is declared here
		}
		labels := make(map[string]string, len(d.GetLabel()))
		for _, l := range d.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		fn(labels, d.GetCounter().GetValue()+d.GetGauge().GetValue())
	}
}
