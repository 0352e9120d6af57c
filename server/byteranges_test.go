package server

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

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
	for _, n := range []int{2, 200, 700} { // the header of 700 comes in pieces
		ask := asker(t, still{s}, request(n))
		for range 10 { // buffers grow
			ask()
		}
		allocated[n] = testing.AllocsPerRun(100, ask)
	}
	if allocated[200] > allocated[2]+1 || allocated[700] > allocated[2]+6 || allocated[2] > 6 {
		t.Errorf("want some allocations for an answer and none for a range, got %v", allocated)
	}
}

func TestALongRangeHeaderIsRead(t *testing.T) {
	lender := httptest.NewUnstartedServer(nil)
	lender.StartTLS()
	defer lender.Close()
	many := func(n int) (spans []oci.Span) {
		for i := range int64(n) {
			spans = append(spans, oci.Span{From: 100_000 + 800*i, To: 100_000 + 800*i + 3})
		}
		return spans
	}
	thousand := rangesOf(many(maxRanges))
	padded := "bytes=" + strings.Repeat(" ", maxRangeBytes-4096-len(thousand)) + strings.TrimPrefix(thousand, "bytes=")
	for _, secure := range []bool{false, true} {
		s, base := start(t, newShelf(), func(o *Options) {
			if secure {
				o.TLS = &tls.Config{Certificates: lender.TLS.Certificates}
			}
		})
		dialed := func() net.Conn {
			c := dial(t, base)
			if secure {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true}) // #nosec G402 -- a test's own server
			}
			return c
		}
		for name, c := range map[string]struct {
			lines  []string
			status int
			parts  int
		}{
			"a thousand":                {[]string{"Range: " + thousand}, 206, maxRanges},
			"a thousand, padded":        {[]string{"Range: " + padded}, 206, maxRanges},
			"other spelling":            {[]string{"X: y", "rAnGe:" + thousand, "Accept: */*"}, 206, maxRanges},
			"behind long headers":       {[]string{"Authorization: Basic " + strings.Repeat("QQ", 3000), "Range: " + thousand, "X: " + strings.Repeat("y", 4000)}, 206, maxRanges},
			"too many":                  {[]string{"Range: " + rangesOf(many(1100))}, 400, 0},
			"far too many":              {[]string{"Range: " + strings.Repeat("0-0,", 50_000)}, 400, 0},
			"twice":                     {[]string{"Range: bytes=0-0", "Range: " + thousand}, 200, 0},
			"malformed at its end":      {[]string{"Range: " + thousand + ",x"}, 200, 0},
			"in a header of other name": {[]string{"Ranges: " + padded}, 431, 0},
			"with another long header":  {[]string{"Range: " + thousand, "X: " + strings.Repeat("y", maxHeaderBytes)}, 431, 0},
		} {
			for _, piece := range []int{1 << 20, 1000} {
				conn := dialed()
				r := bufio.NewReader(conn)
				request := "GET " + blobPath(blobDigest) + " HTTP/1.1\r\nHost: x\r\n" + strings.Join(c.lines, "\r\n") + "\r\n\r\n" +
					"GET " + blobPath(blobDigest) + " HTTP/1.1\r\nHost: x\r\nRange: bytes=5-7\r\n\r\n"
				go func() {
					for b := []byte(request); len(b) > 0; {
						n, err := conn.Write(b[:min(len(b), piece)])
						if b = b[n:]; err != nil {
							return // refused before its end
						}
					}
				}()
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					if c.status != 431 { // what was refused was still being sent
						t.Errorf("%s: %v", name, err)
					}
					continue
				}
				if c.parts > 0 {
					wantParts(t, resp, blobBytes, oci.MediaTypeOctetStream, many(c.parts))
				} else if _, err := io.Copy(io.Discard, resp.Body); resp.StatusCode != c.status || err != nil {
					t.Errorf("%s: want %d, got %s, %v", name, c.status, resp.Status, err)
				}
				if c.status >= 400 && c.status != 400 || resp.Close {
					continue
				}
				// Nothing of it stays for the next request on the connection.
				if resp, err = http.ReadResponse(r, nil); err != nil {
					t.Errorf("%s, the request behind: %v", name, err)
					continue
				}
				if b, err := io.ReadAll(resp.Body); string(b) != "567" || err != nil {
					t.Errorf("%s, the request behind: got %q, %v", name, b, err)
				}
				conn.Close()
			}
		}
		for i := 0; s.longRanges.Load() != 0; i++ {
			if i == 1000 {
				t.Fatalf("%d places are still taken", s.longRanges.Load())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// Without a place for a long header, clients are told to ask for less.
func TestLongRangeHeadersAreBounded(t *testing.T) {
	s, base := start(t, newShelf())
	s.longRanges.Store(maxLongRanges)
	var spans []oci.Span
	for i := range int64(700) {
		spans = append(spans, oci.Span{From: 900 * i, To: 900*i + 3})
	}
	req, _ := http.NewRequest(http.MethodGet, base+blobPath(blobDigest), nil)
	req.Header.Set("Range", rangesOf(spans))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	wantParts(t, resp, blobBytes, oci.MediaTypeOctetStream, spans) // it fits the connection's buffer
	resp.Body.Close()
	conn := dial(t, base)
	long := "GET " + blobPath(blobDigest) + " HTTP/1.1\r\nHost: x\r\nRange: bytes=" + strings.Repeat("0-0,", maxHeaderBytes/4)
	if _, err := io.WriteString(conn, long); err != nil {
		t.Fatal(err)
	}
	if resp, err = http.ReadResponse(bufio.NewReader(conn), nil); err == nil && resp.StatusCode != 400 {
		t.Errorf("want 400, got %s", resp.Status)
	}
}
