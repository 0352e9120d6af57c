package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	dto "github.com/prometheus/client_model/go"

	"github.com/entrepot-dev/entrepot/oci"
)

// layers gives n layers that can be told apart, put into repo.
func layers(r *registry, repo string, n int) []digest.Digest {
	var list []digest.Digest
	for i := range n {
		list = append(list, r.addBlob(repo, bytes.Repeat(fmt.Appendf(nil, "%s %d ", repo, i), 20_000)).Digest)
	}
	return list
}

func TestFillsBeyondTheLimitWaitForAMomentAndAreThenRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		hub.set(nil, fillPatience-time.Second) // a place is free in time for those who wait
		all := layers(hub, "a", 3)
		c := open(t, Options{MaxFills: 1}, map[string]*registry{"docker.io": hub})
		began := time.Now()
		errs := make(chan error, len(all))
		for _, d := range all {
			go func() {
				b, _, err := c.Blob(context.Background(), digested("a", d), oci.Whole)
				if err == nil {
					_, err = b.Send(new(bytes.Buffer), oci.Whole)
					b.Close()
				}
				errs <- err
			}()
		}
		synctest.Wait()
		var running dto.Metric
		if err := c.metrics.FillsInFlight.Write(&running); err != nil || running.GetGauge().GetValue() != 1 {
			t.Errorf("want 1 fill in flight while others wait, got %v, %v", running.GetGauge().GetValue(), err)
		}
		var refused []error
		for range all {
			if err := <-errs; err != nil {
				refused = append(refused, err)
			}
		}
		if len(refused) != 1 {
			t.Fatalf("want one that waited too long, got %v", refused)
		}
		var e *oci.Error
		if !errors.As(refused[0], &e) || e.Code != oci.CodeUnavailable || e.HTTPStatus() != 503 || e.RetryAfter <= 0 {
			t.Errorf("want 503 with RetryAfter, got %#v", refused[0])
		}
		if took := time.Since(began); took > 2*fillPatience {
			t.Errorf("all took %v", took)
		}
		var counted dto.Metric
		if err := c.metrics.Refused.WithLabelValues("fills").Write(&counted); err != nil || counted.GetCounter().GetValue() != 1 {
			t.Errorf("want 1 refusal counted, got %v, %v", counted.GetCounter().GetValue(), err)
		}
	})
}

// One upstream that hangs leaves places to the others.
func TestUpstreamThatHangsDoesNotTakeAllPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hanging, quick := newRegistry(), newRegistry()
		hanging.set(nil, time.Hour)
		stuck, good := layers(hanging, "a", 8), layers(quick, "b", 1)
		c := open(t, Options{MaxFills: 4}, map[string]*registry{"docker.io": hanging, "quay.io": quick})
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		for _, d := range stuck {
			go func() { _, _, _ = c.Blob(ctx, digested("a", d), oci.Whole) }()
		}
		synctest.Wait()
		began := time.Now()
		b, _, err := c.Blob(ctx, oci.Target{Upstream: "quay.io", Repository: "b", Digest: good[0]}, oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		if took := time.Since(began); took > 0 {
			t.Errorf("it waited %v for another upstream", took)
		}
	})
}
