package proxy

import (
	"fmt"
	"net/http"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics are the families of one scrape, by name.
type Metrics map[string]*dto.MetricFamily

// Metrics scrapes the process.
func (p *Proxy) Metrics(t testing.TB) Metrics {
	t.Helper()
	m, err := p.Scrape()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Scrape gives the metrics of the process.
func (p *Process) Scrape() (Metrics, error) {
	c := http.Client{Timeout: patience}
	res, err := c.Get(p.AdminURL() + "/metrics")
	if err != nil {
		return nil, fmt.Errorf("scrape: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("scrape: %s", res.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil {
		return nil, fmt.Errorf("scrape: %w", err)
	}
	return families, nil
}

// Sum adds up the counters or gauges of a family (of histograms and summaries
// the counts) that have all of the labels, given as name, value, name, value.
// A family that is not there is 0.
func (m Metrics) Sum(name string, labels ...string) float64 {
	var sum float64
	for _, one := range m[name].GetMetric() {
		if !has(one, labels) {
			continue
		}
		sum += one.GetCounter().GetValue() + one.GetGauge().GetValue() + one.GetUntyped().GetValue() +
			float64(one.GetHistogram().GetSampleCount()) + float64(one.GetSummary().GetSampleCount())
	}
	return sum
}

func has(m *dto.Metric, labels []string) bool {
	for i := 0; i+1 < len(labels); i += 2 {
		found := false
		for _, l := range m.GetLabel() {
			found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
		}
		if !found {
			return false
		}
	}
	return true
}

// WaitIdle waits until no fill is running.
func (p *Proxy) WaitIdle(t testing.TB) {
	t.Helper()
	const fills = "entrepot_fills_in_flight"
	Until(t, "the fills to end", func() bool {
		m := p.Metrics(t)
		if m[fills] == nil {
			t.Fatalf("there is no metric %s", fills)
		}
		return m.Sum(fills) == 0
	})
}
