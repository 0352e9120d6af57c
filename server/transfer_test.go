package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
)

// patience is how long a test waits for what must happen; it ends nothing that
// works.
const patience = 20 * time.Second

func TestBodyThatEndsEarlyIsSeenAsCutOff(t *testing.T) {
	for name, send := range map[string]func(io.Writer, oci.Span) (int64, error){
		"error": func(w io.Writer, _ oci.Span) (int64, error) {
			n, _ := w.Write(blobBytes[:300_000])
			return int64(n), errors.New("upstream broke off")
		},
		"error at the first byte": func(io.Writer, oci.Span) (int64, error) { return 0, errors.New("upstream broke off") },
		"short without an error": func(w io.Writer, _ oci.Span) (int64, error) {
			n, _ := w.Write(blobBytes[:len(blobBytes)-1])
			return int64(n), nil
		},
		"panic": func(w io.Writer, _ oci.Span) (int64, error) {
			_, _ = w.Write(blobBytes[:10])
			panic("in the middle")
		},
		"too long": func(w io.Writer, _ oci.Span) (int64, error) {
			n, err := w.Write(append(bytes.Clone(blobBytes), 'x'))
			return int64(n), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf()
			closed := make(chan struct{}, 1)
			s.blobs[blobDigest] = &parcel{bytes: blobBytes, send: send, closed: closed}
			_, base := start(t, s)
			resp, err := http.Get(base + blobPath(blobDigest))
			if err == nil {
				defer resp.Body.Close()
				var got []byte
				got, err = io.ReadAll(resp.Body)
				if name == "too long" && err == nil && bytes.Equal(got, blobBytes) {
					err = io.ErrUnexpectedEOF // the client has the true body and no more
				}
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
				t.Errorf("error %v, want an unexpected EOF", err)
			}
			select {
			case <-closed:
			case <-time.After(patience):
				t.Error("the blob was not closed")
			}
		})
	}
}

func TestClientThatLeavesEndsTheSend(t *testing.T) {
	s := newShelf()
	closed := make(chan struct{}, 1)
	ended := make(chan error, 1)
	s.blobs[blobDigest] = &parcel{bytes: blobBytes, closed: closed, send: func(w io.Writer, span oci.Span) (int64, error) {
		var n int64
		for {
			// A body without end, as far as this test goes.
			m, err := w.Write(blobBytes[:1000])
			if n += int64(m); err != nil {
				ended <- err
				return n, err
			}
		}
	}}
	_, base := start(t, sized{s, 1 << 40})
	conn := dial(t, base)
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", blobPath(blobDigest))
	if _, err := io.ReadFull(conn, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	select {
	case err := <-ended:
		if !isClientGone(err) {
			t.Errorf("Send ended with %v, which does not count as the client's doing", err)
		}
	case <-time.After(patience):
		t.Fatal("Send goes on without a client")
	}
	<-closed
}

// sized claims a size for every blob.
type sized struct {
	*shelf
	size int64
}

func (s sized) Blob(ctx context.Context, t oci.Target, hint oci.Span) (cache.Blob, cache.Outcome, error) {
	b, o, err := s.shelf.Blob(ctx, t, hint)
	return sizedBlob{b, s.size}, o, err
}

type sizedBlob struct {
	cache.Blob
	size int64
}

func (b sizedBlob) Size() int64 { return b.size }

func TestClientThatReadsNothingIsCutOff(t *testing.T) {
	s := newShelf()
	ended := make(chan error, 1)
	s.blobs[blobDigest] = &parcel{bytes: blobBytes, send: func(w io.Writer, _ oci.Span) (int64, error) {
		for {
			if _, err := w.Write(blobBytes); err != nil {
				ended <- err
				return 0, err
			}
		}
	}}
	_, base := start(t, sized{s, 1 << 40}, func(o *Options) { o.StallTimeout = 50 * time.Millisecond })
	conn := dial(t, base)
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", blobPath(blobDigest))
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Send ended with %v, want a deadline", err)
		}
	case <-time.After(patience):
		t.Fatal("a client that reads nothing is waited for")
	}
}

func TestDeadlineIsPutOffAsLongAsTheClientTakesBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stall = time.Minute
		conn := &deadlines{last: time.Now().Add(stall)} // as fasthttp sets it
		p := &pacer{w: &conn.got, conn: conn, stall: stall, last: time.Now()}
		for range 1000 {
			time.Sleep(stall / 20)
			if _, err := p.Write(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			if left := time.Until(conn.last); left < stall*7/8 || left > stall {
				t.Fatalf("with %v left of %v, %d deadlines set", left, stall, conn.set)
			}
		}
		if conn.set > 500 {
			t.Errorf("%d deadlines set in 50 stall timeouts: each costs a call", conn.set)
		}
	})
}

// deadlines is a connection of which only the write deadline counts.
type deadlines struct {
	net.Conn
	got  bytes.Buffer
	last time.Time
	set  int
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	d.last, d.set = t, d.set+1
	return nil
}

func TestHeaderReachesTheClientBeforeTheFirstByteOfAMiss(t *testing.T) {
	s := newShelf()
	s.outcome.Status = cache.Miss
	seen := make(chan struct{})
	s.blobs[blobDigest] = &parcel{bytes: blobBytes, send: func(w io.Writer, _ oci.Span) (int64, error) {
		<-seen
		n, err := w.Write(blobBytes)
		return int64(n), err
	}}
	_, base := start(t, s)
	resp, err := http.Get(base + blobPath(blobDigest)) // returns with the header
	close(seen)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(body, blobBytes) {
		t.Errorf("%d bytes, error %v", len(body), err)
	}
}

func TestShutdownLetsARunningTransferFinish(t *testing.T) {
	s := newShelf()
	begun, finish := make(chan struct{}), make(chan struct{})
	s.blobs[blobDigest] = &parcel{bytes: blobBytes, send: func(w io.Writer, _ oci.Span) (int64, error) {
		n, err := w.Write(blobBytes[:10])
		close(begun)
		<-finish
		if err == nil {
			_, err = w.Write(blobBytes[n:])
		}
		return int64(len(blobBytes)), err
	}}
	server, base := start(t, s)
	type answer struct {
		body []byte
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		resp, err := http.Get(base + blobPath(blobDigest))
		if err != nil {
			answers <- answer{nil, err}
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		answers <- answer{body, err}
	}()
	<-begun
	down := make(chan error, 1)
	go func() { down <- server.Shutdown(context.Background()) }()
	// The listener is closed at once.
	for deadline := time.Now().Add(patience); ; {
		c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("connections are still taken")
		}
	}
	select {
	case err := <-down:
		t.Fatalf("Shutdown ended (%v) before the transfer", err)
	default:
	}
	s.mu.Lock()
	if err := s.ctx.Err(); err != nil {
		t.Errorf("the request's context ended: %v", err)
	}
	s.mu.Unlock()
	close(finish)
	if a := <-answers; a.err != nil || !bytes.Equal(a.body, blobBytes) {
		t.Errorf("got %d bytes, error %v", len(a.body), a.err)
	}
	select {
	case err := <-down:
		if err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Shutdown does not end")
	}
	if s.ctx.Err() == nil {
		t.Error("the requests' context outlives the server")
	}
}

func TestShutdownCutsOffWhatTakesTooLong(t *testing.T) {
	s := newShelf()
	begun := make(chan struct{})
	s.blobs[blobDigest] = &parcel{bytes: blobBytes, send: func(w io.Writer, _ oci.Span) (int64, error) {
		close(begun)
		<-s.ctx.Done() // as a fill does
		return 0, s.ctx.Err()
	}}
	server, base := start(t, s)
	conn := dial(t, base)
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", blobPath(blobDigest))
	<-begun
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v, want that the time is over", err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil && !isClientGone(err) {
		t.Errorf("the connection: %v", err)
	}
}

func TestRequestsOnARawConnection(t *testing.T) {
	_, base := start(t, newShelf())
	long := strings.Repeat("x", maxHeaderBytes)
	for name, c := range map[string]struct{ send, want, holds string }{
		"absolute form":       {"GET http://cache:5000/v2/ HTTP/1.1\r\nHost: cache:5000\r\nConnection: close\r\n\r\n", "200", "{}"},
		"HTTP/1.0":            {"GET /v2/ HTTP/1.0\r\n\r\n", "200", "{}"},
		"Host decides":        {"GET /v2/org/app/manifests/1 HTTP/1.1\r\nHost: ghcr.io:80\r\nConnection: close\r\n\r\n", "200", `detail="ghcr.io"`},
		"dots in the path":    {"GET /v2/x/../nginx/manifests/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400", "NAME_INVALID"},
		"encoded dots":        {"GET /v2/x/%2e%2e/nginx/manifests/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400", "NAME_INVALID"},
		"double slash":        {"GET /v2//nginx/manifests/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400", "NAME_INVALID"},
		"a line in ns":        {"GET /v2/?ns=a%0d%0aX:y HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "200", "{}"},
		"too large a header":  {"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + long + "\r\n\r\n", "431", "header"},
		"no HTTP":             {"hello\r\n\r\n", "400", "UNSUPPORTED"},
		"no HTTP, its header": {"hello\r\n\r\n", "400", "Docker-Distribution-Api-Version: registry/2.0"},
		"GET with a body":     {"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", "200", "{}"},
		"push of terabytes":   {"PUT /v2/nginx/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\nabc", "405", "Allow: GET, HEAD"},
		"push without a byte": {"POST /v2/nginx/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n", "405", "Allow: GET, HEAD"},
		"push that asks":      {"PUT /v2/nginx/manifests/1 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1099511627776\r\n\r\na", "", "405 Method Not Allowed"},
		"push in chunks":      {"PATCH /v2/nginx/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "405", "UNSUPPORTED"},
		"OPTIONS of all":      {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "405", "UNSUPPORTED"},
		"stray Authorization": {"GET /v2/nginx/tags/list HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + long[:6000] + "\r\nConnection: close\r\n\r\n", "200", "latest"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, base)
			_, _ = io.WriteString(conn, c.send)
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			got, err := io.ReadAll(conn)
			if err != nil && !isClientGone(err) || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("after %.300q: %v", got, err)
			}
			if c.want != "" && !strings.HasPrefix(string(got), "HTTP/1.1 "+c.want) || !strings.Contains(string(got), c.holds) {
				t.Errorf("got %.500q\nwant %s with %q", got, c.want, c.holds)
			}
			if bytes.Contains(got, []byte("\nX:")) {
				t.Errorf("a header was smuggled in: %q", got)
			}
		})
	}
}

func TestConnectionIsKeptForTheNextRequest(t *testing.T) {
	_, base := start(t, newShelf())
	conn := dial(t, base)
	r := bufio.NewReader(conn)
	for _, path := range []string{"/v2/", blobPath(blobDigest), "/v2/nginx/manifests/none", "/v2/nginx/manifests/1"} {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Close {
			t.Fatalf("%s: error %v, closes %v", path, err, resp.Close)
		}
	}
}

func TestNoClientMakesLinesOfTheLogLong(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	server, base := start(t, newShelf(), func(o *Options) { o.Log = zap.New(core) })
	long := strings.Repeat("x", 3000)
	ask(t, "GET", base+"/v2/nginx/manifests/1", "User-Agent: "+long)
	ask(t, strings.ToUpper(long), base+"/v2/nginx/manifests/1")
	ask(t, "GET", base+"/v2/"+long+"/manifests/"+long)
	ask(t, "GET", base+"/"+long+"?ns="+long)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	entries := logs.FilterMessage("request").AllUntimed()
	if len(entries) != 4 {
		t.Fatalf("%d lines, want 4", len(entries))
	}
	for i, e := range entries {
		if line := fmt.Sprint(e.ContextMap()); len(line) > 1000 {
			t.Errorf("line %d has %d bytes: %.300s", i, len(line), line)
		}
	}
}

func TestRequestIsLoggedOnceItsBodyIsSent(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	m := metrics.Discard()
	s := newShelf()
	s.blobs[manifestSum] = &parcel{bytes: blobBytes, send: func(w io.Writer, _ oci.Span) (int64, error) {
		return 0, errors.New("upstream broke off")
	}}
	server, base := start(t, s, func(o *Options) { o.Log, o.Metrics = zap.New(core), m })
	ask(t, "GET", base+"/v2/org/app/manifests/1?ns=ghcr.io", "User-Agent: evil\tagent")
	ask(t, "GET", base+blobPath(blobDigest), "Range: bytes=0-9")
	ask(t, "HEAD", base+blobPath(blobDigest))
	ask(t, "GET", base+"/v2/nginx/manifests/none")
	if resp, err := http.Get(base + blobPath(manifestSum)); err == nil {
		_, _ = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	entries := logs.FilterMessage("request").AllUntimed()
	want := []string{
		"info GET manifest ghcr.io org/app 1 hit 200 76",
		"info GET blob docker.io library/nginx " + string(blobDigest) + " hit 206 10",
		"info HEAD blob docker.io library/nginx " + string(blobDigest) + " hit 200 0",
		"info GET manifest docker.io library/nginx none error 404 ",
		"warn GET blob docker.io library/nginx " + string(manifestSum) + " error 200 0",
	}
	if len(entries) != len(want) {
		t.Fatalf("%d lines, want %d: %v", len(entries), len(want), entries)
	}
	for i, e := range entries {
		f := e.ContextMap()
		got := fmt.Sprint(e.Level, " ", f["method"], " ", f["kind"], " ", f["upstream"], " ", f["repository"], " ", f["reference"], " ", f["outcome"], " ", f["status"], " ", f["bytes"])
		if !strings.HasPrefix(got, want[i]) {
			t.Errorf("line %d\n got %s\nwant %s", i, got, want[i])
		}
		if f["client"] != "127.0.0.1" {
			t.Errorf("client %v", f["client"])
		}
	}
	if agent := entries[0].ContextMap()["user_agent"]; agent != "evil\tagent" {
		t.Errorf("user agent %q", agent)
	}
	if n := value(t, m.Requests.WithLabelValues("docker.io", "blob", "hit", "206")); n != 1 {
		t.Errorf("requests counted: %v, want 1", n)
	}
	if n := value(t, m.ClientBytes.WithLabelValues("docker.io", "blob")); n != 10 {
		t.Errorf("bytes counted: %v, want 10", n)
	}
	if n := value(t, m.RequestsInFlight); n != 0 {
		t.Errorf("requests in flight: %v, want 0", n)
	}
}

func TestATransferThatTheClientEndedIsNoError(t *testing.T) {
	reset := &net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.ECONNRESET)}
	for name, c := range map[string]struct {
		err    error
		status int
		want   string
	}{
		"sent":                     {nil, 206, "hit"},
		"the client closed it":     {fmt.Errorf("send: %w", reset), 206, "hit"},
		"the client took nothing":  {os.ErrDeadlineExceeded, 200, "hit"},
		"the upstream closed it":   {&oci.Error{Code: oci.CodeUnavailable, Message: "the upstream broke off", Err: reset}, 200, "error"},
		"the disk failed":          {io.ErrUnexpectedEOF, 200, "error"},
		"there was no such thing":  {oci.Errorf(oci.CodeBlobUnknown, "no blob"), 404, "error"},
		"an error, and then a RST": {reset, 503, "error"},
	} {
		x := &exchange{status: c.status, outcome: cache.Outcome{Status: cache.Hit}, err: c.err}
		if got := x.outcomeWord(); got != c.want {
			t.Errorf("%s: got outcome %s, want %s", name, got, c.want)
		}
	}
}

func TestTLSIsSpokenWhereItIsConfigured(t *testing.T) {
	lender := httptest.NewUnstartedServer(nil)
	lender.StartTLS()
	defer lender.Close()
	_, base := start(t, newShelf(), func(o *Options) { o.TLS = &tls.Config{Certificates: lender.TLS.Certificates} })
	resp, err := lender.Client().Get(strings.Replace(base, "http:", "https:", 1) + blobPath(blobDigest))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(body, blobBytes) {
		t.Errorf("%d bytes, error %v", len(body), err)
	}
}

func dial(t *testing.T, base string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}
