package main

import (
	"math"
	"slices"
)

// median gives the middle of values, of an even number the mean of the two;
// NaN where there are none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// pairs joins what two subjects gave in the same round; a round that one of
// them has missed is left out. Where b has a single round, as peers of slow rows
// do, it stands for all.
func pairs(a, b map[int]float64, join func(a, b float64) float64) []float64 {
	var list []float64
	for n, x := range a {
		y, ok := b[n]
		if !ok && len(b) == 1 {
			for _, y = range b {
				ok = true
			}
		}
		if ok {
			list = append(list, join(x, y))
		}
	}
	return list
}
