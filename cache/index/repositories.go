package index

import (
	"bytes"
	"math"
	"slices"
	"strings"
)

// Repositories lists those of which a tag or a link is known, as
// "upstream/repository", sorted.
func (ix *Index) Repositories() ([]string, error) {
	return ix.RepositoriesAfter("", "", math.MaxInt)
}

// RepositoriesAfter lists up to n repositories of which a tag or a link is known, as
// "upstream/repository", sorted: the first that sort behind after, which need not be
// one of them. It lists those of one upstream only, if upstream is not empty. It gives
// fewer than n only at the end of the list.
//
// It seeks, and reads no name before or behind those that it gives.
func (ix *Index) RepositoriesAfter(upstream, after string, n int) (names []string, err error) {
	err = ix.view(func(tx *tx) error {
		upstreams := []string{upstream}
		if upstream == "" {
			upstreams = upstreamsOf(tx)
		}
		names = nil
		for _, u := range upstreams {
			prefix, behind := u+"/", ""
			if after >= prefix {
				var ok bool
				if behind, ok = strings.CutPrefix(after, prefix); !ok {
					continue // all of its names sort before after
				}
			}
			names = appendRepositories(names, tx, u, "", behind, n)
			if len(names) >= n {
				break
			}
		}
		return nil
	})
	return names, err
}

// upstreamsOf lists the upstreams of which a tag or a link is known, in the order in
// which the names of their repositories sort: "a.b/x" is before "a/x".
func upstreamsOf(tx *tx) []string {
	var list []string
	for _, bucket := range [][]byte{tagsBucket, linksBucket} {
		c := tx.Bucket(bucket).Cursor()
		for key, _ := c.First(); key != nil; {
			name, _, _ := bytes.Cut(key, separator)
			list = append(list, string(name))
			key, _ = c.Seek(append(bytes.Clone(name), separator[0]+1))
		}
	}
	slices.SortFunc(list, func(a, b string) int { return strings.Compare(a+"/", b+"/") })
	return slices.Compact(list)
}

// RepositoriesWith lists the repositories of which a tag or a link is known and whose
// name, "upstream/repository", begins with prefix, sorted. It seeks, and reads no other
// name.
func (ix *Index) RepositoriesWith(prefix string) (names []string, err error) {
	within, start, one := strings.Cut(prefix, "/")
	err = ix.view(func(tx *tx) error {
		names = nil
		if one {
			names = appendRepositories(names, tx, within, start, "", math.MaxInt)
			return nil
		}
		for _, u := range upstreamsOf(tx) {
			if strings.HasPrefix(u, prefix) {
				names = appendRepositories(names, tx, u, "", "", math.MaxInt)
			}
		}
		return nil
	})
	return names, err
}

// appendRepositories appends to names the repositories of an upstream that begin with
// start and sort behind after, until there are n names.
func appendRepositories(names []string, tx *tx, upstream, start, after string, n int) []string {
	a := newRepositoryCursor(tx, tagsBucket, upstream, start, after)
	b := newRepositoryCursor(tx, linksBucket, upstream, start, after)
	for len(names) < n && (a.repo != nil || b.repo != nil) {
		next := a.repo
		if next == nil || b.repo != nil && bytes.Compare(b.repo, next) < 0 {
			next = b.repo
		}
		names = append(names, upstream+"/"+string(next))
		inA, inB := bytes.Equal(a.repo, next), bytes.Equal(b.repo, next)
		if inA {
			a.advance()
		}
		if inB {
			b.advance()
		}
	}
	return names
}

// repositoryCursor walks over the repositories of an upstream in a bucket whose keys
// have three parts.
type repositoryCursor struct {
	c      *cursor
	prefix []byte // of the upstream's keys
	start  []byte // of the repositories
	// repo is the repository under the cursor; nil at the end. It is good as long as the
	// transaction.
	repo []byte
}

func newRepositoryCursor(tx *tx, bucket []byte, upstream, start, after string) *repositoryCursor {
	rc := &repositoryCursor{c: tx.Bucket(bucket).Cursor(), prefix: join(upstream, ""), start: []byte(start)}
	at := join(upstream, start)
	if after != "" {
		at = past(rc.prefix, []byte(after))
	}
	key, _ := rc.c.Seek(at)
	rc.stand(key)
	return rc
}

// past gives the key from which on there is nothing of repo.
func past(prefix, repo []byte) []byte {
	key := make([]byte, 0, len(prefix)+len(repo)+1)
	return append(append(append(key, prefix...), repo...), separator[0]+1)
}

// stand notes the repository of key, the cursor's.
func (rc *repositoryCursor) stand(key []byte) {
	rc.repo = nil
	for ; bytes.HasPrefix(key, rc.prefix); key, _ = rc.c.Next() {
		if !bytes.HasPrefix(key[len(rc.prefix):], rc.start) {
			return
		}
		if repo, _, ok := bytes.Cut(key[len(rc.prefix):], separator); ok {
			rc.repo = repo
			return
		}
	}
}

// advance goes to the next repository. Most have few keys: so it looks at those that
// follow before it seeks.
func (rc *repositoryCursor) advance() {
	this := rc.repo
	for range 8 {
		key, _ := rc.c.Next()
		if rest, ok := bytes.CutPrefix(key, rc.prefix); !ok || !bytes.HasPrefix(rest, this) || len(rest) <= len(this) || rest[len(this)] != separator[0] {
			rc.stand(key)
			return
		}
	}
	key, _ := rc.c.Seek(past(rc.prefix, this))
	rc.stand(key)
}
