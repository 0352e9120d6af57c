package main

import (
	"bytes"
	"testing"
	"time"
)

// TestSoakForSeconds is the short form of the soak. Its seed is fixed: what clients
// and faults choose is the same each time, though not when they come to it.
func TestSoakForSeconds(t *testing.T) {
	o := options{length: 8 * time.Second, seed: 20, clients: 8, small: true, every: time.Hour}
	var out bytes.Buffer
	if code := soak(t.Context(), o, t.TempDir(), &out); code != 0 {
		t.Errorf("exit code %d\n%s", code, out.String())
		return
	}
	t.Log("\n" + out.String())
}
