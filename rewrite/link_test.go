package rewrite

import (
	"net/url"
	"strings"
	"testing"
)

func TestNextPageIsFound(t *testing.T) {
	const page = "https://reg.test/v2/a/tags/list?n=2"
	for name, c := range map[string]struct {
		page string
		in   []string
		want string
	}{
		"no header":                 {page, nil, ""},
		"relative to the root":      {page, []string{`</v2/a/tags/list?n=2&last=b>; rel="next"`}, "https://reg.test/v2/a/tags/list?n=2&last=b"},
		"relative to the page":      {page, []string{`<list?last=b>; rel=next`}, "https://reg.test/v2/a/tags/list?last=b"},
		"only a query":              {page, []string{`<?last=b>; rel=next`}, "https://reg.test/v2/a/tags/list?last=b"},
		"absolute":                  {page, []string{`<https://reg.test/v2/a/tags/list?last=b>;rel="next"`}, "https://reg.test/v2/a/tags/list?last=b"},
		"absolute, port written":    {page, []string{`<https://REG.test:443/v2/x?last=b>;rel="next"`}, "https://reg.test/v2/x?last=b"},
		"http behind a TLS proxy":   {page, []string{`<http://reg.test/v2/x?last=b>;rel="next"`}, "https://reg.test/v2/x?last=b"},
		"a port of its own":         {"http://reg.test:5000/v2/a/tags/list", []string{`<http://reg.test:5000/v2/x>; rel=next`}, "http://reg.test:5000/v2/x"},
		"other relations before it": {page, []string{`<https://other.test/>; rel="prev", </v2/x?last=b>; title="a, b; c"; rel="last next"`}, "https://reg.test/v2/x?last=b"},
		"a second header":           {page, []string{`</v2/p>; rel="prev"`, `</v2/n>; rel="NEXT"`}, "https://reg.test/v2/n"},
		"a comma in the target":     {page, []string{`</v2/x?a=1,2>; rel="next"`}, "https://reg.test/v2/x?a=1,2"},
		"the first rel counts":      {page, []string{`</v2/x>; rel="prev"; rel="next"`}, ""},
		"no rel":                    {page, []string{`</v2/x>`}, ""},
		"an open target":            {page, []string{`</v2/x; rel=next`}, ""},
		"an open quote":             {page, []string{`</v2/x>; rel="next`}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := url.Parse(c.page)
			if err != nil {
				t.Fatal(err)
			}
			got, err := NextPage(c.in, u)
			if err != nil {
				t.Fatalf("NextPage(%q): %v", c.in, err)
			}
			s := ""
			if got != nil {
				s = got.String()
			}
			if s != c.want {
				t.Errorf("NextPage(%q)\n got %q\nwant %q", c.in, s, c.want)
			}
		})
	}
}

func TestNextPageStaysOnItsHost(t *testing.T) {
	page, _ := url.Parse("https://reg.test/v2/a/tags/list?n=2")
	for _, target := range []string{
		"https://evil.test/v2/a/tags/list", "//evil.test/x", "https://reg.test:8443/x", "http://reg.test:5000/x",
		"https://user@reg.test/x", "ftp://reg.test/x", "javascript:alert(1)", "https://reg.test.evil.test/", "%zz?secret=1",
	} {
		got, err := NextPage([]string{"<" + target + `>; rel="next"`}, page)
		if err == nil {
			t.Errorf("NextPage(%q) = %v, want an error", target, got)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("NextPage(%q): the error tells the query: %v", target, err)
		}
	}
}

func FuzzNextPage(f *testing.F) {
	for _, s := range []string{
		`</v2/a/tags/list?n=2&last=b>; rel="next"`, `<https://evil.test/>; rel=next`, `<a>;rel="prev", <b>;rel=next`, `<`, `<>;rel=next`, `<//x>;rel=next`, `<a>;=;;rel`,
	} {
		f.Add(s)
	}
	page, _ := url.Parse("https://reg.test:5000/v2/a/tags/list")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := NextPage([]string{s}, page)
		if err != nil || u == nil {
			return
		}
		if u.Scheme != "https" || u.Host != "reg.test:5000" || u.User != nil {
			t.Fatalf("NextPage(%q) leads away to %s", s, u)
		}
	})
}
