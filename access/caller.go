package access

import (
	"crypto/x509"
	"net/netip"
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

// Source is where a caller's name comes from. Names of different sources never
// mean the same caller: whoever chooses names at one source must not become a
// caller of another.
type Source string

const (
	FromHtpasswd    Source = "user"
	FromToken       Source = "token"
	FromNetwork     Source = "net"
	FromCertificate Source = "cert"
	FromIssuer      Source = "oidc"
)

// Prefixes of groups, by where they come from.
const (
	configuredGroup  = "group:"
	certificateGroup = "cert-group:"
	issuerGroup      = "oidc-group:"
)

// sources are all sources of names.
var sources = []Source{FromHtpasswd, FromToken, FromNetwork, FromCertificate, FromIssuer}

// Of returns name with its source in front, as rules and groups write it: "user:alice".
func (s Source) Of(name string) string { return string(s) + ":" + name }

// Caller is who sent a request. It does not change after it was made.
type Caller struct {
	// Source says where Name comes from. It is empty for an anonymous caller.
	Source Source
	// Name is empty for an anonymous caller.
	Name string
	// Groups are the caller's groups with their prefix: "group:" for those of the
	// configuration, "cert-group:" for a certificate's organizations and
	// "oidc-group:" for those of an issuer's token.
	Groups []string
	// Credential is set if the caller is known by its Authorization header, which
	// must then not be shown to an upstream.
	Credential bool

	// id is Source.Of(Name), made once because rules compare it at each request.
	id string
}

// Anonymous is the word by which rules and logs name callers without a name.
const Anonymous = "anonymous"

// nobody is every anonymous caller.
var nobody = &Caller{}

// IsAnonymous reports whether nothing is known of the caller.
func (c *Caller) IsAnonymous() bool { return c.Name == "" }

// String returns the caller as rules write it, "user:alice", or "anonymous".
func (c *Caller) String() string {
	switch {
	case c.IsAnonymous():
		return Anonymous
	case c.id == "":
		return c.Source.Of(c.Name)
	}
	return c.id
}

// proven returns the Caller of a credential, with the configuration's groups added to groups.
func (g *Guard) proven(source Source, name string, groups ...string) *Caller {
	c := g.caller(source, name, groups...)
	c.Credential = true
	return c
}

// caller returns a Caller with the configuration's groups added to groups.
func (g *Guard) caller(source Source, name string, groups ...string) *Caller {
	id := source.Of(name)
	return &Caller{Source: source, Name: name, Groups: append(groups, g.groups[id]...), id: id}
}

// prefixed returns names with prefix in front of each.
func prefixed(prefix string, names []string) []string {
	var list []string
	for _, name := range names {
		list = append(list, prefix+name)
	}
	return list
}

// certified returns the name and the groups of a client certificate: the name is
// its common name, else its first DNS name, mail address or URI; the groups are its
// organizations, as in Kubernetes.
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
	return name, prefixed(certificateGroup, c.Subject.Organization)
}
