package upstream

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// trickle sends what never ends, byte by byte, fast enough to be no stall.
func trickle(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", ociImage)
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case <-time.After(20 * time.Second):
		case <-req.Context().Done():
			return
		}
		_, _ = io.WriteString(w, " ")
		_ = http.NewResponseController(w).Flush()
	}
}

func TestWhatIsSmallMustComeInTime(t *testing.T) {
	for name, ask := range map[string]func(t *testing.T, r *Registry) error{
		"a manifest": func(t *testing.T, r *Registry) error {
			_, err := r.Manifest(t.Context(), "a", "latest")
			return err
		},
		"tags": func(t *testing.T, r *Registry) error {
			_, err := r.Tags(t.Context(), "a")
			return err
		},
		"referrers": func(t *testing.T, r *Registry) error {
			_, err := r.Referrers(t.Context(), "a", layerDigest)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", trickle)
				began := time.Now()
				err := ask(t, w.registry(Options{}))
				wantError(t, err, oci.CodeUnavailable, 504, "reg.test", "2m0s")
				if d := time.Since(began); d != smallTimeout {
					t.Errorf("it ended after %s, want %s", d, smallTimeout)
				}
			})
		})
	}
}

// What a refusal says must come in time too, though nobody cares for the bytes.
func TestTheBodyOfAnErrorMustComeInTime(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			rw.WriteHeader(http.StatusForbidden)
			trickle(rw, req)
		})
		began := time.Now()
		r := w.registry(Options{})
		_, err := r.Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeDenied, 403)
		if d := time.Since(began); d > 2*r.stall { // the greeting has such a body too
			t.Errorf("it ended after %s, want %s at most", d, 2*r.stall)
		}
	})
}

// Each page is another and comes quickly; together they have a time.
func TestAListOfSlowPagesEnds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var pages atomic.Int64
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			n := pages.Add(1)
			select {
			case <-time.After(27 * time.Second):
			case <-req.Context().Done():
				return
			}
			rw.Header().Set("Link", fmt.Sprintf(`</v2/a/tags/list?last=%d>; rel="next"`, n))
			_, _ = io.WriteString(rw, `{"tags":[]}`)
		})
		began := time.Now()
		_, err := w.registry(Options{}).Tags(t.Context(), "a")
		wantError(t, err, oci.CodeUnavailable, 504)
		if d := time.Since(began); d != listTimeout {
			t.Errorf("it ended after %s, want %s", d, listTimeout)
		}
	})
}

func TestAListOfTooManyReferrersEnds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := 0
		page := `{"manifests":[` + strings.Repeat(`{"digest":"`+string(layerDigest)+`"},`, 49_999) + `{"digest":%q}]}`
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			n++
			rw.Header().Set("Link", fmt.Sprintf(`</v2/a/referrers/x?last=%d>; rel="next"`, n))
			_, _ = fmt.Fprintf(rw, page, digest.FromString(fmt.Sprint(n)))
		})
		_, err := w.registry(Options{}).Referrers(t.Context(), "a", layerDigest)
		wantError(t, err, oci.CodeUnavailable, 502, "does not end")
		var e *oci.Error
		if errors.As(err, &e) && n != maxReferrers/50_000+1 {
			t.Errorf("%d pages were taken, want %d", n, maxReferrers/50_000+1)
		}
	})
}

// Registries that are caches may fetch all of a blob before they send its first byte.
func TestABlobIsWaitedForAtTwoEndpointsThatAnswerOtherRequests(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, host := range []string{"one.test:443", "two.test:443"} {
			w.host(host, func(rw http.ResponseWriter, req *http.Request) {
				if req.URL.Path != "/v2/" {
					select {
					case <-time.After(time.Minute):
					case <-req.Context().Done():
					}
				}
				serveLayer(rw, req)
			})
		}
		r := w.registry(Options{Endpoints: []string{"https://one.test", "https://two.test"}})
		b, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		_ = b.Close()
	})
}
