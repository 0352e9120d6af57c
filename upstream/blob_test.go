package upstream

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

func TestSpansAreAskedForAndTold(t *testing.T) {
	n := int64(len(layer))
	for name, c := range map[string]struct {
		span  oci.Span
		want  string // the Range header
		h     http.HandlerFunc
		got   oci.Span
		size  int64
		bytes string
	}{
		"whole":              {oci.Whole, "", serveLayer, oci.Span{From: 0, To: n}, n, layer},
		"whole, no length":   {oci.Whole, "", chunked(layer), oci.Span{From: 0, To: oci.Open}, -1, layer},
		"whole, until close": {oci.Whole, "", untilClose(layer), oci.Span{From: 0, To: oci.Open}, -1, layer},
		"to the end":         {oci.Span{From: 4, To: oci.Open}, "bytes=4-", serveContent, oci.Span{From: 4, To: n}, n, layer[4:]},
		"the middle":         {oci.Span{From: 4, To: 9}, "bytes=4-8", serveContent, oci.Span{From: 4, To: 9}, n, layer[4:9]},
		"from 0":             {oci.Span{From: 0, To: 5}, "bytes=0-4", serveContent, oci.Span{From: 0, To: 5}, n, layer[:5]},
		"past the end":       {oci.Span{From: 4, To: 1000}, "bytes=4-999", serveContent, oci.Span{From: 4, To: n}, n, layer[4:]},
		"Range is ignored":   {oci.Span{From: 4, To: 9}, "bytes=4-8", serveLayer, oci.Span{From: 0, To: n}, n, layer},
		"size not said":      {oci.Span{From: 4, To: 9}, "bytes=4-8", part("bytes 4-8/*", layer[4:9]), oci.Span{From: 4, To: 9}, -1, layer[4:9]},
		"no length":          {oci.Span{From: 4, To: 9}, "bytes=4-8", partChunked("bytes 4-8/20", layer[4:9]), oci.Span{From: 4, To: 9}, 20, layer[4:9]},
		"more than is said":  {oci.Span{From: 4, To: 9}, "bytes=4-8", partChunked("bytes 4-8/20", layer[4:]), oci.Span{From: 4, To: 9}, 20, layer[4:9]},
		"called gzip":        {oci.Whole, "", serve(layer, "Content-Encoding: gzip", "Content-Length: 20"), oci.Span{From: 0, To: n}, n, layer},
		"a larger part":      {oci.Span{From: 4, To: 9}, "bytes=4-8", part("bytes 2-9/20", layer[2:10]), oci.Span{From: 2, To: 10}, 20, layer[2:10]},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
					if got := req.Header.Get("Range"); got != c.want {
						t.Errorf("Range is %q, want %q", got, c.want)
					}
					c.h(rw, req)
				})
				b, err := w.registry(Options{}).Blob(t.Context(), "a", layerDigest, c.span)
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				if b.Span != c.got || b.Size != c.size || b.Source != "reg.test" {
					t.Errorf("got %+v of %d from %s, want %+v of %d from reg.test", b.Span, b.Size, b.Source, c.got, c.size)
				}
				raw, err := io.ReadAll(b)
				if err != nil || string(raw) != c.bytes {
					t.Errorf("got %q, %v; want %q", raw, err, c.bytes)
				}
				if got := value(t, w.metrics.UpstreamBytes, "reg"); got != float64(len(c.bytes)) {
					t.Errorf("%v bytes counted, want %d", got, len(c.bytes))
				}
			})
		})
	}
}

func serveContent(w http.ResponseWriter, req *http.Request) {
	http.ServeContent(w, req, "", time.Time{}, strings.NewReader(layer))
}

func chunked(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, body)
	}
}

// untilClose answers as HTTP/1.0 servers do: the body ends with the connection.
func untilClose(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		_, _ = io.WriteString(rw, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"+body)
		_ = rw.Flush()
	}
}

func part(contentRange, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", contentRange)
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, body)
	}
}

func partChunked(contentRange, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, body)
	}
}

func TestPartsThatAreNotWhatTheySayAreRefused(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"another unit":      part("pages 4-8/20", layer[4:9]),
		"rubbish":           part("bytes 4-8", layer[4:9]),
		"a negative":        part("bytes -4-8/20", layer[4:9]),
		"backwards":         part("bytes 8-4/20", layer[4:9]),
		"past its own size": part("bytes 4-8/8", layer[4:9]),
		"overflow":          part("bytes 4-9223372036854775807/*", layer[4:9]),
		"begins later":      part("bytes 5-8/20", layer[5:9]),
		"ends before":       part("bytes 0-3/20", layer[:4]),
		"another length":    part("bytes 4-8/20", layer[4:8]),
		"no content":        status(204),
		"several at once": func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Range"] = []string{"bytes 4-8/20", "bytes 0-19/20"}
			w.WriteHeader(206)
		},
		"parts in a multipart": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
			w.WriteHeader(206)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", h)
				_, err := w.registry(Options{}).Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: 9})
				wantError(t, err, oci.CodeUnavailable, 502, "reg.test")
			})
		})
	}
}

func TestBodiesThatBreakOffEndWithAnError(t *testing.T) {
	cutShort := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(layer)))
			_, _ = io.WriteString(w, layer[:n])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}
	for name, h := range map[string]http.HandlerFunc{
		"of known length": cutShort(5),
		"in chunks": func(w http.ResponseWriter, req *http.Request) {
			chunked(layer[:5])(w, req)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"of a part in chunks": partChunked("bytes 0-19/20", layer[:5]),
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", h)
				got, err := readBlob(t, w.registry(Options{}))
				wantError(t, err, oci.CodeUnavailable, 502, "reg.test", "broke off")
				if got != layer[:5] {
					t.Errorf("got %q before the end, want %q", got, layer[:5])
				}
				if errors.Is(err, io.EOF) {
					t.Error("the error is io.EOF: a reader takes the body for complete")
				}
				w.wantCount("GET ", 1) // going on is for who knows what came
			})
		})
	}
}

func TestWhatIsNoRangeIsNotAskedFor(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", serveContent)
		r := w.registry(Options{})
		for _, span := range []oci.Span{{From: -1, To: oci.Open}, {From: 5, To: 5}, {From: 5, To: 4}, {From: 0, To: -2}} {
			_, err := r.Blob(t.Context(), "a", layerDigest, span)
			wantError(t, err, oci.CodeRangeInvalid, 416)
		}
		w.wantCount("GET ", 0)
	})
}

func TestStatAsksWithHead(t *testing.T) {
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		size int64
		code oci.Code
	}{
		"there":              {serveLayer, int64(len(layer)), ""},
		"there, size unsaid": {serve(""), -1, ""},
		"there, size nought": {serve("", "Content-Length: 0"), -1, ""},
		"HEAD is not known":  {status(405), -1, ""},
		"in a store":         {redirectTo("https://cdn.test/x"), -1, ""},
		"refused, 404":       {status(404), -1, ""}, // a GET decides
		"refused, 500":       {status(500), -1, ""},
		"limited":            {status(429), 0, oci.CodeTooManyRequests},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", c.h)
				w.host("cdn.test:443", status(403)) // signed for GET only
				got, err := w.registry(Options{}).Stat(t.Context(), "a", layerDigest)
				w.wantCount("GET", 0)
				if c.code != "" {
					var e *oci.Error
					if !errors.As(err, &e) || e.Code != c.code {
						t.Errorf("got %v, want %s", err, c.code)
					}
					return
				}
				if err != nil || got.Digest != layerDigest || got.Size != c.size {
					t.Errorf("got %+v, %v; want %d bytes", got, err, c.size)
				}
			})
		})
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-99/1000", "bytes 4-8/*", "bytes */10", "BYTES  1-2/3", "bytes 5-4/9", "bytes 0-9223372036854775807/*", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		span, size, ok := contentRange(s)
		if ok && (span.From < 0 || span.To <= span.From || (size != -1 && size < span.To)) {
			t.Fatalf("contentRange(%q) = %+v of %d", s, span, size)
		}
	})
}
