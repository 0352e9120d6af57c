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

	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// inside opens a connection that the server has let in: it has answered on it.
func inside(t *testing.T, base string) net.Conn {
	t.Helper()
	c := dial(t, base)
	ping(t, c)
	return c
}

// ping asks for /v2/ on a connection and keeps it.
func ping(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp.Status, err)
	}
}

// until asks until it hears what it waits for: a place is free a moment after
// its connection is closed.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func wantRefusal(t *testing.T, resp *http.Response, body []byte, status int, code oci.Code) {
	t.Helper()
	if resp.StatusCode != status || !bytes.Contains(body, []byte(code)) || resp.Header.Get("Content-Type") != jsonType ||
		resp.Header.Get("Retry-After") == "" || resp.Header.Get("Retry-After") == "0" {
		t.Errorf("want %d %s with Retry-After, got %d %v %s", status, code, resp.StatusCode, resp.Header, body)
	}
}

func TestConnectionsBeyondALimitAreRefusedInWords(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		limit  string
		status int
		code   oci.Code
	}{
		"all":            {func(o *Options) { o.MaxConnections = 2 }, "connections", 503, oci.CodeUnavailable},
		"of one address": {func(o *Options) { o.MaxConnectionsPerAddress = 2 }, "connections_per_address", 429, oci.CodeTooManyRequests},
	} {
		t.Run(name, func(t *testing.T) {
			m := metrics.Discard()
			_, base := start(t, newShelf(), c.change, func(o *Options) { o.Metrics = m })
			held := []net.Conn{inside(t, base), inside(t, base)}
			resp, body := ask(t, "GET", base+"/v2/")
			wantRefusal(t, resp, body, c.status, c.code)
			resp, body = ask(t, "HEAD", base+blobPath(blobDigest))
			if resp.StatusCode != c.status || len(body) > 0 {
				t.Errorf("HEAD: want %d without a body, got %d %q", c.status, resp.StatusCode, body)
			}
			if n := value(t, m.Refused.WithLabelValues(c.limit)); n != 2 {
				t.Errorf("want 2 refusals counted, got %v", n)
			}
			if n := value(t, m.Connections); n != 2 {
				t.Errorf("want 2 connections counted, got %v", n)
			}
			ping(t, held[1]) // those that are in stay
			held[0].Close()
			until(t, "a free place", func() bool {
				resp, _ := ask(t, "GET", base+"/v2/")
				return resp.StatusCode == 200
			})
			held[1].Close()
			until(t, "all to leave", func() bool { return value(t, m.Connections) == 0 })
		})
	}
}

func TestRefusalIsReadOverTLS(t *testing.T) {
	lender := httptest.NewUnstartedServer(nil)
	lender.StartTLS()
	defer lender.Close()
	_, base := start(t, newShelf(), func(o *Options) {
		o.TLS, o.MaxConnections = &tls.Config{Certificates: lender.TLS.Certificates}, 1
	})
	c, err := tls.Dial("tcp", strings.TrimPrefix(base, "http://"), lender.Client().Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ping(t, c)
	resp, err := lender.Client().Get(strings.Replace(base, "http:", "https:", 1) + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, resp, body, 503, oci.CodeUnavailable)
}

// Whoever is refused and says nothing holds up nobody, and neither does a crowd
// of them.
func TestSilentCrowdAtTheDoorHoldsUpNobody(t *testing.T) {
	server, base := start(t, newShelf(), func(o *Options) { o.MaxConnections = 1 })
	held := inside(t, base)
	for range maxRefusals {
		dial(t, base)
	}
	until(t, "as many refusals as there may be", func() bool { return len(server.refusing) == maxRefusals })
	c := dial(t, base)
	if _, err := io.ReadAll(c); err != nil && !isClientGone(err) {
		t.Errorf("one more: want it closed without a word, got %v", err)
	}
	ping(t, held)
}

func TestRequestsBeyondTheLimitAreRefusedInWords(t *testing.T) {
	s := newShelf()
	begun, finish := make(chan struct{}), make(chan struct{})
	s.blobs[blobDigest].send = func(w io.Writer, span oci.Span) (int64, error) {
		close(begun)
		<-finish
		n, err := w.Write(blobBytes)
		return int64(n), err
	}
	m := metrics.Discard()
	_, base := start(t, s, func(o *Options) { o.MaxRequests, o.Metrics = 1, m })
	first := make(chan error, 1)
	go func() {
		resp, err := http.Get(base + blobPath(blobDigest))
		if err == nil {
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
		}
		first <- err
	}()
	<-begun
	c := dial(t, base)
	for range 2 { // on a connection that is kept
		if _, err := io.WriteString(c, "GET /v2/nginx/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		wantRefusal(t, resp, body, 503, oci.CodeUnavailable)
	}
	if n := value(t, m.Refused.WithLabelValues("requests")); n != 2 {
		t.Errorf("want 2 refusals counted, got %v", n)
	}
	close(finish)
	if err := <-first; err != nil {
		t.Errorf("the request that was in: %v", err)
	}
	until(t, "room", func() bool {
		resp, _ := ask(t, "GET", base+"/v2/nginx/manifests/1")
		return resp.StatusCode == 200
	})
}

// pipes is a listener of connections in memory. Its first Accepts fail with
// scarce.
type pipes struct {
	scarce []error
	next   chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	if len(p.scarce) > 0 {
		err := p.scarce[0]
		p.scarce = p.scarce[1:]
		return nil, err
	}
	select {
	case c := <-p.next:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.next <- theirs
	return ours
}

// inBubble runs f with a server on connections in memory, with time faked. The
// clock that fasthttp keeps for all servers must have been started outside.
func inBubble(t *testing.T, scarce []error, f func(*testing.T, *Server, *pipes)) {
	inBubbleWith(t, Options{Content: newShelf()}, scarce, f)
}

// inBubbleWith is inBubble for a server with other options than the usual.
func inBubbleWith(t *testing.T, o Options, scarce []error, f func(*testing.T, *Server, *pipes)) {
	_, base := start(t, newShelf())
	ask(t, "GET", base+"/v2/")
	synctest.Test(t, func(t *testing.T) {
		router, err := rewrite.NewRouter(rewrite.Routing{Default: "docker.io", Upstreams: map[string][]string{"docker.io": nil}})
		if err != nil {
			t.Fatal(err)
		}
		o.Router = router
		s := New(o)
		l := &pipes{scarce: scarce, next: make(chan net.Conn), closed: make(chan struct{})}
		done := make(chan error)
		go func() { done <- s.Serve(l) }()
		f(t, s, l)
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		time.Sleep(time.Minute) // until fasthttp's cleaner of workers wakes and sees that it is over
	})
}

func TestServerOutlivesAShortageOfFiles(t *testing.T) {
	var scarce []error
	for range 20 {
		scarce = append(scarce, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)})
	}
	inBubble(t, scarce, func(t *testing.T, s *Server, l *pipes) {
		c := l.dial()
		defer c.Close()
		ping(t, c)
		if n := value(t, s.metrics.Refused.WithLabelValues("files")); n != 20 {
			t.Errorf("want 20 shortages counted, got %v", n)
		}
		if err := s.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

func TestShutdownWaitsForNobodyWhoIsNotAnswered(t *testing.T) {
	const half = "GET /v2/ HTTP/1.1\r\nHo"
	for name, c := range map[string]struct {
		do    func(*testing.T, net.Conn)
		least time.Duration
		most  time.Duration
	}{
		"fresh":                  {func(*testing.T, net.Conn) {}, 0, 200 * time.Millisecond},
		"idle":                   {ping, 0, 200 * time.Millisecond},
		"a header half sent":     {func(t *testing.T, c net.Conn) { write(t, c, half) }, 0, lastHeader + 200*time.Millisecond},
		"idle, then half a head": {func(t *testing.T, c net.Conn) { ping(t, c); write(t, c, half) }, 0, lastHeader + 200*time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, s *Server, l *pipes) {
				conn := l.dial()
				defer conn.Close()
				c.do(t, conn)
				synctest.Wait()
				go func() { _, _ = io.Copy(io.Discard, conn) }() // ends with the connection
				begun := time.Now()
				if err := s.Shutdown(context.Background()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
				if took := time.Since(begun); took > c.most {
					t.Errorf("Shutdown took %v, want at most %v", took, c.most)
				}
			})
		})
	}
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func TestRequestThatWasComingIsAnsweredAtShutdown(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, s *Server, l *pipes) {
		conn := l.dial()
		defer conn.Close()
		write(t, conn, "GET /v2/ HTTP/1.1\r\nHo")
		synctest.Wait()
		down := make(chan error, 1)
		go func() { down <- s.Shutdown(context.Background()) }()
		synctest.Wait()
		write(t, conn, "st: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || !resp.Close {
			t.Errorf("want 200 and an end of the connection, got %s, %v", resp.Status, resp.Header)
		}
		if err := <-down; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

func TestConnectionsThatSendNoRequestAreClosed(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*testing.T, net.Conn)
		most time.Duration
	}{
		"nothing":       {func(*testing.T, net.Conn) {}, 10 * time.Second},
		"half a header": {func(t *testing.T, c net.Conn) { write(t, c, "GET /v2/ HTTP/1.1\r\nHo") }, 10 * time.Second},
		"a byte now and then": {func(t *testing.T, c net.Conn) {
			go func() {
				for {
					if _, err := io.WriteString(c, "G"); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}()
		}, 10 * time.Second},
		"nothing more": {ping, 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, s *Server, l *pipes) {
				conn := l.dial()
				defer conn.Close()
				begun := time.Now()
				c.do(t, conn)
				answer, err := io.ReadAll(conn)
				if took := time.Since(begun); took != c.most || err != nil {
					t.Errorf("closed after %v with %v and %q, want %v", took, err, answer, c.most)
				}
				if err := s.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The body of a GET is nothing that anyone waits for.
func TestLargeBodyOfAGetIsNotReadToItsEnd(t *testing.T) {
	_, base := start(t, newShelf())
	conn := dial(t, base)
	write(t, conn, "GET /v2/nginx/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n")
	var sent int64
	var err error
	for sent < 64<<20 && err == nil {
		var n int
		n, err = conn.Write(blobBytes)
		sent += int64(n)
	}
	if err == nil {
		t.Errorf("%d bytes of a body were taken", sent)
	}
	if !isClientGone(err) && !errors.Is(err, io.ErrClosedPipe) {
		t.Error(fmt.Errorf("write: %w", err))
	}
}
