package access

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatAConnectionHasShownHoldsNoLongerThanItsVerdict(t *testing.T) {
	g := newGuard(t, Options{Tokens: []Token{{Name: "ci", SHA256: sum(longToken)}}})
	other := newGuard(t, Options{Tokens: []Token{{Name: "robot", SHA256: sum(longToken)}}})
	stranger := newGuard(t, Options{Tokens: []Token{{Name: "ci", SHA256: sum("another")}}})
	q := Question{Authorization: []byte("Bearer " + longToken), Recent: &Recent{}}
	for range 3 {
		for name, g := range map[string]*Guard{"ci": g, "robot": other} {
			for range 3 {
				if c, _, err := g.Identify(q); err != nil || c.Name != name {
					t.Fatalf("want %s, got %v, %v", name, c, err)
				}
			}
		}
		if c, _, err := stranger.Identify(q); err == nil {
			t.Fatalf("another guard takes it for %v", c)
		}
	}
	q.Authorization = []byte("Bearer " + longToken + "x")
	if c, _, err := g.Identify(q); err == nil {
		t.Errorf("what begins alike is taken for %v", c)
	}
	if q.Recent.note(g, []byte(strings.Repeat("x", maxRecent+1)), verdict{caller: nobody}); len(q.Recent.header) > maxRecent {
		t.Errorf("%d bytes are kept", len(q.Recent.header))
	}
}

func TestWhatAConnectionHasShownEndsWithItsUserAndItsTime(t *testing.T) {
	file := writeFile(t, "", "alice:"+hash(t, "wonderland"))
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, Options{Htpasswd: file, Certificates: true})
		recent := &Recent{}
		known := Question{Authorization: basic("alice", "wonderland"), Recent: recent}
		shown := Question{Recent: recent, Certificate: &x509.Certificate{
			Raw: []byte("1"), NotAfter: time.Now().Add(time.Minute), Subject: pkix.Name{CommonName: "node-1"}}}
		for range 3 {
			for _, q := range []Question{known, shown} {
				if _, _, err := g.Identify(q); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(time.Minute)
		if c, _, err := g.Identify(shown); err == nil {
			t.Errorf("a certificate that has ended is taken for %v", c)
		}
		if c := recent.shown(g, known.Authorization, time.Now().Add(passwordGoodFor)); c != nil {
			t.Errorf("%v is known for ever", c)
		}
		if err := os.WriteFile(file, []byte("bob:"+hash(t, "builder")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * fileInterval)
		synctest.Wait()
		if c, _, err := g.Identify(known); err == nil {
			t.Errorf("a user who is no more is taken for %v", c)
		}
	})
}
