package doctor

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// want checks that some finding has a status, and words of what was seen.
func want(t *testing.T, found []Finding, s Status, seen string) {
	t.Helper()
	for _, f := range found {
		if f.Status == s && strings.Contains(f.Seen, seen) {
			if s != OK && f.Advice == "" && !strings.Contains(seen, "what time") {
				t.Errorf("%q has no advice", f.Seen)
			}
			return
		}
	}
	t.Errorf("want %s and %q among %+v", s, seen, found)
}

// said is a check that says one thing, after a while.
type said struct {
	name  string
	after time.Duration
}

func (s said) Name() string { return s.name }

func (s said) Look(context.Context) []Finding {
	time.Sleep(s.after)
	return []Finding{{Status: OK, Seen: s.name}}
}

func TestChecksRunBesideEachOtherAndAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		found := Run(t.Context(), []Check{said{"slow", 5 * time.Second}, said{"hangs", time.Hour}, said{"quick", 0}}, 10*time.Second)
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("they took %s", took)
		}
		if len(found) != 3 || found[0].Check != "slow" || found[1].Status != Failure || !strings.Contains(found[1].Seen, "within 10s") || found[2].Check != "quick" {
			t.Errorf("want a failure of the one that hangs, in order, got %+v", found)
		}
		if ok, warnings, failures := Counts(found); ok != 2 || warnings != 0 || failures != 1 {
			t.Errorf("counted %d, %d, %d", ok, warnings, failures)
		}
		time.Sleep(time.Hour) // the one that hangs ends, too
	})
}

func TestListenerTellsEntrepotFromOthers(t *testing.T) {
	registry := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/" {
				w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
				w.WriteHeader(status)
				return
			}
			_, _ = w.Write([]byte(text))
		}
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		status  Status
		seen    string
	}{
		"entrepot":         {registry(200, greeting+", a …"), OK, "answers as Entrepot"},
		"with logins":      {registry(401, greeting), Warning, "wants credentials"},
		"closed to us":     {registry(403, greeting), Warning, "refuses this machine"},
		"another registry": {registry(200, "hello"), Failure, "is a registry, and no Entrepot"},
		"https": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "this port speaks https", http.StatusBadRequest)
		}, Failure, "speaks https"},
		"no registry": {http.NotFound, Failure, "not as a registry does"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(c.handler)
			defer s.Close()
			want(t, Listener{URL: s.URL, HTTP: http.DefaultTransport}.Look(t.Context()), c.status, c.seen)
		})
	}
	s := httptest.NewServer(http.NotFoundHandler())
	plain := strings.TrimPrefix(s.URL, "http://")
	want(t, Listener{URL: "https://" + plain, HTTP: http.DefaultTransport}.Look(t.Context()), Failure, "speaks plain http")
	s.Close()
	want(t, Listener{URL: s.URL, HTTP: http.DefaultTransport}.Look(t.Context()), Failure, "nothing listens")
	secure := httptest.NewTLSServer(registry(200, greeting))
	defer secure.Close()
	want(t, Listener{URL: secure.URL, HTTP: http.DefaultTransport}.Look(t.Context()), Failure, "certificate")
}

func TestEnvironmentTellsOfAProxyWithoutItsPassword(t *testing.T) {
	via := func(text string) func(*http.Request) (*url.URL, error) {
		return func(*http.Request) (*url.URL, error) {
			if text == "" {
				return nil, nil
			}
			return url.Parse(text)
		}
	}
	want(t, Environment{"http://cache:5000", via("")}.Look(t.Context()), OK, "none")
	found := Environment{"http://cache:5000", via("http://user:secret@squid:3128")}.Look(t.Context())
	want(t, found, Warning, "squid:3128")
	if strings.Contains(found[0].Seen, "secret") || !strings.Contains(found[0].Advice, "cache to NO_PROXY") {
		t.Errorf("got %+v", found)
	}
}

func TestFilesComparesWhatIsAllowedWithWhatIsNeeded(t *testing.T) {
	want(t, Files{Allowed: 1000, Wanted: 2000, Whose: "it"}.Look(t.Context()), Warning, "it may open 1000 files, and would have 2000 open")
	want(t, Files{Allowed: 2000, Wanted: 2000, Whose: "it"}.Look(t.Context()), OK, "2000")
}
