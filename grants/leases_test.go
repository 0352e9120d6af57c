package grants

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
	"github.com/entrepot-dev/entrepot/upstream"
)

var (
	alice = upstream.Credential{Username: "alice", Password: "a"}
	bob   = upstream.Credential{Username: "bob", Password: "b"}
)

// registry is an upstream that says who may pull what.
type registry struct {
	mu     sync.Mutex
	may    map[string][]upstream.Credential // by repository; the zero one is everyone
	broken error
	takes  time.Duration
	asked  []string // "user repository"
}

func (r *registry) mayPull(ctx context.Context, c upstream.Credential, repo, _ string, _ bool) error {
	r.mu.Lock()
	r.asked = append(r.asked, c.Username+" "+repo)
	takes := r.takes
	r.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return &oci.Error{Code: oci.CodeUnavailable, Err: ctx.Err()}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.broken != nil:
		return r.broken
	case slices.Contains(r.may[repo], c):
		return nil
	}
	return oci.Errorf(oci.CodeDenied, "no")
}

func (r *registry) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// count gives how often it was asked, and forgets it.
func (r *registry) count() (n int) {
	r.set(func() { n, r.asked = len(r.asked), nil })
	return n
}

// inTime runs f with leases of an upstream at which Alice may pull alice/app, both
// both/app, and everyone library/app. Time is that of the test.
func inTime(t *testing.T, o Options, f func(t *testing.T, r *registry, l *Leases)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &registry{may: map[string][]upstream.Credential{"alice/app": {alice}, "both/app": {alice, bob}, "library/app": {{}}}}
		o.Upstream, o.MayPull = "reg", r.mayPull
		l := NewLeases(o)
		defer l.Close()
		f(t, r, l)
	})
}

func ofRepo(repo string) question { return question{repo: repo, ref: "latest"} }

// wantAnswer checks what c is told of repo: "", or a code.
func wantAnswer(t *testing.T, l *Leases, repo string, c upstream.Credential, want oci.Code) {
	t.Helper()
	err := l.admit(t.Context(), ofRepo(repo), c, netip.Addr{})
	var e *oci.Error
	switch {
	case err == nil && want != "":
		t.Errorf("%q on %s: want %s, was admitted", c.Username, repo, want)
	case err != nil && (!errors.As(err, &e) || e.Code != want):
		t.Errorf("%q on %s: want %q, got %v", c.Username, repo, want, err)
	}
}

func wantAsked(t *testing.T, r *registry, want int) {
	t.Helper()
	if got := r.count(); got != want {
		t.Errorf("the upstream was asked %d times, want %d", got, want)
	}
}

func TestTheUpstreamsYesIsBelievedForALease(t *testing.T) {
	inTime(t, Options{Lease: time.Minute}, func(t *testing.T, r *registry, l *Leases) {
		wantAnswer(t, l, "alice/app", alice, "")
		wantAsked(t, r, 2) // everyone, and she
		time.Sleep(time.Minute - time.Second)
		wantAnswer(t, l, "alice/app", alice, "")
		wantAsked(t, r, 0)
		time.Sleep(2 * time.Second)
		r.set(func() { r.may["alice/app"] = nil })
		wantAnswer(t, l, "alice/app", alice, oci.CodeDenied)
		wantAsked(t, r, 2)
	})
}

func TestAGrantIsForOneCallerAndOneRepository(t *testing.T) {
	inTime(t, Options{}, func(t *testing.T, r *registry, l *Leases) {
		wantAnswer(t, l, "alice/app", alice, "")
		wantAnswer(t, l, "alice/app", bob, oci.CodeDenied)
		wantAnswer(t, l, "alice/app", upstream.Credential{}, oci.CodeUnauthorized)
		wantAnswer(t, l, "alice/app", upstream.Credential{Username: "alice", Password: "guess"}, oci.CodeDenied)
		// The same letters, divided otherwise.
		wantAnswer(t, l, "alice/app", upstream.Credential{Username: "alicea"}, oci.CodeDenied)
		wantAnswer(t, l, "alice/other", alice, oci.CodeDenied)
		r.set(func() { r.may = nil })
		wantAnswer(t, l, "alice/app", alice, "")
	})
}

func TestWhatEveryoneMayPullIsAskedForOnceAndWithoutCredentials(t *testing.T) {
	inTime(t, Options{}, func(t *testing.T, r *registry, l *Leases) {
		for _, c := range []upstream.Credential{alice, bob, {}} {
			wantAnswer(t, l, "library/app", c, "")
		}
		if want := []string{" library/app"}; !slices.Equal(r.asked, want) {
			t.Errorf("asked %q, want %q", r.asked, want)
		}
		if c, ok := l.Borrow("library/app"); !ok || c != (upstream.Credential{}) {
			t.Errorf("borrowed %v, %v; want none, for none is needed", c, ok)
		}
	})
}

func TestARefusalIsRememberedForAMoment(t *testing.T) {
	inTime(t, Options{}, func(t *testing.T, r *registry, l *Leases) {
		for range 3 {
			wantAnswer(t, l, "alice/app", bob, oci.CodeDenied)
		}
		wantAsked(t, r, 2)
		r.set(func() { r.may["alice/app"] = []upstream.Credential{bob} })
		time.Sleep(refusalTime)
		wantAnswer(t, l, "alice/app", bob, "")
	})
}

func TestOneCheckIsMadeForAllWhoWaitForIt(t *testing.T) {
	inTime(t, Options{}, func(t *testing.T, r *registry, l *Leases) {
		r.takes = time.Second
		var all sync.WaitGroup
		for n := range 50 {
			all.Go(func() {
				if err := l.admit(t.Context(), question{repo: "alice/app", ref: fmt.Sprint(n)}, alice, netip.Addr{}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		wantAsked(t, r, 2)
	})
}

var errGone = &oci.Error{Code: oci.CodeUnavailable, Status: http.StatusBadGateway, Message: "gone"}

func TestWhileTheUpstreamIsGone(t *testing.T) {
	for name, stretch := range map[string]time.Duration{"a lease ends": 0, "a lease is stretched as long as the settings say": time.Hour} {
		t.Run(name, func(t *testing.T) {
			inTime(t, Options{Lease: time.Minute, Stretch: stretch}, func(t *testing.T, r *registry, l *Leases) {
				wantAnswer(t, l, "alice/app", alice, "")
				wantAnswer(t, l, "library/app", bob, "")
				r.set(func() { r.broken = errGone })
				time.Sleep(50 * time.Second)
				wantAnswer(t, l, "alice/app", alice, "") // to its end
				time.Sleep(20 * time.Second)
				want := oci.CodeUnavailable
				if stretch > 0 {
					want = ""
				}
				wantAnswer(t, l, "alice/app", alice, want)
				wantAnswer(t, l, "alice/app", bob, oci.CodeUnavailable)
				wantAnswer(t, l, "alice/app", upstream.Credential{}, oci.CodeUnavailable)
				wantAnswer(t, l, "library/app", upstream.Credential{}, "") // it is no secret
				if c, ok := l.Borrow("alice/app"); ok {
					t.Errorf("the credential %v is lent after the lease", c)
				}
				time.Sleep(time.Hour)
				wantAnswer(t, l, "alice/app", alice, oci.CodeUnavailable)
				wantAnswer(t, l, "library/app", bob, "")
				time.Sleep(publicStretch)
				wantAnswer(t, l, "library/app", bob, oci.CodeUnavailable)
			})
		})
	}
}

func TestOnlyAnUpstreamThatIsGoneStretchesALease(t *testing.T) {
	for name, why := range map[string]error{
		"too many requests": oci.Errorf(oci.CodeTooManyRequests, "slow down"),
		"too many checks":   &oci.Error{Code: oci.CodeUnavailable, Err: errBusy},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, Options{Lease: time.Minute, Stretch: time.Hour}, func(t *testing.T, r *registry, l *Leases) {
				wantAnswer(t, l, "alice/app", alice, "")
				time.Sleep(2 * time.Minute)
				r.set(func() { r.broken = why })
				if err := l.admit(t.Context(), ofRepo("alice/app"), alice, netip.Addr{}); err == nil {
					t.Errorf("admitted after her lease, want her refused: she could see to it that the upstream says %v", why)
				}
			})
		})
	}
}

func TestAStretchedLeaseEndsWithTheUpstreamsNo(t *testing.T) {
	inTime(t, Options{Lease: time.Minute, Stretch: time.Hour}, func(t *testing.T, r *registry, l *Leases) {
		wantAnswer(t, l, "alice/app", alice, "")
		r.set(func() { r.broken = errGone })
		time.Sleep(2 * time.Minute)
		wantAnswer(t, l, "alice/app", alice, "")
		r.set(func() { r.broken, r.may["alice/app"] = nil, nil })
		time.Sleep(downTime)
		wantAnswer(t, l, "alice/app", alice, oci.CodeDenied)
		r.set(func() { r.broken = errGone })
		time.Sleep(refusalTime)
		wantAnswer(t, l, "alice/app", alice, oci.CodeUnavailable)
	})
}

func TestNobodyWaitsForAnUpstreamThatHangsWhoseLeaseIsStretched(t *testing.T) {
	inTime(t, Options{Lease: time.Minute, Stretch: time.Hour}, func(t *testing.T, r *registry, l *Leases) {
		wantAnswer(t, l, "alice/app", alice, "")
		time.Sleep(2 * time.Minute)
		r.set(func() { r.takes = time.Hour })
		began := time.Now()
		wantAnswer(t, l, "alice/app", alice, "")
		if took := time.Since(began); took != patience {
			t.Errorf("it took %s, want %s", took, patience)
		}
	})
}

func TestACredentialIsLentForItsRepositoryAndItsLeaseOnly(t *testing.T) {
	inTime(t, Options{Lease: time.Minute, Stretch: time.Hour}, func(t *testing.T, r *registry, l *Leases) {
		wantBorrowed := func(repo string, want upstream.Credential, wantOK bool) {
			t.Helper()
			if c, ok := l.Borrow(repo); c != want || ok != wantOK {
				t.Errorf("for %s %s is lent, %v; want %s, %v", repo, c.Username, ok, want.Username, wantOK)
			}
		}
		wantAnswer(t, l, "both/app", alice, "")
		wantBorrowed("both/app", alice, true)
		wantBorrowed("alice/app", upstream.Credential{}, false)
		time.Sleep(time.Second)
		wantAnswer(t, l, "both/app", bob, "")
		wantBorrowed("both/app", bob, true) // who came last
		l.Refused("both/app", bob)
		wantBorrowed("both/app", alice, true)
		l.Refused("both/app", alice)
		wantBorrowed("both/app", upstream.Credential{}, false)
		wantAnswer(t, l, "both/app", alice, "")
		time.Sleep(2 * time.Minute)
		wantBorrowed("both/app", upstream.Credential{}, false)
		if l.count == 0 {
			t.Error("the grants are forgotten, though they may be stretched")
		}
		for repo, all := range l.granted {
			for _, g := range all {
				if g.credential != (upstream.Credential{}) {
					t.Errorf("the credential for %s is still in memory after the lease", repo)
				}
			}
		}
	})
}

// A fill that takes longer than a lease goes on as long as the upstream says yes.
func TestALeaseThatIsBorrowedOnIsRenewed(t *testing.T) {
	inTime(t, Options{Lease: time.Minute}, func(t *testing.T, r *registry, l *Leases) {
		wantAnswer(t, l, "alice/app", alice, "")
		wantAsked(t, r, 2)
		for range 60 {
			time.Sleep(5 * time.Second)
			if _, ok := l.Borrow("alice/app"); !ok {
				t.Fatal("the lease has ended under a fill")
			}
			synctest.Wait()
		}
		if n := r.count(); n < 5 || n > 10 {
			t.Errorf("the upstream was asked %d times in five minutes, want once in each half of a lease of one", n)
		}
		r.set(func() { r.may["alice/app"] = nil })
		time.Sleep(40 * time.Second)
		_, _ = l.Borrow("alice/app")
		synctest.Wait()
		if _, ok := l.Borrow("alice/app"); ok {
			t.Error("her credential is still lent after the upstream's no")
		}
		wantAnswer(t, l, "alice/app", alice, oci.CodeDenied)
	})
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	inTime(t, Options{}, func(t *testing.T, r *registry, l *Leases) {
		for n := range maxGrants + 100 {
			repo := fmt.Sprintf("org/app-%d", n)
			r.set(func() { r.may[repo] = []upstream.Credential{{}} })
			wantAnswer(t, l, repo, upstream.Credential{}, "")
			wantAnswer(t, l, "not/"+repo, upstream.Credential{}, oci.CodeUnauthorized)
		}
		n := 0
		for _, all := range l.granted {
			n += len(all)
		}
		if n > maxGrants || n != l.count || len(l.refused) > maxRefusals {
			t.Errorf("%d grants (counted %d) and %d refusals are remembered, want %d at most", n, l.count, len(l.refused), maxGrants)
		}
	})
}

func TestACrowdThatAsksForAnythingShutsNobodyOut(t *testing.T) {
	crowd, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7")
	inTime(t, Options{}, func(t *testing.T, r *registry, l *Leases) {
		r.takes = 300 * time.Millisecond
		r.set(func() {
			for n := range 10 {
				r.may[fmt.Sprintf("public/%d", n)] = []upstream.Credential{{}}
			}
		})
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for n := range 150 {
			all.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					_ = l.admit(ctx, ofRepo(fmt.Sprintf("no/%d-%d", n, i)), upstream.Credential{}, crowd)
				}
			})
		}
		synctest.Wait()
		for n := range 10 {
			for _, c := range []struct {
				who  string
				from netip.Addr
				c    upstream.Credential
				repo string
				most time.Duration // for two checks and their turns
			}{
				{"a stranger from elsewhere", other, upstream.Credential{}, fmt.Sprintf("public/%d", n), 700 * time.Millisecond},
				{"Alice from elsewhere", other, alice, "alice/app", 1300 * time.Millisecond},
				{"Alice from where the crowd is", crowd, alice, "both/app", 1300 * time.Millisecond},
				{"one more from where the crowd is", crowd, upstream.Credential{}, fmt.Sprintf("public/%d", n), 2 * time.Second},
			} {
				began := time.Now()
				if err := l.admit(t.Context(), ofRepo(c.repo), c.c, c.from); err != nil {
					t.Errorf("%s: want it admitted, got %v", c.who, err)
				}
				if took := time.Since(began); took > c.most {
					t.Errorf("%s: it took %s, want %s at most", c.who, took, c.most)
				}
			}
		}
		stop()
		all.Wait()
	})
}

func TestACheckThatDoesNotGetItsTurnIsRefused(t *testing.T) {
	inTime(t, Options{}, func(t *testing.T, r *registry, l *Leases) {
		r.takes = 25 * time.Second
		var all sync.WaitGroup
		for n := range 2 * maxChecks {
			all.Go(func() {
				_ = l.admit(t.Context(), ofRepo(fmt.Sprintf("no/%d", n)), upstream.Credential{}, netip.Addr{})
			})
		}
		synctest.Wait()
		err := l.admit(t.Context(), ofRepo("alice/app"), upstream.Credential{}, netip.Addr{})
		var e *oci.Error
		if !errors.As(err, &e) || e.HTTPStatus() != http.StatusServiceUnavailable || e.RetryAfter == 0 {
			t.Errorf("want 503 with Retry-After, got %v", err)
		}
		all.Wait()
	})
}

// wayTo gives what stands for t in Grants' methods.
func wayTo(up, repo string) oci.Target {
	return oci.Target{Upstream: up, Repository: repo, Tag: "latest"}
}

func TestAPasswordIsShownToTheUpstreamOnlyThatItIsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := &registry{may: map[string][]upstream.Credential{"alice/app": {alice}}}, &registry{}
		a := NewLeases(Options{Upstream: "one.test", MayPull: one.mayPull})
		b := NewLeases(Options{Upstream: "two.test:5000", MayPull: two.mayPull})
		defer a.Close()
		defer b.Close()
		named := func(name string) (string, bool) {
			up, ok := map[string]string{"one.test": "one.test", "two.test:5000": "two.test:5000", "two": "two.test:5000", "public.test": "public.test"}[name]
			return up, ok
		}
		for _, c := range []struct {
			leases   []*Leases
			user     string
			one, two bool // are shown "alice"
		}{
			{[]*Leases{a, b}, "alice", false, false},
			{[]*Leases{a, b}, "one.test/alice", true, false},
			{[]*Leases{a, b}, "two/alice", false, true},
			{[]*Leases{a, b}, "public.test/alice", false, false},
			{[]*Leases{a}, "alice", true, false},
			{[]*Leases{a}, "one.test/alice", true, false},
			{[]*Leases{a}, "two/alice", false, false},
			{[]*Leases{a}, "public.test/alice", false, false},
		} {
			time.Sleep(2 * DefaultLease)
			one.count()
			two.count()
			g := New(named, c.leases...)
			header := basic(c.user, "a")
			for _, up := range []string{"one.test", "two.test:5000", "public.test"} {
				private, _ := g.Admit(t.Context(), wayTo(up, "alice/app"), rewrite.ManifestPath, header, netip.Addr{})
				if want := g.leases[up] != nil; private != want {
					t.Errorf("%s of %d: private is %v, want %v", up, len(c.leases), private, want)
				}
			}
			for name, r := range map[string]*registry{"one": one, "two": two} {
				want := map[string]bool{"one": c.one, "two": c.two}[name]
				shown := slices.ContainsFunc(r.asked, func(s string) bool { return !strings.HasPrefix(s, " ") })
				right := slices.Contains(r.asked, "alice alice/app")
				if shown != want || right != want {
					t.Errorf("%q with %d upstreams: %s was asked for %q; want the credential in it: %v", c.user, len(c.leases), name, r.asked, want)
				}
			}
		}
	})
}

// The server reads the next request into the memory of the one before: a grant that
// kept its strings would become one for what is asked for next.
func TestWhatIsRememberedDoesNotChangeWithTheRequest(t *testing.T) {
	inTime(t, Options{}, func(t *testing.T, r *registry, l *Leases) {
		memory := []byte("alice/app")
		inPlace := unsafe.String(unsafe.SliceData(memory), len(memory))
		wantAnswer(t, l, inPlace, alice, "")
		wantAnswer(t, l, inPlace, bob, oci.CodeDenied)
		copy(memory, "secrets/x")
		wantAnswer(t, l, "secrets/x", alice, oci.CodeDenied)
		for repo, all := range l.granted {
			for _, g := range all {
				if repo != "alice/app" || g.asked.repo != repo {
					t.Errorf("a grant on alice/app has become one on %s", repo)
				}
			}
		}
		for h := range l.refused {
			if h.repo == inPlace && h.who == l.account(bob) {
				t.Errorf("Bob's refusal has become one of %s", h.repo)
			}
		}
		wantAnswer(t, l, "alice/app", alice, "")
	})
}
