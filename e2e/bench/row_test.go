package main

import (
	"slices"
	"testing"
)

func TestBarsAreHeld(t *testing.T) {
	for _, c := range []struct {
		bar        bar
		own, other float64
		met        bool
		text       string
	}{
		{bar{over: static, by: atLeast, limit: 0.97}, 97, 100, true, "at least 0.97x nginx static"},
		{bar{over: static, by: atLeast, limit: 0.97}, 96, 100, false, "at least 0.97x nginx static"},
		{bar{over: static, by: atMost, limit: 1.11}, 1.1, 1, true, "at most 1.11x nginx static"},
		{bar{over: static, by: atMost, limit: 1.05}, 1.06, 1, false, "at most 1.05x nginx static"},
		{bar{over: direct, by: atMostMore, limit: 2}, 11.9, 10, true, "at most 2 more than direct"},
		{bar{over: direct, by: atMostMore, limit: 2}, 12.1, 10, false, "at most 2 more than direct"},
		{bar{by: atMost, limit: 25}, 24, 0, true, "at most 25"},
		{bar{by: atMost, limit: 25}, 26, 0, false, "at most 25"},
		{bar{by: atMost, limit: 1}, 1.004, 0, true, "at most 1"},
	} {
		if got := c.bar.met(c.bar.of(c.own, c.other)); got != c.met {
			t.Errorf("%s, %v and %v: want met %v, got %v", c.text, c.own, c.other, c.met, got)
		}
		if got := c.bar.String(); got != c.text {
			t.Errorf("want %q, got %q", c.text, got)
		}
	}
	b := bar{by: atLeast, limit: 0.5}
	if got := b.missed(0.25); got != 50 {
		t.Errorf("half of what is wanted: missed by %v %%", got)
	}
}

func TestRowsAreWhole(t *testing.T) {
	var names []string
	for _, r := range rows() {
		names = append(names, r.name)
		if !slices.Contains(r.subjects, entrepot) {
			t.Errorf("%s is not about Entrepot", r.name)
		}
		for _, f := range r.figures {
			if f.bar != nil && f.bar.over != "" && !slices.Contains(r.subjects, f.bar.over) {
				t.Errorf("%s is compared with %s, which it does not measure", r.name, f.bar.over)
			}
		}
		if !r.barred(entrepot) {
			t.Errorf("%s has no bar", r.name)
		}
	}
	if unique := slices.Compact(slices.Sorted(slices.Values(names))); len(unique) != len(names) {
		t.Errorf("two rows of one name: %v", names)
	}
}
