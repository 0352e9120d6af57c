package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// blobPatience is how long the response header of a blob may take. An upstream that is
// a cache itself may fetch all of the blob before it sends the first byte; see
// Registry.attend for how one that is gone is told from one that is busy.
const blobPatience = 5 * time.Minute

// lanes carries requests to one kind of hosts. Requests for what is small share
// connections, over HTTP/2 if the host offers it. Each blob has a connection of its own
// while it comes, over HTTP/1.1: the streams of one HTTP/2 connection share what a network
// or a CDN grants one connection, however many there are. A blob from a host that speaks
// nothing but HTTP/2 has a connection of its own too, which is closed after it. Small
// pieces of blobs share connections: to open one takes longer than they do. lanes is safe
// for concurrent use.
type lanes struct {
	shared, alone *http.Transport

	mu sync.Mutex
	// onlyHTTP2 holds the sites that speak nothing but HTTP/2.
	onlyHTTP2 map[string]bool
}

// maxOnlyHTTP2 bounds lanes.onlyHTTP2: strangers choose the hosts of redirects.
const maxOnlyHTTP2 = 256

func newLanes(shared *http.Transport) *lanes {
	alone := shared.Clone() // which has HTTP/2 set up by now: take it out
	alone.ForceAttemptHTTP2, alone.HTTP2 = false, nil
	alone.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	alone.TLSClientConfig.NextProtos = []string{"http/1.1"}
	alone.Protocols = new(http.Protocols)
	alone.Protocols.SetHTTP1(true)
	alone.ResponseHeaderTimeout = max(blobPatience, shared.ResponseHeaderTimeout)
	return &lanes{shared: shared, alone: alone, onlyHTTP2: map[string]bool{}}
}

// bulkKey is the context key that marks the request for a blob.
type bulkKey struct{}

// pieceKey is the context key that marks the request for a small piece of a blob.
type pieceKey struct{}

// smallPiece is the most bytes of a blob that come over a shared connection.
const smallPiece = 512 << 10

// asPiece marks the requests made with the context as requests for a small piece of a blob.
func asPiece(ctx context.Context) context.Context { return context.WithValue(ctx, pieceKey{}, true) }

// asBulk marks the requests made with the context as requests for a blob.
func asBulk(ctx context.Context) context.Context { return context.WithValue(ctx, bulkKey{}, true) }

// RoundTrip sends req, which has no body, as http.RoundTripper says.
func (l *lanes) RoundTrip(req *http.Request) (*http.Response, error) {
	if bulk, _ := req.Context().Value(bulkKey{}).(bool); !bulk {
		return l.shared.RoundTrip(req)
	}
	if req.Context().Value(pieceKey{}) != nil {
		res, err := l.shared.RoundTrip(req)
		if late := net.Error(nil); !errors.As(err, &late) || !late.Timeout() || req.Context().Err() != nil {
			return res, err
		}
		// The header of a blob's response may take longer than others.
	}
	if l.speaksOnlyHTTP2(req.URL) {
		return l.aloneOverHTTP2(req)
	}
	res, err := l.alone.RoundTrip(req)
	if err == nil || req.URL.Scheme != "https" || req.Context().Err() != nil {
		return res, err
	}
	sure := refusesHTTP1(err)
	if !sure && !errors.Is(err, io.EOF) {
		return res, err
	}
	res, err = l.aloneOverHTTP2(req)
	if sure && err == nil && res.ProtoMajor == 2 {
		l.mu.Lock()
		if len(l.onlyHTTP2) >= maxOnlyHTTP2 {
			clear(l.onlyHTTP2)
		}
		l.onlyHTTP2[site(req.URL)] = true
		l.mu.Unlock()
	}
	return res, err
}

// aloneOverHTTP2 sends the request for a blob over HTTP/2, on a connection that nothing
// else uses.
func (l *lanes) aloneOverHTTP2(req *http.Request) (*http.Response, error) {
	once := l.shared.Clone()
	once.DisableKeepAlives = true
	once.ResponseHeaderTimeout = l.alone.ResponseHeaderTimeout
	return once.RoundTrip(req)
}

// clone returns lanes without connections. Those of once keep none either: each request
// has a new connection, which is closed after it.
func (l *lanes) clone(once bool) *lanes {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &lanes{shared: l.shared.Clone(), alone: l.alone.Clone(), onlyHTTP2: maps.Clone(l.onlyHTTP2)}
	if once {
		c.shared.DisableKeepAlives, c.alone.DisableKeepAlives = true, true
	}
	return c
}

func (l *lanes) speaksOnlyHTTP2(u *url.URL) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.onlyHTTP2) > 0 && l.onlyHTTP2[site(u)]
}

// CloseIdleConnections closes the connections that carry nothing.
func (l *lanes) CloseIdleConnections() {
	l.shared.CloseIdleConnections()
	l.alone.CloseIdleConnections()
}

// refusesHTTP1 says whether err, of a request over HTTP/1.1, comes from a server that
// speaks HTTP/2 only: it refuses the handshake (RFC 7301, section 3.2), or it begins
// with HTTP/2's frames (RFC 9113, section 3.4). Others just close the connection.
func refusesHTTP1(err error) bool {
	const noApplicationProtocol = tls.AlertError(120)
	var alert tls.AlertError
	return errors.As(err, &alert) && alert == noApplicationProtocol ||
		strings.Contains(err.Error(), "no application protocol") ||
		strings.Contains(err.Error(), "malformed HTTP response")
}
