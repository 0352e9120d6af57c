package server

import (
	"encoding/json"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

const (
	// shortList is the number of entries up to which a list is made at once. Longer
	// ones take turns, so that a crowd that asks for them leaves processors to the
	// others.
	shortList = 1000
	// crowded is how long a turn lasts at least that others had to wait for: a crowd
	// that asks in a loop for what costs little would take all processors as well.
	crowded = time.Millisecond
	// turnPatience is how long a request waits for its turn.
	turnPatience = 10 * time.Second
	// namesAtATime is how many names of repositories are read from the index at a time.
	namesAtATime = 1000
)

// turns gives the number of long lists that are made at a time.
func turns() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// turn is the right to make a long list, or a page of the catalog. take gets it.
type turn struct {
	s              *Server
	taken, awaited bool
}

// take waits for the turn. It does nothing if the turn is taken. The error is that it
// does not come soon.
func (t *turn) take() error {
	if t.taken {
		return nil
	}
	select {
	case t.s.turns <- struct{}{}:
		t.taken = true
		return nil
	default:
	}
	patience := time.NewTimer(turnPatience)
	defer patience.Stop()
	select {
	case t.s.turns <- struct{}{}:
		t.taken, t.awaited = true, true
		return nil
	case <-patience.C:
		t.s.refused.lists.Inc()
		return listsBusy("the cache makes as many long lists as it may at a time; ask again")
	case <-t.s.base.Done():
		return t.s.base.Err()
	}
}

// end gives the turn to the next one.
func (t *turn) end() {
	if !t.taken {
		return
	}
	t.taken = false
	if t.awaited {
		time.Sleep(crowded)
	}
	<-t.s.turns
}

// listsBusy refuses a list for now.
func listsBusy(message string) *oci.Error {
	return &oci.Error{Code: oci.CodeUnavailable, Message: message, RetryAfter: retrySoon}
}

// tags answers /v2/<name>/tags/list.
func (x *exchange) tags() {
	all, outcome, err := x.s.content.Tags(x.s.base, x.target)
	x.outcome = outcome
	var p pageQuery
	if err == nil {
		p, err = x.pageQuery()
	}
	if err != nil {
		x.fail(err)
		return
	}
	t := turn{s: x.s}
	defer t.end()
	name := string(appendString(nil, x.request.Name))
	x.sendList(jsonType, stringsOf(`{"name":`+name+`,"tags":[`, x.cut(p.behind(all), p), "]}\n"), &t)
}

// referrers answers /v2/<name>/referrers/<digest>.
func (x *exchange) referrers() {
	found, outcome, err := x.s.content.Referrers(x.s.base, x.target)
	x.outcome = outcome
	if err != nil {
		x.fail(err)
		return
	}
	t := turn{s: x.s}
	defer t.end()
	if wanted, ok := rewrite.QueryValue(x.request.Query, "artifactType"); ok && wanted != "" {
		if len(found) > shortList { // a crowd must not wait with a copy each
			if err := t.take(); err != nil {
				x.fail(err)
				return
			}
		}
		found = slices.DeleteFunc(slices.Clone(found), func(d v1.Descriptor) bool { return d.ArtifactType != wanted })
		x.header("OCI-Filters-Applied", "artifactType")
	}
	x.sendList(v1.MediaTypeImageIndex, listing{
		head: `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[`, tail: "]}\n", n: len(found),
		item: func(b []byte, i int) []byte {
			j, _ := json.Marshal(found[i]) // it was read from JSON, and has nothing that cannot be written
			return append(b, j...)
		},
	}, &t)
}

// catalog answers /v2/_catalog: what is cached, each name such that it can be
// pulled from here. With ns, the names at that upstream.
func (x *exchange) catalog() {
	if x.by.grants != nil {
		x.header("Cache-Control", "private")
	}
	// One turn for the names and for what is made of them: else a crowd would wait with
	// the names that it has.
	t := turn{s: x.s}
	defer t.end()
	p, err := x.pageQuery()
	if err == nil {
		err = t.take()
	}
	var names []string
	if err == nil {
		names, err = x.repositories(p)
	}
	if err != nil {
		x.fail(err)
		return
	}
	x.sendList(jsonType, stringsOf(`{"repositories":[`, x.cut(names, p), "]}\n"), &t)
}

// repositories gives the names of a page of the catalog that the caller may see, and one
// more if there is one.
func (x *exchange) repositories(p pageQuery) ([]string, error) {
	prefix, upstream := "", ""
	if x.ns != "" {
		var ok bool
		if upstream, ok = x.s.router.Upstream(x.ns); !ok {
			return nil, nil // nothing of it is cached
		}
		prefix = upstream + "/"
	}
	most := p.most()
	var names []string
	size := int64(0)
	for after, want := x.catalogName(prefix+p.last), min(most+1, namesAtATime); len(names) <= most; want = min(4*want, namesAtATime) {
		some, err := x.s.content.Repositories(x.s.base, upstream, after, want)
		if err != nil {
			return nil, err
		}
		ended := len(some) < want
		if !ended {
			after = some[want-1]
		}
		some = x.visible(some)
		if x.by.grants != nil {
			some = x.by.grants.Visible(some, x.authorization())
		}
		for _, name := range some {
			if prefix == "" {
				name = pullName(name)
			}
			names = append(names, name[len(prefix):])
			size += int64(len(name)) + 3
		}
		if size > x.s.lists.most {
			x.s.refused.lists.Inc()
			return nil, listsBusy("the catalog is larger than a list may be (limits.manifests); ask for pages of it, by n")
		}
		if ended {
			break
		}
	}
	return names[:min(len(names), most+1)], nil
}

// pullName returns the name of the catalog by which clients pull repository: no client
// takes the colon of a registry's port.
func pullName(repository string) string {
	registry, name, ok := strings.Cut(repository, "/")
	if !ok || !strings.Contains(registry, ":") {
		return repository
	}
	return rewrite.PathName(registry) + "/" + name
}

// catalogName returns the repository of a name by which it is pulled.
func (x *exchange) catalogName(name string) string {
	registry, rest, ok := strings.Cut(name, "/")
	if upstream, known := x.s.router.Upstream(registry); ok && known && strings.Contains(registry, "_") {
		return upstream + "/" + rest
	}
	return name
}

// sendList sends a listing. Clients that read the same one share its bytes, which
// count against a limit. It takes the turn t for a long one; the caller ends it.
func (x *exchange) sendList(contentType string, l listing, t *turn) {
	if l.n > shortList {
		if err := t.take(); err != nil {
			x.fail(err)
			return
		}
	}
	size, sum := l.measure(x.s.seed)
	switch {
	case x.ctx.IsHead():
		x.stream(fasthttp.StatusOK, contentType, size)
		return
	case size <= smallBody:
		x.send(fasthttp.StatusOK, contentType, l.render(size))
		return
	}
	x.held = x.s.lists.hold(bodyKey{sum: sum, size: size}, func() []byte { return l.render(size) })
	if x.held == nil {
		x.fail(listsBusy("the lists that clients are reading take as much memory as they may (limits.manifests); ask again"))
		return
	}
	x.ctx.Response.ImmediateHeaderFlush = size > largeBody
	x.send(fasthttp.StatusOK, contentType, x.held.bytes)
}
