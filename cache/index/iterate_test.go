package index

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestTagsAndLinksAreListedByRepositoryUpstreamOrAll(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	d := digest.FromString("x")
	for _, name := range []string{"a.io app", "a.io app2", "b.io app"} {
		var upstream, repo string
		fmt.Sscan(name, &upstream, &repo)
		for _, tag := range []string{"1", "2"} {
			if err := ix.PutTag(upstream, repo, tag, Tag{Digest: d, Checked: at(1)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := ix.PutLinks(upstream, repo, map[digest.Digest]Link{d: {Size: 7}}); err != nil {
			t.Fatal(err)
		}
	}
	ix.Touch("a.io", "app", "1", Tag{Digest: d, Checked: at(2)}) // is not on disk yet
	for _, c := range []struct {
		upstream, repo string
		tags, links    []string
	}{
		{"", "", []string{"a.io/app:1", "a.io/app:2", "a.io/app2:1", "a.io/app2:2", "b.io/app:1", "b.io/app:2"}, []string{"a.io/app", "a.io/app2", "b.io/app"}},
		{"a.io", "", []string{"a.io/app:1", "a.io/app:2", "a.io/app2:1", "a.io/app2:2"}, []string{"a.io/app", "a.io/app2"}},
		{"a.io", "app", []string{"a.io/app:1", "a.io/app:2"}, []string{"a.io/app"}},
		{"c.io", "", nil, nil},
	} {
		var tags, links []string
		err := ix.Records(c.upstream, c.repo, func(upstream, repo, tag string, rec Tag) bool {
			tags = append(tags, upstream+"/"+repo+":"+tag)
			if upstream+repo+tag == "a.ioapp1" && !rec.Checked.Equal(at(2)) {
				t.Errorf("a touched tag is %v", rec)
			}
			_, known := ix.Link(upstream, repo, d)
			return known
		})
		if err != nil || !slices.Equal(tags, c.tags) {
			t.Errorf("tags of %s %s: %v, %v", c.upstream, c.repo, tags, err)
		}
		err = ix.Links(c.upstream, c.repo, func(upstream, repo string, got digest.Digest, l Link) bool {
			links = append(links, upstream+"/"+repo)
			if got != d || l.Size != 7 {
				t.Errorf("%s %+v", got, l)
			}
			return true
		})
		if err != nil || !slices.Equal(links, c.links) {
			t.Errorf("links of %s %s: %v, %v", c.upstream, c.repo, links, err)
		}
	}
	n := 0
	if err := ix.Records("", "", func(string, string, string, Tag) bool { n++; return n < 3 }); err != nil || n != 3 {
		t.Errorf("%d were told of, %v; want an end after 3", n, err)
	}
}
