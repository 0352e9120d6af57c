package store

import (
	"strings"

	"github.com/opencontainers/go-digest"
)

// IsDigest reports whether d is a digest as go-digest's Validate does, which takes a regular
// expression for what nearly all digests are: sha256 and 64 lower-case hex digits.
func IsDigest(d digest.Digest) bool {
	hex, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || len(hex) != 64 {
		return d.Validate() == nil
	}
	for i := range len(hex) {
		if c := hex[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
