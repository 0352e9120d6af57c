package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// ways are the two load clients, which must agree.
var ways = map[string]func(load, context.Context) (tally, error){
	"native":   load.runNative,
	"portable": load.runPortable,
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestLoadCountsWhatComes(t *testing.T) {
	large := make([]byte, 3<<20)
	for name, run := range ways {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			address := serve(t, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				if r.Header.Get("Range") != "" {
					w.Header().Set("Content-Length", "1000")
					w.WriteHeader(http.StatusPartialContent)
					_, _ = w.Write(large[:1000])
					return
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(large)))
				if r.Method == http.MethodGet {
					_, _ = w.Write(large)
				}
			})
			i := item{Repository: "library/app", Reference: "sha256:1", Size: int64(len(large))}
			for _, c := range []struct {
				what     string
				requests []request
				bytes    int64
			}{
				{"GET", []request{get(address, i)}, 20 * int64(len(large))},
				{"HEAD", []request{headOf(address, i)}, 0},
				{"ranges", ranges(address, i, 7, 1000), 20 * 1000},
				{"a mixture", []request{get(address, i), headOf(address, i), ranges(address, i, 1, 1000)[0], headOf(address, i)}, 5 * int64(len(large)+1000)},
			} {
				asked.Store(0)
				got, err := run(load{address: address, connections: 4, count: 20, requests: c.requests}, t.Context())
				if err = errors.Join(err, got.err()); err != nil {
					t.Errorf("%s: %v", c.what, err)
				}
				if got.requests != 20 || got.bytes != c.bytes || asked.Load() != 20 {
					t.Errorf("%s: want 20 requests and %d bytes, got %+v, and %d were served", c.what, c.bytes, got, asked.Load())
				}
				if (got.first > 0) != (c.bytes > 0) || got.first > got.elapsed {
					t.Errorf("%s: the first byte after %s of %s", c.what, got.first, got.elapsed)
				}
			}
		})
	}
}

func TestLoadGoesOnForItsSpan(t *testing.T) {
	for name, run := range ways {
		address := serve(t, func(http.ResponseWriter, *http.Request) {})
		l := load{address: address, connections: 2, span: 50 * time.Millisecond, requests: []request{get(address, item{Repository: "a", Reference: "b"})}}
		got, err := run(l, t.Context())
		if err = errors.Join(err, got.err()); err != nil || got.requests < 2 || got.elapsed < l.span {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// raw serves each connection the same bytes, whatever it is asked, and closes it.
func raw(t *testing.T, answer string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = c.Write([]byte(answer))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

func TestLoadFailsOnWrongAnswers(t *testing.T) {
	for name, run := range ways {
		for _, c := range []struct{ what, answer, want string }{
			{"a wrong status", "HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nbody", "status 500, not 200"},
			{"a wrong length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabody", "a body of 5 bytes, not 4"},
			{"a short body", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbod", errShort.Error()},
			{"no body", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", errShort.Error()},
			{"half a head", "HTTP/1.1 200 OK\r\nContent-", errShort.Error()},
			{"nothing", "", errShort.Error()},
			{"a long body", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody and more", "9 bytes more than the body has"},
			{"no length", "HTTP/1.1 200 OK\r\n\r\nbody", errNoLength.Error()},
			{"no HTTP", "hello\r\n\r\n", errNoHead.Error()},
		} {
			address := raw(t, c.answer)
			l := load{address: address, connections: 1, count: 1, requests: []request{get(address, item{Repository: "a", Reference: "b", Size: 4})}}
			got, err := run(l, t.Context())
			if err != nil || got.failures != 1 || got.requests != 0 || got.err() == nil || !strings.Contains(got.err().Error(), c.want) {
				t.Errorf("%s, %s: want %q, got %+v, %v", name, c.what, c.want, got, err)
			}
		}
	}
}

func TestLoadSeesBytesBehindALargeBody(t *testing.T) {
	const size = 1 << 20
	for name, run := range ways {
		address := raw(t, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)+strings.Repeat("x", size)+"more")
		l := load{address: address, connections: 1, count: 2, requests: []request{get(address, item{Repository: "a", Reference: "b", Size: size})}}
		got, err := run(l, t.Context())
		if err != nil || got.failures != 1 || got.bytes > size {
			t.Errorf("%s: want one failure and no byte too many, got %+v, %v", name, got, err)
		}
	}
}

func TestRangesAreTheSameInEachRun(t *testing.T) {
	i := item{Repository: "a", Reference: "b", Size: 1 << 20}
	a, b := string(ranges("h", i, 3, 100)[2].bytes), string(ranges("h", i, 3, 100)[2].bytes)
	if a != b || !strings.Contains(a, "\r\nRange: bytes=") {
		t.Errorf("%q and %q", a, b)
	}
}
