package store

import (
	"strings"
	"testing"

	_ "crypto/sha256"
	_ "crypto/sha512"

	"github.com/opencontainers/go-digest"
)

func TestADigestIsWhatGoDigestTakes(t *testing.T) {
	good := digest.FromString("x")
	for _, d := range []digest.Digest{
		good, digest.SHA384.FromString("x"), digest.SHA512.FromString("x"), "", "sha256:", "sha256", good[:70], good + "a", "sha256:" + digest.Digest(strings.Repeat("A", 64)),
		"sha256:" + digest.Digest(strings.Repeat("g", 64)), "sha256:" + digest.Digest(strings.Repeat("/", 64)), "sha256:../" + digest.Digest(strings.Repeat("a", 61)), "md5:d41d8cd98f00b204e9800998ecf8427e",
		"sha512:" + digest.Digest(good.Encoded()), "SHA256:" + digest.Digest(good.Encoded()), "sha256:" + digest.Digest(strings.Repeat("é", 32)),
	} {
		if got, want := IsDigest(d), d.Validate() == nil; got != want {
			t.Errorf("%q: got %v, go-digest says %v", d, got, want)
		}
	}
}
