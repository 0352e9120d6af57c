package rewrite

import (
	"reflect"
	"strings"
	"testing"
)

func TestChallengesAreReadAsRegistriesWriteThem(t *testing.T) {
	hub := Challenge{"bearer", map[string]string{"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:library/nginx:pull"}}
	for name, c := range map[string]struct {
		in   []string
		want []Challenge
	}{
		"Docker Hub":               {[]string{`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull"`}, []Challenge{hub}},
		"spaces around all":        {[]string{`  Bearer   realm = "https://auth.docker.io/token" , service="registry.docker.io" ,,scope = "repository:library/nginx:pull" `}, []Challenge{hub}},
		"names in any case":        {[]string{`BEARER Realm="https://auth.docker.io/token",SERVICE="registry.docker.io",Scope="repository:library/nginx:pull"`}, []Challenge{hub}},
		"quoted comma in scope":    {[]string{`Bearer realm="https://a.test/t",scope="repository:a/b:pull,push"`}, []Challenge{{"bearer", map[string]string{"realm": "https://a.test/t", "scope": "repository:a/b:pull,push"}}}},
		"escaped quote":            {[]string{`Basic realm="a \"b\" \\c"`}, []Challenge{{"basic", map[string]string{"realm": `a "b" \c`}}}},
		"unquoted values":          {[]string{`Bearer realm=https://a.test/t,service=a b,scope=repository:a:pull`}, []Challenge{{"bearer", map[string]string{"realm": "https://a.test/t", "service": "a b", "scope": "repository:a:pull"}}}},
		"several scopes":           {[]string{`Bearer realm="r",scope="repository:a:pull",scope="repository:b:pull"`}, []Challenge{{"bearer", map[string]string{"realm": "r", "scope": "repository:a:pull repository:b:pull"}}}},
		"first of a double":        {[]string{`Bearer realm="https://good.test",realm="https://evil.test"`}, []Challenge{{"bearer", map[string]string{"realm": "https://good.test"}}}},
		"two schemes, one header":  {[]string{`Basic realm="x", Bearer realm="https://a.test/t",error="insufficient_scope"`}, []Challenge{{"basic", map[string]string{"realm": "x"}}, {"bearer", map[string]string{"realm": "https://a.test/t", "error": "insufficient_scope"}}}},
		"two headers":              {[]string{`Basic realm="x"`, `Bearer realm="y"`}, []Challenge{{"basic", map[string]string{"realm": "x"}}, {"bearer", map[string]string{"realm": "y"}}}},
		"a scheme without words":   {[]string{`Negotiate, Basic realm="x"`}, []Challenge{{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": "x"}}}},
		"a scheme with a token68":  {[]string{`Negotiate YWJj/ZGVm==, Basic realm="x"`}, []Challenge{{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": "x"}}}},
		"an open quote":            {[]string{`Basic realm="x", Bearer realm="y`}, []Challenge{{"basic", map[string]string{"realm": "x"}}, {"bearer", map[string]string{}}}},
		"a quote that ends escape": {[]string{`Basic realm="x\`}, []Challenge{{"basic", map[string]string{}}}},
		"a parameter of nothing":   {[]string{`realm="x"`}, nil},
		"rubbish":                  {[]string{`"`, `=`, ` , `, ``, "\x00"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Challenges(c.in); !reflect.DeepEqual(got, c.want) {
				t.Errorf("Challenges(%q)\n got %v\nwant %v", c.in, got, c.want)
			}
		})
	}
}

func TestChallengesAreBounded(t *testing.T) {
	if got := Challenges([]string{strings.Repeat("x", maxChallengeBytes+1)}); got != nil {
		t.Errorf("an over-long header gave %d challenges, want none", len(got))
	}
	if got := Challenges([]string{strings.Repeat("a,", 1000)}); len(got) != maxChallenges {
		t.Errorf("1000 challenges gave %d, want %d", len(got), maxChallenges)
	}
	var b strings.Builder
	b.WriteString("Bearer ")
	for i := range 500 {
		b.WriteString(strings.Repeat("k", i%30+1) + string(rune('a'+i%26)) + "=1,")
	}
	if got := Challenges([]string{b.String()}); len(got) != 1 || len(got[0].Params) > maxChallengeParams {
		t.Errorf("got %d challenges, the first with %d parameters; want 1 with at most %d", len(got), len(got[0].Params), maxChallengeParams)
	}
}

func FuzzChallenges(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push"`,
		`Basic realm="a\"b", Negotiate YWJj==, Digest realm=x`,
		`Bearer realm="x`, `,,,`, `=`, `a=b`, `Basic`,
	} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		got := Challenges([]string{a, b})
		if len(got) > maxChallenges {
			t.Fatalf("Challenges(%q, %q) gave %d", a, b, len(got))
		}
		total := 0
		for _, c := range got {
			if c.Scheme == "" || c.Scheme != strings.ToLower(c.Scheme) || c.Params == nil || len(c.Params) > maxChallengeParams {
				t.Fatalf("Challenges(%q, %q) gave %+v", a, b, c)
			}
			for k, v := range c.Params {
				total += len(k) + len(v)
				if k == "" || k != strings.ToLower(k) {
					t.Fatalf("Challenges(%q, %q) gave the parameter name %q", a, b, k)
				}
			}
		}
		if total > len(a)+len(b) {
			t.Fatalf("Challenges(%q, %q) gave more than went in", a, b)
		}
	})
}
