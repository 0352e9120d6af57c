package upstream

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// What is taken of a list that comes in pages.
const (
	maxPages     = 10_000
	maxPageBytes = 8 << 20
	maxListBytes = 64 << 20
	maxTags      = 1_000_000
	maxReferrers = 100_000
	// largeList is the size in bytes above which a list is read alone: decoded, it
	// takes up several times as much memory.
	largeList = 2 << 20
	// largePatience is how long a request waits for others' large lists.
	largePatience = 10 * time.Second
	// listTimeout is for all pages together.
	listTimeout = 10 * time.Minute
)

func (r *Registry) tagsAsk(repo string) *ask {
	return &ask{op: "tags", method: http.MethodGet, repo: repo, path: "tags/list",
		header: http.Header{"Accept": {"application/json"}},
		what:   "the repository " + r.name + "/" + repo, absent: oci.CodeNameUnknown}
}

// Tags lists all tags of repo, sorted, each once.
func (r *Registry) Tags(ctx context.Context, repo string) ([]string, error) {
	a := r.tagsAsk(repo)
	tags := []string{}
	f := r.pages(ctx, a, func(res *answer, raw []byte) *failure {
		var page struct {
			Tags rewrite.TagNames `json:"tags"`
		}
		if err := json.Unmarshal(raw, &page); err != nil {
			return r.garbled(res, "sent what is not a list of tags")
		}
		tags = append(tags, page.Tags...)
		if len(tags) > maxTags {
			return r.endless(res)
		}
		return nil
	})
	if f != nil {
		return nil, f.err
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

// Referrers lists the manifests whose subject is d, by the referrers API or,
// where the upstream lacks it, by the tag schema (distribution-spec, "Listing
// Referrers", "Unavailable Referrers API"). None is an empty list.
func (r *Registry) Referrers(ctx context.Context, repo string, d digest.Digest) ([]v1.Descriptor, error) {
	a := &ask{op: "referrers", method: http.MethodGet, repo: repo, path: "referrers/" + d.String(),
		header: http.Header{"Accept": {v1.MediaTypeImageIndex}},
		what:   "the referrers of " + r.image(repo, d.String()), absent: oci.CodeManifestUnknown}
	all := []v1.Descriptor{}
	f := r.pages(ctx, a, func(res *answer, raw []byte) *failure {
		page, ok := descriptors(raw)
		if !ok {
			return r.garbled(res, "sent what is not a list of referrers")
		}
		all = append(all, page...)
		if len(all) > maxReferrers {
			return r.endless(res)
		}
		return nil
	})
	switch {
	case f == nil:
		return distinct(all), nil
	case f.status != http.StatusNotFound && f.status != http.StatusMethodNotAllowed && f.status != http.StatusNotImplemented:
		return nil, f.err
	}
	m, err := r.Manifest(ctx, repo, referrersTag(d))
	if oci.IsAbsent(err) {
		return []v1.Descriptor{}, nil
	}
	if err != nil {
		return nil, err
	}
	all, _ = descriptors(m.Bytes) // an image of that name has no manifests: none
	return distinct(all), nil
}

// descriptors reads the manifests of an index, those with a digest that can be
// asked for. ok is false where raw is no JSON of an index.
func descriptors(raw []byte) (list []v1.Descriptor, ok bool) {
	var index struct {
		Manifests rewrite.Descriptors `json:"manifests"`
	}
	err := json.Unmarshal(raw, &index)
	return index.Manifests, err == nil
}

// distinct drops what comes again, and keeps the order.
func distinct(all []v1.Descriptor) []v1.Descriptor {
	seen := make(map[digest.Digest]bool, len(all))
	some := make([]v1.Descriptor, 0, len(all))
	for _, d := range all {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			some = append(some, d)
		}
	}
	return some
}

// referrersTag gives the tag under which clients keep d's referrers where the
// registry has no API for them.
func referrersTag(d digest.Digest) string {
	tag := []byte(cut(d.Algorithm().String(), 32) + "-" + cut(d.Encoded(), 64))
	for i, c := range tag {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '.', c == '-':
		default:
			tag[i] = '-'
		}
	}
	return string(tag)
}

func cut(s string, n int) string { return s[:min(n, len(s))] }

// pages gets a list page by page, all from the endpoint that gave the first.
// add is called once for each.
func (r *Registry) pages(ctx context.Context, a *ask, add func(*answer, []byte) *failure) *failure {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	seen := map[url.URL]bool{}
	total := 0
	alone := false
	defer func() {
		if alone {
			r.large.Release(1)
		}
	}()
	for range maxPages {
		var next *url.URL
		var last *answer
		f := r.do(ctx, a, func(res *answer) *failure {
			if res.StatusCode != http.StatusOK {
				return r.garbled(res, "answered %d to a GET of a list", res.StatusCode)
			}
			raw, f := r.readSmall(ctx, res, maxPageBytes)
			if f != nil {
				f.err.Code = oci.CodeUnavailable
				return f
			}
			asked := a.page
			if asked == nil {
				asked = res.ep.url(a.repo + "/" + a.path)
			}
			var err error
			if next, err = rewrite.NextPage(res.Header.Values("Link"), asked); err != nil {
				return r.garbled(res, "sent a list whose end can not be found: %v", err)
			}
			if total += len(raw); total > largeList && !alone {
				patience, done := context.WithTimeout(ctx, largePatience)
				err := r.large.Acquire(patience, 1)
				done()
				if err != nil {
					return r.crowded(res)
				}
				alone = true
			}
			if f := add(res, raw); f != nil {
				return f
			}
			last = res
			return nil
		})
		if f != nil {
			return f
		}
		if next == nil {
			return nil
		}
		if seen[*next] || total > maxListBytes {
			return r.endless(last)
		}
		seen[*next] = true
		again := *a
		again.page, again.pin = next, last.ep
		a = &again
	}
	return &failure{reason: "protocol", err: unavailable(http.StatusBadGateway, nil, "upstream %s: the list of %s has more than %d pages", r.name, a.what, maxPages)}
}

// endless makes the failure of a list that is longer than any true one.
func (r *Registry) endless(res *answer) *failure {
	f := r.garbled(res, "sends a list for %s that does not end", res.ask.what)
	f.again = nobody
	return f
}
