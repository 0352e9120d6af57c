package app

import (
	"math"
	"reflect"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/entrepot-dev/entrepot/configs"
)

func TestLimitsFitIntoTheFilesThatMayBeOpen(t *testing.T) {
	for _, files := range []int{0, 64, 128, 256, 1024, 4096, 10_000, 16_384, 1 << 20, math.MaxInt32} {
		cfg := configs.Default()
		usual := cfg.Limits
		core, logs := observer.New(zapcore.WarnLevel)
		fitLimits(cfg, files, zap.New(core))
		l := cfg.Limits
		// Upstreams count with what is kept for them.
		held := ownFiles + min(upstreamFiles(cfg), (max(files, leastFiles)-ownFiles)*3/8) + l.Fills + l.Connections + l.Requests
		if held > max(files, leastFiles) {
			t.Errorf("%d files: %+v add up to %d", files, l, held)
		}
		if l.Connections < 1 || l.Requests < 1 || l.Fills < 1 {
			t.Errorf("%d files: %+v serve nobody", files, l)
		}
		fits := filesFor(configs.Default()) <= files
		if lowered := !reflect.DeepEqual(l, usual); lowered == fits || (logs.Len() > 0) == fits {
			t.Errorf("%d files: lowered %v, %d lines in the log; that they fit is %v", files, lowered, logs.Len(), fits)
		}
	}
}

func TestThisProcessMayOpenFiles(t *testing.T) {
	if n := openFiles(); n < leastFiles {
		t.Errorf("want at least %d, got %d", leastFiles, n)
	}
}
