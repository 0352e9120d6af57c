//go:build race

package proxy

// Raced tells whether the test has the race detector.
const Raced = true
