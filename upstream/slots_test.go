package upstream

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

func TestBlobsLeaveRoomForManifests(t *testing.T) {
	for n, bulk := range map[int]int{1: 1, 2: 1, 4: 3, 8: 7, 64: 56} {
		s := newSlots(n)
		if got := cap(s.bulk); got != bulk {
			t.Errorf("%d slots: %d for blobs, want %d", n, got, bulk)
		}
		if got := cap(s.all); got != n {
			t.Errorf("%d slots: %d in all", n, got)
		}
	}
}

func TestOpenBlobsDoNotStarveManifests(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", serveLayer)
		r := w.registry(Options{MaxConnections: 2})
		first, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		opened := make(chan *oci.Body)
		go func() {
			b, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
			if err != nil {
				t.Error(err)
			}
			opened <- b
		}()
		synctest.Wait()
		select {
		case <-opened:
			t.Fatal("a second blob was opened, want it to wait for the first to be closed")
		default:
		}
		if _, err := r.Stat(t.Context(), "a", layerDigest); err != nil {
			t.Errorf("a HEAD beside an open blob: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = r.Blob(ctx, "a", layerDigest, oci.Whole)
		wantError(t, err, oci.CodeUnavailable, 503, "upstreams.reg.max_connections")

		_ = first.Close()
		_ = first.Close() // which gives back nothing twice
		_ = (<-opened).Close()
		if len(r.slots.all) != 0 || len(r.slots.bulk) != 0 {
			t.Errorf("%d and %d slots are taken, want none", len(r.slots.all), len(r.slots.bulk))
		}
	})
}

func TestFailedRequestsGiveTheirSlotBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", status(404))
		r := w.registry(Options{MaxConnections: 1})
		for range 3 {
			_, err := readBlob(t, r)
			wantError(t, err, oci.CodeBlobUnknown, 404)
		}
	})
}
