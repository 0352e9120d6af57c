package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// report is what one or several runs gave. As JSON it holds every round.
type report struct {
	Runs []occasion    `json:"runs"`
	Rows []measuredRow `json:"rows"`
}

// occasion is when, where and with what a run was.
type occasion struct {
	Date     time.Time         `json:"date"`
	Took     string            `json:"took"`
	Quick    bool              `json:"quick"`
	LogLevel string            `json:"log_level"`
	Machine  machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
}

// measuredRow is a row with what was measured.
type measuredRow struct {
	Name     string                `json:"name"`
	Title    string                `json:"title"`
	Subjects map[subject]*measured `json:"subjects"`
	row      row
}

// measured is what a row gave of one subject.
type measured struct {
	Absent string  `json:"absent,omitempty"` // why it could not be measured
	Rounds []round `json:"rounds,omitempty"`
}

// round is one measurement.
type round struct {
	Round   int    `json:"round"`
	Figures sample `json:"figures,omitempty"`
	Failure string `json:"failure,omitempty"`
}

func (r round) String() string {
	if r.Failure != "" {
		return "FAILED: " + r.Failure
	}
	var words []string
	for _, key := range []string{rate, perMany, speed, perGiB, held, duration, first, upstream, ratioHot, startup, perBlob, memory, ownMemory, mallocs, others} {
		if v, ok := r.Figures[key]; ok {
			words = append(words, fmt.Sprintf("%s %.4g", key, v))
		}
	}
	return strings.Join(words, ", ")
}

// failure is the first thing that went wrong; empty where all went well.
func (m *measured) failure() string {
	for _, r := range m.Rounds {
		if r.Failure != "" {
			return r.Failure
		}
	}
	return ""
}

// values gives a figure by round.
func (m *measured) values(key string) map[int]float64 {
	v := map[int]float64{}
	if m == nil {
		return v
	}
	for _, r := range m.Rounds {
		if x, ok := r.Figures[key]; ok {
			v[r.Round] = x
		}
	}
	return v
}

// median is a figure's; NaN where it was not measured.
func (m *measured) median(key string) float64 {
	var list []float64
	for _, v := range m.values(key) {
		list = append(list, v)
	}
	return median(list)
}

// verdict is how a figure does against its bar.
type verdict struct {
	value  float64 // what is compared with the limit; NaN where it can not be
	met    bool
	reason string // why there is no value
}

// judge holds a figure of Entrepot against its bar: the median of what each
// round gives.
func (m *measuredRow) judge(f figure) verdict {
	own := m.Subjects[entrepot]
	if own == nil {
		return verdict{value: math.NaN(), reason: "not measured"}
	}
	if own.failure() != "" {
		return verdict{value: math.NaN(), reason: "failed"}
	}
	against := own
	if f.bar.over != "" {
		against = m.Subjects[f.bar.over]
		if against == nil || against.Absent != "" {
			return verdict{value: math.NaN(), reason: "no " + string(f.bar.over)}
		}
		if against.failure() != "" {
			return verdict{value: math.NaN(), reason: string(f.bar.over) + " failed"}
		}
	}
	v := median(pairs(own.values(f.key), against.values(f.key), f.bar.of))
	return verdict{value: v, met: f.bar.met(v), reason: "not measured"}
}

// others is the median part of the machine that others used.
func (r *report) others() float64 {
	var list []float64
	for i := range r.Rows {
		for _, of := range r.Rows[i].Subjects {
			for _, v := range of.values(others) {
				list = append(list, v)
			}
		}
	}
	return median(list)
}

// tell prints the table, and writes all into a directory where there is one.
func (r *report) tell(stdout io.Writer, dir string) error {
	if _, err := io.WriteString(stdout, r.markdown()); err != nil || dir == "" {
		return err
	}
	return r.write(dir)
}

// write puts the table, the rounds and a plot of each row into a directory.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	rounds, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	errs := []error{
		os.WriteFile(filepath.Join(dir, "bench.md"), []byte(r.markdown()), 0o644),
		os.WriteFile(filepath.Join(dir, "bench.json"), append(rounds, '\n'), 0o644),
	}
	for i := range r.Rows {
		m := &r.Rows[i]
		errs = append(errs, os.WriteFile(filepath.Join(dir, m.Name+".svg"), m.plot(), 0o644))
	}
	return errors.Join(errs...)
}
