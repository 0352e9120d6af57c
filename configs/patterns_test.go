package configs

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// repositories are names that occur, at the upstreams of some router.
var repositories = []string{
	"library/nginx", "library/ones", "library/zstd", "library/a", "alice/app", "org/team/app", "bitnami/redis", "internal/a-b", "a/b",
	"a.b/c", "a_b/c__d", "a--b/c", "pause", "ones", "kube-proxy", "x/y.z", "0/0", "coredns/coredns", "q", "a1/b2/c3/d4",
}

// at reports whether a repository of an upstream can be asked for.
func at(t *testing.T, router *rewrite.Router, upstream, name string) bool {
	t.Helper()
	target, err := router.Route(name, upstream, "")
	return err == nil && target.Upstream == upstream && target.Repository == name
}

func TestACanMatchIsExact(t *testing.T) {
	router, err := rewrite.NewRouter(rewrite.Routing{Upstreams: map[string][]string{hubName: nil, "other.test": nil}})
	if err != nil {
		t.Fatal(err)
	}
	// All short names over the classes of the grammar, by upstream.
	names := map[string][]string{}
	var grow func(string)
	grow = func(s string) {
		for upstream, asked := range map[string]string{hubName: hubName, "other.test": "other.test"} {
			if s != "" && at(t, router, asked, s) {
				names[upstream] = append(names[upstream], s)
			}
		}
		if len(s) < 6 {
			for _, c := range "a._-/" {
				grow(s + string(c))
			}
		}
	}
	grow("")
	random := rand.New(rand.NewPCG(1, 2))
	matched := 0
	for range 1500 {
		pattern := make([]byte, 1+random.IntN(6))
		for i := range pattern {
			pattern[i] = "aaa._-/*?A"[random.IntN(10)]
		}
		p := string(pattern)
		for upstream, list := range names {
			want := slices.ContainsFunc(list, func(name string) bool { return matches(p, name) })
			hub := ""
			if upstream == hubName {
				hub = hubName
			}
			got := canMatch(p, hub)
			if want {
				matched++
			}
			// A short pattern may need a longer name, such as "?/?/??*" with its separators.
			if want && !got || got && !want && !strings.Contains(p, "*") && len(p) <= 6 {
				t.Errorf("%q at %s: canMatch is %v, want %v", p, upstream, got, want)
			}
		}
	}
	if matched < 100 {
		t.Errorf("only %d patterns matched anything; the test shows nothing", matched)
	}
	for p, want := range map[string]bool{
		"": false, "*": true, strings.Repeat("a", 255): true, strings.Repeat("a", 256): false, strings.Repeat("?*", 200): true,
		strings.Repeat("?*", 256): false, strings.Repeat("*", 1<<20): true, strings.Repeat("a", 1<<20): false, strings.Repeat("*a", 255): true,
	} {
		if got := canMatch(p, ""); got != want {
			t.Errorf("%.20q (%d bytes): canMatch is %v", p, len(p), got)
		}
	}
}

// FuzzAcceptedRulesMatch holds that a rule which is accepted matches a repository that
// can be asked for, and that one which matches a known repository of all its upstreams
// is accepted.
func FuzzAcceptedRulesMatch(f *testing.F) {
	for _, p := range []string{"ones", "docker.io/library/chart", "Library/zstd", "library/*", "*", "a?c", "library/nginx:1", "quay.io/x", "-", "", "a/", "*.x/y", "?", "k*8s"} {
		for _, u := range []string{"", "docker.io", "ghcr.io", "*.io", "docker.io,quay.io", "Docker.io"} {
			f.Add(p, u, true)
			f.Add(p, u, false)
		}
	}
	router, err := rewrite.NewRouter(rewrite.Routing{Upstreams: map[string][]string{"docker.io": nil, "ghcr.io": nil, "quay.io": nil}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, pattern, upstream string, deny bool) {
		if len(pattern) > 300 || len(upstream) > 100 {
			return
		}
		cfg := Default()
		for name := range cfg.Upstreams {
			if name != "docker.io" && name != "ghcr.io" && name != "quay.io" {
				delete(cfg.Upstreams, name)
			}
		}
		r := AccessRule{Repositories: []string{pattern}, Action: "allow"}
		if deny {
			r.Action = "deny"
		}
		if upstream != "" {
			r.Upstreams = strings.Split(upstream, ",")
		}
		l := &loader{cfg: cfg, where: map[string]place{}}
		l.checkRules([]AccessRule{r})
		accepted := len(l.problems) == 0
		var covered, hit []string
		for name := range cfg.Upstreams {
			if len(r.Upstreams) > 0 && !slices.ContainsFunc(r.Upstreams, func(p string) bool { return matches(p, name) }) {
				continue
			}
			covered = append(covered, name)
			if witness := witnessOf(pattern, name); witness != "" && matches(pattern, witness) && at(t, router, name, witness) {
				hit = append(hit, name)
			}
		}
		if accepted && pattern != matchNothing && len(hit) == 0 {
			t.Errorf("%+v is accepted and matches nothing", r)
		}
		if accepted && deny && len(hit) < len(covered) {
			t.Errorf("%+v is accepted, and matches at %q only", r, hit)
		}
		known := len(covered) > 0 && len(r.Upstreams) <= 1
		for _, name := range covered {
			known = known && slices.ContainsFunc(repositories, func(repo string) bool { return at(t, router, name, repo) && matches(pattern, repo) })
		}
		if !accepted && known {
			t.Errorf("%+v matches repositories, and is refused: %v", r, l.problems)
		}
	})
}

// witnessOf returns a name that a pattern matches at an upstream, and "" if it finds
// none. It tries what stars and question marks may stand for, one for all.
func witnessOf(pattern, upstream string) string {
	for _, star := range []string{"", "a", "a/a", "a/", "/a", "-", "a.a", "/", ".a", "a."} {
		for _, mark := range []string{"a", "/", "-", ".", "_"} {
			name := strings.ReplaceAll(strings.ReplaceAll(pattern, "*", star), "?", mark)
			if oci.CheckName(name) != nil {
				continue
			}
			first, _, more := strings.Cut(name, "/")
			if upstream != hubName || more && !strings.Contains(first, ".") {
				return name
			}
		}
	}
	return ""
}
