package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// drip sends layer byte by byte, with a pause before each, and then stops for ever.
func drip(pause time.Duration, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(layer)))
		for i := range n {
			select {
			case <-time.After(pause):
			case <-req.Context().Done():
				return
			}
			_, _ = io.WriteString(w, layer[i:i+1])
			_ = http.NewResponseController(w).Flush()
		}
		if n < len(layer) {
			<-req.Context().Done()
		}
	}
}

func TestABodyThatMovesMayTakeForEver(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", drip(29*time.Second, len(layer)))
		began := time.Now()
		wantLayer(t, w.registry(Options{}))
		if d := time.Since(began); d < 5*time.Minute {
			t.Fatalf("the test is too short to say anything: %s", d)
		}
	})
}

func TestABodyThatStallsEnds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", drip(time.Second, 5))
		r := w.registry(Options{StallTimeout: 10 * time.Second})
		began := time.Now()
		got, err := readBlob(t, r)
		wantError(t, err, oci.CodeUnavailable, 504, "reg.test", "10s")
		if got != layer[:5] {
			t.Errorf("got %q, want what came before the stall, %q", got, layer[:5])
		}
		if d := time.Since(began); d != 15*time.Second {
			t.Errorf("it ended after %s, want 15s", d)
		}
		if got := value(t, w.metrics.UpstreamErrors, "reg", "stall"); got != 1 {
			t.Errorf("%v stalls counted, want 1", got)
		}
	})
}

func TestAReaderThatTakesItsTimeIsNoStall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", drip(0, len(layer)))
		b, err := w.registry(Options{StallTimeout: 10 * time.Second}).Blob(t.Context(), "a", layerDigest, oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		one := make([]byte, 1)
		for i := range layer {
			time.Sleep(time.Hour)
			if _, err := io.ReadFull(b, one); err != nil || one[0] != layer[i] {
				t.Fatalf("byte %d: %q, %v", i, one, err)
			}
		}
	})
}

func TestAManifestThatStallsEnds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", drip(time.Second, 5))
		_, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 504, "reg.test", "30s")
	})
}

func TestARefusalOrARedirectWhoseBodyStallsEnds(t *testing.T) {
	for _, code := range []int{307, 404, 401} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
				rw.Header().Set("Location", "https://cdn.test/")
				rw.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.test/"`)
				rw.Header().Set("Content-Length", "100")
				rw.WriteHeader(code)
				_ = http.NewResponseController(rw).Flush()
				<-req.Context().Done()
			})
			s := &tokenServer{}
			w.host("auth.test:443", s.serve)
			began := time.Now()
			if _, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest"); err == nil {
				t.Errorf("%d: want an error", code)
			}
			if d := time.Since(began); d > 2*time.Minute {
				t.Errorf("%d: it ended after %s", code, d)
			}
		})
	}
}

func TestAHeaderThatDoesNotComeEndsTheRequest(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
		began := time.Now()
		_, err := w.registry(Options{HeaderTimeout: 7 * time.Second}).Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 504, "reg.test", "too long")
		if d := time.Since(began); d != 7*time.Second {
			t.Errorf("it ended after %s, want 7s", d)
		}
	})
}

func TestACallersContextBoundsTheBody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", drip(time.Second, 5))
		ctx, cancel := context.WithCancel(t.Context())
		b, err := w.registry(Options{}).Blob(ctx, "a", layerDigest, oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		time.AfterFunc(3*time.Second, cancel)
		_, err = io.ReadAll(b)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want one that is context.Canceled", err)
		}
		wantError(t, err, oci.CodeUnavailable, 503)
	})
}
