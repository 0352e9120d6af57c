package app

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/configs"
)

// fussyReader takes lines, waits, or fails, as the test says.
type fussyReader struct {
	mu   sync.Mutex
	got  bytes.Buffer
	err  error
	gate chan struct{} // where set, each Write waits for it to be closed
}

func (r *fussyReader) Write(p []byte) (int, error) {
	r.mu.Lock()
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	return r.got.Write(p)
}

func (r *fussyReader) set(err error, gate chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.gate = err, gate
}

func (r *fussyReader) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.String()
}

func TestOutletLosesNoLineOfAHealthyReader(t *testing.T) {
	r := &fussyReader{}
	o := newOutlet(r)
	var all sync.WaitGroup
	for writer := range 4 {
		all.Go(func() {
			for n := range 1000 {
				fmt.Fprintf(o, "%d %d %s\n", writer, n, strings.Repeat("x", n%200))
			}
		})
	}
	all.Wait()
	o.close()
	lines := strings.Split(strings.TrimSuffix(r.String(), "\n"), "\n")
	if len(lines) != 4000 {
		t.Fatalf("want 4000 lines, got %d", len(lines))
	}
	next := [4]int{}
	for _, line := range lines {
		var writer, n int
		if _, err := fmt.Sscanf(line, "%d %d", &writer, &n); err != nil || n != next[writer] {
			t.Fatalf("want line %d of writer %d, got %q, %v", next[writer], writer, line, err)
		}
		next[writer]++
	}
}

func TestOutletIsBoundedAndTellsWhatItDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, gate := &fussyReader{}, make(chan struct{})
		r.set(nil, gate)
		o := newOutlet(r)
		log, _, err := newLog(configs.Log{Level: "error", Format: "json"}, o)
		if err != nil {
			t.Fatal(err)
		}
		counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "dropped"})
		line := bytes.Repeat([]byte("x"), 1023)
		line = append(line, '\n')
		const lines = 3 * outletBytes / 1024
		for n := range lines {
			if n == lines-1 {
				o.countTo(counter) // also what was dropped before
			}
			_, _ = o.Write(line)
		}
		if n := len(o.pending); n > outletBytes {
			t.Errorf("%d bytes wait, of %d at most", n, outletBytes)
		}
		registry := prometheus.NewRegistry()
		registry.MustRegister(counter)
		counted, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		dropped := int(counted[0].Metric[0].GetCounter().GetValue())
		if kept := 2*outletBytes/1024 + 1; dropped < lines-kept {
			t.Errorf("want %d dropped or more, got %d", lines-kept, dropped)
		}
		begun := time.Now()
		o.flush()
		if d := time.Since(begun); d != outletPatience {
			t.Errorf("want to wait %s for a reader that takes nothing, waited %s", outletPatience, d)
		}
		r.set(nil, nil)
		close(gate)
		synctest.Wait()
		log.Error("again")
		o.close()
		if got := strings.Count(r.String(), string(line)); got != lines-dropped {
			t.Errorf("%d lines, of which %d are dropped and %d written", lines, dropped, got)
		}
		if want := fmt.Sprintf(`"message":"log lines dropped","lines":%d}`, dropped); strings.Count(r.String(), want) != 1 {
			t.Errorf("want one line with %s, got %s", want, strings.ReplaceAll(r.String(), string(line), ""))
		}
		if !strings.Contains(r.String(), `"message":"again"`) {
			t.Error("what is logged after is lost")
		}
	})
}

func TestOutletSurvivesAReaderThatFails(t *testing.T) {
	r := &fussyReader{}
	o := newOutlet(r)
	log, _, err := newLog(configs.Log{Level: "info", Format: "json"}, o)
	if err != nil {
		t.Fatal(err)
	}
	r.set(errors.New("broken pipe"), nil)
	for range 3 {
		log.Info("lost")
		o.flush()
	}
	r.set(nil, nil)
	log.Info("kept", zap.Int("n", 1))
	o.close()
	if got := r.String(); !strings.Contains(got, `"message":"kept"`) || strings.Contains(got, "lost") || !strings.Contains(got, `"message":"log lines dropped","lines":3}`) {
		t.Errorf("want what was kept and that 3 lines were dropped, got %s", got)
	}
}
