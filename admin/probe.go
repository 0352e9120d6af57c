package admin

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/singleflight"
)

// probeTimeout is how long an answer waits for its check. It is below what
// Kubernetes and Docker are usually set to wait, so that they get to read why.
const probeTimeout = 900 * time.Millisecond

// probe answers with what a check says: 200, or 503 and the reason. Beside ok
// it tells what is degraded.
type probe struct {
	name     string
	check    Check
	degraded func() string
	// flight joins requests to the check that runs. A check of a disk that
	// hangs then holds one goroutine, however often it is asked for.
	flight *singleflight.Group
}

func newProbe(name string, check Check, degraded func() string) probe {
	return probe{name: name, check: check, degraded: degraded, flight: new(singleflight.Group)}
}

func (p probe) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	note, err := p.ask(r.Context())
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintf(w, "not %s: %v\n", p.name, err) // the client is gone where this fails
		return
	}
	answer := "ok"
	if note != "" {
		answer += ", degraded: " + note
	}
	_, _ = fmt.Fprintln(w, answer) // #nosec G705 -- plain text, and no browser sniffs it
}

// ask runs the check, or joins the one that runs, and waits for its word and
// for what is degraded. The goroutine of a check ends when the check does.
func (p probe) ask(ctx context.Context) (note string, err error) {
	if p.check == nil && p.degraded == nil {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	result := p.flight.DoChan("", func() (any, error) {
		// Not the context of the first to ask: others wait as well.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
		defer cancel()
		if p.check != nil {
			if err := p.check(ctx); err != nil {
				return "", err
			}
		}
		if p.degraded == nil {
			return "", nil
		}
		return p.degraded(), nil
	})
	select {
	case r := <-result:
		note, _ = r.Val.(string)
		return note, r.Err
	case <-ctx.Done():
		return "", fmt.Errorf("the check did not end within %s", probeTimeout)
	}
}
