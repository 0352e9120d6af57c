//go:build !linux

package clients

import "testing"

// unmountBelow does nothing: the clients that mount run on Linux only.
func unmountBelow(*testing.T, string) {}
