package server

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/fair"
	"github.com/entrepot-dev/entrepot/oci"
)

// gate is a listener that lets in as many connections as the server may have,
// all of its listeners together, and refuses the others in words.
type gate struct {
	net.Listener
	s *Server
}

// longestPause bounds the wait for something that the system is short of.
const longestPause = time.Second

// Accept waits for a connection that may come in. It fails when the listener
// is closed or breaks for good: what the system is short of for a while, such
// as files, is waited for.
func (g gate) Accept() (net.Conn, error) {
	for pause := time.Duration(0); ; {
		raw, err := g.Listener.Accept()
		if isScarcity(err) {
			g.s.refused.files.Inc()
			if pause == 0 {
				g.s.log.Warn("a connection could not be taken; trying again", zap.Error(err))
			}
			pause = min(max(2*pause, 5*time.Millisecond), longestPause)
			select {
			case <-time.After(pause):
			case <-g.s.draining.Done(): // the listener will say the rest
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		pause = 0
		from := addressOf(raw)
		counted := g.s.countedBy(from)
		if refusal := g.s.door.enter(counted); refusal != nil {
			g.s.refuseConn(raw, refusal)
			continue
		}
		return &conn{Conn: raw, server: g.s, from: from, counted: counted, socket: newSocket(raw)}, nil
	}
}

// countedBy returns the address by which a connection is counted: the client's, of IPv6
// its /64; none for a trusted proxy and for a shared address, which stand for many clients.
func (s *Server) countedBy(from netip.Addr) netip.Addr {
	origin := fair.Origin(from)
	for _, p := range s.shared {
		if p.Contains(from.WithZone("")) {
			return netip.Addr{}
		}
	}
	if guard := s.admit.Load().guard; guard != nil && guard.Trusts(from) {
		return netip.Addr{}
	}
	return origin
}

// isScarcity tells whether an error of accept says that the system is short of
// something, or that the one connection was not to be.
func isScarcity(err error) bool {
	for _, scarce := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPROTO, syscall.EINTR,
	} {
		if errors.Is(err, scarce) {
			return true
		}
	}
	return false
}

// refuseRequest answers a request that is one too many.
func (x *exchange) refuseRequest() {
	x.s.refused.requests.Inc()
	x.fail(&oci.Error{
		Code: oci.CodeUnavailable, RetryAfter: retrySoon,
		Message: "the cache answers as many requests as it may (limits.requests); ask again",
	})
}

// retrySoon is when who was refused may come back: a request lasts milliseconds
// to minutes, so that room is likely soon.
const retrySoon = 2 * time.Second

// over makes the words for a connection that is one too many.
func over(status int, code oci.Code, message string) *oci.Error {
	return &oci.Error{Code: code, Status: status, Message: message, RetryAfter: retrySoon}
}

var (
	errTooManyConnections = over(fasthttp.StatusServiceUnavailable, oci.CodeUnavailable,
		"the cache has as many connections as it may (limits.connections); connect again")
	errTooManyOfAddress = over(fasthttp.StatusTooManyRequests, oci.CodeTooManyRequests,
		"your address has as many connections to the cache as it may (limits.connections_per_address; limits.shared_addresses exempts a NAT or proxy); close some")
)
