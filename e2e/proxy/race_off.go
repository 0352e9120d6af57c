//go:build !race

package proxy

// raced tells whether the test has the race detector.
const raced = false
