package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// load is what is asked of a server. One of span and count says when to stop.
type load struct {
	// address is host:port.
	address string
	// connections are kept; each has one request at a time.
	connections int
	// requests are asked in turn, again from the first when they run out.
	requests []request
	// span is for how long new requests are made.
	span time.Duration
	// count is how many requests are made.
	count int
	// tls, where set, is spoken; the bodies are then read by this program.
	tls *tls.Config
}

// request is a request that is ready to be sent, and what must come of it.
type request struct {
	bytes  []byte
	status int
	// length is the Content-Length, which may be more by up to extra.
	length, extra int64
	// bare is set where no body follows, as on HEAD.
	bare bool
}

// tally is what a load has come to.
type tally struct {
	requests, bytes int64
	// elapsed is from the first request, connections made, to the last end.
	elapsed time.Duration
	// first is when the first byte of a body came, from the same beginning.
	first time.Duration
	// failures are requests that had another answer than they must.
	failures int64
	failure  error // the first of them
	// peers are the cipher suites of TLS connections.
	suite uint16
}

func (t *tally) fail(err error) {
	t.failures++
	if t.failure == nil {
		t.failure = err
	}
}

// err says what went wrong, if anything did.
func (t *tally) err() error {
	if t.failures == 0 {
		return nil
	}
	return fmt.Errorf("%d requests failed, the first: %w", t.failures, t.failure)
}

var (
	errShort = errors.New("the connection ended before the body did")
	errStuck = errors.New("nothing came for a minute")
)

// patience is how long a load waits for the next byte of anything.
const patience = time.Minute

// check compares an answer with what it must be.
func (r *request) check(h head) error {
	if h.status != r.status {
		return fmt.Errorf("status %d, not %d", h.status, r.status)
	}
	if h.length < r.length || h.length > r.length+r.extra {
		return fmt.Errorf("a body of %d bytes, not %d", h.length, r.length)
	}
	return nil
}

// run puts the load on the server. What the server does wrong is in the tally;
// an error is the client's own trouble.
func (l load) run(ctx context.Context) (tally, error) {
	if l.tls != nil {
		return l.runPortable(ctx)
	}
	return l.runNative(ctx)
}

// once asks a server for one item, on a connection of its own.
func (s *server) once(ctx context.Context, i item) (tally, error) {
	l := load{address: s.address, connections: 1, count: 1, requests: []request{get(s.address, i).shown(s.authorization)}, tls: s.tls}
	t, err := l.run(ctx)
	if err = errors.Join(err, t.err()); err != nil {
		return t, fmt.Errorf("%s: %w", i.path(), err)
	}
	return t, nil
}

const agent = "User-Agent: bench\r\nAccept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*\r\n"

// get asks for an item.
func get(host string, i item) request {
	return request{
		bytes:  fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", i.path(), host, agent),
		status: 200, length: i.Size,
	}
}

// shown gives the request with an Authorization header, where that is not empty.
func (r request) shown(authorization string) request {
	if authorization != "" {
		r.bytes = fmt.Appendf(nil, "%sAuthorization: %s\r\n\r\n", bytes.TrimSuffix(r.bytes, []byte("\r\n")), authorization)
	}
	return r
}

// headOf asks for an item's head.
func headOf(host string, i item) request {
	return request{
		bytes:  fmt.Appendf(nil, "HEAD %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", i.path(), host, agent),
		status: 200, length: i.Size, bare: true,
	}
}

// partOverhead is the most that a part of a multipart/byteranges has beside its content.
const partOverhead = 512

// severalRanges asks for several ranges of an item at a time: one at random in each part of it,
// of n equal parts. The second list asks for the same ranges, one at a time.
func severalRanges(host string, i item, n int, size int64) (several, single []request) {
	r := rand.New(rand.NewPCG(3, 4))
	part := i.Size / int64(n)
	for range 64 {
		var list []string
		for k := range int64(n) {
			from := k*part + r.Int64N(max(part-size, 1))
			list = append(list, fmt.Sprintf("%d-%d", from, from+size-1))
			single = append(single, request{
				bytes:  fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nRange: bytes=%s\r\n%s\r\n", i.path(), host, list[k], agent),
				status: 206, length: size,
			})
		}
		several = append(several, request{
			bytes:  fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nRange: bytes=%s\r\n%s\r\n", i.path(), host, strings.Join(list, ","), agent),
			status: 206, length: int64(n) * size, extra: int64(n+1) * partOverhead,
		})
	}
	return several, single
}

// ranges asks for n random ranges of an item, the same in every run.
func ranges(host string, i item, n int, size int64) []request {
	r := rand.New(rand.NewPCG(1, 2))
	var list []request
	for range n {
		from := r.Int64N(max(i.Size-size, 1))
		list = append(list, request{
			bytes:  fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nRange: bytes=%d-%d\r\n%s\r\n", i.path(), host, from, from+size-1, agent),
			status: 206, length: size,
		})
	}
	return list
}
