package cache

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/entrepot-dev/entrepot/metrics"
)

// TestAFullLedgerIsCountedAndLoggedOnceAnHour tells a cache of observations that its index
// had no room for.
func TestAFullLedgerIsCountedAndLoggedOnceAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		m := metrics.Discard()
		c := &Cache{log: zap.New(core), metrics: m}
		c.ledgerTrimmed(3, 2)
		c.ledgerTrimmed(4, 0)
		if n := logs.Len(); n != 1 {
			t.Errorf("two times within the hour: %d lines, want 1", n)
		}
		time.Sleep(droppedApart)
		c.ledgerTrimmed(0, 5)
		lines := logs.All()
		if len(lines) != 2 {
			t.Fatalf("after an hour: %d lines, want 2", len(lines))
		}
		first := lines[0]
		if got := first.ContextMap(); !strings.Contains(first.Message, "tag ledger full") || got["ended"] != int64(3) || got["standing"] != int64(2) {
			t.Errorf("the line says %q %v", first.Message, got)
		}
		for kind, want := range map[string]float64{"ended": 7, "standing": 7} {
			var counted dto.Metric
			if err := m.LedgerDropped.WithLabelValues(kind).Write(&counted); err != nil || counted.GetCounter().GetValue() != want {
				t.Errorf("entrepot_ledger_dropped_total of %s is %g, want %g: %v", kind, counted.GetCounter().GetValue(), want, err)
			}
		}
	})
}
