//go:build !linux

package main

import (
	"context"
	"errors"
)

// runNative has no way here to throw bodies away in the kernel.
func (l load) runNative(ctx context.Context) (tally, error) { return l.runPortable(ctx) }

func (l load) runPaced(context.Context, int64) (tally, error) {
	return tally{}, errors.New("paced readers are made for Linux only")
}
