package server

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
)

// rangesOf returns a Range header of spans.
func rangesOf(spans []oci.Span) string {
	list := make([]string, len(spans))
	for i, s := range spans {
		list[i] = fmt.Sprintf("%d-%d", s.From, s.To-1)
	}
	return "bytes=" + strings.Join(list, ",")
}

// wantParts checks that resp sends spans of content, of a type, in their order, and nothing else.
func wantParts(t *testing.T, resp *http.Response, content []byte, contentType string, spans []oci.Span) {
	t.Helper()
	kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode != http.StatusPartialContent || err != nil || kind != "multipart/byteranges" || resp.ContentLength <= 0 {
		t.Fatalf("want several ranges and their length, got %d %v", resp.StatusCode, resp.Header)
	}
	r := multipart.NewReader(resp.Body, params["boundary"])
	for i, span := range spans {
		part, err := r.NextRawPart()
		if err != nil {
			t.Fatalf("part %d: %v", i, err)
		}
		got, err := io.ReadAll(part)
		if want := fmt.Sprintf("bytes %d-%d/%d", span.From, span.To-1, len(content)); part.Header.Get("Content-Range") != want || part.Header.Get("Content-Type") != contentType {
			t.Fatalf("part %d: want %s, got %v", i, want, part.Header)
		}
		if err != nil || !bytes.Equal(got, content[span.From:span.To]) {
			t.Fatalf("part %d: got %d bytes, %v, and want those of %v", i, len(got), err, span)
		}
	}
	if _, err := r.NextRawPart(); err != io.EOF {
		t.Errorf("want no further part, got %v", err)
	}
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("want the end of the body behind the last part, got %q, %v", rest, err)
	}
}

func TestSeveralRangesAreSentFromAFile(t *testing.T) {
	content := make([]byte, 5<<20+17)
	_, _ = rand.Read(content)
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() }) // once the server has ended
	every := func(step, size int) (spans []oci.Span) {
		for at := 0; at+size <= len(content) && len(spans) < maxRanges; at += step {
			spans = append(spans, oci.Span{From: int64(at), To: int64(at + size)})
		}
		return spans
	}
	backwards := every(100_000, 50_000)
	slices.Reverse(backwards)
	lender := httptest.NewUnstartedServer(nil)
	lender.StartTLS()
	defer lender.Close()
	c := filed{newShelf(), file, int64(len(content))}
	_, plain := start(t, c)
	_, secure := start(t, c, func(o *Options) { o.TLS = &tls.Config{Certificates: lender.TLS.Certificates} })
	for base, client := range map[string]*http.Client{plain: lender.Client(), strings.Replace(secure, "http:", "https:", 1): lender.Client()} {
		for what, spans := range map[string][]oci.Span{
			"tiny":      every(5000, 1),
			"small":     every(5000, 700),
			"touching":  every(5000, 5000),
			"large":     every(1<<20, 700_000),
			"backwards": backwards,
			"two":       {{From: 0, To: 3 << 20}, {From: int64(len(content)) - 1, To: int64(len(content))}},
		} {
			// The second answer begins where the first was announced to end.
			for range 2 {
				req, _ := http.NewRequest(http.MethodGet, base+blobPath(blobDigest), nil)
				req.Header.Set("Range", rangesOf(spans))
				resp, err := client.Do(req)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				wantParts(t, resp, content, oci.MediaTypeOctetStream, spans)
				resp.Body.Close()
			}
		}
	}
}

// A blob that an upstream would have to send once more for each range is sent once, whole.
func TestSeveralRangesOfWhatIsNotStoredAreTheWhole(t *testing.T) {
	s := newShelf()
	s.blobs[blobDigest].whole = true
	_, base := start(t, s)
	resp, body := ask(t, "GET", base+blobPath(blobDigest), "Range: bytes=5-6,900-999")
	if resp.StatusCode != 200 || !bytes.Equal(body, blobBytes) || resp.Header.Get("Content-Range") != "" {
		t.Errorf("want 200 and the whole, got %d, %d bytes, %v", resp.StatusCode, len(body), resp.Header)
	}
	if resp, body := ask(t, "GET", base+blobPath(blobDigest), "Range: bytes=5-6,6-9"); resp.StatusCode != 206 || string(body) != "56789" {
		t.Errorf("want 206 and what is one range, got %d, %d bytes", resp.StatusCode, len(body))
	}
}

// An answer that breaks off in a part is cut off, so that its client sees that.
func TestSeveralRangesThatBreakOffAreCutOff(t *testing.T) {
	s := newShelf()
	s.blobs[blobDigest].send = func(w io.Writer, span oci.Span) (int64, error) {
		if span.From > 100 {
			return 0, io.ErrUnexpectedEOF
		}
		n, err := w.Write(blobBytes[span.From:span.To])
		return int64(n), err
	}
	_, base := start(t, s)
	req, _ := http.NewRequest(http.MethodGet, base+blobPath(blobDigest), nil)
	req.Header.Set("Range", "bytes=0-49,200-249")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return // the header did not get out either
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("want a body that is cut off, got %q", b)
	}
}

func TestSeveralRangesAllocateTheSameHoweverManyThereAre(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	s := newShelf()
	request := func(n int) string {
		var spans []oci.Span
		for i := range int64(n) {
			spans = append(spans, oci.Span{From: 900 * i, To: 900*i + 10})
		}
		return "GET " + blobPath(blobDigest) + " HTTP/1.1\r\nHost: cache:5000\r\nRange: " + rangesOf(spans) + "\r\n\r\n"
	}
	allocated := map[int]float64{}
	for _, n := range []int{2, 700} {
		ask := asker(t, still{s}, request(n))
		for range 10 { // buffers grow
			ask()
		}
		allocated[n] = testing.AllocsPerRun(100, ask)
	}
	if allocated[700] > allocated[2]+1 || allocated[2] > 6 {
		t.Errorf("want some allocations for an answer and none for a range, got %v", allocated)
	}
}
