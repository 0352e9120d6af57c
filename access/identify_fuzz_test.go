package access

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

// FuzzIdentify sends what a stranger can: credentials and forwarded addresses, through
// a trusted proxy or not. Nobody becomes known who has neither the password nor the
// address, and an address is only believed of the proxy.
func FuzzIdentify(f *testing.F) {
	hash, err := bcrypt.GenerateFromPassword([]byte("a password that nobody guesses"), bcrypt.MinCost)
	if err != nil {
		f.Fatal(err)
	}
	file := filepath.Join(f.TempDir(), "htpasswd")
	if err := os.WriteFile(file, append([]byte("alice:"), hash...), 0o600); err != nil {
		f.Fatal(err)
	}
	g, err := New(Options{
		Htpasswd: file, TrustedProxies: []string{"192.0.2.1"},
		Tokens:   []Token{{Name: "robot", SHA256: "00000000000000000000000000000000000000000000000000000000000000ff"}},
		Networks: []Network{{Name: "office", CIDRs: []string{"198.51.100.0/24"}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(g.Close)
	office := netip.MustParsePrefix("198.51.100.0/24")
	proxy, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("203.0.113.5")
	for _, authorization := range []string{"", "Basic YWxpY2U6eA==", "Basic YWxpY2U6", "basic  Og==", "Bearer x", "Bearer a.b.c", "Basic \xff", "Negotiate x"} {
		for _, forwarded := range []string{"", "198.51.100.7", "198.51.100.7, 203.0.113.9", "203.0.113.9, 198.51.100.7", "[::ffff:198.51.100.7]:80", "unknown, _x", ",,,"} {
			f.Add([]byte(authorization), []byte(forwarded), true)
			f.Add([]byte(authorization), []byte(forwarded), false)
		}
	}
	f.Fuzz(func(t *testing.T, authorization, forwarded []byte, trusted bool) {
		q := Question{Authorization: authorization, Peer: other}
		if len(forwarded) > 0 {
			q.Forwarded = [][]byte{forwarded}
		}
		if trusted {
			q.Peer = proxy
		}
		c, at, err := g.Identify(q)
		if !trusted && at != other && at.IsValid() {
			t.Errorf("%q: an address that a stranger has written is believed: %s", forwarded, at)
		}
		if err == nil && (c == nil || !office.Contains(at.Unmap())) {
			t.Errorf("%q, %q, trusted %v: %v from %s is let in", authorization, forwarded, trusted, c, at)
		}
	})
}
