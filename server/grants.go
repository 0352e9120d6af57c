package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// Grants says who may have what of upstreams at which each client pulls with
// credentials of its own. All methods are safe for concurrent use; authorization is
// the value of that header, and not kept. Errors are *oci.Error; UNAUTHORIZED becomes a
// challenge.
type Grants interface {
	// Admit gives nil where the caller may have what t names. private says that an
	// answer is for this caller alone. from is the caller's address.
	Admit(ctx context.Context, t oci.Target, kind rewrite.Resource, authorization []byte, from netip.Addr) (private bool, err error)
	// Visible gives those of the repositories, "docker.io/library/nginx", that the
	// caller may see.
	Visible(names []string, authorization []byte) []string
	// Known gives nil where the caller has said who it is.
	Known(authorization []byte) error
	// Token gives a bearer token in exchange for credentials, or for none.
	Token(authorization []byte) (token string, life time.Duration, err error)
}

// tokenPath is where clients get their tokens.
const tokenPath = "/token"

// authorization gives the header of that name. What the guard has taken for a
// credential of its own is none of the upstreams' business.
func (x *exchange) authorization() []byte {
	if x.caller != nil && x.caller.Credential {
		return nil
	}
	return x.ctx.Request.Header.Peek("Authorization")
}

// origin returns the caller's address: that behind a trusted proxy, else the other end
// of the connection, and the zero Addr if there is none.
func (x *exchange) origin() netip.Addr {
	if c := own(x.ctx.Conn()); c != nil && !x.at.IsValid() {
		return c.from
	}
	return x.at
}

// admitted tells whether the caller may have what it asks for; where it may not, that
// has been answered. Nothing of the cache is looked at before.
func (x *exchange) admitted() bool {
	if x.by.grants == nil {
		return true
	}
	private, err := x.by.grants.Admit(x.s.base, x.target, x.request.Resource, x.authorization(), x.origin())
	if private {
		// No cache between here and the client gives it to another one.
		x.header("Cache-Control", "private")
	}
	if err != nil {
		x.challenge(err)
		return false
	}
	return true
}

// challenge answers with err, and where that is UNAUTHORIZED with where to get a token.
// Docker reads that from the answer to GET /v2/ only, containerd here. Basic would do as
// well, and is taken; but Docker answers all that it is offered, and without an account
// it gives up at Basic.
func (x *exchange) challenge(err error) {
	var e *oci.Error
	if x.challenged = errors.As(err, &e) && e.Code == oci.CodeUnauthorized; !x.challenged {
		x.fail(err)
		return
	}
	h := &x.ctx.Response.Header
	if host := string(x.ctx.Host()); isPlainHost(host) {
		c := `Bearer realm="` + x.scheme() + "://" + host + tokenPath + `",service="` + host + `"`
		if x.request.Name != "" {
			c += `,scope="repository:` + x.request.Name + `:pull"`
		}
		if scheme, _, _ := strings.Cut(string(x.authorization()), " "); strings.EqualFold(scheme, "Bearer") {
			word := "insufficient_scope"
			if x.by.grants.Known(x.authorization()) != nil {
				word = "invalid_token"
			}
			c += `,error="` + word + `"`
		}
		h.Set("WWW-Authenticate", c)
	} else {
		h.Set("WWW-Authenticate", `Basic realm="entrepot"`)
	}
	x.fail(err)
}

// scheme is that of URLs that lead back here. A proxy that ends TLS in front may say
// so, if it is trusted.
func (x *exchange) scheme() string {
	if x.s.tls != nil {
		return "https"
	}
	if c := own(x.ctx.Conn()); c != nil && x.by.guard != nil && x.by.guard.Trusts(c.from) &&
		strings.EqualFold(string(x.ctx.Request.Header.Peek("X-Forwarded-Proto")), "https") {
		return "https"
	}
	return "http"
}

// isPlainHost tells whether a Host header may stand in a challenge.
func isPlainHost(host string) bool {
	return host != "" && len(host) <= 260 && strings.Trim(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]") == ""
}

// pinged answers GET /v2/ with a challenge to a caller that has not said who it is;
// else it gives false.
func (x *exchange) pinged() bool {
	if x.by.grants == nil || x.caller != nil && x.caller.Credential {
		return false
	}
	err := x.by.grants.Known(x.authorization())
	if err != nil {
		x.challenge(err)
	}
	return err != nil
}

// token answers GET /token (distribution, "Token Authentication Specification");
// it gives false where that is not asked for.
func (x *exchange) token() bool {
	if x.by.grants == nil || x.request.Path != tokenPath {
		return false
	}
	token, life, err := x.by.grants.Token(x.authorization())
	if err != nil {
		x.challenge(err)
		return true
	}
	b, err := json.Marshal(map[string]any{
		"token": token, "access_token": token, "expires_in": int(life / time.Second),
		"issued_at": time.Now().UTC().Format(time.RFC3339),
	})
	if err != nil {
		x.fail(err)
		return true
	}
	x.header("Cache-Control", "no-store")
	x.send(fasthttp.StatusOK, jsonType, b)
	return true
}
