package index

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// Pages of any size, from any place, are those of the sorted list of all names.
func TestRepositoriesAreListedInPages(t *testing.T) {
	ix := opened(t, filepath.Join(t.TempDir(), "index.db"))
	defer closed(t, ix)
	random := rand.New(rand.NewPCG(1, 2))
	known := map[string]bool{}
	for range 60 {
		upstream := []string{"a", "a.b", "a-b", "docker.io"}[random.IntN(4)]
		repo := []string{"x", "x/y", "x-y", "x.y", "z"}[random.IntN(5)]
		if random.IntN(2) == 0 {
			repo += fmt.Sprint("/", random.IntN(5))
		}
		known[upstream+"/"+repo] = true
		for n := range random.IntN(20) {
			if err := ix.PutTag(upstream, repo, fmt.Sprint("t", n), one); err != nil {
				t.Fatal(err)
			}
		}
		links := map[digest.Digest]Link{}
		for n := range 1 + random.IntN(20) {
			links[digest.FromString(fmt.Sprint(n))] = Link{}
		}
		if err := ix.PutLinks(upstream, repo, links); err != nil {
			t.Fatal(err)
		}
	}
	var all []string
	for name := range known {
		all = append(all, name)
	}
	slices.Sort(all)
	afters := []string{"", "0", "a", "a.", "a.b", "a.b/", "a/x", "a/x/y/3x", "a\x00x", "docker.io", "docker.io/", "e", "zzz"}
	afters = append(afters, all...)
	for _, upstream := range []string{"", "a", "a.b", "docker.io", "none"} {
		for _, after := range afters {
			for _, n := range []int{0, 1, 3, 1000} {
				var want []string
				for _, name := range all {
					if name > after && len(want) < n && (upstream == "" || strings.HasPrefix(name, upstream+"/")) {
						want = append(want, name)
					}
				}
				if got, err := ix.RepositoriesAfter(upstream, after, n); err != nil || !slices.Equal(got, want) {
					t.Errorf("%d of %q behind %q: want %q, got %q, %v", n, upstream, after, want, got, err)
				}
			}
		}
	}
}
