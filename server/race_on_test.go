//go:build race

package server

// raced is set where the race detector allocates, and drops what a pool is given.
const raced = true
