package grants

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/upstream"
)

const (
	// tokenLife is for how long a token is good: as long as Docker Hub's are.
	tokenLife = 5 * time.Minute
	// maxCredential bounds user name and password together. The longest known, of
	// cloud registries, have some 3 KiB.
	maxCredential = 4 << 10
)

// newSeal makes the key of this process's tokens. Nobody else can open one, and this
// process no more after it has ended.
func newSeal() cipher.AEAD {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // AES has the block size of GCM
	}
	return seal
}

// Token gives a bearer token that stands for the Basic credentials in authorization,
// or for a caller that has none, and for how long it does. The credentials are in it,
// sealed: nothing is kept here. They are not checked; who uses it will be.
func (g *Grants) Token(authorization []byte) (token string, life time.Duration, err error) {
	c, err := g.credential(authorization)
	if err != nil {
		return "", 0, err
	}
	plain := binary.BigEndian.AppendUint64(nil, uint64(time.Now().Add(tokenLife).Unix()))
	if c != (upstream.Credential{}) {
		plain = append(plain, c.Username+":"+c.Password...)
	}
	return base64.RawURLEncoding.EncodeToString(g.seal.Seal(nil, nil, plain, nil)), tokenLife, nil // #nosec G407 -- the cipher makes a random nonce itself, for each seal
}

// Known tells whether authorization says who the caller is, be it nobody: Basic, or a
// token from here that has not expired. It gives nil or UNAUTHORIZED.
func (g *Grants) Known(authorization []byte) error {
	if len(authorization) == 0 {
		return oci.Errorf(oci.CodeUnauthorized, "say who you are, or ask for a token for nobody in particular")
	}
	_, err := g.credential(authorization)
	return err
}

var (
	errBasic = oci.Errorf(oci.CodeUnauthorized, "the Authorization header can not be read: want Basic with a user name and a password, or a token from here")
	errToken = oci.Errorf(oci.CodeUnauthorized, "the token is not from here, or has expired")
)

// ghcrAnyone is the token that stands for nobody at ghcr.io. Homebrew sends it to mirrors
// of ghcr.io, too.
const ghcrAnyone = "QQ=="

// credential reads an Authorization header. None at all, and an empty user name, are
// nobody.
func (g *Grants) credential(authorization []byte) (upstream.Credential, error) {
	if len(authorization) == 0 {
		return upstream.Credential{}, nil
	}
	scheme, value, _ := bytes.Cut(authorization, []byte(" "))
	value = bytes.TrimSpace(value)
	switch {
	case len(value) > 2*maxCredential:
		return upstream.Credential{}, errBasic
	case bytes.EqualFold(scheme, []byte("basic")):
		plain, err := base64.StdEncoding.AppendDecode(nil, value)
		if err != nil {
			return upstream.Credential{}, errBasic
		}
		return userAndPassword(string(plain))
	case bytes.EqualFold(scheme, []byte("bearer")) && string(value) == ghcrAnyone:
		return upstream.Credential{}, nil
	case bytes.EqualFold(scheme, []byte("bearer")):
		sealed, err := base64.RawURLEncoding.AppendDecode(nil, value)
		if err != nil {
			return upstream.Credential{}, errToken
		}
		plain, err := g.seal.Open(nil, nil, sealed, nil)
		if err != nil || len(plain) < 8 || time.Now().Unix() >= int64(binary.BigEndian.Uint64(plain)) {
			return upstream.Credential{}, errToken
		}
		if len(plain) == 8 {
			return upstream.Credential{}, nil
		}
		return userAndPassword(string(plain[8:]))
	}
	return upstream.Credential{}, errBasic
}

// userAndPassword reads "user:password" (RFC 7617).
func userAndPassword(s string) (upstream.Credential, error) {
	user, password, ok := strings.Cut(s, ":")
	if !ok || len(s) > maxCredential {
		return upstream.Credential{}, errBasic
	}
	if user == "" {
		return upstream.Credential{}, nil
	}
	return upstream.Credential{Username: user, Password: password}, nil
}
