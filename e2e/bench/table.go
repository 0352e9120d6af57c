package main

import (
	"fmt"
	"math"
	"strings"
)

// String says it as the table does.
func (v verdict) String(b *bar) string {
	switch {
	case math.IsNaN(v.value):
		return v.reason
	case v.met:
		return "yes"
	}
	return fmt.Sprintf("**no**, by %.0f %%", b.missed(v.value))
}

// ratio says the compared number.
func (v verdict) ratio(b *bar) string {
	switch {
	case math.IsNaN(v.value) || b.over == "":
		return ""
	case b.by == atMostMore:
		return fmt.Sprintf("%+.1f", v.value)
	}
	return fmt.Sprintf("%.2fx", v.value)
}

// cell says a subject's figure.
func (m *measuredRow) cell(s subject, f figure) string {
	of := m.Subjects[s]
	switch {
	case of == nil:
		return ""
	case of.Absent != "":
		return "not here"
	case of.failure() != "":
		return "failed"
	}
	v := of.median(f.key)
	if math.IsNaN(v) {
		return ""
	}
	return fmt.Sprintf("%.*f", f.digits, v)
}

// markdown writes the table.
func (r *report) markdown() string {
	var b strings.Builder
	b.WriteString("| what | figure | bar |")
	for _, s := range subjects {
		fmt.Fprintf(&b, " %s |", s)
	}
	b.WriteString(" ratio | met |\n|---|---|---|" + strings.Repeat("---:|", len(subjects)+1) + "---|\n")
	for i := range r.Rows {
		m := &r.Rows[i]
		title := m.Title
		for _, f := range m.row.figures {
			fmt.Fprintf(&b, "| %s | %s |", title, f.title)
			title = ""
			if f.bar == nil {
				b.WriteString(" |")
			} else {
				fmt.Fprintf(&b, " %s |", f.bar)
			}
			for _, s := range subjects {
				fmt.Fprintf(&b, " %s |", m.cell(s, f))
			}
			if f.bar == nil {
				b.WriteString(" | |\n")
				continue
			}
			v := m.judge(f)
			fmt.Fprintf(&b, " %s | %s |\n", v.ratio(f.bar), v.String(f.bar))
		}
	}
	b.WriteString("\n" + r.footer())
	return b.String()
}

// footer says when, where and with what; and what went wrong.
func (r *report) footer() string {
	var b strings.Builder
	for _, o := range r.Runs {
		mode := "full"
		if o.Quick {
			mode = "quick: blobs of 1 GiB are of 128 MiB, those of 100 MiB of 32 MiB, and of a million there are ten thousand"
		}
		fmt.Fprintf(&b, "- %s, %s, took %s: %s, %d CPUs, %.0f GiB, %s %s", o.Date.Format("2006-01-02 15:04 UTC"), mode, o.Took,
			o.Machine.CPU, o.Machine.CPUs, o.Machine.MemoryGiB, o.Machine.OS, o.Machine.Kernel)
		for _, name := range []string{"entrepot", "go", "nginx", "distribution"} {
			if v := o.Versions[name]; v != "" {
				fmt.Fprintf(&b, "; %s %s", name, v)
			}
		}
		fmt.Fprintf(&b, "; log level %s\n", o.LogLevel)
	}
	if busy := r.others(); !math.IsNaN(busy) {
		fmt.Fprintf(&b, "- others used %.0f %% of the machine's CPUs meanwhile (median of the rounds)\n", 100*busy)
	}
	told := map[string]bool{}
	for i := range r.Rows {
		for _, s := range subjects {
			of := r.Rows[i].Subjects[s]
			if of == nil {
				continue
			}
			if why := of.Absent; why != "" && !told[why] {
				told[why] = true
				fmt.Fprintf(&b, "- not here: %s: %s\n", s, why)
			}
			if why := of.failure(); why != "" {
				fmt.Fprintf(&b, "- failed: %s, %s: %s\n", r.Rows[i].Name, s, why)
			}
		}
	}
	return b.String()
}
