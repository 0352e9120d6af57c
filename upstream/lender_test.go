package upstream

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
)

// purse lends what is in it, the first first.
type purse struct {
	mu   sync.Mutex
	lent map[string][]Credential
}

func (p *purse) Borrow(repo string) (Credential, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lent[repo]) == 0 {
		return Credential{}, false
	}
	return p.lent[repo][0], true
}

func (p *purse) Refused(repo string, c Credential) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lent[repo] = slices.DeleteFunc(p.lent[repo], func(o Credential) bool { return o == c })
}

// owned lets reg.test want Basic credentials: user u may pull from u's own
// repositories, and everyone from public ones.
func owned(w *world) {
	w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
		user, password, _ := req.BasicAuth()
		owner, rest, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
		switch {
		case owner != "public" && (user != owner || password != "right"):
			rw.Header().Set("WWW-Authenticate", `Basic realm="reg"`)
			rw.WriteHeader(http.StatusUnauthorized)
		case strings.HasSuffix(rest, "/tags/list"):
			_ = json.NewEncoder(rw).Encode(map[string]any{"name": "x", "tags": []string{"latest"}})
		case strings.HasSuffix(rest, "/manifests/latest"):
			serveImage(rw, req)
		default:
			rw.WriteHeader(http.StatusNotFound)
		}
	})
}

// A registry that refuses its referrers API to everyone does not take a client's right by it.
func TestARefusedAPIOfReferrersLeavesWhatIsLent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		alice, gone := Credential{Username: "alice", Password: "right"}, Credential{Username: "alice", Password: "old"}
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			_, password, _ := req.BasicAuth()
			switch {
			case password != "right":
				rw.Header().Set("WWW-Authenticate", `Basic realm="reg"`)
				rw.WriteHeader(http.StatusUnauthorized)
			case strings.HasSuffix(req.URL.Path, "/tags/list"):
				_, _ = io.WriteString(rw, `{"tags":["latest"]}`)
			case strings.Contains(req.URL.Path, "/referrers/"):
				rw.WriteHeader(http.StatusForbidden)
			default:
				_, _ = io.WriteString(rw, index(t, "signature"))
			}
		})
		p := &purse{lent: map[string][]Credential{"a": {gone, alice}}}
		r := w.registry(Options{Lender: p})
		for range 2 {
			wantReferrers(t, r, "signature")
		}
		if c, ok := p.Borrow("a"); !ok || c != alice {
			t.Errorf("left is %v, %v; want the one that does", c, ok)
		}
	})
}

func TestARepositoryIsFetchedWithWhatIsLentForIt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		owned(w)
		alice, gone := Credential{Username: "alice", Password: "right"}, Credential{Username: "alice", Password: "old"}
		p := &purse{lent: map[string][]Credential{"alice/app": {gone, alice}, "public/app": {{}}, "bob/app": {alice}}}
		r := w.registry(Options{Lender: p})
		wantManifest(t, r, "alice/app") // the one that is refused is given up for the next
		wantManifest(t, r, "public/app")
		for _, repo := range []string{"bob/app", "carol/app"} {
			_, err := r.Manifest(t.Context(), repo, "latest")
			// A refusal would be remembered, and told to those who may.
			wantError(t, err, oci.CodeUnavailable, http.StatusServiceUnavailable, repo, "can not be fetched")
		}
		if c, ok := p.Borrow("alice/app"); !ok || c != alice {
			t.Errorf("left is %v, %v; want Alice's own, which does", c, ok)
		}
		if _, ok := p.Borrow("bob/app"); ok {
			t.Error("a credential that was refused is still there")
		}
	})
}

func TestAnUpstreamHasOneKindOfCredentials(t *testing.T) {
	_, err := New(Options{Name: "reg", Endpoints: []string{"https://reg.test"}, Lender: &purse{}, Credentials: StaticCredentials(Credential{Username: "own"})})
	if err == nil || !strings.Contains(err.Error(), "upstreams.reg.credentials") {
		t.Errorf("want an error that names the key, got %v", err)
	}
}

func TestMayPull(t *testing.T) {
	alice := Credential{Username: "alice", Password: "right"}
	for name, c := range map[string]struct {
		who       Credential
		repo, ref string
		blob      bool
		want      oci.Code // "" is yes
	}{
		"hers":                                    {who: alice, repo: "alice/app", ref: "latest"},
		"hers, and a tag that is not there":       {who: alice, repo: "alice/app", ref: "none"},
		"hers, and a blob that is not there":      {who: alice, repo: "alice/app", ref: imageDigest.String(), blob: true},
		"hers, by its tags":                       {who: alice, repo: "alice/app"},
		"by a wrong password":                     {who: Credential{Username: "alice", Password: "wrong"}, repo: "alice/app", ref: "latest", want: oci.CodeDenied},
		"another's":                               {who: alice, repo: "bob/app", ref: "latest", want: oci.CodeDenied},
		"hers, by nobody":                         {repo: "alice/app", ref: "latest", want: oci.CodeDenied},
		"everyone's, by nobody":                   {repo: "public/app", ref: "latest"},
		"everyone's, a tag that is not there":     {repo: "public/app", ref: "none"},
		"everyone's, tags":                        {repo: "public/app"},
		"everyone's, a blob that is not there":    {repo: "public/app", ref: imageDigest.String(), blob: true},
		"everyone's, by a password nobody needed": {who: alice, repo: "public/app", ref: "latest"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				owned(w)
				r := w.registry(Options{Lender: &purse{}})
				err := r.MayPull(t.Context(), c.who, c.repo, c.ref, c.blob)
				if c.want == "" {
					if err != nil {
						t.Errorf("want yes, got %v", err)
					}
					return
				}
				if !oci.IsRefused(err) {
					t.Errorf("want %s, got %v", c.want, err)
				}
			})
		})
	}
}

// What is no registry's yes is none, and what is no registry's no is not known.
func TestMayPullTakesNothingElseForAYes(t *testing.T) {
	page := func(status int, kind, body string) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", kind)
			rw.WriteHeader(status)
			_, _ = fmt.Fprint(rw, body)
		}
	}
	for name, c := range map[string]struct {
		answer  http.HandlerFunc
		refused bool
	}{
		"a login page":      {page(200, "text/html; charset=utf-8", "<html>log in</html>"), true},
		"some JSON":         {page(200, "application/json", `{"message":"hello"}`), true},
		"not found":         {page(404, "application/json", `{}`), true},
		"a bad request":     {page(400, "application/json", `{"errors":[{"code":"DIGEST_INVALID"}]}`), true},
		"no such method":    {page(405, "application/json", `{}`), true},
		"gone":              {page(410, "application/json", `{}`), true},
		"a failure":         {page(500, "application/json", `{}`), false},
		"too many requests": {page(429, "application/json", `{}`), false},
		"a redirect to a sign-in": {func(rw http.ResponseWriter, req *http.Request) {
			http.Redirect(rw, req, "https://login.test/", http.StatusFound)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", c.answer)
				w.host("login.test:443", page(200, "text/html", "<html>sign in</html>"))
				r := w.registry(Options{Lender: &purse{}, RedirectHosts: []string{"login.test"}})
				for _, blob := range []bool{false, true} {
					err := r.MayPull(t.Context(), Credential{}, "org/app", imageDigest.String(), blob)
					if err == nil || oci.IsRefused(err) != c.refused {
						t.Errorf("blob %v: want a refusal: %v, got %v", blob, c.refused, err)
					}
				}
			})
		})
	}
}

// A token that was given out before a password was changed is good until it expires:
// it proves nothing.
func TestMayPullAsksForATokenOfItsOwn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := hub(w, "https://auth.test/token")
		w.host("auth.test:443", s.serve)
		s.user, s.password = "alice", "right"
		alice := Credential{Username: "alice", Password: "right"}
		r := w.registry(Options{Lender: &purse{lent: map[string][]Credential{"alice/app": {alice}}}, Realms: []string{"auth.test"}})
		if err := r.MayPull(t.Context(), alice, "alice/app", "latest", false); err != nil {
			t.Fatal(err)
		}
		wantManifest(t, r, "alice/app") // by the token of the check
		w.wantCount("GET auth.test/token", 1)
		s.mu.Lock()
		s.password = "changed"
		s.mu.Unlock()
		if err := r.MayPull(t.Context(), alice, "alice/app", "latest", false); !oci.IsRefused(err) {
			t.Errorf("want a refusal, got %v", err)
		}
		for _, a := range w.asked {
			if strings.Contains(a, "right") {
				t.Errorf("a password is in a URL: %s", a)
			}
		}
	})
}
