package grants

import (
	"context"
	"crypto/cipher"
	"net/netip"
	"strings"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
	"github.com/entrepot-dev/entrepot/upstream"
)

// Grants are the leases of all upstreams of a proxy at which clients pull with their
// own credentials. All methods are safe for concurrent use.
type Grants struct {
	leases map[string]*Leases
	named  func(string) (string, bool)
	seal   cipher.AEAD
}

// New puts the leases of several upstreams together. named gives the upstream that a
// name or an alias of one stands for.
func New(named func(string) (string, bool), leases ...*Leases) *Grants {
	g := &Grants{leases: map[string]*Leases{}, named: named, seal: newSeal()}
	for _, l := range leases {
		g.leases[l.upstream] = l
		if len(leases) > 1 {
			l.hint = ", and the user name " + l.upstream + "/NAME, for there are several registries here that want to know who you are"
		}
	}
	return g
}

// Admit tells whether the caller who sent authorization, the value of that header,
// may have what t names, a thing of the given kind, and asks the upstream where that
// is not known. It gives nil, or an *oci.Error: UNAUTHORIZED where credentials are
// missing or are none, DENIED where they do not do, or why the upstream can not be
// asked. private says that the answer is for this caller alone; it is false for
// upstreams whose content is for everyone, where authorization does not count. from is
// the caller's address: while many checks wait, addresses have their turns one after the
// other. t's strings and authorization are not kept.
func (g *Grants) Admit(ctx context.Context, t oci.Target, kind rewrite.Resource, authorization []byte, from netip.Addr) (private bool, err error) {
	l := g.leases[t.Upstream]
	if l == nil {
		return false, nil
	}
	c, err := g.credential(authorization)
	if err != nil {
		return true, err
	}
	q := question{repo: t.Repository, blob: kind == rewrite.BlobPath}
	if kind != rewrite.TagsPath {
		q.ref = t.Reference()
	}
	return true, l.admit(ctx, q, g.meant(l.upstream, c), from)
}

// Visible gives those of names, "docker.io/library/nginx", that the caller who sent
// authorization may see at this moment. No upstream is asked.
func (g *Grants) Visible(names []string, authorization []byte) []string {
	c, err := g.credential(authorization)
	if err != nil {
		c = upstream.Credential{}
	}
	var visible []string
	for _, name := range names {
		up, repo, _ := strings.Cut(name, "/")
		if l := g.leases[up]; l == nil || l.holds(repo, g.meant(up, c)) {
			visible = append(visible, name)
		}
	}
	return visible
}

// meant gives c as it is shown to an upstream. A user name may say in front which one
// it belongs to, "ghcr.io/alice"; where there are several to choose from, it must: a
// password is shown to no registry that it may not be for.
func (g *Grants) meant(name string, c upstream.Credential) upstream.Credential {
	if first, user, ok := strings.Cut(c.Username, "/"); ok {
		if up, ok := g.named(first); ok {
			if up != name {
				return upstream.Credential{}
			}
			c.Username = user
			return c
		}
	}
	if len(g.leases) > 1 {
		return upstream.Credential{}
	}
	return c
}

// unauthorized is what a caller without credentials is told of what is not for
// everyone, or not there: nothing tells the two apart.
func (l *Leases) unauthorized(repo string) error {
	return oci.Errorf(oci.CodeUnauthorized, "%s/%s does not exist, or is private: log in to this cache with an account of %s that may pull it%s",
		l.upstream, repo, l.upstream, l.hint)
}

// denied is what a caller is told whose credentials do not do, or who asks for what
// is not there.
func (l *Leases) denied(repo string) error {
	return oci.Errorf(oci.CodeDenied, "%s/%s does not exist, or the account of this request may not pull it, or its password is wrong",
		l.upstream, repo)
}
