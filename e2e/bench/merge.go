package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
)

// readReports reads what earlier runs have written and joins them to one report:
// the rounds of a row that several have measured are put together.
func readReports(paths []string) (*report, error) {
	all := &report{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var r report
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if err := all.add(r); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	order := map[string]int{}
	for i, r := range rows() {
		order[r.name] = i
	}
	slices.SortStableFunc(all.Rows, func(a, b measuredRow) int { return order[a.Name] - order[b.Name] })
	return all, nil
}

// add takes another report's rows and rounds.
func (r *report) add(other report) error {
	for _, o := range other.Runs {
		if len(r.Runs) > 0 && r.Runs[0].Quick != o.Quick {
			return fmt.Errorf("a quick run and a full one measure different things")
		}
		r.Runs = append(r.Runs, o)
	}
	for _, m := range other.Rows {
		known := rows()
		i := slices.IndexFunc(known, func(r row) bool { return r.name == m.Name })
		if i < 0 {
			return fmt.Errorf("there is no row %s any more", m.Name)
		}
		m.row, m.Title = known[i], known[i].title
		have := slices.IndexFunc(r.Rows, func(h measuredRow) bool { return h.Name == m.Name })
		if have < 0 {
			r.Rows = append(r.Rows, m)
			continue
		}
		r.Rows[have].join(m)
	}
	return nil
}

// join appends the rounds of another measurement of the same row.
func (m *measuredRow) join(other measuredRow) {
	next := 0
	for _, of := range m.Subjects {
		for _, r := range of.Rounds {
			next = max(next, r.Round+1)
		}
	}
	for s, of := range other.Subjects {
		if m.Subjects[s] == nil || m.Subjects[s].Absent != "" {
			m.Subjects[s] = &measured{Absent: of.Absent}
		}
		for _, r := range of.Rounds {
			r.Round += next
			m.Subjects[s].Rounds = append(m.Subjects[s].Rounds, r)
		}
	}
}
