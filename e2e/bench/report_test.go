package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sampleReport has a row that is met, missed, and failed in parts.
func sampleReport() *report {
	r := row{
		name: "sample", title: "a <sample>", subjects: servers,
		figures: []figure{
			{key: rate, title: "requests/s", bar: &bar{over: static, by: atLeast, limit: 1}},
			{key: perMany, title: "CPU s per 100k", digits: 2, bar: &bar{over: static, by: atMost, limit: 1}},
			{key: first, title: "first byte, ms", digits: 1, bar: &bar{over: nginxCache, by: atMost, limit: 1}},
			{key: memory, title: "resident MiB"},
		},
	}
	return &report{
		Runs: []occasion{{
			Date: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC), Took: "1m", Machine: machine{CPU: "a CPU", CPUs: 2, OS: "linux", Kernel: "6"},
			Versions: map[string]string{"go": "go1.26"}, LogLevel: "warn",
		}},
		Rows: []measuredRow{{Name: r.name, Title: r.title, row: r, Subjects: map[subject]*measured{
			entrepot: {Rounds: []round{
				{Round: 0, Figures: sample{rate: 100, perMany: 3, first: 1, memory: 20, others: 0.5}},
				{Round: 1, Figures: sample{rate: 300, perMany: 3, first: 1, memory: 22, others: 0.5}},
			}},
			static: {Rounds: []round{
				{Round: 0, Figures: sample{rate: 50, perMany: 2, memory: 10, others: 0.1}},
				{Round: 1, Figures: sample{rate: 300, perMany: 2, memory: 10, others: 0.1}},
			}},
			nginxCache:   {Rounds: []round{{Round: 0, Failure: "status 500, not 200"}}},
			distribution: {Absent: "no way"},
		}}},
	}
}

func TestTableSaysWhatWasMetAndByHowMuchNot(t *testing.T) {
	got := sampleReport().markdown()
	for _, want := range []string{
		// The ratio is the median of the rounds' ratios, 2 and 1, not that of the medians.
		"| a <sample> | requests/s | at least 1x nginx static | 200 | 175 | failed | not here |  | 1.50x | yes |\n",
		"|  | CPU s per 100k | at most 1x nginx static | 3.00 | 2.00 | failed | not here |  | 1.50x | **no**, by 50 % |\n",
		"|  | first byte, ms | at most 1x nginx cache | 1.0 |  | failed | not here |  |  | nginx cache failed |\n",
		"|  | resident MiB | | 21 | 10 | failed | not here |  | | |\n",
		"- 2026-02-03 04:05 UTC, full, took 1m: a CPU, 2 CPUs, 0 GiB, linux 6; go go1.26; log level warn\n",
		"- others used 30 %",
		"- failed: sample, nginx cache: status 500, not 200\n",
		"- not here: distribution v3: no way\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q in\n%s", want, got)
		}
	}
}

func TestReportIsWrittenWithRoundsAndPlots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	if err := sampleReport().write(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "bench.json"))
	if err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(b, &back); err != nil || back.Rows[0].Subjects[entrepot].Rounds[1].Figures[rate] != 300 {
		t.Errorf("%v\n%s", err, b)
	}
	plot, err := os.ReadFile(filepath.Join(dir, "sample.svg"))
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(plot)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v\n%s", err, plot)
		}
	}
	// Bars of the two that were measured; of the first byte only one.
	if n := bytes.Count(plot, []byte("fill=\""+plotColours[static])); n != 3 {
		t.Errorf("%d bars of %s, want 3\n%s", n, static, plot)
	}
	if n := bytes.Count(plot, []byte("stroke-dasharray")); n != 2 {
		t.Errorf("%d limits, want 2\n%s", n, plot)
	}
}

func TestRunsAreJoinedRoundByRound(t *testing.T) {
	var paths []string
	for i, rounds := range [][]float64{{100, 200}, {900}} {
		r := report{Runs: []occasion{{Took: "1m"}}, Rows: []measuredRow{
			{Name: "idle", Subjects: map[subject]*measured{entrepot: {Rounds: []round{{Figures: sample{memory: 1}}}}}},
			{Name: "manifest-tag", Subjects: map[subject]*measured{entrepot: {}, static: {}}},
		}}
		for n, v := range rounds {
			of := r.Rows[1].Subjects
			of[entrepot].Rounds = append(of[entrepot].Rounds, round{Round: n, Figures: sample{rate: v}})
			of[static].Rounds = append(of[static].Rounds, round{Round: n, Figures: sample{rate: 100}})
		}
		dir := filepath.Join(t.TempDir(), string(rune('a'+i)))
		if err := r.write(dir); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, filepath.Join(dir, "bench.json"))
	}
	got, err := readReports(paths)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Runs) != 2 || len(got.Rows) != 2 || got.Rows[0].Name != "manifest-tag" {
		t.Fatalf("two runs of two rows, in the rows' order: got %+v", got)
	}
	if want := "| requests/s | at least 1x nginx static | 200 | 100 |  |  |  | 2.00x | yes |"; !strings.Contains(got.markdown(), want) {
		t.Errorf("want %q in\n%s", want, got.markdown())
	}
	quick := report{Runs: []occasion{{Quick: true}}}
	if err := got.add(quick); err == nil {
		t.Error("a quick run was added to full ones")
	}
}
