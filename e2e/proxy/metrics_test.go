package proxy

import (
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

func TestSumAddsWhatHasTheLabels(t *testing.T) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(`# TYPE a counter
a{x="1",y="1"} 1
a{x="1",y="2"} 2
a{x="2",y="1"} 4
# TYPE h histogram
h_bucket{le="+Inf"} 7
h_sum 1
h_count 7
`))
	if err != nil {
		t.Fatal(err)
	}
	m := Metrics(families)
	for _, c := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"a", nil, 7},
		{"a", []string{"x", "1"}, 3},
		{"a", []string{"x", "1", "y", "2"}, 2},
		{"a", []string{"x", "3"}, 0},
		{"h", nil, 7},
		{"none", nil, 0},
	} {
		if got := m.Sum(c.name, c.labels...); got != c.want {
			t.Errorf("%s%v: want %g, got %g", c.name, c.labels, c.want, got)
		}
	}
}
