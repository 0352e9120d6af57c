package access

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// credential is what an Authorization header holds.
type credential struct {
	// user is empty for a bearer token.
	user   string
	secret []byte
	bearer bool
}

// parseCredential reads the schemes Basic and Bearer. False is neither.
func parseCredential(header []byte) (credential, bool) {
	scheme, rest, ok := bytes.Cut(header, []byte(" "))
	if !ok {
		return credential{}, false
	}
	rest = bytes.TrimSpace(rest)
	switch {
	case strings.EqualFold(string(scheme), "bearer"):
		return credential{secret: rest, bearer: true}, len(rest) > 0
	case strings.EqualFold(string(scheme), "basic"):
		decoded := make([]byte, base64.StdEncoding.DecodedLen(len(rest)))
		n, err := base64.StdEncoding.Decode(decoded, rest)
		if err != nil {
			return credential{}, false
		}
		user, secret, ok := bytes.Cut(decoded[:n], []byte(":"))
		return credential{user: string(user), secret: secret}, ok && len(secret) > 0
	}
	return credential{}, false
}

// isJWT tells whether a secret may be a signed JSON web token.
func (c credential) isJWT() bool {
	return bytes.HasPrefix(c.secret, []byte("ey")) && bytes.Count(c.secret, []byte(".")) == 2
}

// Token is a secret that stands for a name, known by its hash only. Clients send it
// as a bearer token, or as the password of any user, as docker login does. It must
// be long and random, because the hash is fast.
type Token struct {
	Name string
	// SHA256 is the hash of the token in hex.
	SHA256 string
}

// token is a Token, parsed.
type token struct {
	sum    [sha256.Size]byte
	caller *Caller
}

func (g *Guard) newToken(t Token) (token, error) {
	sum, err := hex.DecodeString(t.SHA256)
	if err != nil || len(sum) != sha256.Size {
		return token{}, fmt.Errorf("the token of %q: want the SHA-256 of the token, 64 hex digits", t.Name)
	}
	return token{sum: [sha256.Size]byte(sum), caller: g.proven(FromToken, t.Name)}, nil
}

// tokenOf finds the token that a secret is. All are looked at, so that the time
// that it takes tells nothing.
func (g *Guard) tokenOf(secret []byte) *Caller {
	sum := sha256.Sum256(secret)
	var found *Caller
	for i := range g.tokens {
		if subtle.ConstantTimeCompare(sum[:], g.tokens[i].sum[:]) == 1 {
			found = g.tokens[i].caller
		}
	}
	return found
}
