package server

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestPlainHTTPOnTheTLSPortIsAnsweredInWords(t *testing.T) {
	// A test server's certificate, which it would else make itself.
	made := httptest.NewUnstartedServer(nil)
	made.StartTLS()
	defer made.Close()
	_, base := start(t, newShelf(), func(o *Options) { o.TLS = &tls.Config{Certificates: made.TLS.Certificates} })
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		req, err := http.NewRequest(method, base+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusBadRequest || method == http.MethodGet && !strings.Contains(string(body), "this port speaks https") {
			t.Errorf("%s: want 400 in words, got %s, %q, %v", method, resp.Status, body, err)
		}
	}
	client := made.Client()
	resp, err := client.Get("https" + strings.TrimPrefix(base, "http") + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("over TLS: %s", resp.Status)
	}
	// What is neither is cut off.
	c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("\x00\x01\x02\x03\x04\x05\x06\x07")); err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(c); strings.HasPrefix(string(b), "HTTP") {
		t.Errorf("want no HTTP, got %q", b)
	}
}

func TestBeginningOfARequestLine(t *testing.T) {
	for text, want := range map[string]bool{
		"GET /v2/ HTTP/1.1": true, "HEAD /": true, "CONNECT x": true, "GET": true,
		"\x16\x03\x01\x02\x00": false, "": false, "get /": false, "LONGERTHANANY ": false,
	} {
		if got := isHTTP([]byte(text)); got != want {
			t.Errorf("%q: want %v, got %v", text, want, got)
		}
	}
}
