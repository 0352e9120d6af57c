package upstream

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// basicly wants user and password.
func basicly(user, password string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if u, p, ok := req.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
}

func TestExamineTellsWhatBecomesOfTheCredentials(t *testing.T) {
	const secret = "s3cret-pass"
	alice := StaticCredentials(Credential{Username: "alice", Password: secret})
	wrong := StaticCredentials(Credential{Username: "alice", Password: "n0t-the-pass"})
	server := func(user string) func(w *world) {
		return func(w *world) {
			s := hub(w, "https://auth.test/token")
			s.user, s.password = user, secret
			w.host("auth.test:443", s.serve)
		}
	}
	for name, c := range map[string]struct {
		serve  func(w *world)
		o      Options
		access Access
		why    string
	}{
		"open":          {func(w *world) { w.host("reg.test:443", func(http.ResponseWriter, *http.Request) {}) }, Options{}, AccessOpen, ""},
		"anonymous":     {server(""), Options{}, AccessAnonymous, ""},
		"accepted":      {server("alice"), Options{Credentials: alice, Realms: []string{"auth.test"}}, AccessAccepted, ""},
		"refused":       {server("alice"), Options{Credentials: wrong, Realms: []string{"auth.test"}}, AccessRefused, "auth.test refuses those of upstreams.reg.credentials"},
		"missing":       {server("alice"), Options{}, AccessMissing, "none for it in upstreams.reg.credentials"},
		"withheld":      {server("alice"), Options{Credentials: alice}, AccessWithheld, "not in upstreams.reg.realms"},
		"basic":         {func(w *world) { w.host("reg.test:443", basicly("alice", secret)) }, Options{Credentials: alice}, AccessAccepted, ""},
		"basic refused": {func(w *world) { w.host("reg.test:443", basicly("alice", secret)) }, Options{Credentials: wrong}, AccessRefused, "answers 401"},
		"basic missing": {func(w *world) { w.host("reg.test:443", basicly("alice", secret)) }, Options{}, AccessMissing, "none for it"},
		"clients":       {server("alice"), Options{Lender: &purse{}}, AccessClients, ""},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				c.serve(w)
				list := w.registry(c.o).Examine(t.Context())
				if len(list) != 1 {
					t.Fatalf("want one endpoint, got %+v", list)
				}
				e := list[0]
				if e.Failed != "" || e.Access != c.access || !strings.Contains(e.AccessError, c.why) || (c.why == "") != (e.AccessError == "") {
					t.Errorf("want %s and %q, got %+v", c.access, c.why, e)
				}
				if text, _ := json.Marshal(e); strings.Contains(string(text), "pass") {
					t.Errorf("a secret is shown: %s", text)
				}
				w.wantCount("GET reg.test/v2/library", 0)
			})
		})
	}
}

func TestExamineTellsWhyNothingAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		serve  http.HandlerFunc
		failed string
		why    string
	}{
		"gone":   {nil, "connect", "refuses the connection"},
		"broken": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, "protocol", "answers 502 to /v2/"},
		"silent": {func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }, "timeout", "takes too long"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				if c.serve != nil {
					w.host("reg.test:443", c.serve)
				}
				w.host("also.test:443", func(http.ResponseWriter, *http.Request) {})
				list := w.registry(Options{Endpoints: []string{"https://reg.test", "https://also.test"}, HeaderTimeout: 5 * time.Second}).Examine(t.Context())
				if len(list) != 2 || list[0].Failed != c.failed || !strings.Contains(list[0].Error, c.why) {
					t.Errorf("want %s and %q, got %+v", c.failed, c.why, list)
				}
				if list[1].Failed != "" || list[1].Status != http.StatusOK {
					t.Errorf("the other one answers, got %+v", list[1])
				}
			})
		})
	}
}

func TestExamineTellsTheClockTheBreakerAndTheQuota(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		m := &meter{limit: 100, remaining: 7, window: 21600}
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Date", time.Now().Add(10*time.Minute).UTC().Format(http.TimeFormat))
			m.serve(rw, req)
		})
		r := w.registry(Options{})
		if e := r.Examine(t.Context())[0]; e.Quota != nil || e.Breaker != "closed" {
			t.Errorf("nothing is known of a quota yet, and nothing has failed: %+v", e)
		}
		wantManifest(t, r, "a")
		e := r.Examine(t.Context())[0]
		if e.Quota == nil || e.Quota.Limit != 100 || e.Quota.Remaining != 6 {
			t.Errorf("want 6 of 100, got %+v", e.Quota)
		}
		if !e.Dated || e.Ahead < 590 || e.Ahead > 610 {
			t.Errorf("want a clock ten minutes ahead, got %d s", e.Ahead)
		}
		b := r.endpoints[0].breaker
		for range breakAfter {
			b.failure(blamed{how: blameGone, repo: "a", began: time.Now(), cause: &oci.Error{Message: "it was gone"}})
		}
		if e := r.Examine(t.Context())[0]; e.Breaker != "open" || e.BreakerCause != "it was gone" || e.Failed != "" {
			t.Errorf("want an open breaker at an endpoint that answers, got %+v", e)
		}
		if b.now != breakerOpen {
			t.Error("an examination closed the breaker")
		}
	})
}

func TestExamineAsksNothingWhileRequestsAreHeld(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(http.ResponseWriter, *http.Request) {})
		r := w.registry(Options{})
		for _, op := range []string{"manifest", "blob"} {
			r.endpoints[0].governor.note(account{}, 0, op, false, http.StatusTooManyRequests, http.Header{"Retry-After": {"60"}})
		}
		e := r.Examine(t.Context())[0]
		if e.Failed != "held" || e.Quota == nil || e.Quota.AllHeldUntil.IsZero() {
			t.Errorf("want it held, got %+v", e)
		}
		w.wantCount("GET reg.test/", 0)
	})
}
