package access

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
)

func TestRules(t *testing.T) {
	official := Rule{Name: "official", Upstreams: []string{"docker.io"}, Repositories: []string{"library/*"}, Allow: true}
	ours := Rule{Name: "ours", Who: []string{"group:ci", "user:bob"}, Upstreams: []string{"ghcr.io"}, Repositories: []string{"our-org/*"}, Allow: true}
	internal := Rule{Name: "internal", Who: []string{Anonymous}, Repositories: []string{"*/internal-*"}}
	guests := Rule{Name: "guests", Who: []string{"192.0.2.0/24"}, Upstreams: []string{"ghcr.io"}}
	alice, bob := &Caller{Source: FromHtpasswd, Name: "alice"}, &Caller{Source: FromHtpasswd, Name: "bob"}
	ci := &Caller{Source: FromToken, Name: "robot", Groups: []string{"group:ci"}}
	// They have the names, and not the sources, that the rules are about.
	forged := &Caller{Source: FromIssuer, Name: "bob", Groups: []string{"oidc-group:ci", "cert-group:ci"}}
	guest := netip.MustParseAddr("192.0.2.7")
	for _, c := range []struct {
		rules                []Rule
		who                  *Caller
		at                   netip.Addr
		upstream, repository string
		denied               string // the rule that is named; empty where it may be pulled
	}{
		{nil, nobody, outside, "ghcr.io", "x/y", ""},
		{[]Rule{official}, alice, outside, "docker.io", "library/nginx", ""},
		{[]Rule{official}, alice, outside, "docker.io", "alice/nginx", "official"},
		{[]Rule{official}, alice, outside, "ghcr.io", "library/nginx", "official"},
		{[]Rule{official, ours}, alice, outside, "ghcr.io", "our-org/app", "official"},
		{[]Rule{official, ours}, ci, outside, "ghcr.io", "our-org/app", ""},
		{[]Rule{official, ours}, bob, outside, "ghcr.io", "our-org/app", ""},
		{[]Rule{official, ours}, forged, outside, "ghcr.io", "our-org/app", "official"},
		{[]Rule{official, ours}, bob, outside, "docker.io", "library/nginx", ""},
		{[]Rule{ours}, alice, outside, "docker.io", "anything/at-all", ""},
		{[]Rule{ours}, bob, outside, "docker.io", "anything/at-all", "ours"},
		{[]Rule{internal}, nobody, outside, "docker.io", "org/internal-app", "internal"},
		{[]Rule{internal}, alice, outside, "docker.io", "org/internal-app", ""},
		{[]Rule{guests}, nobody, guest, "ghcr.io", "x/y", "guests"},
		{[]Rule{guests}, bob, guest, "ghcr.io", "x/y", "guests"},
		{[]Rule{guests}, bob, outside, "ghcr.io", "x/y", ""},
		// Deny wins, in whichever order.
		{[]Rule{ours, guests}, bob, guest, "ghcr.io", "our-org/app", "guests"},
		{[]Rule{guests, ours}, bob, guest, "ghcr.io", "our-org/app", "guests"},
		// A name that is called as the word for nobody is nobody's.
		{[]Rule{{Name: "x", Who: []string{"*"}}}, alice, outside, "ghcr.io", "x/y", "x"},
	} {
		g := newGuard(t, Options{Rules: c.rules})
		err := g.Allow(c.who, c.at, c.upstream, c.repository)
		var e *oci.Error
		switch {
		case c.denied == "" && err != nil:
			t.Errorf("%v: %s at %s: %s/%s: want it allowed, got %v", c.rules, c.who, c.at, c.upstream, c.repository, err)
		case c.denied != "" && (!errors.As(err, &e) || e.Code != oci.CodeDenied || !strings.Contains(e.Message, "rule "+c.denied+" ")):
			t.Errorf("%v: %s at %s: %s/%s: want it denied by %s, got %v", c.rules, c.who, c.at, c.upstream, c.repository, c.denied, err)
		}
	}
}

func TestAnonymousCallerWhoCouldLogInIsAskedTo(t *testing.T) {
	g := newGuard(t, Options{
		Anonymous: AllowAnonymous, Tokens: []Token{{Name: "ci", SHA256: sum(longToken)}},
		Rules: []Rule{{Name: "private", Who: []string{Anonymous}, Repositories: []string{"secret/*"}}},
	})
	var e *oci.Error
	if err := g.Allow(nobody, outside, "docker.io", "secret/x"); !errors.As(err, &e) || e.Code != oci.CodeUnauthorized || e.Challenge == "" {
		t.Errorf("want UNAUTHORIZED with a challenge, got %v", err)
	}
	if err := g.Allow(&Caller{Name: "ci"}, outside, "docker.io", "secret/x"); err != nil {
		t.Errorf("want it allowed, got %v", err)
	}
}

func TestRuleWithoutANameIsNamedByItsPlace(t *testing.T) {
	g := newGuard(t, Options{Rules: []Rule{{Allow: true}, {Repositories: []string{"x"}}}})
	if err := g.Allow(nobody, outside, "docker.io", "x"); err == nil || !strings.Contains(err.Error(), "rule access[1] denies it") {
		t.Errorf("want access[1] named, got %v", err)
	}
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a/b", true}, {"a", "a", true}, {"a", "ab", false},
		{"library/*", "library/nginx", true}, {"library/*", "library", false}, {"*/nginx", "a/b/nginx", true},
		{"a?c", "abc", true}, {"a?c", "ac", false}, {"*a*b", "xaxxb", true}, {"*a*b", "xaxxbc", false}, {"a**", "a", true},
		{"*.example.com", "x.example.com", true}, {"*aab", "aaab", true},
	} {
		if got := matches(c.pattern, c.s); got != c.want {
			t.Errorf("%q, %q: want %v, got %v", c.pattern, c.s, c.want, got)
		}
	}
}

func TestPatternThatGoesBackOftenIsCheap(t *testing.T) {
	if matches(strings.Repeat("a*", 200)+"b", strings.Repeat("a", 5000)) {
		t.Error("want no match")
	}
}
