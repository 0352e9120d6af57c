package main

import (
	"errors"
	"strings"
	"testing"
)

func TestHeadOfAResponseIsRead(t *testing.T) {
	for _, c := range []struct {
		in     string
		status int
		length int64
		size   int
		ok     bool
		err    error
	}{
		{in: "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nbody", status: 200, length: 12, size: 39, ok: true},
		{in: "HTTP/1.1 206 Partial Content\r\nConnection: keep-alive\r\ncontent-length:0\r\nX: y\r\n\r\n", status: 206, size: 80, ok: true},
		{in: "HTTP/1.1 404\r\nCONTENT-LENGTH: 7 \r\n\r\n", status: 404, length: 7, size: 36, ok: true},
		{in: "HTTP/1.1 200 OK\r\nX-Content-Length: 1\r\nContent-Length: 2\r\n\r\n", status: 200, length: 2, size: 59, ok: true},
		{in: ""},
		{in: "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n"},
		{in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", err: errNoLength},
		{in: "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", err: errNoLength},
		{in: "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", err: errNoLength},
		{in: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", err: errNoHead},
		{in: "HTTP/1.1 2x0 OK\r\nContent-Length: 1\r\n\r\n", err: errNoHead},
		{in: "\r\n\r\n", err: errNoHead},
		{in: strings.Repeat("x", maxHead), err: errLongHead},
	} {
		h, ok, err := parseHead([]byte(c.in))
		if ok != c.ok || !errors.Is(err, c.err) {
			t.Errorf("%.60q: want ok %v and error %v, got %v and %v", c.in, c.ok, c.err, ok, err)
			continue
		}
		if want := (head{c.status, c.length, c.size}); ok && h != want {
			t.Errorf("%.60q: want %+v, got %+v", c.in, want, h)
		}
	}
}

func TestReadingAHeadAllocatesNothing(t *testing.T) {
	b := []byte("HTTP/1.1 200 OK\r\nServer: x\r\nConnection: keep-alive\r\nContent-Length: 1234\r\nETag: y\r\n\r\n")
	if n := testing.AllocsPerRun(100, func() {
		if _, ok, err := parseHead(b); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzHead(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nbody"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nc\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok, err := parseHead(b)
		if ok && (err != nil || h.length < 0 || h.size > len(b) || h.status > 999) {
			t.Errorf("%q: %+v, %v", b, h, err)
		}
	})
}
