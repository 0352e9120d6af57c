package metrics

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

var described = regexp.MustCompile(`fqName: "(entrepot_[a-z_]+)".*variableLabels: \{([a-z_,]*)\}`)

// declared gives the labels of all collectors, by name.
func declared(t *testing.T) map[string][]string {
	t.Helper()
	descs := make(chan *prometheus.Desc)
	go func() {
		New("", "", "").Registry.Describe(descs)
		close(descs)
	}()
	all := map[string][]string{}
	for d := range descs {
		if m := described.FindStringSubmatch(d.String()); m != nil {
			all[m[1]] = strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' })
		}
	}
	if len(all) < 10 {
		t.Fatalf("only %d collectors were found", len(all))
	}
	return all
}

func TestEveryMetricIsDocumentedWithItsLabels(t *testing.T) {
	const file = "../docs/metrics.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) == 6 && strings.HasPrefix(cells[1], " `entrepot_") {
			rows[strings.Trim(cells[1], " `")] = strings.NewReplacer(" ", "", "`", "").Replace(cells[3])
		}
	}
	all := declared(t)
	for name, labels := range all {
		if got, ok := rows[name]; !ok {
			t.Errorf("%s has no row for %s", file, name)
		} else if want := strings.Join(labels, ","); got != want {
			t.Errorf("%s: labels of %s: want %q, got %q", file, name, want, got)
		}
	}
	for name := range rows {
		if _, ok := all[name]; !ok {
			t.Errorf("%s has a row for %s, which there is not", file, name)
		}
	}
}

func TestNamesAndLabelsFollowPrometheus(t *testing.T) {
	m := New("v1", "", "go")
	m.Expect("docker.io")
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{}
	for _, f := range families {
		kinds[f.GetName()] = f.GetType().String()
	}
	for name, labels := range declared(t) {
		if kinds[name] == "COUNTER" && !strings.HasSuffix(name, "_total") || kinds[name] == "GAUGE" && strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %s", name, kinds[name])
		}
		for _, l := range labels {
			switch l {
			case "repository", "tag", "digest", "reference", "client", "address", "path", "user_agent":
				t.Errorf("%s has the label %s, which strangers choose", name, l)
			}
		}
	}
}

func TestFailuresOfAnUpstreamAreThereFromTheStart(t *testing.T) {
	m := New("", "", "")
	m.Expect("docker.io")
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, series := range f.GetMetric() {
			for _, l := range series.GetLabel() {
				if l.GetName() == "upstream" && l.GetValue() == "docker.io" {
					got[f.GetName()] += series.GetCounter().GetValue()
				}
			}
		}
	}
	for _, name := range []string{"entrepot_digest_mismatches_total", "entrepot_fills_total", "entrepot_fill_resumes_total",
		"entrepot_upstream_errors_total", "entrepot_upstream_retries_total", "entrepot_upstream_token_fetches_total"} {
		if v, ok := got[name]; !ok || v != 0 {
			t.Errorf("%s: want a series at 0, got %v, %v", name, v, ok)
		}
	}
	if _, ok := got["entrepot_upstream_ratelimit_remaining"]; ok {
		t.Error("the upstream has said nothing of a limit, and there is one")
	}
}
