package main

import (
	"context"
	"time"
)

// A machine is calm when others used less than a tenth of it for a moment.
const (
	calmShare = 0.1
	calmTime  = 300 * time.Millisecond
)

// waitForCalm waits until others leave the machine alone, within the patience
// that the options give. The bench's own processes are at rest meanwhile.
func (b *bench) waitForCalm(ctx context.Context) error {
	for until := time.Now().Add(b.o.calm); time.Now().Before(until); {
		before, begin := machineTime(), time.Now()
		select {
		case <-time.After(calmTime):
		case <-ctx.Done():
			return ctx.Err()
		}
		used := float64(machineTime()-before) / float64(time.Since(begin)*time.Duration(cpus()))
		if used < calmShare {
			return nil
		}
	}
	return nil
}
