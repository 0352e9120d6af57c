package access

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/entrepot-dev/entrepot/oci"
)

// hash gives the cheapest bcrypt hash of a password.
func hash(t testing.TB, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

func writeFile(t testing.TB, path, text string) string {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "file")
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newGuard(t testing.TB, o Options) *Guard {
	t.Helper()
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

func basic(user, password string) []byte {
	return []byte("Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

func sum(token string) string {
	s := sha256.Sum256([]byte(token))
	return hex.EncodeToString(s[:])
}

const longToken = "c3VmZmljaWVudGx5IGxvbmc"

var (
	office  = netip.MustParseAddr("10.1.2.3")
	outside = netip.MustParseAddr("203.0.113.9")
	nginx   = netip.MustParseAddr("127.0.0.1")
)

func TestCallersAreKnownByEverySourceAtOnce(t *testing.T) {
	g := newGuard(t, Options{
		Htpasswd:       writeFile(t, "", "# people\nalice:"+hash(t, "wonderland")+"\n\n"),
		Tokens:         []Token{{Name: "ci", SHA256: sum(longToken)}},
		Networks:       []Network{{Name: "office", CIDRs: []string{"10.0.0.0/8"}}},
		TrustedProxies: []string{"127.0.0.1"},
		Certificates:   true,
		Groups:         []Group{{Name: "builders", Members: []string{"token:ci", "cert:node-1"}}},
	})
	later := time.Now().Add(time.Hour)
	node := &x509.Certificate{Raw: []byte("1"), NotAfter: later, Subject: pkix.Name{CommonName: "node-1", Organization: []string{"nodes"}}}
	dns := &x509.Certificate{Raw: []byte("2"), NotAfter: later, DNSNames: []string{"node-2.example.com"}}
	past := &x509.Certificate{Raw: []byte("3"), NotAfter: time.Now().Add(-time.Hour), Subject: pkix.Name{CommonName: "gone"}}
	forwarded := func(values ...string) (list [][]byte) {
		for _, v := range values {
			list = append(list, []byte(v))
		}
		return list
	}
	var recent Recent
	for name, c := range map[string]struct {
		q      Question
		want   string // empty where the caller is refused
		groups []string
		code   oci.Code
	}{
		"nothing":                                 {q: Question{Peer: outside}, code: oci.CodeUnauthorized},
		"loopback is nothing":                     {q: Question{Peer: nginx}, code: oci.CodeUnauthorized},
		"a user":                                  {q: Question{Peer: outside, Authorization: basic("alice", "wonderland")}, want: "alice"},
		"a wrong password":                        {q: Question{Peer: outside, Authorization: basic("alice", "looking-glass")}, code: oci.CodeUnauthorized},
		"an empty password":                       {q: Question{Peer: outside, Authorization: basic("alice", "")}, code: oci.CodeUnauthorized},
		"no such user":                            {q: Question{Peer: outside, Authorization: basic("bob", "wonderland")}, code: oci.CodeUnauthorized},
		"a password of more than bcrypt takes":    {q: Question{Peer: outside, Authorization: basic("alice", "wonderland"+strings.Repeat("\x00x", 50))}, code: oci.CodeUnauthorized},
		"no credentials at all":                   {q: Question{Peer: outside, Authorization: []byte("Basic !!!")}, code: oci.CodeUnauthorized},
		"another scheme":                          {q: Question{Peer: outside, Authorization: []byte("Negotiate abc")}, code: oci.CodeUnauthorized},
		"a header that is too long":               {q: Question{Peer: outside, Authorization: basic("alice", strings.Repeat("x", maxCredential))}, code: oci.CodeUnauthorized},
		"a bearer token":                          {q: Question{Peer: outside, Authorization: []byte("Bearer " + longToken)}, want: "ci", groups: []string{"group:builders"}},
		"a token as a password":                   {q: Question{Peer: outside, Authorization: basic("whoever", longToken)}, want: "ci", groups: []string{"group:builders"}},
		"a password as a token":                   {q: Question{Peer: outside, Authorization: []byte("Bearer wonderland")}, code: oci.CodeUnauthorized},
		"a network":                               {q: Question{Peer: office}, want: "office"},
		"a network in IPv6 clothes":               {q: Question{Peer: netip.MustParseAddr("::ffff:10.1.2.3")}, want: "office"},
		"foreign credentials from a network":      {q: Question{Peer: office, Authorization: basic("hub-user", "secret")}, want: "office"},
		"a user from a network":                   {q: Question{Peer: office, Authorization: basic("alice", "wonderland")}, want: "alice"},
		"a certificate":                           {q: Question{Peer: outside, Certificate: node}, want: "node-1", groups: []string{"cert-group:nodes", "group:builders"}},
		"a certificate, and foreign credentials":  {q: Question{Peer: outside, Certificate: node, Authorization: basic("hub-user", "secret")}, want: "node-1", groups: []string{"cert-group:nodes", "group:builders"}},
		"a certificate by its DNS name":           {q: Question{Peer: outside, Certificate: dns}, want: "node-2.example.com"},
		"a certificate that has ended since":      {q: Question{Peer: outside, Certificate: past}, code: oci.CodeUnauthorized},
		"through a trusted proxy":                 {q: Question{Peer: nginx, Forwarded: forwarded("10.9.9.9")}, want: "office"},
		"through two values":                      {q: Question{Peer: nginx, Forwarded: forwarded("203.0.113.9", "10.9.9.9")}, want: "office"},
		"through a proxy that another proxy asks": {q: Question{Peer: nginx, Forwarded: forwarded("203.0.113.9, 10.9.9.9, 127.0.0.1")}, want: "office"},
		"a forged first entry":                    {q: Question{Peer: nginx, Forwarded: forwarded("10.9.9.9, 203.0.113.9")}, code: oci.CodeUnauthorized},
		"a forged header":                         {q: Question{Peer: outside, Forwarded: forwarded("10.9.9.9")}, code: oci.CodeUnauthorized},
		"what is no address":                      {q: Question{Peer: nginx, Forwarded: forwarded("10.9.9.9, unknown")}, code: oci.CodeUnauthorized},
	} {
		for n := range 6 { // from the second time on by what is remembered
			if n == 3 { // and on one connection, as behind a proxy
				c.q.Recent = &recent
			}
			got, _, err := g.Identify(c.q)
			if c.want == "" {
				var e *oci.Error
				if !errors.As(err, &e) || e.Code != c.code || e.Challenge != `Basic realm="Entrepot"` {
					t.Errorf("%s: want %s and a challenge, got %v, %#v", name, c.code, got, err)
				}
				continue
			}
			if err != nil || got.Name != c.want || !slices.Equal(got.Groups, c.groups) {
				t.Errorf("%s: want %s of %v, got %+v, %v", name, c.want, c.groups, got, err)
			}
		}
	}
}

func TestWhoIsAnonymousDependsOnWhatIsSet(t *testing.T) {
	nets := []Network{{Name: "office", CIDRs: []string{"10.0.0.0/8"}}}
	tokens := []Token{{Name: "ci", SHA256: sum(longToken)}}
	for name, c := range map[string]struct {
		o    Options
		want oci.Code // empty: they may pull
	}{
		"nothing is set":            {Options{}, ""},
		"denied, and nothing else":  {Options{Anonymous: DenyAnonymous}, oci.CodeDenied},
		"tokens":                    {Options{Tokens: tokens}, oci.CodeUnauthorized},
		"tokens, anonymous allowed": {Options{Tokens: tokens, Anonymous: AllowAnonymous}, ""},
		"networks":                  {Options{Networks: nets}, oci.CodeDenied},
		"certificates":              {Options{Certificates: true}, oci.CodeDenied},
		"networks, auto":            {Options{Networks: nets, Anonymous: Auto}, oci.CodeDenied},
	} {
		g := newGuard(t, c.o)
		for _, header := range [][]byte{nil, basic("hub-user", "hub-password")} {
			who, at, err := g.Identify(Question{Peer: outside, Authorization: header})
			var e *oci.Error
			switch {
			case c.want == "" && (err != nil || !who.IsAnonymous() || at != outside):
				t.Errorf("%s, %q: want anybody let in, got %v, %v, %v", name, header, who, at, err)
			case c.want != "" && (!errors.As(err, &e) || e.Code != c.want || (e.Challenge != "") != (c.want == oci.CodeUnauthorized)):
				t.Errorf("%s, %q: want %s, got %v, %v", name, header, c.want, who, err)
			}
		}
	}
}

func TestRefusalsAreCountedByReason(t *testing.T) {
	counts := map[string]int{}
	g := newGuard(t, Options{
		Htpasswd: writeFile(t, "", "alice:"+hash(t, "wonderland")),
		Rules:    []Rule{{Name: "no", Repositories: []string{"secret/*"}}},
		Refused:  func(reason string) { counts[reason]++ },
	})
	_, _, _ = g.Identify(Question{})
	_, _, _ = g.Identify(Question{Authorization: basic("alice", "x")})
	c, at, err := g.Identify(Question{Authorization: basic("alice", "wonderland")})
	if err != nil {
		t.Fatal(err)
	}
	_ = g.Allow(c, at, "docker.io", "secret/x")
	for _, reason := range []string{"anonymous", "credentials", "rule"} {
		if counts[reason] != 1 || !slices.Contains(Reasons, reason) {
			t.Errorf("%s: want 1, got %v", reason, counts)
		}
	}
}

func TestUsersAreReadAgainWhenTheFileChanges(t *testing.T) {
	path := writeFile(t, "", "alice:"+hash(t, "wonderland"))
	renewed := hash(t, "looking-glass")
	synctest.Test(t, func(t *testing.T) {
		g, err := New(Options{Htpasswd: path})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		knows := func(user, password string) bool {
			_, _, err := g.Identify(Question{Authorization: basic(user, password)})
			return err == nil
		}
		if !knows("alice", "wonderland") || knows("alice", "looking-glass") || knows("bob", "looking-glass") {
			t.Fatal("the file as it was first is not in force")
		}
		change := func(text string) {
			t.Helper()
			writeFile(t, path, text)
			time.Sleep(fileInterval + time.Millisecond)
			synctest.Wait()
		}
		change("alice:" + renewed + "\nbob:" + renewed)
		if knows("alice", "wonderland") {
			t.Error("a password that was changed is still taken")
		}
		if !knows("alice", "looking-glass") || !knows("bob", "looking-glass") {
			t.Error("what was wrong before the change is still taken for wrong")
		}
		change("alice:plain")
		if !knows("alice", "looking-glass") {
			t.Error("a file that can not be read has put out those that were read before")
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(fileInterval + time.Millisecond)
		synctest.Wait()
		if !knows("bob", "looking-glass") {
			t.Error("a file that is gone has put out those that were read before")
		}
		change("bob:" + renewed + "\n")
		if knows("alice", "looking-glass") {
			t.Error("a user that was removed is still let in")
		}
	})
}

func TestHtpasswdThatCanNotBeMeantIsRefusedByLine(t *testing.T) {
	for text, want := range map[string]string{
		"alice":                "line 1 is no user:hash",
		"# x\nalice:{SHA}abcd": `line 2: the password of "alice" is not hashed by bcrypt`,
		"alice:$2y$31$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": "has bcrypt cost 31",
	} {
		_, err := New(Options{Htpasswd: writeFile(t, "", text)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: want %q, got %v", text, want, err)
		}
	}
}

func TestDecoyTakesAsLongAsAPassword(t *testing.T) {
	if cost, err := bcrypt.Cost(decoyHash); err != nil || cost != bcrypt.DefaultCost {
		t.Errorf("want cost %d, got %d, %v", bcrypt.DefaultCost, cost, err)
	}
	if bcrypt.CompareHashAndPassword(decoyHash, []byte("")) != bcrypt.ErrMismatchedHashAndPassword {
		t.Error("the decoy is not compared to its end")
	}
}

func TestManyWhoAskAtOnceVerifyAPasswordOnce(t *testing.T) {
	g := newGuard(t, Options{Htpasswd: writeFile(t, "", "alice:"+hash(t, "wonderland"))})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if c, _, err := g.Identify(Question{Authorization: basic("alice", "wonderland")}); err != nil || c.Name != "alice" {
				t.Errorf("want alice, got %v, %v", c, err)
			}
		})
	}
	wg.Wait()
	if n := len(g.verdicts.of); n != 1 {
		t.Errorf("want one verdict, got %d", n)
	}
}

func TestVerdictsAreBoundedAndKeepWhatIsRight(t *testing.T) {
	v := newVerdicts()
	now := time.Now()
	good := v.keyOf('a', []byte("good"))
	v.put(good, verdict{caller: &Caller{Name: "alice"}, until: now.Add(time.Hour)}, now)
	for i := range 3 * maxVerdicts {
		v.put(v.keyOf('a', fmt.Append(nil, i)), verdict{until: now.Add(time.Hour)}, now)
	}
	if len(v.of) > maxVerdicts {
		t.Errorf("want at most %d, got %d", maxVerdicts, len(v.of))
	}
	if d, known := v.get(good, now); !known || d.caller.Name != "alice" {
		t.Error("wrong guesses have pushed out who is right")
	}
	if _, known := v.get(good, now.Add(2*time.Hour)); known {
		t.Error("a verdict outlives its time")
	}
	if v.keyOf('a', []byte("x")) == v.keyOf('c', []byte("x")) || v.keyOf('a', []byte("x")) == newVerdicts().keyOf('a', []byte("x")) {
		t.Error("the key of a credential does not depend on its kind and on the process")
	}
}

func TestVerdictThatIsKnownCostsNoAllocation(t *testing.T) {
	for name, c := range guardsForCost(t) {
		if _, _, err := c.g.Identify(c.q); err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() {
			who, at, err := c.g.Identify(c.q)
			if err == nil {
				err = c.g.Allow(who, at, "docker.io", "library/nginx")
			}
			if err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: want no allocation, got %g", name, n)
		}
	}
}

type costly struct {
	g *Guard
	q Question
}

func guardsForCost(t testing.TB) map[string]costly {
	known := newGuard(t, Options{
		Htpasswd: writeFile(t, "", "alice:"+hash(t, "wonderland")),
		Networks: []Network{{Name: "office", CIDRs: []string{"10.0.0.0/8"}}},
		Rules: []Rule{
			{Name: "a", Repositories: []string{"library/*"}, Allow: true},
			{Name: "b", Who: []string{"group:none", "10.3.0.0/16"}, Repositories: []string{"*/internal-*"}},
		},
	})
	cert := &x509.Certificate{Raw: make([]byte, 1200), NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{CommonName: "node-1"}}
	return map[string]costly{
		"open":                                {newGuard(t, Options{}), Question{Peer: outside}},
		"password":                            {known, Question{Peer: outside, Authorization: basic("alice", "wonderland")}},
		"network":                             {known, Question{Peer: office}},
		"certificate":                         {known, Question{Peer: outside, Certificate: cert}},
		"password, by the same connection":    {known, Question{Peer: outside, Authorization: basic("alice", "wonderland"), Recent: &Recent{}}},
		"certificate, by the same connection": {known, Question{Peer: outside, Certificate: cert, Recent: &Recent{}}},
	}
}

func BenchmarkIdentifyAndAllow(b *testing.B) {
	for name, c := range guardsForCost(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				who, at, err := c.g.Identify(c.q)
				if err == nil {
					err = c.g.Allow(who, at, "docker.io", "library/nginx")
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
