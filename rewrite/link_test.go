package rewrite

import (
	"net/url"
	"strings"
	"testing"
)

func TestNextPageIsFound(t *testing.T) {
	const page = "https://reg.test/v2/a/tags/list?n=2"
	own, _ := url.Parse("https://reg.test/v2/a/tags/list")
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
		"an open target":            {page, []string{`</v2/x; rel=next`}, "https://reg.test/v2/x"},
		"an open quote":             {page, []string{`</v2/x>; rel="next`}, "https://reg.test/v2/x"},
		"no brackets":               {page, []string{`/v2/a/tags/list?next_page=x%3D&n=50; rel="next"`}, "https://reg.test/v2/a/tags/list?next_page=x%3D&n=50"},
		"half a bracket":            {page, []string{`/v2/a/tags/list?last=b>; rel="next"`}, "https://reg.test/v2/a/tags/list?last=b"},
		"no brackets, second":       {page, []string{`/v2/a/tags/list?p; rel="prev", /v2/a/tags/list?n; rel="next"`}, "https://reg.test/v2/a/tags/list?n"},
		"no rel, the same list":     {page, []string{`</v2/a/tags/list?last=b>`}, "https://reg.test/v2/a/tags/list?last=b"},
		"no brackets and no rel":    {page, []string{`/v2/a/tags/list?last=b`}, "https://reg.test/v2/a/tags/list?last=b"},
		"no rel, another document":  {page, []string{`</docs/lists?x=y>`}, ""},
		"without the prefix":        {"https://reg.test/harbor/v2/a/tags/list", []string{`</v2/a/tags/list?last=b>; rel=next`}, "https://reg.test/harbor/v2/a/tags/list?last=b"},
		"without the project":       {"https://reg.test/v2/proj/a/tags/list", []string{`</v2/a/tags/list?last=b>; rel=next`}, "https://reg.test/v2/proj/a/tags/list?last=b"},
		"of referrers":              {"https://reg.test/p/v2/a/referrers/sha256:x", []string{`<http://core/v2/a/referrers/sha256:x?page=2>; rel=next`}, "https://reg.test/p/v2/a/referrers/sha256:x?page=2"},
		"an internal host":          {page, []string{`<http://core:8080/v2/a/tags/list?last=b>; rel="next"`}, "https://reg.test/v2/a/tags/list?last=b"},
		"an internal host's path":   {page, []string{`<http://core:8080/v2/next/7?t=b>; rel="next"`}, "https://reg.test/v2/next/7?t=b"},
		"where it was redirected":   {"https://eu.test/v2/mirror/a/tags/list", []string{`</v2/mirror/a/tags/list?last=b>; rel="next"`}, "https://eu.test/v2/mirror/a/tags/list?last=b"},
		"back where it came from":   {"https://eu.test/v2/mirror/a/tags/list", []string{`<https://reg.test/v2/a/tags/list?last=b>; rel="next"`}, "https://reg.test/v2/a/tags/list?last=b"},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := url.Parse(c.page)
			if err != nil {
				t.Fatal(err)
			}
			got, err := NextPage(c.in, u, own)
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
		"https://evil.test/v2/a/tags/list?x", "//evil.test/x", "https://reg.test:8443/x", "http://reg.test:5000/x",
		"https://user@reg.test/x", "https://reg.test.evil.test/", "https://reg.test@evil.test/x",
	} {
		got, err := NextPage([]string{"<" + target + `>; rel="next"`}, page, page)
		if err != nil || got.Scheme != "https" || got.Host != "reg.test" || got.User != nil {
			t.Errorf("NextPage(%q) = %v, %v; want a page of reg.test", target, got, err)
		}
	}
	for _, target := range []string{"ftp://reg.test/x", "javascript:alert(1)", "%zz?secret=1"} {
		got, err := NextPage([]string{"<" + target + `>; rel="next"`}, page, page)
		if err == nil {
			t.Errorf("NextPage(%q) = %v, want an error", target, got)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("NextPage(%q): the error tells the query: %v", target, err)
		}
	}
	// A link that cannot be read is no end of the list.
	for name, headers := range map[string][]string{
		"long": {"</x?" + strings.Repeat("a", maxLinkBytes) + `>; rel="next"`}, "many": {strings.Repeat(`</x>; rel="prev",`, maxLinks+1)},
	} {
		if got, err := NextPage(headers, page, page); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
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
		u, err := NextPage([]string{s}, page, page)
		if err != nil || u == nil {
			return
		}
		if u.Scheme != "https" || u.Host != "reg.test:5000" || u.User != nil {
			t.Fatalf("NextPage(%q) leads away to %s", s, u)
		}
	})
}
