package access

import (
	"crypto/x509"
	"net/netip"
	"slices"
)

// Question is what there is to know a caller by. It is only read, but for Recent.
type Question struct {
	// Peer is the connection's other end; the zero Addr where it has none.
	Peer netip.Addr
	// Forwarded are the values of X-Forwarded-For. They count where Peer is a
	// trusted proxy.
	Forwarded [][]byte
	// Authorization is the value of that header, empty where it was not sent.
	Authorization []byte
	// Certificate is the client's, where the TLS handshake has verified it.
	Certificate *x509.Certificate
	// Recent is kept with the connection; it may be nil.
	Recent *Recent
}

// Caller is who asks. It is not changed after it was given.
type Caller struct {
	// Name is empty for an anonymous caller.
	Name string
	// Groups are those of the configuration, of the certificate and of the
	// issuer's token.
	Groups []string
	// Credential tells that the caller is known by its Authorization, which is
	// then nobody else's business.
	Credential bool
}

// Anonymous is the name by which rules know callers that have none.
const Anonymous = "anonymous"

// nobody is every anonymous caller.
var nobody = &Caller{}

// IsAnonymous tells whether nothing is known of the caller.
func (c *Caller) IsAnonymous() bool { return c.Name == "" }

// String gives the name for people.
func (c *Caller) String() string {
	if c.IsAnonymous() {
		return Anonymous
	}
	return c.Name
}

// proven makes a Caller that is known by a credential.
func (g *Guard) proven(name string, groups ...string) *Caller {
	c := g.caller(name, groups...)
	c.Credential = true
	return c
}

// caller makes a Caller with the configuration's groups beside its own.
func (g *Guard) caller(name string, groups ...string) *Caller {
	for _, group := range g.groups[name] {
		if !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
	}
	return &Caller{Name: name, Groups: groups}
}

// certified gives the name and the groups that a client certificate stands for:
// the common name, else the first DNS name, mail address or URI; the
// organizations, as Kubernetes reads them.
func certified(c *x509.Certificate) (name string, groups []string) {
	switch {
	case c.Subject.CommonName != "":
		name = c.Subject.CommonName
	case len(c.DNSNames) > 0:
		name = c.DNSNames[0]
	case len(c.EmailAddresses) > 0:
		name = c.EmailAddresses[0]
	case len(c.URIs) > 0:
		name = c.URIs[0].String()
	}
	return name, slices.Clone(c.Subject.Organization)
}
