package upstream

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// rangesRefused serves the layer, and answers requests for a part of it by refuse.
func rangesRefused(refuse http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Range") != "" {
			refuse(w, req)
			return
		}
		serveLayer(w, req)
	}
}

// badParts are answers to a request for bytes 4 to 8 of the 20 that the layer has.
var badParts = map[string]http.HandlerFunc{
	"400":                      status(400),
	"403":                      status(403),
	"404":                      status(404),
	"416":                      status(416),
	"500":                      status(500),
	"501":                      status(501),
	"502":                      status(502),
	"503":                      status(503),
	"416 with another size":    serveStatus(416, "Content-Range: bytes */3"),
	"no Content-Range":         part("", layer[4:9]),
	"another syntax":           part("bytes=4-8/20", layer[4:9]),
	"the first bytes":          part("bytes 0-8/20", layer[:9]),
	"the first bytes, as told": part("bytes 0-4/20", layer[:5]),
	"all, as a part":           part("bytes 0-19/20", layer),
	"less than was asked for":  part("bytes 4-6/20", layer[4:7]),
	"another length":           part("bytes 4-8/20", layer[4:8]),
	"nothing at all":           func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
}

func serveStatus(code int, header string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", header[len("Content-Range: "):])
		w.WriteHeader(code)
	}
}

func TestTheWholeBlobIsAskedForWhereRangesDoNotWork(t *testing.T) {
	for name, refuse := range badParts {
		for _, away := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					h := rangesRefused(refuse)
					if away {
						w.host("cdn.test:443", h)
						h = redirectTo("https://cdn.test/x")
					}
					w.host("reg.test:443", h)
					r := w.registry(Options{})
					for range 2 * breakAfter {
						b, err := r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: 9})
						if err != nil {
							t.Fatal(err)
						}
						got, err := io.ReadAll(b)
						if err != nil || string(got) != layer || b.Span != (oci.Span{From: 0, To: int64(len(layer))}) {
							t.Errorf("got %q as %v, %v; want all of the layer", got, b.Span, err)
						}
						_ = b.Close()
					}
					if got := value(t, w.metrics.UpstreamErrors, "reg", "status"); got != 0 {
						t.Errorf("%v refused ranges count as failures of the upstream", got)
					}
					// It is remembered for a while, and no longer.
					before := w.count("GET reg.test/")
					_, _ = r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: 9})
					w.wantCount("GET reg.test/", before+1)
					time.Sleep(rangelessFor)
					_, _ = r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: 9})
					if got := w.count("GET reg.test/"); got < before+3 {
						t.Errorf("after %v ranges are not tried again", rangelessFor)
					}
				})
			})
		}
	}
}

func TestOneRefusedRangeIsChance(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := 0
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if n++; n == 1 {
				rw.WriteHeader(503)
				return
			}
			serveContent(rw, req)
		})
		r := w.registry(Options{})
		for range 2 {
			b, err := r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: 9})
			if err != nil || b.Span != (oci.Span{From: 4, To: 9}) {
				t.Fatalf("got %+v, %v", b, err)
			}
			_ = b.Close()
		}
	})
}

// A part that fails for a moment is asked for again: the whole may be much more.
func TestARangeOutlastsAMomentOfFailures(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", failing(2, 503, serveContent))
		r := w.registry(Options{})
		b, err := r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: 9})
		if err != nil || b.Span != (oci.Span{From: 4, To: 9}) {
			t.Fatalf("got %+v, %v; want the part", b, err)
		}
		_ = b.Close()
		w.wantCount("GET reg.test/", 3)
	})
}

// Failures that ended by chance when the whole was asked for don't mean that ranges don't
// work, however many connections met them.
func TestFailuresInARowDontMeanThatRangesDontWork(t *testing.T) {
	for name, span := range map[string]oci.Span{"from the first byte": {From: 0, To: 9}, "from within": {From: 4, To: 9}} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				n := 3
				if span.From == 0 {
					n = 2
				}
				w.host("reg.test:443", failing(n, 503, serveContent))
				r := w.registry(Options{})
				for i, want := range []oci.Span{{From: 0, To: int64(len(layer))}, span} {
					b, err := r.Blob(t.Context(), "a", layerDigest, span)
					if err != nil || b.Span != want {
						t.Fatalf("%d: got %+v, %v; want %v", i, b, err, want)
					}
					_ = b.Close()
				}
			})
		})
	}
}

// What stays refused without a range is the answer, and nothing is remembered of ranges.
func TestABlobThatIsRefusedWithoutARangeTooIsRefused(t *testing.T) {
	for code, want := range map[int]oci.Code{403: oci.CodeDenied, 404: oci.CodeBlobUnknown, 416: oci.CodeUnavailable, 500: oci.CodeUnavailable} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", status(code))
			r := w.registry(Options{})
			_, err := r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: 9})
			e := map[oci.Code]int{oci.CodeDenied: 403, oci.CodeBlobUnknown: 404, oci.CodeUnavailable: 502}[want]
			wantError(t, err, want, e)
			if r.endpoints[0].isRangeless() {
				t.Errorf("%d: the endpoint is taken for one without ranges", code)
			}
		})
	}
}

// silentParts are answers to a request for a range after which no byte comes.
var silentParts = map[string]http.HandlerFunc{
	"no header": func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() },
	"a header only": func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Range", "bytes 4-8/20")
		w.WriteHeader(http.StatusPartialContent)
		_ = http.NewResponseController(w).Flush()
		<-req.Context().Done()
	},
}

func TestTheWholeBlobIsAskedForBesideASilentRange(t *testing.T) {
	for name, silence := range silentParts {
		for _, away := range []bool{false, true} {
			t.Run(fmt.Sprint(name, away), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					h := rangesRefused(silence)
					if away {
						w.host("cdn.test:443", h)
						h = redirectTo("https://cdn.test/x")
					}
					w.host("reg.test:443", h)
					r := w.registry(Options{})
					for n := range 2 * breakAfter {
						began := time.Now()
						b, err := r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: 9})
						if err != nil {
							t.Fatal(err)
						}
						got, err := io.ReadAll(b)
						if err != nil || string(got) != layer || b.Span != (oci.Span{From: 0, To: int64(len(layer))}) {
							t.Errorf("got %q as %v, %v; want all of the layer", got, b.Span, err)
						}
						_ = b.Close()
						want := time.Duration(0) // it is remembered
						if n == 0 {
							want = rangeSilence + rangeGrace
						}
						if took := time.Since(began); took != want {
							t.Errorf("request %d took %s, want %s", n, took, want)
						}
					}
				})
			})
		}
	}
}

// An upstream that is a cache itself may be silent before each blob, until it has it all.
func TestARangeIsWaitedForWhileTheWholeIsSilentToo(t *testing.T) {
	// A body that has begun may be silent for Options.StallTimeout at most.
	for header, silence := range map[bool]time.Duration{false: 50 * time.Second, true: 25 * time.Second} {
		t.Run(fmt.Sprint("header at once ", header), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				began := time.Now()
				w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
					if req.URL.Path == "/v2/" {
						return
					}
					body, status := layer, http.StatusOK
					if req.Header.Get("Range") != "" {
						rw.Header().Set("Content-Range", "bytes 4-8/20")
						body, status = layer[4:9], http.StatusPartialContent
					}
					if header {
						rw.WriteHeader(status)
						_ = http.NewResponseController(rw).Flush()
					}
					select {
					case <-time.After(time.Until(began.Add(silence))):
					case <-req.Context().Done():
						return
					}
					rw.WriteHeader(status)
					_, _ = io.WriteString(rw, body)
				})
				r := w.registry(Options{})
				b, err := r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: 9})
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(b)
				if err != nil || string(got) != layer[4:9] {
					t.Errorf("got %q, %v; want the part", got, err)
				}
				_ = b.Close()
				if r.endpoints[0].isRangeless() {
					t.Error("the endpoint counts as one without ranges")
				}
			})
		})
	}
}

// What stands against both requests is what a client hears.
func TestSilenceToARangeAndARefusalOfTheWholeIsARefusal(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			switch {
			case req.Header.Get("Range") == "":
				rw.WriteHeader(http.StatusForbidden)
			default:
				select {
				case <-time.After(10 * time.Second):
					rw.WriteHeader(http.StatusBadRequest)
				case <-req.Context().Done():
				}
			}
		})
		r := w.registry(Options{})
		_, err := r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: 9})
		wantError(t, err, oci.CodeDenied, 403)
		if r.endpoints[0].isRangeless() {
			t.Error("the endpoint counts as one without ranges")
		}
	})
}
