package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
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
// connections, over HTTP/2 where the host offers it. Each blob has a connection of its
// own while it comes, over HTTP/1.1: the streams of one HTTP/2 connection share what a
// network or a CDN grants one connection, however many there are. It is safe for
// concurrent use.
type lanes struct {
	shared, alone *http.Transport

	mu sync.Mutex
	// onlyShared holds the sites that speak nothing but HTTP/2.
	onlyShared map[string]bool
}

// maxOnlyShared bounds lanes.onlyShared: strangers choose the hosts of redirects.
const maxOnlyShared = 256

func newLanes(shared *http.Transport) *lanes {
	alone := shared.Clone() // which has HTTP/2 set up by now: take it out
	alone.ForceAttemptHTTP2, alone.HTTP2 = false, nil
	alone.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	alone.TLSClientConfig.NextProtos = []string{"http/1.1"}
	alone.Protocols = new(http.Protocols)
	alone.Protocols.SetHTTP1(true)
	alone.ResponseHeaderTimeout = max(blobPatience, shared.ResponseHeaderTimeout)
	return &lanes{shared: shared, alone: alone, onlyShared: map[string]bool{}}
}

// bulkKey is the context key that marks the request for a blob.
type bulkKey struct{}

// asBulk marks the requests made with the context as requests for a blob.
func asBulk(ctx context.Context) context.Context { return context.WithValue(ctx, bulkKey{}, true) }

// RoundTrip sends req, which has no body, as http.RoundTripper says.
func (l *lanes) RoundTrip(req *http.Request) (*http.Response, error) {
	if bulk, _ := req.Context().Value(bulkKey{}).(bool); !bulk || l.mustShare(req.URL) {
		return l.shared.RoundTrip(req)
	}
	res, err := l.alone.RoundTrip(req)
	if err == nil || req.URL.Scheme != "https" || req.Context().Err() != nil {
		return res, err
	}
	sure := refusesHTTP1(err)
	if !sure && !errors.Is(err, io.EOF) {
		return res, err
	}
	res, err = l.shared.RoundTrip(req)
	if sure && err == nil && res.ProtoMajor == 2 {
		l.mu.Lock()
		if len(l.onlyShared) >= maxOnlyShared {
			clear(l.onlyShared)
		}
		l.onlyShared[site(req.URL)] = true
		l.mu.Unlock()
	}
	return res, err
}

// clone returns lanes without connections. Those of once keep none either: each request
// has a new connection, which is closed after it.
func (l *lanes) clone(once bool) *lanes {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &lanes{shared: l.shared.Clone(), alone: l.alone.Clone(), onlyShared: maps.Clone(l.onlyShared)}
	if once {
		c.shared.DisableKeepAlives, c.alone.DisableKeepAlives = true, true
	}
	return c
}

func (l *lanes) mustShare(u *url.URL) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.onlyShared) > 0 && l.onlyShared[site(u)]
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
