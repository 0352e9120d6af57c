package main

import (
	"context"
	"fmt"
)

// row is one thing that is measured of several subjects in turns.
type row struct {
	name  string // for -only
	title string
	// subjects are measured in this order, and in later rounds beginning with
	// another of them.
	subjects []subject
	figures  []figure
	// slow rows take seconds to minutes for each sample: they have fewer
	// rounds, and who is not in the bars is measured in the first of them only,
	// and in a quick run not at all.
	slow bool
	run  func(ctx context.Context, b *bench, s subject) (sample, error)
}

// sample is one round of one subject: the figures by key.
type sample map[string]float64

// figure is a number that a row gives for each subject.
type figure struct {
	key    string // of the sample
	title  string // "requests/s"
	digits int    // behind the point
	bar    *bar   // nil where there is none
}

// bar is what a figure of Entrepot's must be.
type bar struct {
	// over is the subject that it is compared with; empty for the figure as it
	// is.
	over subject
	// by is how; limit is what must come of it.
	by    comparison
	limit float64
}

// comparison is how a figure is held against a bar.
type comparison int

const (
	atMost  comparison = iota // the ratio, or the figure itself
	atLeast                   // the same
	// atMostMore bounds the difference, in the figure's unit.
	atMostMore
)

// slack is what a ratio may miss its bar by and still be shown as met: it would
// be written with the same digits.
const slack = 0.005

// of gives the number that is compared with the limit.
func (b *bar) of(own, other float64) float64 {
	switch {
	case b.over == "":
		return own
	case b.by == atMostMore:
		return own - other
	}
	return own / other
}

// met tells whether a number is within the limit.
func (b *bar) met(v float64) bool {
	if b.by == atLeast {
		return v >= b.limit-slack
	}
	return v <= b.limit+slack // and NaN is not
}

// missed says by how much a number is beyond the limit: of the limit, in
// percent.
func (b *bar) missed(v float64) float64 {
	if b.limit == 0 {
		return 100
	}
	if b.by == atLeast {
		return 100 * (b.limit - v) / b.limit
	}
	return 100 * (v - b.limit) / b.limit
}

// String says the bar as the table does.
func (b *bar) String() string {
	word := "at most"
	if b.by == atLeast {
		word = "at least"
	}
	switch {
	case b.over == "":
		return fmt.Sprintf("%s %.4g", word, b.limit)
	case b.by == atMostMore:
		return fmt.Sprintf("%s %.4g more than %s", word, b.limit, b.over)
	}
	return fmt.Sprintf("%s %.4gx %s", word, b.limit, b.over)
}

// only gives a sample's figures of the row, and what the others did.
func (r *row) only(x sample) sample {
	kept := sample{others: x[others]}
	for _, f := range r.figures {
		if v, ok := x[f.key]; ok {
			kept[f.key] = v
		}
	}
	return kept
}

// barred tells whether a subject is needed for one of the row's bars.
func (r *row) barred(s subject) bool {
	for _, f := range r.figures {
		if f.bar != nil && (s == entrepot || f.bar.over == s) {
			return true
		}
	}
	return false
}
