package metrics

import (
	"maps"
	"testing"
)

func TestEachTellsOfAllSeries(t *testing.T) {
	m := Discard()
	m.UpstreamPulls.WithLabelValues("docker.io").Add(3)
	m.UpstreamPulls.WithLabelValues("ghcr.io").Add(4)
	m.RateRemaining.WithLabelValues("docker.io").Set(70)
	m.Evictions.Add(2)
	got := map[string]float64{}
	note := func(what string) func(map[string]string, float64) {
		return func(labels map[string]string, v float64) { got[what+" "+labels["upstream"]] += v }
	}
	Each(m.UpstreamPulls, note("pulls"))
	Each(m.RateRemaining, note("remaining"))
	Each(m.Evictions, note("evictions"))
	want := map[string]float64{"pulls docker.io": 3, "pulls ghcr.io": 4, "remaining docker.io": 70, "evictions ": 2}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
