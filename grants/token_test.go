package grants

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/entrepot-dev/entrepot/upstream"
)

func basic(user, password string) []byte {
	return []byte("Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

func TestATokenStandsForItsCredentialUntilItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, other := New(nil), New(nil)
		for _, c := range []struct {
			header []byte
			want   upstream.Credential
		}{{basic("alice", "a:b"), upstream.Credential{Username: "alice", Password: "a:b"}}, {nil, upstream.Credential{}}, {basic("", ""), upstream.Credential{}}} {
			token, life, err := g.Token(c.header)
			if err != nil || life <= 0 {
				t.Fatalf("Token(%s): %v, %v", c.header, life, err)
			}
			bearer := []byte("Bearer " + token)
			if got, err := g.credential(bearer); err != nil || got != c.want {
				t.Errorf("the token for %s stands for %q, %v", c.header, got.Username, err)
			}
			if _, err := other.credential(bearer); err == nil {
				t.Error("another process reads the token")
			}
			raw, _ := base64.RawURLEncoding.DecodeString(token)
			for at := range raw {
				bent := bytes.Clone(raw)
				bent[at] ^= 1
				if _, err := g.credential([]byte("Bearer " + base64.RawURLEncoding.EncodeToString(bent))); err == nil {
					t.Fatalf("a token with byte %d changed is taken", at)
				}
			}
			if bytes.Contains(raw, []byte("alice")) {
				t.Error("the token shows whose it is")
			}
			time.Sleep(life)
			if _, err := g.credential(bearer); err == nil {
				t.Error("the token is good after its life")
			}
		}
	})
}

func TestWhatIsNoCredentialIsSaid(t *testing.T) {
	g := New(nil)
	for _, header := range []string{
		"nonsense", "Basic", "Basic !", "Basic " + base64.StdEncoding.EncodeToString([]byte("no colon")), "Bearer", "Bearer x", "Bearer e30",
		"Digest username=alice", string(basic("alice", strings.Repeat("x", maxCredential))), "Bearer " + strings.Repeat("A", 1<<20),
	} {
		if c, err := g.credential([]byte(header)); err == nil {
			t.Errorf("%.40q is taken for %q", header, c.Username)
		}
		if g.Known([]byte(header)) == nil {
			t.Errorf("%.40q says who the caller is", header)
		}
	}
	if g.Known(nil) == nil {
		t.Error("nothing says who the caller is")
	}
}

func FuzzCredential(f *testing.F) {
	g := New(nil)
	token, _, _ := g.Token(basic("alice", "a"))
	for _, s := range []string{"", string(basic("alice", "a")), string(basic("", "")), "Bearer " + token, "Basic Og==", "bearer  x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		c, err := g.credential([]byte(header))
		if err != nil && c != (upstream.Credential{}) {
			t.Errorf("%q gives a credential and an error", header)
		}
		if len(c.Username)+len(c.Password) > maxCredential || strings.Contains(c.Username, ":") {
			t.Errorf("%q gives %q", header, c.Username)
		}
	})
}
