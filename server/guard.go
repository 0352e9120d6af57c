package server

import (
	"crypto/x509"
	"net/netip"
	"slices"
	"strings"

	"github.com/entrepot-dev/entrepot/access"
)

// Guard says who asks, and what they may pull. Its methods are safe for concurrent
// use, and their errors are *oci.Error.
type Guard interface {
	// Identify gives who asks, and from which address: that of the client where
	// the connection is a proxy's. An error refuses the request.
	Identify(q access.Question) (*access.Caller, netip.Addr, error)
	// Trusts tells whether peer, the other end of a connection, is a proxy whose
	// word about its clients is believed.
	Trusts(peer netip.Addr) bool
	// Allow says why a caller may not pull from a repository; nil where they may.
	Allow(c *access.Caller, at netip.Addr, upstream, repository string) error
}

// identify finds out who asks, and says whether they may ask.
func (x *exchange) identify() error {
	if x.by.guard == nil {
		return nil
	}
	h := &x.ctx.Request.Header
	q := access.Question{Authorization: h.Peek("Authorization"), Forwarded: h.PeekAll("X-Forwarded-For")}
	if c := own(x.ctx.Conn()); c != nil {
		q.Peer, q.Recent = c.from, &c.recent
		q.Certificate = c.certificate(x.ctx.Conn())
	}
	var err error
	x.caller, x.at, err = x.by.guard.Identify(q)
	return err
}

// allowed says why the caller may not pull what the target names; nil where they
// may.
func (x *exchange) allowed() error {
	if x.by.guard == nil {
		return nil
	}
	return x.by.guard.Allow(x.caller, x.at, x.target.Upstream, x.target.Repository)
}

// visible leaves of "docker.io/library/nginx" and its like what the caller may
// pull.
func (x *exchange) visible(repositories []string) []string {
	if x.by.guard == nil {
		return repositories
	}
	return slices.DeleteFunc(slices.Clone(repositories), func(name string) bool {
		upstream, repository, _ := strings.Cut(name, "/")
		return x.by.guard.Allow(x.caller, x.at, upstream, repository) != nil
	})
}

// client gives the address of who asks, for the log.
func (x *exchange) client() string {
	if x.at.IsValid() {
		return x.at.String()
	}
	return x.ctx.RemoteIP().String()
}

// certificate gives the client's certificate that the handshake of over, which is
// c or TLS over c, has verified; nil for none. It is for the goroutine that
// answers.
func (c *conn) certificate(over any) *x509.Certificate {
	secure, ok := over.(*secureConn)
	if !ok {
		return nil
	}
	if !c.asked {
		c.asked = true
		if chains := secure.ConnectionState().VerifiedChains; len(chains) > 0 {
			c.peer = chains[0][0]
		}
	}
	return c.peer
}
