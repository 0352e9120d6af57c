//go:build race

package cache

// raced is set where the race detector allocates, and drops what a pool is given.
const raced = true
