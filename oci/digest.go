package oci

import (
	"strings"

	"github.com/opencontainers/go-digest"
)

// ParseDigest reads a digest strictly: sha256 or sha512 and all their
// lower-case hex digits. Everything else is DIGEST_INVALID.
func ParseDigest(s string) (digest.Digest, error) {
	if err := checkDigest(s); err != nil {
		return "", err
	}
	return digest.Digest(s), nil
}

// checkDigest is ParseDigest's rule; it does not allocate where s is good.
func checkDigest(s string) error {
	algorithm, hex, _ := strings.Cut(s, ":")
	want := 0
	switch digest.Algorithm(algorithm) {
	case digest.SHA256:
		want = 64
	case digest.SHA512:
		want = 128
	default:
		return Errorf(CodeDigestInvalid, "digest %s is of no algorithm that is served here; sha256 and sha512 are", Quote(s))
	}
	if len(hex) != want {
		return Errorf(CodeDigestInvalid, "digest %s has %d characters after the colon, not %d", Quote(s), len(hex), want)
	}
	for i := range len(hex) {
		if c := hex[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return Errorf(CodeDigestInvalid, "digest %s has a character that is no lower-case hex digit", Quote(s))
		}
	}
	return nil
}
