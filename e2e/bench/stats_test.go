package main

import (
	"math"
	"slices"
	"testing"
)

func TestMedianIsTheMiddle(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 2, 100}, 3},
	} {
		in := slices.Clone(c.in)
		if got := median(c.in); got != c.want || !slices.Equal(in, c.in) {
			t.Errorf("%v: want %v, got %v, and %v left", in, c.want, got, c.in)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("nothing: want NaN, got %v", got)
	}
}

func TestRoundsArePairedByTheirNumber(t *testing.T) {
	minus := func(a, b float64) float64 { return a - b }
	for _, c := range []struct {
		a, b map[int]float64
		want []float64
	}{
		{map[int]float64{0: 10, 1: 20}, map[int]float64{0: 1, 1: 2}, []float64{9, 18}},
		{map[int]float64{0: 10, 2: 30}, map[int]float64{0: 1, 1: 2}, []float64{9}},
		{map[int]float64{0: 10, 1: 20}, map[int]float64{0: 5}, []float64{5, 15}},
		{map[int]float64{0: 10}, nil, nil},
	} {
		got := pairs(c.a, c.b, minus)
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%v and %v: want %v, got %v", c.a, c.b, c.want, got)
		}
	}
}
