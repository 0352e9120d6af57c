package e2e

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc/oidctest"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// issuer is an OpenID Connect issuer on the loopback, by https.
type issuer struct {
	*httptest.Server
	ca string // the path of its CA, PEM

	mu   sync.Mutex
	keys map[string]*rsa.PrivateKey // those that it publishes, by ID
	// fault, where set, answers in its place.
	fault http.HandlerFunc
	asked int
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{keys: map[string]*rsa.PrivateKey{}}
	i.Server = httptest.NewTLSServer(i)
	t.Cleanup(i.Close)
	i.ca = filepath.Join(t.TempDir(), "issuer.pem")
	if err := os.WriteFile(i.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked++
	fault, s := i.fault, &oidctest.Server{}
	for id, key := range i.keys {
		s.PublicKeys = append(s.PublicKeys, oidctest.PublicKey{PublicKey: crypto.PublicKey(key.Public()), KeyID: id, Algorithm: "RS256"})
	}
	i.mu.Unlock()
	if fault != nil {
		fault(w, r)
		return
	}
	s.SetIssuer(i.URL)
	s.ServeHTTP(w, r)
}

// fail makes the issuer answer by fault from now on; nil is in order again.
func (i *issuer) fail(fault http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fault = fault
}

// gone is an issuer that breaks off whatever connects.
func gone(w http.ResponseWriter, _ *http.Request) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		_ = c.Close()
	}
}

// rotate makes the issuer publish a new key in the place of all others, and gives it.
func (i *issuer) rotate(t *testing.T, id string) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = map[string]*rsa.PrivateKey{id: key}
	return key
}

// claims of a token for audience that is good for life; more are others.
func (i *issuer) claims(audience string, life time.Duration, more string) string {
	return fmt.Sprintf(`{"iss":%q,"aud":%q,"sub":"builder-7","exp":%d%s}`, i.URL, audience, time.Now().Add(life).Unix(), more)
}

// joined makes a token of a header, claims, and what signs them.
func joined(header, claims string, sign func(signed []byte) []byte) string {
	b := base64.RawURLEncoding
	signed := b.EncodeToString([]byte(header)) + "." + b.EncodeToString([]byte(claims))
	return signed + "." + b.EncodeToString(sign([]byte(signed)))
}

func TestTokensOfAnIssuerAreHeldToTheirSignatureAudienceAndTime(t *testing.T) {
	t.Parallel()
	i, other := newIssuer(t), newIssuer(t)
	first, foreign := i.rotate(t, "first"), other.rotate(t, "first")
	h, p := start(t, fmt.Sprintf(`
auth: {oidc: {issuer: %q, audience: entrepot, ca: %q}}
access:
  - {name: developers only, who: ["group:dev"], action: allow}
  - {name: nobody else, repositories: ["-"], action: allow}
`, i.URL, i.ca))
	img := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1", img)
	const path = "/v2/library/app/manifests/1"
	if i.asked != 0 {
		t.Errorf("the issuer was asked %d times before any token came", i.asked)
	}
	sign := func(key *rsa.PrivateKey, id, claims string) string {
		return oidctest.SignIDToken(key, id, "RS256", claims)
	}
	dev := `,"groups":["dev"]`
	good := sign(first, "first", i.claims("entrepot", time.Hour, dev))
	public, err := x509.MarshalPKIXPublicKey(first.Public())
	if err != nil {
		t.Fatal(err)
	}
	shared := func(signed []byte) []byte {
		m := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
		m.Write(signed)
		return m.Sum(nil)
	}
	none := func([]byte) []byte { return nil }
	header, claims, _ := strings.Cut(good, ".")
	claims, signature, _ := strings.Cut(claims, ".")
	changed := header + "." + base64.RawURLEncoding.EncodeToString([]byte(i.claims("entrepot", time.Hour, `,"groups":["dev","admin"]`))) + "." + signature
	for name, c := range map[string]struct {
		authorization string
		status        int
	}{
		"a good one":                        {"Bearer " + good, 200},
		"a good one, as docker login sends": {basicAuth("oidc", good), 200},
		"one for several services":          {"Bearer " + sign(first, "first", strings.Replace(i.claims("entrepot", time.Hour, dev), `"aud":"entrepot"`, `"aud":["other","entrepot"]`, 1)), 200},
		"one of a group without a right":    {"Bearer " + sign(first, "first", i.claims("entrepot", time.Hour, `,"groups":["ops"]`)), 403},
		"another audience":                  {"Bearer " + sign(first, "first", i.claims("elsewhere", time.Hour, dev)), 401},
		"no audience":                       {"Bearer " + sign(first, "first", strings.Replace(i.claims("entrepot", time.Hour, dev), `"aud":"entrepot",`, "", 1)), 401},
		"another issuer":                    {"Bearer " + sign(foreign, "first", other.claims("entrepot", time.Hour, dev)), 401},
		"another issuer's name, our key":    {"Bearer " + sign(first, "first", other.claims("entrepot", time.Hour, dev)), 401},
		"another issuer's key, our name":    {"Bearer " + sign(foreign, "first", i.claims("entrepot", time.Hour, dev)), 401},
		"one that has ended":                {"Bearer " + sign(first, "first", i.claims("entrepot", -time.Minute, dev)), 401},
		"one that has not begun":            {"Bearer " + sign(first, "first", i.claims("entrepot", 2*time.Hour, fmt.Sprintf(`,"nbf":%d`, time.Now().Add(time.Hour).Unix())+dev)), 401},
		"one without an end":                {"Bearer " + sign(first, "first", fmt.Sprintf(`{"iss":%q,"aud":"entrepot","sub":"builder-7","groups":["dev"]}`, i.URL)), 401},
		"one without a name":                {"Bearer " + sign(first, "first", strings.Replace(i.claims("entrepot", time.Hour, dev), `"sub":"builder-7",`, "", 1)), 401},
		"one that is not signed":            {"Bearer " + joined(`{"alg":"none"}`, i.claims("entrepot", time.Hour, dev), none), 401},
		"one that is signed by our own key": {"Bearer " + joined(`{"alg":"HS256","kid":"first"}`, i.claims("entrepot", time.Hour, dev), shared), 401},
		"one that was changed":              {"Bearer " + changed, 401},
		"one without its signature":         {"Bearer " + header + "." + claims + ".", 401},
		"none":                              {"Bearer ", 401},
	} {
		a := ask(t, p, http.MethodGet, path, "Authorization", c.authorization)
		if a.status != c.status {
			t.Errorf("%s: want %d, got %s", name, c.status, a)
		}
		if c.status == http.StatusUnauthorized {
			a.wantHeader(t, "WWW-Authenticate", `Basic realm="Entrepot"`)
		}
		if c.status == http.StatusOK {
			wantBytes(t, name, img.Bytes(), a.body)
		}
	}
	until(t, "the log says it", func() bool { return strings.Contains(p.Log(), `"caller":"oidc:builder-7"`) })
	if n := h.Counts().Leaks; n != 0 {
		t.Errorf("tokens reached the upstream %d times", n)
	}
	if strings.Contains(p.Log(), signature) || strings.Contains(p.Log(), claims) {
		t.Error("the log has a token")
	}
	if other.asked != 0 {
		t.Errorf("an issuer that is not configured was asked %d times", other.asked)
	}
}

func TestKeysOfAnIssuerAreFollowedAndOutliveIt(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	first := i.rotate(t, "first")
	_, p := start(t, fmt.Sprintf("auth: {oidc: {issuer: %q, audience: entrepot, ca: %q}}\n", i.URL, i.ca))
	n := 0
	ping := func(key *rsa.PrivateKey, id string) answer { // each time with a token that was not seen before
		n++
		token := oidctest.SignIDToken(key, id, "RS256", i.claims("entrepot", time.Hour, fmt.Sprintf(`,"jti":"%d"`, n)))
		return ask(t, p, http.MethodGet, "/v2/", "Authorization", "Bearer "+token)
	}
	// The issuer is asked once in ten seconds at most, so it is no use to be quick.
	taken := func(key *rsa.PrivateKey, id string) func() bool {
		tick := time.NewTicker(200 * time.Millisecond)
		t.Cleanup(tick.Stop)
		return func() bool {
			<-tick.C
			return ping(key, id).status == http.StatusOK
		}
	}
	wantUnavailable := func(what string, a answer) {
		t.Helper()
		if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || !strings.Contains(string(a.body), i.URL) {
			t.Errorf("%s: want 503 with Retry-After and the issuer's name, got %s", what, a)
		}
	}
	for range 3 { // a failure is told as one to all, not to the first alone
		i.fail(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		wantUnavailable("an issuer that fails", ping(first, "first"))
	}
	i.fail(nil)
	until(t, "the issuer to be asked again", taken(first, "first"))

	second := i.rotate(t, "second")
	until(t, "the new key to be taken", taken(second, "second"))
	if a := ping(first, "first"); a.status != http.StatusUnauthorized {
		t.Errorf("a key that the issuer has withdrawn: want 401, got %s", a)
	}

	i.fail(gone)
	for range 3 {
		if a := ping(second, "second"); a.status != http.StatusOK {
			t.Errorf("with the issuer gone: want 200 by the keys that are known, got %s", a)
		}
	}
	p.Restart(t)
	wantUnavailable("an issuer that is gone", ping(second, "second"))
	i.fail(nil)
	until(t, "the issuer to be found again", taken(second, "second"))
}
