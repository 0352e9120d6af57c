package access

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coreos/go-oidc/v3/oidc/oidctest"

	"github.com/entrepot-dev/entrepot/oci"
)

// testIssuer is an issuer on the loopback that counts what it is asked.
type testIssuer struct {
	*httptest.Server
	key   *rsa.PrivateKey
	asked atomic.Int64
}

func newTestIssuer(t testing.TB) *testIssuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &testIssuer{key: key}
	keys := &oidctest.Server{PublicKeys: []oidctest.PublicKey{{PublicKey: crypto.PublicKey(key.Public()), KeyID: "k1", Algorithm: "RS256"}}}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.asked.Add(1)
		keys.ServeHTTP(w, r)
	}))
	t.Cleanup(i.Close)
	keys.SetIssuer(i.URL)
	return i
}

func (i *testIssuer) claims(audience string, life time.Duration, more string) string {
	return fmt.Sprintf(`{"iss":%q,"aud":%q,"sub":"user-7","exp":%d%s}`, i.URL, audience, time.Now().Add(life).Unix(), more)
}

func (i *testIssuer) token(claims string) string {
	return oidctest.SignIDToken(i.key, "k1", "RS256", claims)
}

func TestTokensOfTheIssuerAreVerified(t *testing.T) {
	i := newTestIssuer(t)
	other := newTestIssuer(t)
	g := newGuard(t, Options{
		OIDC:   &OIDC{Issuer: i.URL, Audience: "entrepot"},
		Groups: []Group{{Name: "builders", Members: []string{"oidc:user-7"}}},
	})
	if n := i.asked.Load(); n != 0 {
		t.Errorf("the issuer was asked %d times before any token came", n)
	}
	good := i.token(i.claims("entrepot", time.Hour, `,"groups":["dev","ops"]`))
	for name, c := range map[string]struct {
		header []byte
		groups []string // nil where it is refused
	}{
		"as a bearer token":      {[]byte("Bearer " + good), []string{"oidc-group:dev", "oidc-group:ops", "group:builders"}},
		"as a password":          {basic("oidc", good), []string{"oidc-group:dev", "oidc-group:ops", "group:builders"}},
		"one group, not in list": {[]byte("Bearer " + i.token(i.claims("entrepot", time.Hour, `,"groups":"dev"`))), []string{"oidc-group:dev", "group:builders"}},
		"no groups":              {[]byte("Bearer " + i.token(i.claims("entrepot", time.Hour, ""))), []string{"group:builders"}},
		"for another service":    {[]byte("Bearer " + i.token(i.claims("elsewhere", time.Hour, ""))), nil},
		"that has ended":         {[]byte("Bearer " + i.token(i.claims("entrepot", -time.Minute, ""))), nil},
		"of another issuer":      {[]byte("Bearer " + other.token(other.claims("entrepot", time.Hour, ""))), nil},
		"signed by another":      {[]byte("Bearer " + other.token(i.claims("entrepot", time.Hour, ""))), nil},
		"not signed":             {[]byte("Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0."), nil},
		"garbage":                {[]byte("Bearer ey.ey.ey"), nil},
	} {
		who, _, err := g.Identify(Question{Authorization: c.header})
		var e *oci.Error
		switch {
		case c.groups == nil && (!errors.As(err, &e) || e.Code != oci.CodeUnauthorized):
			t.Errorf("%s: want UNAUTHORIZED, got %v, %v", name, who, err)
		case c.groups != nil && (err != nil || who.Name != "user-7" || !slices.Equal(who.Groups, c.groups)):
			t.Errorf("%s: want user-7 of %v, got %+v, %v", name, c.groups, who, err)
		}
	}
	// Forged tokens with all kinds of keys do not make us ask more.
	asked := i.asked.Load()
	for n := range 50 {
		forged := oidctest.SignIDToken(other.key, fmt.Sprint("key-", n), "RS256", i.claims("entrepot", time.Hour, ""))
		if _, _, err := g.Identify(Question{Authorization: []byte("Bearer " + forged)}); err == nil {
			t.Fatal("a forged token is taken")
		}
	}
	if n := i.asked.Load(); n > asked+1 || n > 3 {
		t.Errorf("the issuer was asked %d times, and then %d", asked, n)
	}
	// Who was known stays so without the issuer, and new ones too: it is asked for
	// its keys once.
	i.Close()
	for _, token := range []string{good, i.token(i.claims("entrepot", 2*time.Hour, ""))} {
		if _, _, err := g.Identify(Question{Authorization: []byte("Bearer " + token)}); err != nil {
			t.Errorf("with the issuer gone: %v", err)
		}
	}
}

func TestVerdictEndsWithItsToken(t *testing.T) {
	i := newTestIssuer(t)
	g := newGuard(t, Options{OIDC: &OIDC{Issuer: i.URL, Audience: "entrepot"}})
	header := []byte("Bearer " + i.token(i.claims("entrepot", time.Minute, "")))
	if _, _, err := g.Identify(Question{Authorization: header}); err != nil {
		t.Fatal(err)
	}
	key := g.verdicts.keyOf('a', header)
	if _, known := g.verdicts.get(key, time.Now().Add(50*time.Second)); !known {
		t.Error("the verdict is not kept")
	}
	if _, known := g.verdicts.get(key, time.Now().Add(61*time.Second)); known {
		t.Error("the verdict outlives the token")
	}
}

func TestNameIsTheClaimThatIsConfigured(t *testing.T) {
	i := newTestIssuer(t)
	g := newGuard(t, Options{OIDC: &OIDC{Issuer: i.URL, Audience: "entrepot", NameClaim: "email", GroupsClaim: "roles"}})
	token := i.token(i.claims("entrepot", time.Hour, `,"email":"a@example.com","roles":["r"],"groups":["g"]`))
	if who, _, err := g.Identify(Question{Authorization: []byte("Bearer " + token)}); err != nil || who.String() != "oidc:a@example.com" || !slices.Equal(who.Groups, []string{"oidc-group:r"}) {
		t.Errorf("want oidc:a@example.com of oidc-group:r, got %+v, %v", who, err)
	}
	if who, _, err := g.Identify(Question{Authorization: []byte("Bearer " + i.token(i.claims("entrepot", time.Hour, "")))}); err == nil {
		t.Errorf("a token without the claim is taken for %v", who)
	}
}

func TestIssuerThatCanNotBeAskedIsSaidSo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "http://" + l.Addr().String()
	_ = l.Close()
	i := newTestIssuer(t)
	var counted atomic.Int64
	g := newGuard(t, Options{
		OIDC:     &OIDC{Issuer: gone, Audience: "entrepot"},
		Networks: []Network{{Name: "office", CIDRs: []string{"10.0.0.0/8"}}},
		Refused: func(reason string) {
			if reason == "issuer" {
				counted.Add(1)
			}
		},
	})
	header := []byte("Bearer " + i.token(i.claims("entrepot", time.Hour, "")))
	for range 3 {
		_, _, err = g.Identify(Question{Peer: outside, Authorization: header})
		var e *oci.Error
		if !errors.As(err, &e) || e.Code != oci.CodeUnavailable || e.RetryAfter == 0 {
			t.Fatalf("want UNAVAILABLE with Retry-After, got %v", err)
		}
	}
	if counted.Load() != 3 {
		t.Errorf("want 3 counted, got %d", counted.Load())
	}
	if who, _, err := g.Identify(Question{Peer: office, Authorization: header}); err != nil || who.Name != "office" {
		t.Errorf("who is known otherwise needs no issuer: %v, %v", who, err)
	}
}

// answering is an issuer without a network.
type answering func(*http.Request) (*http.Response, error)

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

func TestKeysThatTheIssuerHasWithdrawnAreForgotten(t *testing.T) {
	withdrawn, kept := newTestIssuer(t), newTestIssuer(t)
	synctest.Test(t, func(t *testing.T) {
		const url = "https://issuer.example"
		server := &oidctest.Server{PublicKeys: []oidctest.PublicKey{
			{PublicKey: withdrawn.key.Public(), KeyID: "old", Algorithm: "RS256"},
			{PublicKey: kept.key.Public(), KeyID: "new", Algorithm: "RS256"},
		}}
		server.SetIssuer(url)
		asked, down := 0, false
		g := newGuard(t, Options{OIDC: &OIDC{Issuer: url, Audience: "entrepot"}})
		g.issuer.client.Transport = &paced{last: map[string]attempt{}, next: answering(func(r *http.Request) (*http.Response, error) {
			asked++
			w := httptest.NewRecorder()
			if down {
				w.WriteHeader(http.StatusBadGateway)
			} else {
				server.ServeHTTP(w, r)
			}
			return w.Result(), nil
		})}
		n := 0
		knows := func(i *testIssuer, id string) error {
			n++
			claims := fmt.Sprintf(`{"iss":%q,"aud":"entrepot","sub":"user-7","jti":"%d","exp":%d}`, url, n, time.Now().Add(time.Hour).Unix())
			_, _, err := g.Identify(Question{Authorization: []byte("Bearer " + oidctest.SignIDToken(i.key, id, "RS256", claims))})
			return err
		}
		good := func(when string, i *testIssuer, id string) {
			t.Helper()
			if err := knows(i, id); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		good("the old key", withdrawn, "old")
		good("the new key", kept, "new")
		if asked != 2 {
			t.Errorf("the issuer was asked %d times, want once for where its keys are and once for them", asked)
		}
		down, server.PublicKeys = true, server.PublicKeys[1:]
		time.Sleep(keysFor)
		good("the old key while the issuer is down", withdrawn, "old")
		good("the new key while the issuer is down", kept, "new")
		if asked != 3 {
			t.Errorf("the issuer was asked %d times, want once more", asked)
		}
		// That it is down is told of a key that is not known, to all who ask.
		for range 2 {
			var e *oci.Error
			if err := knows(withdrawn, "another"); !errors.As(err, &e) || e.Code != oci.CodeUnavailable {
				t.Errorf("a key that is not known: want UNAVAILABLE, got %v", err)
			}
		}
		down = false
		time.Sleep(issuerPause)
		good("the new key", kept, "new")
		var e *oci.Error
		if err := knows(withdrawn, "old"); !errors.As(err, &e) || e.Code != oci.CodeUnauthorized {
			t.Errorf("the key that was withdrawn: want UNAUTHORIZED, got %v", err)
		}
	})
}
