package access

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/fair"
)

// occupied takes the places of a guard until the test ends, so that nobody's password
// can be verified.
func occupied(t *testing.T, g *Guard) {
	t.Helper()
	g.slots = fair.New(0, 0)
}

func TestAPasswordIsKnownUntilItsLineChanges(t *testing.T) {
	alices, bobs := "alice:"+hash(t, "wonderland"), "bob:"+hash(t, "builder")
	path := writeFile(t, "", alices+"\n"+bobs+"\n")
	g := newGuard(t, Options{Htpasswd: path})
	var recent Recent
	ask := func(user, password string, recent *Recent) string {
		c, _, err := g.Identify(Question{Peer: outside, Authorization: basic(user, password), Recent: recent})
		if err != nil {
			return ""
		}
		return c.String()
	}
	if ask("alice", "wonderland", &recent) != "user:alice" || ask("bob", "builder", nil) != "user:bob" || ask("carol", "x", nil) != "" {
		t.Fatal("want alice and bob known and carol refused")
	}
	occupied(t, g)
	// Another line has changed, and one was added.
	writeFile(t, path, "# a comment\n"+alices+"\nbob:"+hash(t, "builder")+"\ncarol:"+hash(t, "x")+"\n")
	if changed, err := g.htpasswd.refresh(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	for who, c := range map[string]struct {
		user, password string
		recent         *Recent
		want           string
	}{
		"the same line":                   {"alice", "wonderland", nil, "user:alice"},
		"the same line, on a connection":  {"alice", "wonderland", &recent, "user:alice"},
		"the same password, another hash": {"bob", "builder", nil, ""},
		"who is there since":              {"carol", "x", nil, ""},
	} {
		if got := ask(c.user, c.password, c.recent); got != c.want {
			t.Errorf("%s: want %q without a place to verify, got %q", who, c.want, got)
		}
	}
	writeFile(t, path, bobs+"\n")
	if changed, err := g.htpasswd.refresh(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	for _, recent := range []*Recent{nil, &recent} {
		if got := ask("alice", "wonderland", recent); got != "" {
			t.Errorf("her line is gone, and she is %s", got)
		}
	}
}

func TestAGuardInheritsThePasswordsOfTheOneBefore(t *testing.T) {
	alices := "alice:" + hash(t, "wonderland")
	path := writeFile(t, "", alices+"\nbob:"+hash(t, "builder")+"\n")
	before := newGuard(t, Options{Htpasswd: path})
	for user, password := range map[string]string{"alice": "wonderland", "bob": "builder", "carol": "x"} {
		_, _, _ = before.Identify(Question{Peer: outside, Authorization: basic(user, password)})
	}
	g, err := New(Options{Htpasswd: writeFile(t, "", alices+"\nbob:"+hash(t, "other")+"\n"), Before: before, Log: zap.NewNop(),
		Groups: []Group{{Name: "staff", Members: []string{"user:alice"}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	occupied(t, g)
	c, _, err := g.Identify(Question{Peer: outside, Authorization: basic("alice", "wonderland")})
	if err != nil || c.String() != "user:alice" || len(c.Groups) != 1 {
		t.Errorf("want alice known in her new group, got %+v, %v", c, err)
	}
	for user, password := range map[string]string{"bob": "builder", "carol": "x"} {
		if c, _, err := g.Identify(Question{Peer: outside, Authorization: basic(user, password)}); err == nil {
			t.Errorf("%s is %s, and nothing verified it", user, c)
		}
	}
}

// The crowd sends another wrong password as soon as the last one was refused. What
// counts is how many of its passwords are verified before one that is right.
func TestACrowdThatGuessesShutsNobodyOut(t *testing.T) {
	crowd, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7")
	for name, c := range map[string]struct {
		guess func(n int) string // whose passwords the crowd guesses
		from  netip.Addr
		most  int64
	}{
		"anybody's, from elsewhere":    {func(n int) string { return fmt.Sprint("user", n) }, other, 20},
		"hers, from elsewhere":         {func(int) string { return "alice" }, other, 20},
		"anybody's, from the same one": {func(n int) string { return fmt.Sprint("user", n) }, crowd, 20},
		"hers, from the same one":      {func(int) string { return "alice" }, crowd, 60},
		"another's, from the same one": {func(int) string { return "bob" }, crowd, 20},
		"anybody's, from no address":   {func(n int) string { return fmt.Sprint("user", n) }, netip.Addr{}, 20},
		"hers, from an IPv6 address":   {func(int) string { return "alice" }, netip.MustParseAddr("2001:db8::1"), 20},
	} {
		var mu sync.Mutex
		wrong := 0
		g := newGuard(t, Options{Htpasswd: writeFile(t, "", "alice:"+hash(t, "wonderland")+"\nbob:"+hash(t, "builder")+"\n"),
			Refused: func(string) { mu.Lock(); wrong++; mu.Unlock() }})
		guesses := func() int { mu.Lock(); defer mu.Unlock(); return wrong }
		end := make(chan struct{})
		var all sync.WaitGroup
		for n := range 100 {
			all.Go(func() {
				var recent Recent
				for i := 0; ; i++ {
					select {
					case <-end:
						return
					default:
					}
					_, _, _ = g.Identify(Question{Peer: crowd, Authorization: basic(c.guess(n), fmt.Sprint(n, "-", i)), Recent: &recent})
				}
			})
		}
		// Every connection has been refused before.
		for deadline := time.Now().Add(time.Minute); (guesses() < 150 || g.slots.Waiting() < 90) && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		before := guesses()
		if _, _, err := g.Identify(Question{Peer: c.from, Authorization: basic("alice", "wonderland"), Recent: &Recent{}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := int64(guesses() - before); n > c.most {
			t.Errorf("%s: %d guesses were verified before, want %d at most", name, n, c.most)
		}
		close(end)
		all.Wait()
	}
}

func TestForeignCredentialsOfAKnownNetworkDoNotWaitBehindGuesses(t *testing.T) {
	g := newGuard(t, Options{Htpasswd: writeFile(t, "", "alice:"+hash(t, "wonderland")), Networks: []Network{{Name: "office", CIDRs: []string{"10.0.0.0/8"}}}})
	g.slots = fair.New(0, 10) // nobody gets a place
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { _, _ = g.slots.Take(ctx, outside, "unknown") })
	for g.slots.Waiting() == 0 {
		runtime.Gosched()
	}
	c, _, err := g.Identify(Question{Peer: office, Authorization: basic("hub-user", "hub-password")})
	if err != nil || c.String() != "net:office" {
		t.Errorf("want net:office, got %v, %v", c, err)
	}
	cancel()
	all.Wait()
}
